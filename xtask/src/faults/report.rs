//! The table of faults for people: at the prompt, and as a page of the documentation.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Run;
use super::kinds::Fault;
use super::trial::{Share, Trial};
use crate::command::checkout;

/// Says what a fault's trials came to.
pub(super) fn show(fault: &Fault, trials: &[Trial]) {
    println!("{}: {} rounds", fault.title, trials.len());
    for (what, value) in [
        ("requests fail", times(trials, |trial| trial.new.during)),
        ("  and after its end", times(trials, |trial| trial.new.after)),
        ("flows fail", times(trials, |trial| trial.flows.during)),
        ("  and after its end", times(trials, |trial| trial.flows.after)),
        ("until all is right", times(trials, |trial| trial.right)),
        ("requests lost", lost(trials, |trial| trial.requests)),
        ("datagrams lost", lost(trials, |trial| trial.datagrams)),
        ("connections lost", lost(trials, |trial| trial.connections)),
    ] {
        println!("  {what:24} {value}");
    }
}

/// Writes the page: of a whole run into the documentation, of others beside what was built.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(run: &Run, whole: bool) -> Result<()> {
    let directory = checkout().join(if whole { "agent/docs" } else { "target/faults" });
    fs::create_dir_all(&directory)?;
    let path = directory.join("faults.md");
    fs::write(&path, page(run)).with_context(|| format!("write {}", path.display()))?;
    println!("\nWritten to {}", path.strip_prefix(checkout()).unwrap_or(&path).display());
    Ok(())
}

fn page(run: &Run) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "# Faults\n\n\
         What users notice when something breaks. `{}` on {}: {}, {} CPUs, Linux {}, commit {}, \
         load {:.1} before.\n\n\
         Five nodes in namespaces of one machine: a manager, two with a backend each, one with the \
         kernel datapath, and one where a workload calls the service's virtual address and a client outside the published port. \
         Each of the two sends forty requests a second (a TCP connection each), four flows of a \
         hundred datagrams a second, and keeps four connections open. A request or a datagram \
         without an answer within a second is lost; a connection is lost when it is reset or \
         closed. Times are medians with the worst in brackets; what was lost is of the median and \
         the worst round, with how many were tried in it.\n\n\
         - *requests fail*: from the beginning until the last one that was lost while the fault \
         lasted; *+ after*: from its end until the last one that was lost then\n\
         - *flows fail*: the same for the datagrams\n\
         - *right*: from its end until every node is ready, every backend serves, and `netagent \
         verify` finds nothing on any node\n\n\
         | fault | requests fail | + after | flows fail | + after | right | requests lost | \
         datagrams lost | connections lost | rounds |\n|---|---|---|---|---|---|---|---|---|---|\n",
        run.command,
        machine.date,
        machine.cpu,
        machine.cpus,
        machine.kernel,
        machine.commit,
        run.load,
    );
    for (fault, trials) in &run.faults {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            fault.title,
            times(trials, |trial| trial.new.during),
            times(trials, |trial| trial.new.after),
            times(trials, |trial| trial.flows.during),
            times(trials, |trial| trial.flows.after),
            times(trials, |trial| trial.right),
            lost(trials, |trial| trial.requests),
            lost(trials, |trial| trial.datagrams),
            lost(trials, |trial| trial.connections),
            trials.len(),
        );
    }
    text += "\n## Damage by hand\n\n\
             Something of ours in the kernel is deleted or altered, on several nodes at once. `netagent verify` names it at once \
             (its exit code is 1); the next look at the kernel mends it, counts it as drift and logs it. \
             The kernel tells of links, addresses, routes and rules, so the look comes at once, five \
             seconds after the last one at the earliest; of the others it tells nothing.\n\n\
             | damage | mended after | rounds |\n|---|---|---|\n";
    for (damage, times) in &run.mended {
        let _ = writeln!(text, "| {} | {} | {} |", damage.title, median(times), times.len());
    }
    text += "\n## The faults\n\n";
    for (fault, _) in &run.faults {
        let _ = writeln!(text, "- **{}**: {}.", fault.title, fault.story);
    }
    text
}

/// Median, and worst in brackets.
fn times(trials: &[Trial], of: fn(&Trial) -> Duration) -> String {
    median(&trials.iter().map(of).collect::<Vec<_>>())
}

/// The same of times.
pub(super) fn median(times: &[Duration]) -> String {
    let mut all = times.to_vec();
    all.sort_unstable();
    let Some(worst) = all.last() else { return String::new() };
    format!("{} [{}]", seconds(all[(all.len() - 1) / 2]), seconds(*worst))
}

fn seconds(time: Duration) -> String {
    if time.is_zero() { "0".to_owned() } else { format!("{:.1} s", time.as_secs_f64()) }
}

/// Of the median and the worst trial.
fn lost(trials: &[Trial], of: fn(&Trial) -> Share) -> String {
    let mut all: Vec<_> = trials.iter().map(of).collect();
    all.sort_unstable_by_key(|share| share.lost);
    let Some(worst) = all.last() else { return String::new() };
    let median = all[(all.len() - 1) / 2];
    format!("{} [{} of {}]", median.lost, worst.lost, worst.of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_worst() {
        let trial = |seconds, lost| Trial {
            right: Duration::from_secs(seconds),
            requests: Share { lost, of: 100 },
            ..Trial::default()
        };
        let trials = [trial(3, 0), trial(1, 7), trial(2, 1)];
        assert_eq!(times(&trials, |trial| trial.right), "2.0 s [3.0 s]");
        assert_eq!(times(&trials, |trial| trial.new.after), "0 [0]");
        assert_eq!(lost(&trials, |trial| trial.requests), "1 [7 of 100]");
    }
}
