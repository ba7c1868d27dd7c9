//! `cargo xtask bench scale`: cost as the work grows.
//!
//! ```text
//! growth      one host, programmed and looked at, packet by packet     what it is made of
//! endpoints   real agents with a snapshot of many endpoints            as it is lived with
//! fleet       one change, until the last of many agents has it
//! ```

mod endpoints;
mod fleet;
mod growth;
mod picture;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::machine::{self, Machine};
use crate::build::{self, Profile};
use crate::command::{CommandExt, cargo, checkout};
use crate::setup::{self, Need};

/// What is to be measured.
#[derive(Args, Debug)]
pub struct Options {
    /// Small numbers, with debug builds; the figures are rough
    #[arg(long)]
    quick: bool,
    /// Only this part; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Planning, programming and single packets, with everything that grows
    Growth,
    /// Real agents that know many endpoints
    Endpoints,
    /// One change, until the last of many agents has applied it
    Fleet,
}

/// The programs of the tests crate that do the work.
struct Helper {
    directory: PathBuf,
}

impl Helper {
    fn build(profile: Profile) -> Result<Self> {
        let mut build = cargo();
        build.args(["build", "--package", "netagent-tests", "--bin", "growth", "--bin", "fleet"]);
        if profile == Profile::Release {
            build.arg("--release");
        }
        build.run()?;
        let binary = build::binary(profile);
        Ok(Self { directory: binary.parent().context("a binary is in a directory")?.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Measures and reports. All that was made for it is removed, also after ^C.
///
/// # Errors
/// If something cannot be set up or measured.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(Need::Hosts)?;
    let Options { quick, only } = options;
    let profile = if *quick { Profile::Debug } else { Profile::Release };
    build::all(profile)?;
    let helper = Helper::build(profile)?;
    machine::catch_interrupts()?;
    let load = machine::load();
    let wants = |part: Part| only.is_empty() || only.contains(&part);
    let mut sections = Vec::new();
    let mut section = |title, table| {
        println!("\n{title}\n\n{table}");
        sections.push(format!("## {title}\n\n{table}"));
    };
    let mut curves = picture::Curves::default();
    if wants(Part::Growth) {
        let rows = growth::measure(&helper, *quick)?;
        curves.growth(&rows);
        section("What a node's work is made of", growth::table(&rows));
    }
    if wants(Part::Endpoints) {
        let rows = endpoints::measure(profile, *quick)?;
        section("An agent that knows many endpoints", endpoints::table(&rows));
    }
    let mut outcome = Ok(());
    if wants(Part::Fleet) {
        let mut rows = Vec::new();
        outcome = fleet::measure(&helper, profile, *quick, &mut rows);
        if !rows.is_empty() {
            curves.fleet(&rows);
            section("From one change to the last agent", fleet::table(&rows));
        }
    }
    let whole = !quick && only.is_empty();
    let directory = checkout().join(if whole { "agent/docs/bench" } else { "target/bench" });
    fs::create_dir_all(&directory)?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("scale.md", &document(&Machine::this()?, load, &sections))?;
    write("scale.svg", &curves.draw())?;
    let shown = directory.strip_prefix(checkout()).unwrap_or(&directory);
    println!("Written to {}: scale.md, scale.svg", shown.display());
    outcome
}

fn document(machine: &Machine, load: f64, sections: &[String]) -> String {
    format!(
        "# Cost as the work grows\n\n\
         `cargo xtask bench scale` on {}: {}, {} CPUs, Linux {}, commit {}; load {load:.1} before.\n\n\
         ![Cost as the work grows](scale.svg)\n\n{}",
        machine.date,
        machine.cpu,
        machine.cpus,
        machine.kernel,
        machine.commit,
        sections.join("\n")
    )
}
