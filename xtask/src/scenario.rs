//! What three hosts with a fresh cluster must be able to do, whatever they are:
//! namespaces of one machine, or machines of their own. Needs no more of a host than
//! `netagent`, `ping`, `curl` and `python3`.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::node::Shell;
use crate::wait::eventually;

const NETWORK: &str = "mydrupal";
const SERVICE: &str = "web";
/// Where the scenarios publish a web server.
pub const PORT: u16 = 8080;
/// A machine under emulation is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Three members of one cluster, and a host outside.
pub struct Hosts<'a> {
    /// The members with their addresses on the underlay.
    pub nodes: [(&'a dyn Shell, Ipv4Addr); 3],
    /// The host outside.
    pub client: &'a dyn Shell,
    /// Its address, as the members see it.
    pub client_address: Ipv4Addr,
    /// Ends the agent of a node (numbered from 0) and starts it again.
    pub restart: &'a dyn Fn(usize) -> Result<()>,
}

/// What was started; ends when dropped.
pub struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Already gone is what we want.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs everything in order; `tell` hears what was seen. Logs go to `scratch`. What was
/// started runs on.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn all(hosts: &Hosts<'_>, scratch: &Path, tell: &dyn Fn(&str)) -> Result<Running> {
    let [(n1, _), (n2, _), (n3, _)] = hosts.nodes;
    n1.read(&["netagent", "network", "create", "--driver", "overlay", NETWORK])?;
    let run = ["netagent", "run", "--network", NETWORK];
    let mut running = Running(vec![background(
        n1,
        &[&run[..], &["--name", "a", "--", "sleep", "3600"]].concat(),
        &scratch.join("a"),
    )?]);
    let ping = |node: &dyn Shell, options: &[&str]| {
        node.read(&[&run[..], &["--", "ping", "-q"], options, &["a"]].concat())
    };
    eventually("a is found", PATIENCE, || Ok(ping(n3, &["-c", "1", "-W", "2"]).ok()))?;
    tell("a workload is found by name across hosts");

    let publish = format!("{PORT}:80");
    n1.read(&[
        "netagent",
        "service",
        "create",
        "--name",
        SERVICE,
        "--network",
        NETWORK,
        "-p",
        &publish,
    ])?;
    let serve = [
        "netagent",
        "run",
        "--service",
        SERVICE,
        "--health-http",
        ":80/",
        "--health-interval",
        "1s",
    ];
    let server = ["--", "python3", "-u", "-m", "http.server", "80"];
    let logs = [scratch.join("web1"), scratch.join("web2")];
    for (node, log) in [n1, n2].into_iter().zip(&logs) {
        running.0.push(background(node, &[&serve[..], &server].concat(), log)?);
    }
    eventually("two healthy tasks", PATIENCE, || {
        Ok(n3.read(&["netagent", "service", "ls"])?.contains("2/2").then_some(()))
    })?;
    let get = |from: &dyn Shell, at: &str| {
        let url = format!("http://{at}:{PORT}/");
        let options =
            ["--silent", "--show-error", "--fail", "--max-time", "30", "--output", "/dev/null"];
        from.read(&[&["curl"][..], &options, &[&url]].concat()).map(drop)
    };
    for (node, address) in hosts.nodes {
        get(hosts.client, &address.to_string())?;
        get(node, "127.0.0.1")?;
    }
    let seen = logs.iter().map(fs::read_to_string).collect::<Result<String, _>>()?;
    let from = format!("{} - - ", hosts.client_address);
    let count = seen.lines().filter(|line| line.starts_with(&from)).count();
    ensure!(
        count == 3,
        "the servers saw {count} of 3 requests from {}:\n{seen}",
        hosts.client_address
    );
    tell(
        "every host answers on the published port, to a client outside and to itself; the servers see the client",
    );

    let (log, count) = (scratch.join("ping"), "100");
    let load = ["--", "ping", "-q", "-i", "0.1", "-c", count, "a"];
    let mut load = background(n3, &[&run[..], &load].concat(), &log)?;
    // Whoever starts while the manager is away is refused.
    eventually("the ping to begin", PATIENCE, || {
        Ok(fs::read_to_string(&log)?.contains("PING").then_some(()))
    })?;
    for number in 0..hosts.nodes.len() {
        (hosts.restart)(number)?;
    }
    ensure!(load.wait()?.success(), "the ping failed");
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains(" 0% packet loss"), "packets were lost: {said}");
    tell("agents restart, and a ping across hosts loses nothing");

    for (node, address) in hosts.nodes {
        eventually("the agents answer", PATIENCE, || Ok(node.read(&["netagent", "verify"]).ok()))?;
        get(hosts.client, &address.to_string())?;
    }
    tell("each kernel is as it should be");
    Ok(running)
}

fn background(node: &dyn Shell, words: &[&str], log: &Path) -> Result<Child> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = node.command(words);
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.spawn().with_context(|| format!("cannot start {}", words.join(" ")))
}
