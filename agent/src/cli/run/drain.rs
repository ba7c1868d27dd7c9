//! Has a workload that serves drained before its command is told to stop.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};

use crate::api::client::{Client, ClientError};
use crate::api::types::{UpdateWorkload, WorkloadFlows};
use crate::cli::{is_not_found, path};
use crate::model::{Hold, Workload};

/// Pause between two looks at the connections.
const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for the agent to say that all nodes know. It gives up on nodes that do not
/// answer before that.
const TOLD: Duration = Duration::from_secs(10);
/// Least time between two words about them, and before the first where nobody watches.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has the cluster send new connections to others, and waits, at most for `grace`, until
/// those of the workload whose process is `command` have ended. A workload that has been
/// released has none.
///
/// # Errors
/// If the agent does not answer, or refuses.
pub(super) async fn drain(agent: &Client, command: Pid, grace: Duration) -> Result<()> {
    let drained = async {
        let list: Vec<Workload> = agent.get("/v1/workloads").await?;
        let is_ours =
            |w: &&Workload| matches!(w.hold, Hold::Process { pid, .. } if pid == command.as_raw());
        let Some(workload) = list.iter().find(is_ours) else { return Ok(()) };
        let update = UpdateWorkload { draining: Some(true), weight: None };
        let route = path(&["workloads", workload.id.as_str()]);
        let _: Workload = timeout(TOLD, agent.patch(&route, &update))
            .await
            .with_context(|| format!("no answer within {TOLD:?}"))??;
        Ok(timeout(grace, ended(agent, workload)).await.unwrap_or(Ok(()))?)
    };
    let drained: Result<()> = drained.await;
    match drained {
        Err(error) if error.downcast_ref().is_some_and(is_not_found) => Ok(()),
        drained => drained.context("the command is stopped without waiting for its connections"),
    }
}

/// Waits until a workload has no connections.
async fn ended(agent: &Client, workload: &Workload) -> Result<(), ClientError> {
    let route = path(&["workloads", workload.id.as_str(), "flows"]);
    let mut progress = Progress::new(std::io::stderr().is_terminal(), Instant::now());
    loop {
        match agent.get(&route).await {
            Ok(WorkloadFlows { flows: 0 }) => return Ok(()),
            Ok(WorkloadFlows { flows }) => {
                if let Some(line) = progress.line(flows, Instant::now()) {
                    eprintln!("netagent: {line}");
                }
            }
            // An agent that restarts. The datapath goes on, and so do the connections.
            Err(ClientError::Unreachable { .. } | ClientError::Broken { .. }) => {}
            Err(error) => return Err(error),
        }
        sleep(LOOK).await;
    }
}

/// What is said while connections end: enough to see that something happens.
struct Progress {
    /// How many were told of.
    told: Option<u64>,
    /// Not before.
    next: Instant,
}

impl Progress {
    /// Of a drain that begins now. One that is quick is worth a word on a `terminal` only.
    fn new(terminal: bool, now: Instant) -> Self {
        Self { told: None, next: if terminal { now } else { now + PATIENCE } }
    }

    fn line(&mut self, flows: u64, now: Instant) -> Option<String> {
        if now < self.next || self.told == Some(flows) {
            return None;
        }
        *self = Self { told: Some(flows), next: now + PATIENCE };
        let connections = if flows == 1 { "connection" } else { "connections" };
        Some(format!("draining: {flows} {connections} left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_seldom_and_only_if_it_is_any() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut progress = Progress::new(false, start);
        assert_eq!(progress.line(3, at(0)), None);
        assert_eq!(progress.line(3, at(1000)).unwrap(), "draining: 3 connections left");
        assert_eq!(progress.line(3, at(2500)), None);
        assert_eq!(progress.line(1, at(2600)).unwrap(), "draining: 1 connection left");
        assert_eq!(progress.line(2, at(2700)), None);
        let mut watched = Progress::new(true, start);
        assert!(watched.line(3, at(0)).is_some());
    }
}
