//! Suites for a test machine: test targets of the `tests` crate, built, and which of their
//! tests are to run.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::image::Content;
use crate::command::{CommandExt, cargo};

/// A built test target.
#[derive(Clone, Debug)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) binary: PathBuf,
    /// Parts of names: only tests with one of them run; all if there is none.
    pub(super) filters: Vec<String>,
}

impl Suite {
    /// Builds the suites that these words name, in their order, and the programs that their
    /// tests start. A word is a target, or `target::name` for some tests of it.
    ///
    /// # Errors
    /// If there is no such target or it does not build.
    pub(super) fn build(words: &[String], known: &[String]) -> Result<(Vec<Self>, Vec<PathBuf>)> {
        let mut suites: Vec<Self> = vec![];
        for word in words {
            let (name, filter) = match word.split_once("::") {
                Some((name, filter)) => (name, Some(filter.to_owned())),
                None => (word.as_str(), None),
            };
            if !known.iter().any(|known| known == name) {
                bail!("no suite {name} for a test machine; there are {}", known.join(", "));
            }
            match suites.iter_mut().find(|suite| suite.name == name) {
                // One that is wanted as a whole stays so.
                Some(suite) if suite.filters.is_empty() || filter.is_none() => {
                    suite.filters.clear();
                }
                Some(suite) => suite.filters.extend(filter),
                None => suites.push(Self {
                    name: name.to_owned(),
                    binary: PathBuf::new(),
                    filters: filter.into_iter().collect(),
                }),
            }
        }
        let mut build = cargo();
        build.args(["test", "--package", "netagent-tests", "--no-run"]);
        build.arg("--message-format=json-render-diagnostics");
        for suite in &suites {
            build.args(["--test", &suite.name]);
        }
        build.stderr(std::process::Stdio::inherit());
        let messages = build.read()?;
        for suite in &mut suites {
            suite.binary =
                messages.lines().find_map(|line| test(line, &suite.name)).with_context(|| {
                    format!("cargo names no executable of the suite {}", suite.name)
                })?;
        }
        let programs = messages.lines().filter_map(|line| executable(line, "bin")).collect();
        Ok((suites, programs))
    }
}

/// A machine's content that runs these suites, whose tests start these programs.
pub(super) fn content(suites: &[Suite], programs: &[PathBuf]) -> Content {
    let script = |suite: &Suite| {
        let (name, binary) = (&suite.name, suite.binary.display());
        format!(
            "echo 'vm: suite {name}'\n\
             {binary} --test-threads=1 --show-output {}\n\
             echo \"vm: status $?\"\n",
            suite.filters.join(" ")
        )
    };
    Content {
        tools: Vec::new(),
        programs: programs.iter().chain(suites.iter().map(|s| &s.binary)).cloned().collect(),
        script: suites.iter().map(script).collect(),
    }
}

/// The executable that a message of cargo says it has made of a test target.
fn test(message: &str, target: &str) -> Option<PathBuf> {
    let parsed: Value = serde_json::from_str(message).ok()?;
    executable(message, "test").filter(|_| parsed["target"]["name"] == target)
}

/// The executable that a message of cargo says it has made of a target of this kind.
fn executable(message: &str, kind: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_it = message["target"]["kind"][0] == kind;
    message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
}
