//! What must hold when all faults have ended: every kernel is as it should be, all nodes know the
//! same, exactly what runs is known, and nothing is held twice. Looks, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::act::Stage;
use crate::command::CommandExt;
use crate::node::{Node, Shell};
use crate::playground::Playground;
use crate::wait::eventually;

/// Leases, retries and a full pass have long come and gone by then.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until all of it holds.
///
/// # Errors
/// What does not, in the end.
pub(super) fn all(stage: &mut Stage) -> Result<()> {
    let mut wrong = None;
    let right = || match once(stage) {
        Ok(()) => Ok(Some(())),
        Err(error) => {
            wrong = Some(error);
            std::thread::sleep(Duration::from_secs(1));
            Ok(None)
        }
    };
    match eventually("all to be right", PATIENCE, right) {
        Ok(()) => Ok(()),
        Err(waited) => Err(wrong.unwrap_or(waited)),
    }
}

fn once(stage: &mut Stage) -> Result<()> {
    for node in list(stage.playground.node(1), "nodes")? {
        ensure!(node["status"] == "ready", "{} is {}", node["hostname"], node["status"]);
    }
    for node in stage.playground.nodes() {
        node.read(&["netagent", "verify"])
            .with_context(|| format!("the kernel of {}", node.name()))?;
    }
    same_everywhere(&stage.playground)?;
    let endpoints = list(stage.playground.node(1), "endpoints")?;
    let services = list(stage.playground.node(1), "services")?;
    held_once(&endpoints, &services)?;
    what_runs(stage, &endpoints)
}

/// All nodes have the same objects.
fn same_everywhere(playground: &Playground) -> Result<()> {
    for what in ["networks", "services", "endpoints"] {
        let here = list(playground.node(1), what)?;
        for node in playground.nodes() {
            ensure!(list(node, what)? == here, "{} has other {what} than n1", node.name());
        }
    }
    Ok(())
}

/// No address is held twice on a network, by whomever, and no name by two services or by a
/// service and a workload; no port is published twice.
fn held_once(endpoints: &[Value], services: &[Value]) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut addresses = BTreeSet::new();
    let mut take = |network: &Value, address: &Value, who: &Value| {
        ensure!(addresses.insert((text(network), text(address))), "{who} shares {address}");
        Ok(())
    };
    for endpoint in endpoints {
        take(&endpoint["network"], &endpoint["address"], &endpoint["name"])?;
    }
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for service in services {
        ensure!(names.insert(text(&service["name"])), "two services {}", service["name"]);
        for on in service["networks"].as_array().into_iter().flatten() {
            take(&on["network"], &on["vip"], &service["name"])?;
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = (port["published"].to_string(), text(&port["protocol"]));
            ensure!(ports.insert(port.clone()), "two services publish {}", port.0);
        }
    }
    for endpoint in endpoints {
        let name = text(&endpoint["name"]);
        ensure!(!names.contains(&name), "{name} is a service and a workload");
    }
    Ok(())
}

/// The endpoints are those of the workloads that run, and each has its addresses inside.
fn what_runs(stage: &mut Stage, endpoints: &[Value]) -> Result<()> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for endpoint in endpoints {
        let (name, address) = (endpoint["name"].as_str(), endpoint["address"].as_str());
        let (name, address) = name.zip(address).context("an endpoint has a name")?;
        known.entry(name.to_owned()).or_default().insert(address.to_owned());
    }
    for (slot, child) in stage.workloads.iter_mut().enumerate() {
        let name = format!("w{slot}");
        let runs = match child {
            Some(child) => child.try_wait()?.is_none().then(|| child.id()),
            None => None,
        };
        let addresses = known.remove(&name);
        let Some(pid) = runs else {
            ensure!(addresses.is_none(), "{name} has ended and has an endpoint");
            continue;
        };
        let addresses = addresses.with_context(|| format!("{name} runs and has no endpoint"))?;
        let inside = inside(command_of(pid))?;
        ensure!(inside == addresses, "{name} should have {addresses:?} and has {inside:?}");
    }
    let left: Vec<_> = known.keys().collect();
    ensure!(left.is_empty(), "nothing of this runs: {left:?}");
    Ok(())
}

/// The command that `netagent run` runs: itself, or its child if that serves.
fn command_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.ok().and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(pid)
}

/// The addresses in a workload's namespace, as another tool tells.
fn inside(pid: u32) -> Result<BTreeSet<String>> {
    let mut show = Command::new("nsenter");
    show.args(["--target", &pid.to_string(), "--net", "--"]);
    let links: Value = serde_json::from_str(
        &show.args(["ip", "-json", "-4", "address", "show", "scope", "global"]).read()?,
    )?;
    let links = links.as_array().context("ip prints an array")?.iter();
    let addresses = links.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    Ok(addresses.filter_map(|address| address["local"].as_str().map(str::to_owned)).collect())
}

fn list(node: &Node, what: &str) -> Result<Vec<Value>> {
    let (socket, url) =
        (node.socket().display().to_string(), format!("http://localhost/v1/{what}"));
    let ask = ["curl", "--silent", "--fail", "--max-time", "10", "--unix-socket", &socket, &url];
    let mut list: Vec<Value> = serde_json::from_str(&node.read(&ask)?)?;
    list.sort_by_key(|object| object["id"].to_string());
    Ok(list)
}
