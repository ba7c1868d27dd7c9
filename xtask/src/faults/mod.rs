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
mod clock;
mod drift;
mod kinds;
mod load;
mod report;
mod scene;
mod trial;

use std::time::{Duration, Instant};

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
/// What a round takes beside the fault itself, where nothing else runs.
const ROUND: Duration = Duration::from_secs(8);
/// What it takes to mend damage.
const MENDING: Duration = Duration::from_secs(6);

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
    mended: Vec<Mended>,
}

/// Damage, and how long it took each time until it was mended.
type Mended = (&'static Damage, Vec<Duration>);

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
    let plan = Plan::of(options)?;
    let progress = Progress { began: Instant::now(), about: plan.estimate() };
    eprintln!("faults: this takes about {}", minutes(progress.about));
    let mut scene = Scene::new()?;
    let mut faults = Vec::new();
    for fault in &plan.faults {
        let trials = plan.tried(fault, &mut scene, &progress)?;
        report::show(fault, &trials);
        faults.push((*fault, trials));
    }
    let mended = plan.mended(&mut scene, &progress)?;
    let run = Run { machine, command: options.line(), load, faults, mended };
    report::write(&run, options.is_whole())
}

/// What is to be done.
struct Plan {
    faults: Vec<&'static Fault>,
    damages: Vec<&'static Damage>,
    rounds: usize,
}

impl Plan {
    fn of(options: &Options) -> Result<Self> {
        let all = options.only.is_empty();
        let is_named = |id| options.only.iter().any(|only| only == id);
        Ok(Self {
            faults: FAULTS.iter().filter(|f| is_named(f.id) || (all && f.listed)).collect(),
            damages: DAMAGES.iter().filter(|damage| all || is_named(damage.id)).collect(),
            rounds: options.rounds.map_or(Ok(ROUNDS), usize::try_from)?,
        })
    }

    /// How long it takes, about.
    fn estimate(&self) -> Duration {
        let times = |time: Duration, count: usize| time * u32::try_from(count).unwrap_or(u32::MAX);
        let of = |fault: &&Fault| times(fault.lasts + ROUND, fault.rounds(self.rounds));
        let mending = times(MENDING, drift::longest(&self.damages) * self.rounds);
        self.faults.iter().map(of).sum::<Duration>() + mending
    }

    fn tried(&self, fault: &Fault, scene: &mut Scene, progress: &Progress) -> Result<Vec<Trial>> {
        (fault.before)(scene).with_context(|| format!("before {}", fault.title))?;
        let mut trials = Vec::new();
        let rounds = fault.rounds(self.rounds);
        for round in 1..=rounds {
            machine::go_on()?;
            progress.round(fault.title, round, rounds);
            trials.push(trial::of(scene, fault).with_context(|| fault.title)?);
        }
        (fault.after)(scene).with_context(|| format!("after {}", fault.title))?;
        Ok(trials)
    }

    fn mended(&self, scene: &mut Scene, progress: &Progress) -> Result<Vec<Mended>> {
        let mut mended: Vec<Mended> = self.damages.iter().map(|d| (*d, Vec::new())).collect();
        if mended.is_empty() {
            return Ok(mended);
        }
        scene.be_quiet()?;
        for round in 1..=self.rounds {
            progress.round("damage by hand", round, self.rounds);
            let times = drift::all(scene, &self.damages)?;
            mended.iter_mut().zip(times).for_each(|((_, all), time)| all.push(time));
        }
        for (damage, times) in &mended {
            println!("{}: mended after {}", damage.title, report::median(times));
        }
        Ok(mended)
    }
}

/// How far it is.
struct Progress {
    began: Instant,
    about: Duration,
}

impl Progress {
    fn round(&self, what: &str, round: usize, rounds: usize) {
        let (gone, about) = (minutes(self.began.elapsed()), minutes(self.about));
        eprintln!("faults: {gone} of about {about}: {what}, round {round} of {rounds}");
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
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
