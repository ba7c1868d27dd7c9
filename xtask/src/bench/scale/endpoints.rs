//! What grows with the number of endpoints that a real agent knows, and what it costs itself.
//!
//! ```text
//! n1 manager, gone after the start     n2 worker, workload a ── wire ── n3 worker, workload b
//! ```
//!
//! A worker whose manager is away goes by the snapshot on its disk. So the snapshots of
//! n2 and n3 are written with as many endpoints as are wanted, all of them n1's, and
//! their agents started on an empty datapath.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};

use super::super::lab::Lab;
use super::super::machine;
use super::super::measures::{Effort, MEASURES};
use super::super::processes;
use super::super::stats::Summary;
use super::super::{Variant, overlay};
use crate::build::{self, Profile};
use crate::command::CommandExt;
use crate::node::{Datapath, Node, Shell};
use crate::playground::{Playground, Topology};
use crate::wait::eventually;

const NETWORK: &str = "scale";
/// Room for 262,000 endpoints.
const SUBNET: &str = "10.64.0.0/14";
/// The first address of those that are written; lower ones are the manager's to give.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 16, 0);

/// Where a worker keeps what the manager told.
const SNAPSHOT: &str = "data/snapshot.json";
/// The workload that comes and goes.
const AGAIN: &str = "again";

/// What was found with so many endpoints.
pub(super) struct Row {
    pub(super) endpoints: usize,
    /// From the start of an agent on an empty datapath until it had applied, in s.
    programmed: f64,
    /// Kernel memory of all maps, in bytes.
    maps: u64,
    /// Packets per second, and instructions per packet where they can be counted.
    packets: f64,
    instructions: Option<f64>,
    /// To run a command in a workload and to release it again, in s.
    change: f64,
    /// Resident memory of the agent, in bytes.
    resident: u64,
    /// Its part of a CPU while nothing happens.
    idle: f64,
}

/// Measures it with each of these numbers of endpoints: idle agents for so many seconds, all
/// else so often.
pub(super) fn measure(profile: Profile, quick: bool) -> Result<Vec<Row>> {
    let (sizes, seconds, repeats) = match quick {
        true => (&[10, 1_000][..], 2, 1),
        false => (&[10, 1_000, 10_000, 100_000][..], 65, 5),
    };
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let binary = build::binary(profile);
    let topology = Topology { binary, ..Topology::test("scale", &[Datapath::Ebpf; 3]) };
    let playground = Playground::up(&topology)?;
    let lab = Lab::new()?;
    let _session = machine::prefer_this_session()?;
    let site = Site::new(&playground, &lab)?;
    sizes.iter().map(|size| site.measure(*size, effort, seconds, repeats)).collect()
}

/// Two workers, with what their disks had when the manager was there.
struct Site<'a> {
    nodes: [&'a Node; 2],
    snapshots: [Value; 2],
    variant: Variant,
}

impl<'a> Site<'a> {
    fn new(playground: &'a Playground, lab: &Lab) -> Result<Self> {
        let nodes = [playground.node(2), playground.node(3)];
        let create = ["netagent", "network", "create", "--driver", "overlay", "--subnet", SUBNET];
        playground.node(1).read(&[&create[..], &[NETWORK]].concat())?;
        let client = overlay::workload(lab, nodes[0], NETWORK, "a")?;
        let server = overlay::workload(lab, nodes[1], NETWORK, "b")?;
        let variant = overlay::variant("ebpf", client, server, Vec::new())?;
        let mut again = nodes[0].spawn(&overlay::run(NETWORK, AGAIN, &["sleep", "infinity"]))?;
        overlay::wait_for(&mut again)?;
        let read = |node: &Node| -> Result<Value> {
            let text = fs::read_to_string(node.directory.join(SNAPSHOT))?;
            serde_json::from_str(&text).context("a node's snapshot is no JSON")
        };
        playground.node(1).kill_agent()?;
        // One that stops leaves a snapshot and no changes.
        nodes.iter().try_for_each(|node| node.stop_agent())?;
        let snapshots = [read(nodes[0])?, read(nodes[1])?];
        nodes.iter().try_for_each(|node| node.start_agent())?;
        // What it had is the node's to give again while there is no manager.
        again.kill()?;
        again.wait()?;
        Ok(Self { nodes, snapshots, variant })
    }

    fn measure(&self, endpoints: usize, effort: Effort, seconds: u64, repeats: u32) -> Result<Row> {
        eprintln!("bench: {endpoints} endpoints");
        for (node, snapshot) in self.nodes.iter().zip(&self.snapshots) {
            node.teardown()?;
            let text = with_endpoints(snapshot, endpoints)?.to_string();
            fs::write(node.directory.join(SNAPSHOT), text)?;
        }
        let node = self.nodes[0];
        let programmed = start(node)?;
        start(self.nodes[1])?;
        let _servers = processes::serve(&self.variant)?;
        let median = |id: &str| -> Result<Option<f64>> {
            let measure = MEASURES.iter().find(|measure| measure.id == id);
            let measure = measure.filter(|measure| measure.is_of(&self.variant));
            let Some(measure) = measure else { return Ok(None) };
            let take = |_| {
                machine::go_on()?;
                measure.take(&self.variant, effort).with_context(|| format!("measuring {id}"))
            };
            let values = (0..repeats).map(take).collect::<Result<Vec<_>>>()?;
            Ok(Summary::of(&values).map(|summary| summary.median))
        };
        let packets = median("udp")?.context("packets can be counted everywhere")?;
        let instructions = median("instructions")?;
        let mut changes = Vec::new();
        for _ in 0..repeats {
            machine::go_on()?;
            let begin = Instant::now();
            node.read(&overlay::run(NETWORK, AGAIN, &["true"]))?;
            changes.push(begin.elapsed().as_secs_f64());
            // Its end is to be seen and done with.
            sleep(Duration::from_secs(2));
        }
        let change = Summary::of(&changes).context("at least one change")?.median;
        let agent = node.agent().context("the agent has ended")?.pid;
        let before = cpu_time(agent)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) {
            machine::go_on()?;
            sleep(Duration::from_secs(1));
        }
        let idle = (cpu_time(agent)? - before) / begin.elapsed().as_secs_f64();
        let (maps, resident) = (map_memory(node)?, resident(agent)?);
        Ok(Row { endpoints, programmed, maps, packets, instructions, change, resident, idle })
    }
}

/// Starts the agent of a node that has none of its things in the kernel; how long it
/// takes until all is there, in s.
fn start(node: &Node) -> Result<f64> {
    let log = || fs::read_to_string(node.log()).unwrap_or_default();
    let old = log().len();
    let begin = Instant::now();
    node.start_agent()?;
    let applied = || Ok(log()[old..].contains(": applied ").then_some(()));
    eventually("the agent to apply its snapshot", Duration::from_secs(600), applied)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The snapshot with as many endpoints more, of a node that is not this one.
fn with_endpoints(snapshot: &Value, endpoints: usize) -> Result<Value> {
    let mut snapshot = snapshot.clone();
    let manager = |node: &&Value| node["role"] == "manager";
    let nodes = snapshot["nodes"].as_object().context("a snapshot has nodes")?;
    let node = nodes.values().find(manager).context("a snapshot has a manager")?["id"].clone();
    let own = snapshot["endpoints"].as_object_mut().context("a snapshot has endpoints")?;
    let model = own.values().next().context("there is an endpoint already")?.clone();
    for number in 0..u32::try_from(endpoints)? {
        let address = Ipv4Addr::from(u32::from(FIRST) + number);
        let [_, b, c, d] = address.octets();
        let id = identifier(number);
        let mut endpoint = model.clone();
        endpoint["id"] = json!(id);
        endpoint["workload"] = json!(id);
        endpoint["node"] = node.clone();
        endpoint["name"] = json!(format!("e{number}"));
        endpoint["address"] = json!(address);
        endpoint["mac"] = json!(format!("02:6e:0a:{b:02x}:{c:02x}:{d:02x}"));
        own.insert(id, endpoint);
    }
    Ok(snapshot)
}

/// Sixteen letters, as identifiers have them.
fn identifier(mut number: u32) -> String {
    let mut letters = [b'a'; 16];
    for letter in letters.iter_mut().rev() {
        *letter += (number % 26) as u8;
        number /= 26;
    }
    String::from_utf8_lossy(&letters).into_owned()
}

/// Bytes that the kernel accounts to the maps that the agent pinned.
fn map_memory(node: &Node) -> Result<u64> {
    let mut bytes = 0;
    for version in fs::read_dir(&node.pins)? {
        for map in fs::read_dir(version?.path().join("maps"))? {
            let mut show = Command::new("bpftool");
            show.args(["--json", "map", "show", "pinned"]).arg(map?.path());
            let shown: Value = serde_json::from_str(&show.read()?)?;
            let line = || format!("`{}` tells no memory", show.line());
            bytes += shown["bytes_memlock"].as_u64().with_context(line)?;
        }
    }
    Ok(bytes)
}

/// Time on a CPU that a process has had, in s.
pub(super) fn cpu_time(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = || -> Option<f64> {
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
    };
    let second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel tells no clock tick")?;
    Ok(ticks().context("/proc/PID/stat has no times")? / second as f64)
}

/// Resident memory of a process, in bytes.
pub(super) fn resident(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("/proc/PID/status has no VmRSS")? << 10)
}

/// The rows, and what they mean.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = "| endpoints | into an empty node, s | one workload more, ms | maps, MiB | \
                    agent, MiB | agent idle, % of a CPU | packets, k/s | instructions per packet |\n\
                    |--:|--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for row in rows {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let instructions = row.instructions.map_or("-".to_owned(), |count| format!("{count:.0}"));
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.0} | {:.2} | {:.1} | {:.2} | {:.0} | {instructions} |",
            row.endpoints,
            row.programmed,
            row.change * 1e3,
            mib(row.maps),
            mib(row.resident),
            row.idle * 1e2,
            row.packets / 1e3,
        );
    }
    text + "\nAll endpoints are of one network that the node has a workload in, on another node. The \
           manager is away: an agent that starts waits up to 3 s for it and then goes by its disk, \
           which is in the first column of times. \"One workload more\" is `netagent run` of a \
           command that does nothing, from the shell and back. Idle covers two full passes, in \
           which the agent compares all of the kernel with what it wants. Packets are small UDP \
           packets between two workloads on two nodes, two CPUs.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_grows_by_endpoints_of_the_manager() {
        let snapshot = json!({
            "nodes": {"w": {"id": "w", "role": "worker"}, "m": {"id": "m", "role": "manager"}},
            "endpoints": {"x": {"id": "x", "node": "w", "network": "n", "address": "10.64.0.2"}},
        });
        let grown = with_endpoints(&snapshot, 300).unwrap();
        let endpoints = grown["endpoints"].as_object().unwrap();
        assert_eq!(endpoints.len(), 301);
        assert_eq!(endpoints["x"], snapshot["endpoints"]["x"]);
        let last = &endpoints[&identifier(299)];
        assert_eq!(last["address"], "10.64.17.43");
        assert_eq!(last["mac"], "02:6e:0a:40:11:2b");
        assert_eq!((&last["node"], &last["network"]), (&json!("m"), &json!("n")));
    }

    #[test]
    fn identifiers_differ_and_are_letters() {
        assert_eq!(identifier(0), "aaaaaaaaaaaaaaaa");
        assert_eq!(identifier(27), "aaaaaaaaaaaaaabb");
    }

    #[test]
    fn this_process_has_memory_and_has_used_time() {
        let me = std::process::id().cast_signed();
        assert!(resident(me).unwrap() > 1 << 16);
        assert!(cpu_time(me).unwrap() >= 0.0);
    }
}
