//! `cargo xtask test`: runs the suites and counts. A suite is `unit` (all that needs
//! no root), a test target of the `tests` crate, which needs root and the agent, or `vm`:
//! some of these targets on another kernel. `faults` is one only if it is named.
//!
//! A test that cannot run here prints a line `SKIP: name: reason` and returns; it is
//! counted as skipped and named again at the end. One that fails on this machine's kernel, with
//! real processes and packets, is run once more by itself: if it passes then it counts as
//! passed, and is named at the end as unstable.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::build::{self, Profile};
use crate::command::{CommandExt, cargo, checkout};
use crate::setup::{self, Need};
use crate::{faults, vm};

const UNIT: &str = "unit";
const VM: &str = "vm";
/// Measured, and too long to be among all suites.
const FAULTS: &str = "faults";

/// Runs these suites; all if none is named. The last line says how many tests passed,
/// failed and were skipped. Whether none failed.
///
/// # Errors
/// If a suite is unknown or the agent does not build.
pub fn run(suites: &[String]) -> Result<bool> {
    let known = known()?;
    if let Some(unknown) = suites.iter().find(|suite| !known.contains(suite.as_str())) {
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        bail!("no suite {unknown}; there are {}", known.join(", "));
    }
    // Of what was started in the background it is ignored, and so it would be by what tests start
    // and end by it.
    // SAFETY: no handler of ours is replaced.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.context("cannot set SIGINT")?;
    let is_wanted = |suite: &str| suites.is_empty() || suites.iter().any(|s| s == suite);
    if suites.iter().any(|suite| suite == FAULTS) {
        faults::run(&faults::Options::default())?;
        if suites.len() == 1 {
            return Ok(true);
        }
    }
    setup::ensure(if is_wanted(VM) { Need::Machines } else { Need::Hosts })?;
    build::all(Profile::Debug)?;

    let mut count = Count::default();
    if is_wanted(UNIT) {
        count.run(cargo().args(["test", "--no-fail-fast"]))?;
    }
    let others = [UNIT, VM, FAULTS];
    for target in known.iter().filter(|s| !others.contains(&s.as_str()) && is_wanted(s)) {
        count.run(&mut rooted(target, &[]))?;
        let failed = std::mem::take(&mut count.failures);
        if !failed.is_empty() {
            count.again(&mut rooted(target, &failed), failed)?;
        }
    }
    if is_wanted(VM) {
        vm::usual(&mut count);
    }
    count.show();
    Ok(count.failed == 0)
}

/// Runs a target of the `tests` crate; only `tests` of it if there are any.
fn rooted(target: &str, tests: &[String]) -> Command {
    let mut test = cargo();
    test.args(["test", "--package", "netagent-tests", "--test", target]);
    // One at a time: they share the machine, and a skip says why in its output.
    test.args(["--", "--test-threads=1", "--show-output"]);
    if !tests.is_empty() {
        test.arg("--exact").args(tests);
    }
    test
}

/// Writes down what the verifier says of the programs, which a test holds them against.
///
/// # Errors
/// If they do not build or are refused.
pub fn write_verified() -> Result<()> {
    setup::ensure(Need::Hosts)?;
    build::ebpf()?;
    let mut write = cargo();
    write.args(["run", "--quiet", "--package", "netagent-tests", "--bin", "verified", "write"]);
    print!("{}", write.read()?);
    Ok(())
}

/// Names of all suites.
fn known() -> Result<BTreeSet<String>> {
    let mut known = targets()?;
    known.extend([UNIT, VM, FAULTS].map(str::to_owned));
    Ok(known)
}

/// Names of the test targets of the `tests` crate.
pub(crate) fn targets() -> Result<BTreeSet<String>> {
    let directory = checkout().join("tests/tests");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut targets = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        let is_target =
            path.join("main.rs").exists() || path.extension().is_some_and(|e| e == "rs");
        if let Some(name) = path.file_stem().filter(|_| is_target) {
            targets.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(targets)
}

/// What the runs came to.
#[derive(Default)]
pub(crate) struct Count {
    passed: usize,
    pub(crate) failed: usize,
    ignored: usize,
    /// Where the tests run, if that is not this machine.
    pub(crate) at: Option<String>,
    /// `name: reason` of tests that said they cannot run here; cargo has them as passed.
    skips: Vec<String>,
    /// Tests of the last run that failed.
    failures: Vec<String>,
    /// Tests that failed and then passed.
    unstable: Vec<String>,
    /// Within what tests that passed have printed.
    in_successes: bool,
    /// Within what tests that failed have printed, or their names.
    in_failures: bool,
}

impl Count {
    /// Runs cargo, shows what it prints, and counts.
    fn run(&mut self, test: &mut Command) -> Result<()> {
        println!("$ {}", test.line());
        let failed_before = self.failed;
        self.failures.clear();
        let mut child = test
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", test.line()))?;
        let output = child.stdout.take().expect("stdout is a pipe");
        for line in BufReader::new(output).split(b'\n') {
            self.take(&String::from_utf8_lossy(&line?));
        }
        let status = child.wait()?;
        if !status.success() && self.failed == failed_before {
            // It did not build, or a test process ended without a result.
            println!("`{}` failed: {status}", test.line());
            self.failed += 1;
        }
        Ok(())
    }

    /// Runs tests that have failed once more, by themselves.
    fn again(&mut self, test: &mut Command, failed: Vec<String>) -> Result<()> {
        let mut second = Self::default();
        second.run(test)?;
        let passed: Vec<_> =
            failed.into_iter().filter(|name| !second.failures.contains(name)).collect();
        // A run that broke off says nothing of any of them.
        if second.finished() > 0 && second.failed == second.failures.len() {
            self.failed -= passed.len();
            self.passed += passed.len();
            self.unstable.extend(passed);
        }
        Ok(())
    }

    /// Takes a line that a process of tests has printed.
    pub(crate) fn take(&mut self, line: &str) {
        if self.is_shown(line) {
            println!("{line}");
        }
        self.read(line);
    }

    /// Tests that have come to their end.
    pub(crate) fn finished(&self) -> usize {
        self.passed + self.failed
    }

    /// What tests that passed have printed is read for skips, and not shown.
    fn is_shown(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ if line.starts_with("test result: ") => self.in_successes = false,
            _ => {}
        }
        !self.in_successes
    }

    fn read(&mut self, line: &str) {
        if let Some(skip) = line.strip_prefix("SKIP: ") {
            let at = self.at.iter().map(|at| format!(" (Linux {at})"));
            self.skips.push(std::iter::once(skip.to_owned()).chain(at).collect());
        }
        // The last list of failures in a run is of their names alone, four spaces before each.
        if line == "failures:" {
            self.failures.clear();
            self.in_failures = true;
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.in_failures) {
            self.failures.push(name.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.in_failures = false;
        let number = |what: &str| -> usize {
            let words: Vec<&str> = result.split([' ', ';']).collect();
            let at = words.iter().position(|word| *word == what);
            at.and_then(|at| words[at - 1].parse().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.ignored += number("ignored");
    }

    /// Says what it all came to.
    pub(crate) fn show(&self) {
        let Self { passed, failed, ignored, skips, .. } = self;
        if !skips.is_empty() {
            println!("\nskipped:");
        }
        for skip in skips {
            println!("  {skip}");
        }
        if !self.unstable.is_empty() {
            println!("\nunstable (failed, then passed):");
        }
        for name in &self.unstable {
            println!("  {name}");
        }
        let passed = passed.saturating_sub(skips.len());
        let skipped = ignored + skips.len();
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(lines: &[&str]) -> (usize, usize, usize, Vec<String>) {
        let mut count = Count::default();
        lines.iter().for_each(|line| count.read(line));
        (count.passed, count.failed, count.ignored, count.skips)
    }

    #[test]
    fn results_of_all_targets_are_added() {
        let lines = [
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.12s",
            "test looks_like::a_result ... ok",
            "test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ];
        assert_eq!(count(&lines), (16, 2, 1, vec![]));
    }

    #[test]
    fn what_a_test_printed_is_shown_if_it_failed() {
        let mut count = Count::default();
        let mut lines = vec![];
        for line in [
            "test a ... ok",
            "successes:",
            "---- a stdout ----",
            "noise",
            "failures:",
            "---- b stdout ----",
            "test result: FAILED. 1 passed; 1 failed;",
            "successes:",
            "noise",
            "test result: ok. 1 passed;",
        ] {
            if count.is_shown(line) {
                lines.push(line);
            }
        }
        assert_eq!(
            lines,
            [
                "test a ... ok",
                "failures:",
                "---- b stdout ----",
                "test result: FAILED. 1 passed; 1 failed;",
                "test result: ok. 1 passed;"
            ]
        );
    }

    #[test]
    fn a_skip_is_kept_with_its_reason() {
        let lines = ["SKIP: encrypted: this kernel has no ESP (CONFIG_INET_ESP)", "a SKIP: b"];
        let skip = "encrypted: this kernel has no ESP (CONFIG_INET_ESP)".to_owned();
        assert_eq!(count(&lines), (0, 0, 0, vec![skip]));
    }

    #[test]
    fn tests_that_pass_at_the_second_time_are_named() {
        let run = |lines: &str| {
            let mut test = Command::new("printf");
            test.arg(lines);
            test
        };
        let failed = "    noise\nfailures:\n\n---- a stdout ----\n    noise\n\nfailures:\n    \
                      a::b\n    c\n\ntest result: FAILED. 5 passed; 2 failed;\n    noise\n";
        let mut count = Count::default();
        count.run(&mut run(failed)).unwrap();
        assert_eq!(count.failures, ["a::b", "c"]);
        let failures = std::mem::take(&mut count.failures);
        let second = "failures:\n    c\n\ntest result: FAILED. 1 passed; 1 failed;\n";
        count.again(&mut run(second), failures.clone()).unwrap();
        assert_eq!((count.passed, count.failed), (6, 1));
        assert_eq!(count.unstable, ["a::b"]);
        count.again(&mut run("broken off"), failures).unwrap();
        assert_eq!((count.passed, count.failed), (6, 1));
        count.run(&mut run("test result: ok. 1 passed; 0 failed;\n")).unwrap();
        assert!(count.failures.is_empty(), "those of another run");
    }

    #[test]
    fn a_run_that_does_not_even_start_its_tests_has_failed() {
        let mut count = Count::default();
        count.run(Command::new("sh").args(["-c", "exit 101"])).unwrap();
        assert_eq!(count.failed, 1);
    }
}
