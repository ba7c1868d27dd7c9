//! A cluster one of whose nodes is behind NAT that forwards a few ports.
//!
//! ```text
//!   n1 .11   n2 .12             n3 10.99.0.2
//!    │eth0    │eth0              │eth0
//!   ─┴────────┴─ wire ── NAT .13 ┴
//! ```
//!
//! The wire's namespace translates: n3 has no other way to anybody.

use std::net::Ipv4Addr;

use xtask::node::{Datapath, Shell as _};
use xtask::playground::{Playground, Topology};

use crate::lab::must;

/// The address that the node behind NAT has itself.
pub const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// That of the NAT on its side.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Nodes with these datapaths, of which number `inside` is behind NAT, joined to one cluster.
///
/// # Panics
/// If the cluster does not come up.
#[must_use]
pub fn cluster(datapaths: &[Datapath], inside: usize) -> Playground {
    let cluster = Playground::hosts(&Topology::test("nat", datapaths)).expect("hosts");
    put_behind(&cluster, inside);
    for node in cluster.nodes() {
        node.start_agent().expect("an agent");
    }
    let [public, own] = [cluster.node(inside).address, OWN].map(|address| address.to_string());
    let options = ["--advertise-addr", &public, "--local-addr", &own];
    let options = |number| if number == inside { &options[..] } else { &[] };
    let manager = cluster.node(1);
    must(manager.netagent(&[&["cluster", "init"], options(1)].concat()));
    let token = must(manager.netagent(&["cluster", "join-token", "worker", "-q"]));
    let address = format!("{}:2377", manager.address);
    let join = ["cluster", "join", "--token", token.trim(), &address];
    for number in 2..=cluster.nodes().len() {
        must(cluster.node(number).netagent(&[&join[..], options(number)].concat()));
    }
    cluster.wait_until_ready().expect("ready");
    cluster
}

/// Takes a host from the wire and puts it behind NAT, which has the host's former address. It
/// forwards what a node needs and port 8080, and nothing else.
fn put_behind(cluster: &Playground, inside: usize) {
    let (wire, node) = (cluster.wire(), cluster.node(inside));
    let (link, public) = (node.name(), node.address);
    let inwards = format!("ip daddr {public} udp dport {{ 4789, 4500 }} dnat to {OWN}");
    let too = format!("ip daddr {public} tcp dport {{ 2377, 8080 }} dnat to {OWN}");
    let outwards = format!("ip saddr {OWN} oifname br0 snat to {public}");
    for line in [
        format!("ip link set {link} nomaster"),
        format!("ip address add {ROUTER}/24 dev {link}"),
        format!("ip address add {public}/32 dev br0"),
        "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
        "nft add table ip nat".to_owned(),
        "nft add chain ip nat inwards { type nat hook prerouting priority -100; }".to_owned(),
        "nft add chain ip nat outwards { type nat hook postrouting priority 100; }".to_owned(),
        format!("nft add rule ip nat inwards {inwards}"),
        format!("nft add rule ip nat inwards {too}"),
        format!("nft add rule ip nat outwards {outwards}"),
    ] {
        must(wire.exec(&line.split(' ').collect::<Vec<_>>()));
    }
    for line in [
        "ip address flush dev eth0".to_owned(),
        format!("ip address add {OWN}/24 dev eth0"),
        format!("ip route add default via {ROUTER}"),
    ] {
        must(node.exec(&line.split(' ').collect::<Vec<_>>()));
    }
}
