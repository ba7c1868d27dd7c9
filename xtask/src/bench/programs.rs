//! What the eBPF programs themselves take, as the kernel counts it. Counting costs time
//! too, so this is no part of the rounds.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::measures::{Effort, Measure};
use super::{Variant, machine};
use crate::command::CommandExt;

/// Names of our programs begin so.
const PREFIX: &str = "netagent_";

/// What one program took while something was measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub(crate) variant: &'static str,
    pub(crate) name: String,
    /// How often it ran.
    pub(crate) runs: u64,
    /// Of one run, in ns; with what counting costs.
    pub(crate) nanoseconds: f64,
}

/// Of a variant, while a measure is taken of it.
pub(crate) fn of(variant: &Variant, measure: &Measure, effort: Effort) -> Result<Vec<Program>> {
    let _counting = machine::count_bpf_time()?;
    let before = totals()?;
    measure.take(variant, effort)?;
    Ok(difference(variant.id, &before, &totals()?))
}

/// Runs and ns since it was loaded, of each program by its id.
type Totals = BTreeMap<u64, (String, u64, u64)>;

fn totals() -> Result<Totals> {
    let text = Command::new("bpftool").args(["--json", "prog", "show"]).read()?;
    parse(&text).context("bpftool shows no list of programs")
}

fn parse(json: &str) -> Option<Totals> {
    let programs: Value = serde_json::from_str(json).ok()?;
    let total = |program: &Value| {
        let name = program["name"].as_str().filter(|name| name.starts_with(PREFIX))?;
        let (runs, time) = (program["run_cnt"].as_u64()?, program["run_time_ns"].as_u64()?);
        Some((program["id"].as_u64()?, (name.to_owned(), runs, time)))
    };
    Some(programs.as_array()?.iter().filter_map(total).collect())
}

/// Those that ran often: others' agents are on the machine too, but idle.
fn difference(variant: &'static str, before: &Totals, after: &Totals) -> Vec<Program> {
    let mut programs: Vec<_> = after
        .iter()
        .filter_map(|(id, (name, runs, time))| {
            let (_, runs_before, time_before) = before.get(id).cloned().unwrap_or_default();
            let (runs, time) = (runs - runs_before, time - time_before);
            (runs > 1000).then(|| Program {
                variant,
                name: name.clone(),
                runs,
                nanoseconds: time as f64 / runs as f64,
            })
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_meanwhile_and_is_ours() {
        let listing = |runs: u64, time: u64| {
            format!(
                r#"[{{"id":7,"name":"netagent_from_endpoint","run_cnt":{runs},"run_time_ns":{time}}},
                {{"id":8,"name":"netagent_idle","run_cnt":3,"run_time_ns":900}},
                {{"id":9,"name":"others","run_cnt":{runs},"run_time_ns":{time}}},
                {{"id":10,"name":"netagent_uncounted"}}]"#
            )
        };
        let before = parse(&listing(5, 1000)).unwrap();
        let after = parse(&listing(2005, 801_000)).unwrap();
        let name = "netagent_from_endpoint".to_owned();
        let expected = Program { variant: "ebpf", name, runs: 2000, nanoseconds: 400.0 };
        assert_eq!(difference("ebpf", &before, &after), [expected]);
    }
}
