//! All figures of a run as JSON: for other programs, and to bring them out of a test machine.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::left_out::{self, LeftOut};
use super::machine::Machine;
use super::measures::MEASURES;
use super::programs::Program;
use super::stats::{Sample, Samples};
use super::{Run, VARIANTS};

/// A run, told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    command: String,
    rounds: usize,
    /// UTC.
    date: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    commit: String,
    load_before: f64,
    /// Of the values, by measure.
    units: BTreeMap<String, String>,
    programs: Vec<ToldProgram>,
    left_out: Vec<ToldLeftOut>,
    samples: Vec<ToldSample>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ToldProgram {
    variant: String,
    name: String,
    runs: u64,
    ns: f64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ToldLeftOut {
    /// The id of a measure, or what else of the variant.
    what: String,
    variant: String,
    reason: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ToldSample {
    round: usize,
    measure: String,
    variant: String,
    value: f64,
}

impl Told {
    pub(super) fn of(run: &Run) -> Self {
        let Machine { date, kernel, cpu, cpus, commit } = run.machine.clone();
        let program = |p: &Program| ToldProgram {
            variant: p.variant.to_owned(),
            name: p.name.clone(),
            runs: p.runs,
            ns: p.nanoseconds,
        };
        let left_out = |one: &LeftOut| ToldLeftOut {
            what: one.what.to_owned(),
            variant: one.variant.to_owned(),
            reason: one.reason.clone(),
        };
        let sample = |s: &Sample| ToldSample {
            round: s.round,
            measure: s.measure.to_owned(),
            variant: s.variant.to_owned(),
            value: s.value,
        };
        Self {
            command: run.command.clone(),
            rounds: run.rounds,
            date,
            kernel,
            cpu,
            cpus,
            commit,
            load_before: run.load,
            units: MEASURES.iter().map(|m| (m.id.to_owned(), format!("{:?}", m.unit))).collect(),
            programs: run.programs.iter().map(program).collect(),
            left_out: run.left_out.iter().map(left_out).collect(),
            samples: run.samples.0.iter().map(sample).collect(),
        }
    }

    /// The run that it tells of.
    ///
    /// # Errors
    /// If it names a measure or a variant that is not there.
    pub(super) fn into_run(self) -> Result<Run> {
        let Self { date, kernel, cpu, cpus, commit, .. } = self;
        let program = |p: ToldProgram| {
            let variant = variant(&p.variant)?;
            Ok(Program { variant, name: p.name, runs: p.runs, nanoseconds: p.ns })
        };
        let left_out = |one: ToldLeftOut| {
            let (what, variant) = (what(&one.what)?, variant(&one.variant)?);
            Ok(LeftOut { what, variant, reason: one.reason })
        };
        let sample = |s: ToldSample| {
            let (measure, variant) = (measure(&s.measure)?, variant(&s.variant)?);
            Ok(Sample { round: s.round, measure, variant, value: s.value })
        };
        Ok(Run {
            machine: Machine { date, kernel, cpu, cpus, commit },
            emulated: false,
            command: self.command,
            rounds: self.rounds,
            load: self.load_before,
            samples: Samples(self.samples.into_iter().map(sample).collect::<Result<_>>()?),
            programs: self.programs.into_iter().map(program).collect::<Result<_>>()?,
            left_out: self.left_out.into_iter().map(left_out).collect::<Result<_>>()?,
        })
    }
}

fn measure(id: &str) -> Result<&'static str> {
    let mut known = MEASURES.iter().map(|measure| measure.id);
    known.find(|known| *known == id).with_context(|| format!("there is no measure {id}"))
}

fn what(id: &str) -> Result<&'static str> {
    let besides = [left_out::SET_UP, left_out::PROGRAMS];
    besides.into_iter().find(|known| *known == id).map_or_else(|| measure(id), Ok)
}

fn variant(id: &str) -> Result<&'static str> {
    let mut known = VARIANTS.iter().map(|variant| variant.id);
    known.find(|known| *known == id).with_context(|| format!("there is no variant {id}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::table::tests::samples;
    use super::*;

    /// A run in which something was left out.
    pub(crate) fn run() -> Run {
        let machine = Machine {
            date: "today".to_owned(),
            kernel: "6.12".to_owned(),
            cpu: "a CPU".to_owned(),
            cpus: 2,
            commit: "abc".to_owned(),
        };
        let name = "netagent_from_uplink".to_owned();
        let left_out = |what, variant| LeftOut { what, variant, reason: "no answer".to_owned() };
        Run {
            machine,
            emulated: false,
            command: "cargo xtask bench".to_owned(),
            rounds: 3,
            load: 0.5,
            samples: samples(),
            programs: vec![Program { variant: "ebpf", name, runs: 7, nanoseconds: 88.5 }],
            left_out: vec![left_out("rtt", "docker"), left_out(left_out::SET_UP, "kernel")],
        }
    }

    #[test]
    fn what_is_told_is_the_run_again() {
        let run = run();
        let text = serde_json::to_string(&Told::of(&run)).unwrap();
        let told: Told = serde_json::from_str(&text).unwrap();
        let again = told.into_run().unwrap();
        assert_eq!(Told::of(&again), Told::of(&run));
        assert_eq!(again.samples.0, run.samples.0);
        assert_eq!(again.left_out, run.left_out);
    }

    #[test]
    fn what_nobody_knows_is_an_error() {
        assert!(measure("udp").is_ok());
        assert!(measure("warp").is_err());
        assert!(what("set-up").is_ok() && what("udp").is_ok() && what("warp").is_err());
        assert!(variant("warp").unwrap_err().to_string().contains("warp"));
    }
}
