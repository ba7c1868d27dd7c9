//! What Docker lays out around IPVS, by hand: a virtual address in an overlay, and the port of
//! a host that leads to a container on another.
//!
//! ```text
//! docker-vip   container ─ bridge ─ balancer: IPVS, source translated ─ bridge ─ vxlan ─ wire ─ ..
//! docker-mesh  client ─ wire ─ host: destination translated ─ bridge ─ balancer, as above ─ ..
//!              .. ─ container: destination translated once more
//! ```

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use super::classic::{self, container, docker_overlay, filter, point};
use super::lab::{Lab, OVERLAY, UNDERLAY};
use super::mesh::three;
use super::processes::{DATAGRAM_PORT, ECHO_PORT, STREAM_PORT};
use super::{Variant, ends};
use crate::command::{CommandExt, find};
use crate::node::{Host, Shell};

/// The virtual address.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 20);
/// The balancer's and the host's addresses on the bridge between them.
const GATEWAY: [&str; 2] = ["172.18.0.2", "172.18.0.1"];
/// What marks packets for IPVS.
const MARK: &str = "256";

/// Whether this kernel has IPVS, and there is the program that sets it up; what is missing,
/// has been said.
pub(super) fn is_there() -> bool {
    let kernel = Command::new("modprobe").arg("ip_vs").read().is_ok();
    for (missing, what) in
        [(!kernel, "this kernel has no IPVS"), (find("ipvsadm").is_none(), "no `ipvsadm` here")]
    {
        if missing {
            eprintln!("bench: {what}: nothing that needs it is measured (but see --kernel)");
            return false;
        }
    }
    true
}

/// A service's virtual address on Docker's overlay.
pub(crate) fn docker_vip(lab: &Lab) -> Result<Vec<Variant>> {
    if !is_there() {
        return Ok(Vec::new());
    }
    let hosts = lab.wired("dvip")?;
    let overlays = [docker_overlay(lab, &hosts[0], 1)?, docker_overlay(lab, &hosts[1], 0)?];
    let client = container(lab, &overlays[0], "dvip-client", 0)?;
    let server = container(lab, &overlays[1], "dvip-server", 1)?;
    let balancer = container(lab, &overlays[0], "dvip-balancer", 2)?;
    point(&overlays[1], 2, 0)?;
    balancer.read(&["ip", "address", "add", &format!("{VIP}/32"), "dev", "eth0"])?;
    balance(lab, &balancer, OVERLAY[2], "input", &format!("ip daddr {VIP}"))?;
    Ok(vec![Variant { id: "docker-vip", client, server, target: VIP, wire: ends(&hosts) }])
}

/// A published port by Docker's routing mesh.
pub(crate) fn docker_mesh(lab: &Lab) -> Result<Vec<Variant>> {
    if !is_there() {
        return Ok(Vec::new());
    }
    let ([client, entry, host], wire) = three(lab, "dmesh")?;
    let overlays = [docker_overlay(lab, &entry, 1)?, docker_overlay(lab, &host, 0)?];
    let server = container(lab, &overlays[1], "dmesh-server", 1)?;
    let balancer = container(lab, &overlays[0], "dmesh-balancer", 0)?;
    gateway(&entry, &balancer)?;
    let ports = format!("th dport {{ {STREAM_PORT}, {ECHO_PORT}, {DATAGRAM_PORT} }}");
    let nat = |hook: &str, rule: &str| {
        format!(
            "table ip published {{ chain {hook} {{ type nat hook {hook} priority -100;
               meta l4proto {{ tcp, udp }} {ports} {rule}; }}
             }}"
        )
    };
    let dnat = format!("fib daddr type local dnat to {}", GATEWAY[0]);
    filter(lab, &entry, &nat("prerouting", &dnat))?;
    entry.read(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    balance(
        lab,
        &balancer,
        OVERLAY[0],
        "prerouting",
        &format!("meta l4proto {{ tcp, udp }} {ports}"),
    )?;
    // From the published port to the container's, which may be another.
    filter(lab, &server, &nat("prerouting", "redirect"))?;
    Ok(vec![Variant { id: "docker-mesh", client, server, target: UNDERLAY[0], wire }])
}

/// The bridge by which Docker's hosts reach their balancer.
fn gateway(host: &Host, balancer: &Host) -> Result<()> {
    host.read(&["ip", "link", "add", "gwbridge", "type", "bridge", "stp_state", "0"])?;
    host.read(&["ip", "address", "add", &format!("{}/16", GATEWAY[1]), "dev", "gwbridge"])?;
    let peer = ["type", "veth", "peer", "name", "eth1", "netns", &balancer.netns];
    host.read(&[&["ip", "link", "add", "gw0"][..], &peer].concat())?;
    host.read(&["ip", "link", "set", "gw0", "master", "gwbridge", "up"])?;
    host.read(&["ip", "link", "set", "gwbridge", "up"])?;
    classic::filter_bridge(host, true)?;
    balancer.read(&["ip", "address", "add", &format!("{}/16", GATEWAY[0]), "dev", "eth1"])?;
    balancer.read(&["ip", "link", "set", "eth1", "up"])?;
    balancer.read(&["ip", "route", "add", "default", "via", GATEWAY[1]])?;
    Ok(())
}

/// Has a namespace balance what is `called`, as it sees it at this hook, between the one
/// server there is.
fn balance(lab: &Lab, host: &Host, own: Ipv4Addr, hook: &str, called: &str) -> Result<()> {
    let rules = format!(
        "table ip balancer {{
           chain marking {{ type filter hook {hook} priority mangle; {called} meta mark set {MARK}; }}
           chain postrouting {{ type nat hook postrouting priority srcnat;
             ip daddr {server} snat to {own}; }}
         }}",
        server = OVERLAY[1],
    );
    filter(lab, host, &rules)?;
    host.read(&["ipvsadm", "--add-service", "--fwmark-service", MARK, "--scheduler", "rr"])?;
    let server = format!("{}:0", OVERLAY[1]);
    let add = ["ipvsadm", "--add-server", "--fwmark-service", MARK, "--real-server", &server];
    host.read(&[&add[..], &["--masquerading"]].concat())?;
    for setting in [
        "net.ipv4.ip_forward=1",
        "net.ipv4.vs.conntrack=1",
        "net.ipv4.vs.conn_reuse_mode=0",
        "net.ipv4.vs.expire_nodest_conn=1",
        "net.ipv4.vs.expire_quiescent_template=1",
    ] {
        host.read(&["sysctl", "-qw", setting])?;
    }
    Ok(())
}
