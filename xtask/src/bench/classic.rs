//! What others stand on, by hand: the bare wire, the classic overlay at its best, and
//! the classic overlay as Docker lays it out.
//!
//! ```text
//! raw            host ─────────────────────── wire ── host
//! bridge         container ─ veth ─ bridge ─ vxlan ─ wire ─ ..       no packet filter
//! docker-like    the same, the bridge in a namespace of its own with br_netfilter on,
//!                Docker's NAT rules (and so conntrack) in the host's namespace
//! ```

use std::process::Command;

use anyhow::{Context, Result};

use super::lab::{Lab, OVERLAY, UNDERLAY};
use super::{Variant, ends};
use crate::command::CommandExt;
use crate::node::{Host, Shell};

const VNI: &str = "4097";
/// What VXLAN leaves of an Ethernet wire.
const MTU: &str = "1450";

/// What Docker's daemon has in the namespace of a host that is in a swarm and runs
/// nothing that is published. It is the hooks that cost, not what the rules say.
const DOCKER_RULES: &str = "
table ip nat {
  chain DOCKER { iifname docker0 counter return; iifname docker_gwbridge counter return; }
  chain PREROUTING { type nat hook prerouting priority -100;
    fib daddr type local counter jump DOCKER; }
  chain OUTPUT { type nat hook output priority -100;
    ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER; }
  chain POSTROUTING { type nat hook postrouting priority 100;
    oifname != docker_gwbridge ip saddr 172.18.0.0/16 counter masquerade;
    oifname != docker0 ip saddr 172.17.0.0/16 counter masquerade; }
}";

/// From host to host.
pub(crate) fn raw(lab: &Lab) -> Result<Vec<Variant>> {
    let [client, server] = lab.wired("raw")?;
    let wire = ends([&client, &server]);
    Ok(vec![Variant { id: "raw", client, server, target: UNDERLAY[1], wire }])
}

/// Bridge and vxlan at their best; over the wire and on one host.
pub(crate) fn bridge(lab: &Lab) -> Result<Vec<Variant>> {
    let hosts = lab.wired("bridge")?;
    for (host, peer) in hosts.iter().zip([1, 0]) {
        filter_bridge(host, false)?;
        lay_out(host, host, peer, &["proxy", "nolearning"])?;
    }
    let a = container(lab, &hosts[0], "bridge-a", 0)?;
    let b = container(lab, &hosts[1], "bridge-b", 1)?;
    let same = lab.host("bridge-same")?;
    filter_bridge(&same, false)?;
    make_bridge(&same)?;
    let c = container(lab, &same, "bridge-c", 0)?;
    let d = container(lab, &same, "bridge-d", 1)?;
    Ok(vec![
        Variant { id: "bridge", client: a, server: b, target: OVERLAY[1], wire: ends(&hosts) },
        Variant { id: "bridge-same", client: c, server: d, target: OVERLAY[1], wire: Vec::new() },
    ])
}

/// The layout of Docker's overlay.
pub(crate) fn docker_like(lab: &Lab) -> Result<Vec<Variant>> {
    let hosts = lab.wired("like")?;
    let mut containers = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let overlay = docker_overlay(lab, host, 1 - index)?;
        containers.push(container(lab, &overlay, &format!("{}-c", host.name), index)?);
    }
    let [client, server] =
        <[Host; 2]>::try_from(containers).ok().context("two hosts have two containers")?;
    let wire = ends(&hosts);
    Ok(vec![Variant { id: "docker-like", client, server, target: OVERLAY[1], wire }])
}

/// The namespace with the overlay's bridge that Docker has on a host.
pub(super) fn docker_overlay(lab: &Lab, host: &Host, peer: usize) -> Result<Host> {
    filter(lab, host, DOCKER_RULES)?;
    let overlay = lab.host(&format!("{}-overlay", host.name))?;
    filter_bridge(&overlay, true)?;
    lay_out(host, &overlay, peer, &["proxy", "l2miss", "l3miss", "learning"])?;
    Ok(overlay)
}

/// Has the packet filter of a host take these rules.
pub(super) fn filter(lab: &Lab, host: &Host, rules: &str) -> Result<()> {
    let file = lab.directory().join("rules.nft");
    std::fs::write(&file, rules)?;
    host.read(&["nft", "-f", &file.to_string_lossy()])?;
    Ok(())
}

/// Whether the packet filter sees what the bridges of a namespace carry.
pub(super) fn filter_bridge(host: &Host, on: bool) -> Result<()> {
    let value = u8::from(on);
    if on {
        // It may be built in.
        let _ = Command::new("modprobe").arg("br_netfilter").read();
    }
    let set = host.read(&["sysctl", "-qw", &format!("net.bridge.bridge-nf-call-iptables={value}")]);
    match set {
        // Not loaded: it sees nothing.
        Err(_) if !on => Ok(()),
        result => result.map(drop).context("this variant needs the kernel's br_netfilter"),
    }
}

fn make_bridge(host: &Host) -> Result<()> {
    host.read(&["ip", "link", "add", "br0", "mtu", MTU, "type", "bridge", "stp_state", "0"])?;
    host.read(&["ip", "link", "set", "br0", "up"])?;
    Ok(())
}

/// A bridge with a vxlan device whose tunnel ends at `host`, with the entries for the
/// container of the peer. Docker too makes the device at the host and moves it.
pub(super) fn lay_out(host: &Host, overlay: &Host, peer: usize, options: &[&str]) -> Result<()> {
    make_bridge(overlay)?;
    let vxlan = ["ip", "link", "add", "vxlan0", "mtu", MTU, "type", "vxlan", "id", VNI];
    host.read(&[&vxlan[..], &["dstport", "4789"], options].concat())?;
    if host.netns != overlay.netns {
        host.read(&["ip", "link", "set", "vxlan0", "netns", &overlay.netns])?;
    }
    overlay.read(&["ip", "link", "set", "vxlan0", "master", "br0", "up"])?;
    point(overlay, peer, peer)
}

/// Has the vxlan device send what is for a container to a host.
pub(super) fn point(overlay: &Host, container: usize, host: usize) -> Result<()> {
    let (mac, vtep) = (mac(container), UNDERLAY[host].to_string());
    let entry = ["bridge", "fdb", "replace", &mac, "dev", "vxlan0", "self", "permanent"];
    overlay.read(&[&entry[..], &["dst", &vtep]].concat())?;
    let address = OVERLAY[container].to_string();
    let neighbour = ["ip", "neigh", "replace", &address, "lladdr", &mac];
    overlay.read(&[&neighbour[..], &["dev", "vxlan0", "nud", "permanent"]].concat())?;
    Ok(())
}

/// A namespace with a leg in the bridge.
pub(super) fn container(lab: &Lab, bridge: &Host, name: &str, index: usize) -> Result<Host> {
    let container = lab.host(name)?;
    let port = format!("port{index}");
    let pair = ["ip", "link", "add", &port, "mtu", MTU, "type", "veth"];
    let mac = mac(index);
    let peer = ["peer", "name", "eth0", "mtu", MTU, "address", &mac, "netns", &container.netns];
    bridge.read(&[&pair[..], &peer].concat())?;
    bridge.read(&["ip", "link", "set", &port, "master", "br0", "up"])?;
    container.read(&["ip", "address", "add", &format!("{}/24", OVERLAY[index]), "dev", "eth0"])?;
    container.read(&["ip", "link", "set", "eth0", "up"])?;
    Ok(container)
}

pub(super) fn mac(index: usize) -> String {
    format!("02:42:0a:32:00:{:02x}", 11 + index)
}
