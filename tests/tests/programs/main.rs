//! Golden packets: what each program makes of one packet, byte for byte, and which
//! counter it moves. The packets travel in the cluster of `netagent_tests::world`.

mod encrypted;
mod from_endpoint;
mod from_overlay;
mod from_uplink;
mod hostile;
mod mesh;
mod mesh_entry;
mod mesh_exit;
mod probes;
mod rewrite_sums;
mod service_backend;
mod service_client;
mod service_hostile;
mod service_lb;
mod verified;

use netagent_common::{Counter, VXLAN_PORT};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::Run;
use netagent_tests::world::{BLUE, HERE, Host, THERE};
use std::net::Ipv4Addr;

/// MACs of the underlay: they belong to no one that the datapath knows.
const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0xfe];
const UPLINK: Mac = [0x02, 0, 0, 0, 0, 0x11];

/// A source port of the tunnel.
const FLOW: u16 = 40_000;

/// The start of a packet from `vtep` to this node, up to the VXLAN header.
fn outer(vtep: Ipv4Addr, vni: u32) -> Packet {
    ethernet(ROUTER, UPLINK).ipv4(vtep, HERE).udp_without_checksum(FLOW, VXLAN_PORT).vxlan(vni)
}

/// The start of a packet in the tunnel from a host on [`THERE`].
fn inner(from: Host, to: Host) -> Packet {
    outer(THERE, from.vni).ethernet(from.mac, to.mac).ipv4(from.ip, to.ip)
}

/// What leaves this node for `vtep`: `sent` is the frame that the workload wrote, `ip` what
/// is carried, between `macs`. The source port of the tunnel is taken from the packet.
fn tunnelled(run: &Run, macs: [Mac; 2], vtep: Ipv4Addr, ip: &[u8]) -> Vec<u8> {
    let mac = |at: usize| run.input[at..at + 6].try_into().expect("six bytes");
    let port = u16::from_be_bytes([run.output[34], run.output[35]]);
    ethernet(mac(6), mac(0))
        .ipv4(HERE, vtep)
        .udp_without_checksum(port, VXLAN_PORT)
        .vxlan(BLUE)
        .ethernet(macs[0], macs[1])
        .ethertype(0x0800)
        .payload(ip)
        .build()
}

/// Packets of every protocol that services take, from port `sport` to port `dport`.
fn of_every_protocol(start: &Packet, sport: u16, dport: u16) -> Vec<Packet> {
    let start = || start.clone();
    vec![
        start().tcp(sport, dport).flags(0x02),
        start().tcp(sport, dport).payload_of(777),
        start().options(&[1; 8]).tcp(sport, dport).payload_of(30),
        start().udp(sport, dport).payload_of(77),
        start().udp_without_checksum(sport, dport).payload_of(77),
        start().sctp(sport, dport).payload_of(100),
    ]
}

/// Whoever adds a counter adds a packet that moves it.
#[test]
fn every_counter_is_somewhere_in_these_tests() {
    let tests = [
        include_str!("encrypted.rs"),
        include_str!("from_endpoint.rs"),
        include_str!("from_uplink.rs"),
        include_str!("from_overlay.rs"),
        include_str!("service_backend.rs"),
        include_str!("service_client.rs"),
        include_str!("service_lb.rs"),
        include_str!("mesh_entry.rs"),
        include_str!("mesh_exit.rs"),
        include_str!("probes.rs"),
    ];
    let missing: Vec<_> = Counter::ALL
        .iter()
        .filter(|counter| !tests.iter().any(|text| text.contains(&format!("Counter::{counter:?}"))))
        .collect();
    assert!(missing.is_empty(), "no golden packet moves {missing:?}");
}
