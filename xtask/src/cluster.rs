//! `cargo xtask cluster`: the playground by hand. It stays up between the commands.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::build::{self, Profile};
use crate::command::CommandExt;
use crate::node::{Datapath, Shell};
use crate::playground::{CLIENT, GATEWAY, OUTSIDE, Playground, Topology};
use crate::setup::{self, Need};

/// The playground at the prompt has plain names: n1, client.
pub(crate) const PREFIX: &str = "";

/// Datapaths of the nodes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mix {
    /// eBPF programs on all.
    Ebpf,
    /// A bridge and a vxlan device per network on all.
    Kernel,
    /// In turn.
    Mixed,
}

impl Mix {
    /// For so many nodes.
    pub fn of(self, nodes: usize) -> Vec<Datapath> {
        let turn = match self {
            Self::Ebpf => &[Datapath::Ebpf][..],
            Self::Kernel => &[Datapath::Kernel],
            Self::Mixed => &[Datapath::Ebpf, Datapath::Kernel],
        };
        turn.iter().copied().cycle().take(nodes).collect()
    }
}

/// Builds the agent and brings the playground up, unless it is.
///
/// # Errors
/// If something does not build or start; nothing is left behind then.
pub fn up(nodes: usize, mix: Mix) -> Result<()> {
    setup::ensure(Need::Hosts)?;
    if Playground::find(PREFIX)?.is_some() {
        println!("The playground is up already; `cargo xtask cluster down` takes it down.\n");
        return status();
    }
    build::all(Profile::Debug)?;
    Playground::up(&Topology::new(PREFIX, &mix.of(nodes)))?.leave_up()?;
    status()?;
    println!(
        "\nTry\n  \
         cargo xtask cluster exec n1 -- netagent network create --driver overlay mydrupal\n  \
         cargo xtask cluster exec n2 -- netagent network ls\n  \
         cargo xtask cluster exec n2 -- netagent run --network mydrupal --name a -- sleep 600 &\n  \
         cargo xtask cluster exec n1 -- netagent run --network mydrupal -- ping -c 3 a\n  \
         cargo xtask cluster exec wire -- tcpdump -ni br0 udp port 4789\n\
         and take it down with `cargo xtask cluster down`."
    );
    Ok(())
}

/// Says what is up: hosts, agents, members.
///
/// # Errors
/// If nothing is up or n1 does not answer.
pub fn status() -> Result<()> {
    let playground = find()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:8} {:16} {:10} {:10} LOG", "HOST", "ADDRESS", "DATAPATH", "AGENT")?;
    for node in playground.nodes() {
        let (name, address, datapath) = (node.name(), node.address, node.datapath.name());
        let agent = node.agent().map_or("ended".to_owned(), |agent| agent.pid.to_string());
        let log = node.log();
        writeln!(out, "{name:8} {address:16} {datapath:10} {agent:10} {}", log.display())?;
    }
    writeln!(out, "{:8} {CLIENT}", playground.client().name)?;
    writeln!(out, "{:8} {GATEWAY}, and the outside: {OUTSIDE}\n", playground.wire().name)?;
    writeln!(out, "{}", playground.node(1).read(&["netagent", "node", "ls"])?)?;
    Ok(())
}

/// Becomes a command on one of the hosts; so its exit code is ours.
///
/// # Errors
/// If there is no such host or the command cannot be started.
pub fn exec(host: &str, words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = find()?.shell(host)?.command(&words);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", command.line()))
}

/// Takes the playground down, in whatever state it is.
///
/// # Errors
/// All that could not be ended or removed.
pub fn down() -> Result<()> {
    match Playground::find(PREFIX)? {
        Some(playground) => playground.down(),
        None => {
            println!("No playground is up.");
            Ok(())
        }
    }
}

fn find() -> Result<Playground> {
    Playground::find(PREFIX)?.context("no playground is up; `cargo xtask cluster up` brings one up")
}
