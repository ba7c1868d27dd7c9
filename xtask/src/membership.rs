//! Nodes become a cluster, by the commands that a user would type.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::node::{Node, Shell};
use crate::wait::eventually;

/// Has nodes form a cluster, the first as its manager, and waits until all are ready.
pub(crate) fn form_cluster(nodes: &[Node]) -> Result<()> {
    let [manager, workers @ ..] = nodes else { return Ok(()) };
    manager.read(&["netagent", "cluster", "init"])?;
    let token = manager.read(&["netagent", "cluster", "join-token", "worker", "-q"])?;
    let address = format!("{}:2377", manager.address);
    for node in workers {
        node.read(&["netagent", "cluster", "join", "--token", token.trim(), &address])?;
    }
    wait_until_ready(nodes)
}

/// Waits until the first has every node as ready, and the kernels of all reflect the
/// same revision.
pub(crate) fn wait_until_ready(nodes: &[Node]) -> Result<()> {
    let parse = |line: &str| serde_json::from_str::<Value>(line);
    let settled = || {
        let listing = nodes[0].read(&["netagent", "node", "ls", "--format", "json"])?;
        let members = listing.lines().map(parse).collect::<Result<Vec<_>, _>>()?;
        if members.iter().filter(|node| node["status"] == "ready").count() != nodes.len() {
            return Ok(None);
        }
        let applied = |node: &Node| -> Result<Value> {
            let info = node.read(&["netagent", "cluster", "info", "--format", "json"])?;
            Ok(parse(&info)?["applied"].take())
        };
        let applied = nodes.iter().map(applied).collect::<Result<Vec<_>>>()?;
        // 0 is none. Whoever joined last has no other than the newest.
        let same = |revision: &Value| *revision != 0 && *revision == applied[0];
        Ok(applied.iter().all(same).then_some(()))
    };
    // An emulated machine takes its time to verify three datapaths.
    eventually("all nodes to be ready", Duration::from_secs(120), settled).with_context(|| {
        let logs = nodes.iter().map(|node| format!("{}:\n{}", node.name(), node.log_end()));
        format!("the agents' logs end with\n{}", logs.collect::<Vec<_>>().join("\n"))
    })
}
