//! What playgrounds have written down of themselves, so that any later process can find
//! them and take them down: one directory each, under names made of their prefixes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::Datapath;
use crate::playground::Topology;
use crate::process::Process;

/// Where records are, with the files of the nodes.
const RECORDS: &str = "/run/netagent-playground";
/// Where agents of playgrounds pin.
const PINS: &str = "/sys/fs/bpf/netagent-playground";

/// How a playground is called: its prefix, which may be empty.
pub(crate) fn title(prefix: &str) -> &str {
    if prefix.is_empty() { "default" } else { prefix }
}

fn prefix(title: &str) -> &str {
    if title == "default" { "" } else { title }
}

/// Directory of a playground.
pub(crate) fn directory(prefix: &str) -> PathBuf {
    Path::new(RECORDS).join(title(prefix))
}

/// Directory of a playground's pins.
pub(crate) fn pins(prefix: &str) -> PathBuf {
    Path::new(PINS).join(title(prefix))
}

/// Writes down what a playground is. With an owner it is up no longer than that lives.
pub(crate) fn write(topology: &Topology, owner: Option<Process>) -> Result<()> {
    let text = json!({
        "nodes": topology.nodes.iter().map(|datapath| datapath.name()).collect::<Vec<_>>(),
        "mtu": topology.mtu,
        "binary": topology.binary,
        "owner": owner.map(|owner| json!({ "pid": owner.pid, "start": owner.start })),
    });
    let directory = directory(&topology.prefix);
    let write = || {
        fs::create_dir_all(&directory)?;
        // In one step: by half a record nothing could be taken down.
        fs::write(directory.join("record.new"), format!("{text:#}\n"))?;
        fs::rename(directory.join("record.new"), directory.join("record.json"))
    };
    write().with_context(|| format!("cannot write {}", directory.display()))
}

/// What was written down of a playground: the topology and the owner.
pub(crate) fn read(prefix: &str) -> Result<Option<(Topology, Option<Process>)>> {
    let path = directory(prefix).join("record.json");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let record = parse(prefix, &text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(record))
}

fn parse(prefix: &str, text: &str) -> Option<(Topology, Option<Process>)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let datapath =
        |name: &Value| [Datapath::Ebpf, Datapath::Kernel].into_iter().find(|d| name == d.name());
    let topology = Topology {
        prefix: prefix.to_owned(),
        nodes: value["nodes"].as_array()?.iter().map(datapath).collect::<Option<_>>()?,
        mtu: value["mtu"].as_u64()?.try_into().ok()?,
        binary: value["binary"].as_str()?.into(),
    };
    let owner = match &value["owner"] {
        Value::Null => None,
        owner => Some(Process {
            pid: owner["pid"].as_i64()?.try_into().ok()?,
            start: owner["start"].as_u64()?,
        }),
    };
    Some((topology, owner))
}

/// Keeps other processes from taking down what is abandoned, until it is dropped; none
/// if nothing is written down.
pub(crate) fn lock() -> Result<Option<File>> {
    let Ok(records) = File::open(RECORDS) else { return Ok(None) };
    records.lock().with_context(|| format!("cannot lock {RECORDS}"))?;
    Ok(Some(records))
}

/// Playgrounds whose owners are gone.
pub(crate) fn abandoned() -> Vec<Topology> {
    let Ok(entries) = fs::read_dir(RECORDS) else { return Vec::new() };
    let is_abandoned = |title: &str| match read(prefix(title)) {
        Ok(Some((topology, Some(owner)))) if !owner.is_alive() => Some(topology),
        _ => None,
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|title| is_abandoned(&title))
        .collect()
}

/// Removes a directory with all in it, and its parent if that is then empty.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
        }
        _ => {}
    }
    if let Some(parent) = directory.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}
