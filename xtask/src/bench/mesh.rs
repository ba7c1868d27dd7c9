//! A port of one host that leads to a server behind another: netagent's routing mesh, and
//! what others do with the packet filter.
//!
//! ```text
//! client .100 ───┬─── entry .11          192.168.50.0/24, three hosts on a bridge
//!                └─── host .12 ── server
//! ```

use std::net::Ipv4Addr;

use anyhow::Result;

use super::classic;
use super::lab::{Lab, OVERLAY, UNDERLAY};
use super::overlay::Balancer;
use super::processes::{DATAGRAM_PORT, ECHO_PORT, STREAM_PORT};
use super::{End, Variant, ends};
use super::{ipvs, overlay};
use crate::node::{Datapath, Host, Shell};
use crate::playground::CLIENT;

/// Destination and source translated at the entry host, connections tracked, on the
/// classic overlay: what remains of Docker's way if nothing is balanced.
pub(crate) fn iptables(lab: &Lab) -> Result<Vec<Variant>> {
    let ([client, entry, host], wire) = three(lab, "nat")?;
    classic::filter_bridge(&entry, false)?;
    classic::filter_bridge(&host, false)?;
    classic::lay_out(&entry, &entry, 1, &["proxy", "nolearning"])?;
    classic::lay_out(&host, &host, 0, &["proxy", "nolearning"])?;
    let server = classic::container(lab, &host, "nat-server", 1)?;
    // The entry host has a leg in the overlay itself.
    let (mac, leg) = (classic::mac(0), format!("{}/24", OVERLAY[0]));
    entry.read(&["ip", "link", "set", "br0", "address", &mac])?;
    entry.read(&["ip", "address", "add", &leg, "dev", "br0"])?;
    entry.read(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    let ports = format!("{{ {STREAM_PORT}, {ECHO_PORT}, {DATAGRAM_PORT} }}");
    let rules = format!(
        "table ip nat {{
           chain prerouting {{ type nat hook prerouting priority -100;
             ip daddr {entry} meta l4proto {{ tcp, udp }} th dport {ports} dnat to {to}; }}
           chain postrouting {{ type nat hook postrouting priority 100;
             oifname br0 masquerade; }}
         }}",
        entry = UNDERLAY[0],
        to = OVERLAY[1],
    );
    classic::filter(lab, &entry, &rules)?;
    client.read(&["ping", "-c1", "-W5", &UNDERLAY[0].to_string()])?;
    Ok(vec![Variant { id: "iptables", client, server, target: UNDERLAY[0], wire }])
}

/// netagent's mesh.
pub(crate) fn published(lab: &Lab) -> Result<Vec<Variant>> {
    Ok(vec![balanced(lab, "published", Balancer::Ebpf)?])
}

/// netagent's mesh where IPVS chooses the backends.
pub(crate) fn published_ipvs(lab: &Lab) -> Result<Vec<Variant>> {
    if !ipvs::is_there() {
        return Ok(Vec::new());
    }
    Ok(vec![balanced(lab, "published-ipvs", Balancer::Ipvs)?])
}

fn balanced(lab: &Lab, id: &'static str, balancer: Balancer) -> Result<Variant> {
    let ([client, entry, host], wire) = three(lab, id)?;
    let nodes = overlay::nodes(lab, [&entry, &host], Datapath::Ebpf, balancer.options());
    overlay::form(&nodes)?;
    let ports = [(STREAM_PORT, "tcp"), (ECHO_PORT, "tcp"), (DATAGRAM_PORT, "udp")]
        .map(|(port, protocol)| format!("{port}:{port}/{protocol}"));
    let service = overlay::service(&nodes[0], "mesh", &ports.each_ref().map(String::as_str))?;
    let server = overlay::task(lab, &nodes[1], service, &format!("{id}-server"))?;
    client.read(&["ping", "-c1", "-W5", &UNDERLAY[0].to_string()])?;
    Ok(Variant { id, client, server, target: UNDERLAY[0], wire })
}

/// Three hosts on one switch.
pub(super) fn three(lab: &Lab, name: &str) -> Result<([Host; 3], Vec<End>)> {
    let switch = lab.host(&format!("{name}-switch"))?;
    switch.read(&["ip", "link", "add", "br0", "type", "bridge", "stp_state", "0"])?;
    switch.read(&["ip", "link", "set", "br0", "up"])?;
    // It is a wire: no packet filter of this machine has a say in it.
    classic::filter_bridge(&switch, false)?;
    let make = |end: &str, address: Ipv4Addr| -> Result<Host> {
        let host = lab.host(&format!("{name}-{end}"))?;
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &host.netns];
        switch.read(&[&["ip", "link", "add", end][..], &peer].concat())?;
        switch.read(&["ip", "link", "set", end, "master", "br0", "up"])?;
        host.read(&["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        host.read(&["ip", "link", "set", "eth0", "up"])?;
        Ok(host)
    };
    let names = ["client", "entry", "host"];
    let hosts =
        [make(names[0], CLIENT)?, make(names[1], UNDERLAY[0])?, make(names[2], UNDERLAY[1])?];
    let ports = names.map(|link| End { host: switch.clone(), link, is_host: false });
    let wire = ends(&hosts).into_iter().chain(ports).collect();
    Ok((hosts, wire))
}
