//! Agents with a wall clock that can be set, while the machine's stays as it is: a script starts
//! them under libfaketime, which adds what a file says to the time, and leaves the monotonic
//! clock alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scene::Scene;
use crate::command::{CommandExt, checkout};
use crate::node::{Node, Shell};
use crate::setup::{LIBFAKETIME, installed};
use crate::wait::eventually;

/// Longest until the manager renews keys that are due.
const SOON: Duration = Duration::from_secs(60);

/// A network with keys: where the kernel has no IPsec there is none.
const ENCRYPTED: &str = "secret";

/// Gives every agent such a clock.
///
/// # Errors
/// If one does not start.
pub(super) fn install(scene: &mut Scene) -> Result<()> {
    let library = installed(LIBFAKETIME).context("libfaketime is not installed")?;
    scene.node(1).netagent(&["network", "create", "--opt", "encrypted", ENCRYPTED])?;
    for node in scene.playground.nodes() {
        let directory = directory(node);
        fs::create_dir_all(&directory)?;
        set(node, "+0")?;
        let script = directory.join("netagent");
        let text = format!(
            "#!/bin/sh\n\
             export LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1\n\
             exec {} \"$@\"\n",
            library.display(),
            offset(node).display(),
            node.binary.display(),
        );
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        node.stop_agent()?;
        Node { binary: script, ..node.clone() }.start_agent()?;
    }
    scene.wait_until_right()
}

/// Sets all clocks a day ahead, one after the other. A workload starts on every node, whose log
/// then must have tomorrow's date, and keys are renewed, since they are a day old.
///
/// # Errors
/// If that does not come about.
pub(super) fn forwards(scene: &mut Scene) -> Result<()> {
    let epoch = keys(scene)?.map(|(epoch, _)| epoch);
    scene.playground.nodes().iter().try_for_each(|node| set(node, "+1d"))?;
    let name = format!("clock-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    for node in scene.playground.nodes() {
        let run = ["netagent", "run", "--network", "net1", "--name", &name, "--", "true"];
        node.read(&run)?;
        // It may be midnight.
        let dates = [date("tomorrow")?, date("tomorrow -1 minute")?];
        let log = fs::read_to_string(node.log())?;
        let line = log.lines().rev().find(|line| line.contains("attached") && line.contains(&name));
        let line = line.with_context(|| format!("the log of {} has no {name}", node.name()))?;
        ensure!(dates.iter().any(|date| line.starts_with(date)), "{} has {line}", node.name());
    }
    let renewed = || {
        let now = keys(scene)?.map(|(epoch, _)| epoch);
        Ok((epoch.is_none() || now > epoch).then_some(()))
    };
    eventually("keys that are a day old to be renewed", SOON, renewed)
}

/// Sets all clocks so far ahead that certificates are due, which nodes look at once a minute.
///
/// # Errors
/// If a clock cannot be set.
pub(super) fn months_ahead(scene: &mut Scene) -> Result<()> {
    scene.playground.nodes().iter().try_for_each(|node| set(node, "+70d"))
}

/// Fails if a node has the certificate that it had when the clocks were right.
///
/// # Errors
/// As said.
pub(super) fn ensure_renewed(scene: &Scene) -> Result<()> {
    // Seventy days and ninety.
    let renewed = date("150 days")?;
    for node in scene.playground.nodes() {
        let expires = info(node)?["certificate_expires"].take();
        let expires = expires.as_str().unwrap_or_default();
        ensure!(*expires > *renewed, "the certificate of {} expires {expires}", node.name());
    }
    Ok(())
}

/// Sets them right again.
///
/// # Errors
/// If a clock cannot be set.
pub(super) fn back(scene: &mut Scene) -> Result<()> {
    scene.playground.nodes().iter().try_for_each(|node| set(node, "+0"))
}

/// Gives every agent the machine's clock again. Keys that were made tomorrow must have been
/// renewed.
///
/// # Errors
/// If they were not, or an agent does not start.
pub(super) fn remove(scene: &mut Scene) -> Result<()> {
    let renewed = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(keys(scene)?.is_none_or(|(_, made)| made <= now).then_some(()))
    };
    eventually("keys that were made tomorrow to be renewed", SOON, renewed)?;
    for node in scene.playground.nodes() {
        let agent = node.agent().context("no agent runs")?;
        node.stop_agent()?;
        node.start_agent()?;
        // What the library leaves behind of a process.
        for name in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = fs::remove_file(format!("/dev/shm/{name}{}", agent.pid));
        }
    }
    scene.node(1).netagent(&["network", "rm", ENCRYPTED])?;
    scene.wait_until_right()
}

/// Sets the clock of a node's agent to the machine's and so much.
fn set(node: &Node, by: &str) -> Result<()> {
    let (path, beside) = (offset(node), directory(node).join("offset.new"));
    fs::write(&beside, by).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, &path).with_context(|| format!("write {}", path.display()))
}

/// Not with the node's other files: no program may be run from /run.
fn directory(node: &Node) -> PathBuf {
    checkout().join("target/faults/clock").join(node.name())
}

fn offset(node: &Node) -> PathBuf {
    directory(node).join("offset")
}

/// The day that `date` means, as the agents' logs have it.
fn date(day: &str) -> Result<String> {
    Command::new("date").args(["--utc", "--date", day, "+%F"]).read()
}

/// Epoch of the newest keys, and when they were made, in seconds since 1970.
fn keys(scene: &Scene) -> Result<Option<(u64, u64)>> {
    let info = info(scene.node(1))?;
    Ok(info["keys"]["epoch"].as_u64().zip(info["keys"]["made"].as_u64()))
}

/// What an agent says of its cluster.
fn info(node: &Node) -> Result<Value> {
    let info = node.read(&["netagent", "cluster", "info", "--format", "json"])?;
    Ok(serde_json::from_str(&info)?)
}
