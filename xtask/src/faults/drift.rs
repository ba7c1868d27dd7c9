//! Damage done by hand to what the agent has made in the kernel: how long until it is mended.
//! Nothing calls meanwhile. Each node mends what is its own, so it is done to several at once, and
//! on each to one thing after the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::scene::{BRIDGED, CALLER, Scene};
use crate::bench::machine;
use crate::node::{Node, Shell};
use crate::wait::eventually;

/// Longer than any time between two looks.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something done by hand.
pub(super) struct Damage {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// The number of the node: one that has such a thing. The manager runs no workload.
    node: usize,
    make: fn(&Scene, &Node) -> Result<()>,
}

/// In the order of the table.
pub(super) const DAMAGES: &[Damage] = &[
    Damage {
        id: "link",
        title: "a link deleted (`ip link delete na-vxlan`)",
        node: 2,
        make: |_, node| node.read(&["ip", "link", "delete", "na-vxlan"]).map(drop),
    },
    Damage {
        id: "address",
        title: "a workload's address removed (`ip address flush`)",
        node: CALLER,
        make: |scene, _| scene.inside(&["ip", "address", "flush", "dev", "eth0"]),
    },
    Damage {
        id: "route",
        title: "a route deleted (`ip route flush proto 110`)",
        node: 3,
        make: |_, node| {
            let ours = node.read(&["ip", "route", "show", "proto", "110"])?;
            ensure!(!ours.is_empty(), "there is no route of ours");
            node.read(&["ip", "route", "flush", "proto", "110"]).map(drop)
        },
    },
    Damage {
        id: "rules",
        title: "all rules flushed (`nft flush ruleset`)",
        node: 3,
        make: |_, node| {
            let ours = node.read(&["nft", "list", "tables"])?;
            ensure!(ours.contains("netagent"), "there is no table of ours");
            node.read(&["nft", "flush", "ruleset"]).map(drop)
        },
    },
    Damage {
        id: "sysctl",
        title: "a switch turned off (`route_localnet` of `lo`)",
        node: 2,
        make: |_, node| node.read(&["sysctl", "-w", "net.ipv4.conf.lo.route_localnet=0"]).map(drop),
    },
    Damage {
        id: "program",
        title: "a program detached from the uplink (its pin removed)",
        node: 2,
        make: |_, node| {
            let links = version(node)?.join("links");
            let mut pins = fs::read_dir(&links)?.flatten().map(|pin| pin.path());
            let uplink = pins.find(|pin| pin.to_string_lossy().ends_with("-from_uplink"));
            Ok(fs::remove_file(uplink.context("no program at the uplink")?)?)
        },
    },
    Damage {
        id: "entry",
        title: "a map entry deleted (`bpftool map delete`, of `ENDPOINTS`)",
        node: 3,
        make: |_, node| {
            let (map, key, _) = entry(node, "ENDPOINTS")?;
            bpftool(node, &["map", "delete", "pinned", &map, "key"], &[&key[..]].concat())
        },
    },
    Damage {
        id: "altered",
        title: "a map entry altered (`bpftool map update`, of `NETWORKS`)",
        node: CALLER,
        make: |_, node| {
            let (map, key, value) = entry(node, "NETWORKS")?;
            let other = value.iter().map(|byte| if byte == "0x00" { "0x01" } else { "0x00" });
            let other: Vec<String> = other.map(str::to_owned).collect();
            let words = [&key[..], &["value".to_owned()], &other[..]].concat();
            bpftool(node, &["map", "update", "pinned", &map, "key"], &words)
        },
    },
    Damage {
        id: "fdb",
        title: "an FDB entry deleted on a node of the kernel datapath (`bridge fdb del`)",
        node: BRIDGED,
        make: |_, node| {
            let ledger = node.directory.join("run/kernel.json");
            let ledger: Value = serde_json::from_str(&fs::read_to_string(ledger)?)?;
            let netns =
                ledger["namespaces"][0].as_str().context("no namespace of ours")?.to_owned();
            let shown = node.read(&["bridge", "-netns", &netns, "fdb", "show"])?;
            let line = shown.lines().find(|line| line.contains(" dst ")).context("no entry")?;
            let words: Vec<_> = line.split_whitespace().collect();
            let (mac, link) = (words[0], words[2]);
            node.read(&["bridge", "-netns", &netns, "fdb", "del", mac, "dev", link]).map(drop)
        },
    },
];

/// How often one node is damaged when all of this is done.
pub(super) fn longest(damages: &[&Damage]) -> usize {
    let on = |node: usize| damages.iter().filter(|damage| damage.node == node).count();
    damages.iter().map(|damage| on(damage.node)).max().unwrap_or(0)
}

/// Does all of it once; how long each took until it was mended, in the same order.
///
/// # Errors
/// If something is not mended.
pub(super) fn all(scene: &Scene, damages: &[&'static Damage]) -> Result<Vec<Duration>> {
    let nodes: BTreeSet<usize> = damages.iter().map(|damage| damage.node).collect();
    let on = |node: usize| {
        let here = damages.iter().enumerate().filter(|(_, damage)| damage.node == node);
        here.map(|(place, damage)| {
            machine::go_on()?;
            Ok((place, of(scene, damage).with_context(|| damage.title)?))
        })
        .collect::<Result<Vec<_>>>()
    };
    let on = &on;
    let times = thread::scope(|scope| {
        let threads: Vec<_> = nodes.into_iter().map(|node| scope.spawn(move || on(node))).collect();
        let times = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| bail!("a thread that did damage has panicked"))
        });
        times.collect::<Result<Vec<_>>>()
    });
    let mut times = times?.concat();
    times.sort_unstable();
    scene.wait_until_right()?;
    Ok(times.into_iter().map(|(_, time)| time).collect())
}

/// Does it, and waits until it is mended; how long that took.
///
/// # Errors
/// If it is not mended.
fn of(scene: &Scene, damage: &Damage) -> Result<Duration> {
    let node = scene.node(damage.node);
    let verified = || -> Result<Value> {
        let output = node.netagent(&["verify", "--format", "json"])?;
        serde_json::from_slice(&output.stdout).context("verify prints JSON")
    };
    let before = verified()?["writes"].as_u64();
    let began = Instant::now();
    (damage.make)(scene, node).context("doing the damage")?;
    eventually("the damage to be mended", PATIENCE, || {
        let now = verified()?;
        let clean = now["differences"].as_array().is_some_and(Vec::is_empty);
        // A pass that another node's damage has asked for does not count what it mends as drift.
        Ok((clean && now["writes"].as_u64() > before).then_some(()))
    })?;
    Ok(began.elapsed())
}

/// Directory of the pins of the agent that runs.
fn version(node: &Node) -> Result<std::path::PathBuf> {
    let mut entries = fs::read_dir(&node.pins)?.flatten().map(|entry| entry.path());
    entries.find(|path| path.join("maps").exists()).context("no maps are pinned")
}

/// The first entry of a map: the map's pin, key and value.
fn entry(node: &Node, map: &str) -> Result<(String, Vec<String>, Vec<String>)> {
    let pin = version(node)?.join("maps").join(map);
    let pin = Path::new(&pin).display().to_string();
    let dump = node.read(&["bpftool", "--json", "map", "dump", "pinned", &pin])?;
    let dump: Value = serde_json::from_str(&dump)?;
    let bytes = |value: &Value| -> Vec<String> {
        let bytes = value.as_array().into_iter().flatten();
        bytes.filter_map(|byte| byte.as_str().map(str::to_owned)).collect()
    };
    Ok((pin, bytes(&dump[0]["key"]), bytes(&dump[0]["value"])))
}

fn bpftool(node: &Node, words: &[&str], bytes: &[String]) -> Result<()> {
    let bytes = bytes.iter().map(String::as_str);
    let line: Vec<&str> =
        ["bpftool"].into_iter().chain(words.iter().copied()).chain(bytes).collect();
    node.read(&line).map(drop)
}
