//! `cargo xtask chaos`: agents are killed and frozen, links cut, workloads and services come and
//! go, all at random and at once. Then everything must come right by itself.
//!
//! ```text
//! plan: seed ──> deeds with their times ──> act ──> check
//! ```
//!
//! A seed is a plan, so a run can be played again; what the deeds meet with depends on the
//! machine's mood.

mod act;
mod check;
mod plan;

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;

use self::act::Stage;
use crate::bench::machine;
use crate::build::{self, Profile};
use crate::command::checkout;
use crate::node::Datapath;
use crate::playground::{Playground, Topology};
use crate::setup::{self, Need};

/// How it is to be.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Plays the run with this seed again; by default another one each time
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long
    #[arg(long, default_value_t = 10)]
    pub minutes: u64,
    /// How many nodes; every fourth has the kernel datapath
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u8).range(2..=80))]
    pub nodes: u8,
}

/// Builds the agent, and plays.
///
/// # Errors
/// As [`play`].
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(Need::Hosts)?;
    build::all(Profile::Debug)?;
    machine::catch_interrupts()?;
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs());
    let seed = options.seed.map_or_else(seconds, Ok)?;
    play(seed, usize::from(options.nodes), Duration::from_secs(options.minutes * 60))
}

/// Plays one run, and checks what must hold at its end. The agents' logs are kept if it does not.
///
/// # Errors
/// What does not hold, with the command that plays the same again.
pub fn play(seed: u64, nodes: usize, lasts: Duration) -> Result<()> {
    let minutes = lasts.as_secs().div_ceil(60);
    let again = format!("cargo xtask chaos --seed {seed} --minutes {minutes} --nodes {nodes}");
    println!("{again}");
    let datapath = |number| if number % 4 == 3 { Datapath::Kernel } else { Datapath::Ebpf };
    let datapaths: Vec<_> = (0..nodes).map(datapath).collect();
    let mut stage = Stage::new(Playground::up(&Topology::test("chaos", &datapaths))?)?;
    let plan = plan::of(seed, nodes, lasts);
    let played = stage
        .play(&plan, machine::go_on)
        .and_then(|()| stage.settle())
        .and_then(|()| check::all(&mut stage));
    let what = format!("{} deeds on {nodes} nodes", plan.len());
    match played {
        Ok(()) => println!("{what}: everything is as it should be"),
        Err(_) => keep_logs(&stage.playground, &plan)?,
    }
    played.with_context(|| format!("after {what} (again: {again}; logs: target/chaos)"))
}

/// Keeps the agents' logs, and what was done.
fn keep_logs(playground: &Playground, plan: &[(Duration, plan::Deed)]) -> Result<()> {
    let directory = checkout().join("target/chaos");
    fs::create_dir_all(&directory)?;
    for node in playground.nodes() {
        // One that never ran has none.
        let _ = fs::copy(node.log(), directory.join(format!("{}.log", node.name())));
    }
    let lines = plan.iter().map(|(at, deed)| format!("{:8.2} {deed}\n", at.as_secs_f64()));
    fs::write(directory.join("plan"), lines.collect::<String>()).context("write the plan")
}
