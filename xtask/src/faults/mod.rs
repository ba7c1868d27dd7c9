//! `cargo xtask test faults`: what users notice of every fault, and how long it takes until all
//! is as it was.
//!
//! ```text
//! kinds: the faults ──> trial, round after round ──> report: the table in the documentation
//!                          │ scene: a cluster that is called all the time <── load
//! drift: damage done by hand ──> mended, and reported
//! ```
//!
//! Real agents in namespaces. Times are measured and never judged; what must hold at any speed
//! is in the `tests` crate. Fails if something does not come right by itself.

mod build;
mod drift;
mod kinds;
mod load;
mod report;
mod scene;
mod trial;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::drift::{DAMAGES, Damage};
use self::kinds::{FAULTS, Fault};
use self::scene::Scene;
use self::trial::Trial;
use crate::bench::machine::{self, Machine};
use crate::build::Profile;
use crate::setup::{self, Need};

pub use load::serve;

/// Rounds of a whole run: fewer tell nothing of the worst.
const ROUNDS: usize = 10;

/// What is to be tried.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// How often each; 10 unless it is said, and only those become documentation
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Only this fault; may be repeated
    #[arg(long, value_name = "FAULT")]
    only: Vec<String>,
}

/// What a run has found.
struct Run {
    machine: Machine,
    command: String,
    load: f64,
    faults: Vec<(&'static Fault, Vec<Trial>)>,
    /// How long it took until damage was mended.
    mended: Vec<(&'static Damage, Vec<Duration>)>,
}

/// Tries the faults and reports. All that was made for it is removed, also after ^C.
///
/// # Errors
/// If a fault is unknown, or something does not come right by itself.
pub fn run(options: &Options) -> Result<()> {
    let ids = || FAULTS.iter().map(|f| f.id).chain(DAMAGES.iter().map(|d| d.id));
    if let Some(unknown) = options.only.iter().find(|only| !ids().any(|id| id == **only)) {
        let ids: Vec<_> = ids().collect();
        bail!("there is no fault {unknown}; there are {}", ids.join(", "));
    }
    setup::ensure(Need::Hosts)?;
    crate::build::all(Profile::Debug)?;
    machine::catch_interrupts()?;
    let (machine, load) = (Machine::this()?, machine::load());
    let rounds = options.rounds.map_or(Ok(ROUNDS), usize::try_from)?;
    let is_wanted = |id| options.only.is_empty() || options.only.iter().any(|only| only == id);
    let mut scene = Scene::new()?;
    let mut faults = Vec::new();
    for fault in FAULTS.iter().filter(|fault| is_wanted(fault.id)) {
        let mut trials = Vec::new();
        for round in 0..fault.rounds.map_or(rounds, |most| most.min(rounds)) {
            machine::go_on()?;
            eprintln!("faults: {}, round {}", fault.title, round + 1);
            trials.push(trial::of(&mut scene, fault).with_context(|| fault.title)?);
        }
        report::show(fault, &trials);
        faults.push((fault, trials));
    }
    let mut mended = Vec::new();
    for damage in DAMAGES.iter().filter(|damage| is_wanted(damage.id)) {
        let mut times = Vec::new();
        for _ in 0..rounds {
            machine::go_on()?;
            times.push(drift::of(&scene, damage).with_context(|| damage.title)?);
            scene.wait_until_right()?;
        }
        println!("{}: mended after {}", damage.title, report::median(&times));
        mended.push((damage, times));
    }
    let run = Run { machine, command: options.line(), load, faults, mended };
    report::write(&run, options.is_whole())
}

impl Options {
    fn is_whole(&self) -> bool {
        self.only.is_empty() && self.rounds.is_none()
    }

    /// As one would type it.
    fn line(&self) -> String {
        if self.is_whole() {
            return "cargo xtask test faults".to_owned();
        }
        let rounds = self.rounds.map(|rounds| format!(" --rounds {rounds}"));
        let only = self.only.iter().map(|id| format!(" --only {id}"));
        ["cargo xtask faults".to_owned()].into_iter().chain(rounds).chain(only).collect()
    }
}
