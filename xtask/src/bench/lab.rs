//! The hosts of a benchmark: network namespaces, two by two on a wire of their own.
//!
//! ```text
//! NAME1 eth0 .11 ── 192.168.50.0/24 ── .12 eth0 NAME2
//! ```
//!
//! The wire is a veth pair and nothing else, the shortest there is, so that what a
//! variant adds is seen whole. Everything made here carries the pid of its maker in
//! its name and a mark in its environment; so what a killed run has left is found and
//! removed by the next one. Touches nothing else.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::build::{self, Profile};
use crate::command::CommandExt;
use crate::node::{Datapath, Host, Node, Shell};
use crate::process::Process;

/// Begins the name of every network namespace.
const PREFIX: &str = "netagent-bench-";
const DIRECTORY: &str = "/var/tmp/netagent-bench";
const PINS: &str = "/sys/fs/bpf/netagent-bench";

/// How long anything may take to come up: a test machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Addresses of two hosts on their wire.
pub(crate) const UNDERLAY: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 168, 50, 11), Ipv4Addr::new(192, 168, 50, 12)];

/// Addresses of two containers in their overlay, but where somebody else chooses, and of what
/// balances there.
pub(crate) const OVERLAY: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 50, 0, 11), Ipv4Addr::new(10, 50, 0, 12), Ipv4Addr::new(10, 50, 0, 13)];

/// What one run has made; dropping it removes all of it.
pub(crate) struct Lab {
    /// The pid of its maker.
    title: String,
}

impl Lab {
    /// An empty one. Removes what runs that are gone have left.
    pub(crate) fn new() -> Result<Self> {
        for title in titles()? {
            if title.parse().ok().and_then(Process::of).is_none() {
                eprintln!("bench: removing what run {title} has left");
                Self { title }.remove()?;
            }
        }
        let lab = Self { title: std::process::id().to_string() };
        fs::create_dir_all(lab.directory())?;
        Ok(lab)
    }

    /// A host on no wire.
    pub(crate) fn host(&self, name: &str) -> Result<Host> {
        let host = self.named(name);
        ip(&["netns", "add", &host.netns])?;
        host.read(&["ip", "link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// The network namespace of a process, as a host.
    pub(crate) fn attach(&self, name: &str, pid: u32) -> Result<Host> {
        let host = self.named(name);
        ip(&["netns", "attach", &host.netns, &pid.to_string()])?;
        Ok(host)
    }

    /// Two hosts on one wire.
    pub(crate) fn wired(&self, name: &str) -> Result<[Host; 2]> {
        let hosts = [self.host(&format!("{name}1"))?, self.host(&format!("{name}2"))?];
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &hosts[1].netns];
        hosts[0].read(&[&["ip", "link", "add", "eth0"][..], &peer].concat())?;
        for (host, address) in hosts.iter().zip(UNDERLAY) {
            host.read(&["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            host.read(&["ip", "link", "set", "eth0", "up"])?;
        }
        Ok(hosts)
    }

    /// A host of the lab as one with an agent; starts none.
    pub(crate) fn node(&self, host: &Host, address: Ipv4Addr, datapath: Datapath) -> Node {
        Node {
            host: host.clone(),
            address,
            datapath,
            binary: build::binary(Profile::Debug),
            directory: self.directory().join(&host.name),
            pins: self.pins().join(&host.name),
            options: &[],
        }
    }

    /// For what belongs to a host.
    pub(crate) fn directory(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.title)
    }

    /// For what a host pins.
    fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.title)
    }

    /// What marks its processes.
    pub(crate) fn mark(&self) -> String {
        format!("{PREFIX}{}", self.title)
    }

    fn named(&self, name: &str) -> Host {
        let netns = format!("{PREFIX}{}-{name}", self.title);
        Host { name: name.to_owned(), netns, mark: self.mark() }
    }

    /// Ends its processes and removes its traces; goes on after an error.
    fn remove(&self) -> Result<()> {
        let mut result = Ok(());
        let mut note = |one: Result<()>| {
            if result.is_ok() {
                result = one;
            }
        };
        // At once: what they would put in order goes with their namespaces, but for an
        // agent's own, and that finds it again.
        let marked = Process::marked(&self.mark());
        for process in &marked {
            note(process.signal(Signal::SIGKILL));
        }
        for process in marked.into_iter().chain(Process::marked(&self.mark())) {
            note(process.kill());
        }
        for name in names(&self.directory()) {
            let node = self.node(&self.named(&name), UNDERLAY[0], Datapath::Ebpf);
            if node.log().exists() && node.host.netns_path().exists() {
                note(node.teardown());
            }
        }
        // Pinned links hold the programs in the namespaces' devices.
        note(remove(&self.pins()));
        for netns in namespaces()? {
            if netns.starts_with(&format!("{PREFIX}{}-", self.title)) {
                note(ip(&["netns", "delete", &netns]));
            }
        }
        note(remove(&self.directory()));
        // With several hierarchies each lies one below the mount point.
        let mount = Path::new("/sys/fs/cgroup");
        for hierarchy in names(mount).iter().map(|name| mount.join(name)).chain([mount.into()]) {
            remove_cgroup(&hierarchy.join(self.mark()));
        }
        result
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("error: cannot remove the benchmark's hosts: {error:#}");
        }
    }
}

/// Pids of all runs of which something is there.
fn titles() -> Result<Vec<String>> {
    let of_namespace =
        |netns: String| Some(netns.strip_prefix(PREFIX)?.split('-').next()?.to_owned());
    let mut titles: Vec<_> = namespaces()?.into_iter().filter_map(of_namespace).collect();
    titles.extend(names(Path::new(DIRECTORY)));
    titles.extend(names(Path::new(PINS)));
    titles.sort();
    titles.dedup();
    Ok(titles)
}

fn namespaces() -> Result<Vec<String>> {
    Ok(names(Path::new("/run/netns")))
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Removes a directory, and its parent if that is then empty.
fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    if let Some(parent) = directory.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Removes a control group with those below it, if it exists.
fn remove_cgroup(directory: &Path) {
    for child in names(directory).iter().map(|child| directory.join(child)) {
        if child.is_dir() {
            remove_cgroup(&child);
        }
    }
    let _ = fs::remove_dir(directory);
}

pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    Command::new("ip").args(arguments).read().map(drop)
}
