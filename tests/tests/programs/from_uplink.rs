//! What a node receives from the underlay.

use std::net::Ipv4Addr;

use netagent_common::{Counter, Peer, VXLAN_PORT};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Gso, Node};
use netagent_tests::world::{
    A, B, BLUE, C, D, E, ELSEWHERE, F, HERE, Host, NO_NETWORK, RED, STRANGER, THERE,
};

use crate::{FLOW, ROUTER, UPLINK, inner, outer};

const CONGESTED: u8 = 3;
const BROADCAST: [u8; 6] = [0xff; 6];

/// The packet inside, as its receiver gets it.
fn delivered(from: Host, to: Host) -> Packet {
    ethernet(from.mac, to.mac).ipv4(from.ip, to.ip)
}

/// The start of a packet to this node that is no VXLAN yet.
fn to_here() -> Packet {
    ethernet(ROUTER, UPLINK).ipv4(THERE, HERE)
}

#[test]
fn what_is_not_of_the_tunnel_passes() {
    let mut node = Node::new();
    let inside = delivered(C, A).udp(1, 2).build();
    for packet in [
        to_here().tcp(1, 22).payload_of(100),
        to_here().tcp(1, VXLAN_PORT).payload_of(100),
        to_here().icmp(8, 0, [0; 4]),
        to_here().udp(VXLAN_PORT, 53).payload_of(100),
        to_here().options(&[1; 8]).udp(1, 53),
        to_here(),
        ethernet(ROUTER, UPLINK).ipv4(THERE, "192.168.50.77").udp(1, VXLAN_PORT).vxlan(BLUE),
        ethernet(ROUTER, UPLINK).ipv4(THERE, ELSEWHERE).udp(1, VXLAN_PORT).payload(&inside),
        ethernet(ROUTER, BROADCAST).arp_request((ROUTER, THERE), HERE),
        ethernet(ROUTER, UPLINK).ethertype(0x86dd).payload_of(100),
        // All but the type is right.
        ethernet(ROUTER, UPLINK).ethertype(0x0806).payload(&inner(C, A).udp(1, 2).build()[14..]),
        // Too short to say what it is; the stack counts it as such.
        to_here().protocol(17).payload([0x9c, 0x40, 0x12]),
        // A later fragment has no port to be known by.
        to_here().fragment(100).protocol(17).payload([0x9c, 0x40, 0x12, 0xb5, 0, 0, 0, 0]),
    ] {
        node.from_uplink(&packet.build()).passed(Counter::PassedAtUplink);
    }
}

#[test]
fn a_node_that_does_not_know_itself_lets_all_pass() {
    let frame = inner(C, A).udp(1, 2).build();
    Node::unconfigured().from_uplink(&frame).passed(Counter::PassedAtUplink);
}

#[test]
fn a_member_reaches_local_endpoints() {
    let mut node = Node::new();
    let forms: [fn(Packet) -> Packet; 6] = [
        |packet| packet.udp(1, 2).payload_of(100),
        |packet| packet.tcp(1, 2).payload_of(1400),
        |packet| packet.options(&[1; 40]).icmp(8, 0, [0; 4]),
        |packet| packet.fragment(100).payload_of(64),
        |packet| packet.udp(1, VXLAN_PORT).payload_of(50),
        |packet| packet.protocol(99),
    ];
    for (from, to) in [(C, A), (C, B), (F, E)] {
        for form in forms {
            let frame = form(inner(from, to)).build();
            let expected = form(delivered(from, to)).build();
            node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
        }
    }
}

#[test]
fn macs_inside_are_not_believed() {
    let frame = outer(THERE, BLUE)
        .ethernet([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8])
        .ipv4(C.ip, A.ip)
        .udp(1, 2)
        .build();
    Node::new()
        .from_uplink(&frame)
        .redirected(Counter::Decapsulated, &delivered(C, A).udp(1, 2).build());
}

#[test]
fn a_stranger_is_not_listened_to() {
    let mut node = Node::new();
    let start = ethernet(ROUTER, UPLINK).ipv4(STRANGER, HERE).udp_without_checksum(1, VXLAN_PORT);
    for packet in [
        start.clone().vxlan(BLUE).ethernet(C.mac, A.mac).ipv4(C.ip, A.ip).udp(1, 2),
        start.clone().vxlan(NO_NETWORK).payload_of(100),
        start.clone().vxlan_flags(0, BLUE).payload_of(100),
        start.vxlan(BLUE).ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), A.ip),
    ] {
        node.from_uplink(&packet.build()).dropped(Counter::DropNotMember);
    }
    // Our own address on the wire is a forgery.
    let frame = outer(HERE, BLUE).ethernet(A.mac, B.mac).ipv4(A.ip, B.ip).udp(1, 2).build();
    node.from_uplink(&frame).dropped(Counter::DropNotMember);
}

#[test]
fn only_the_flag_of_a_valid_vni_counts() {
    let mut node = Node::new();
    let frame = |flags: u8| {
        ethernet(ROUTER, UPLINK)
            .ipv4(THERE, HERE)
            .udp_without_checksum(FLOW, VXLAN_PORT)
            .vxlan_flags(flags, BLUE)
            .ethernet(C.mac, A.mac)
            .ipv4(C.ip, A.ip)
            .udp(1, 2)
            .build()
    };
    let expected = delivered(C, A).udp(1, 2).build();
    for flags in 0..=255_u8 {
        let run = node.from_uplink(&frame(flags));
        if flags & 0x08 == 0 {
            run.dropped(Counter::DropMalformed);
        } else {
            run.redirected(Counter::Decapsulated, &expected);
        }
    }
    let mut reserved = frame(0x08);
    reserved[43..46].fill(0xff);
    reserved[49] = 0xff;
    node.from_uplink(&reserved).redirected(Counter::Decapsulated, &expected);
}

#[test]
fn an_unknown_network_is_told_from_an_unknown_endpoint() {
    let mut node = Node::new();
    let frame = |vni| outer(THERE, vni).ethernet(C.mac, A.mac).ipv4(C.ip, A.ip).udp(1, 2).build();
    node.from_uplink(&frame(NO_NETWORK)).dropped(Counter::DropUnknownVni);
    node.from_uplink(&frame(0)).dropped(Counter::DropUnknownVni);
    node.from_uplink(&frame(RED)).dropped(Counter::DropNotOwner);
    let arp = outer(THERE, NO_NETWORK).ethernet(C.mac, BROADCAST);
    node.from_uplink(&arp.arp_request((C.mac, C.ip), A.ip).build())
        .dropped(Counter::DropUnknownVni);
}

#[test]
fn a_node_speaks_for_its_own_endpoints_alone() {
    let mut node = Node::new();
    let frame = |vtep, from: Host| {
        outer(vtep, BLUE).ethernet(from.mac, A.mac).ipv4(from.ip, A.ip).udp(1, 2).build()
    };
    let no_one = Host { ip: Ipv4Addr::new(10, 0, 9, 77), ..C };
    for (vtep, from) in [(ELSEWHERE, C), (THERE, D), (THERE, B), (THERE, A), (THERE, no_one)] {
        node.from_uplink(&frame(vtep, from)).dropped(Counter::DropNotOwner);
    }
    let arp = outer(ELSEWHERE, BLUE).ethernet(C.mac, BROADCAST);
    node.from_uplink(&arp.arp_request((C.mac, C.ip), A.ip).build()).dropped(Counter::DropNotOwner);
    // Not even if this node were its own peer.
    node.object().set_peer(HERE, Peer::default());
    node.from_uplink(&frame(HERE, B)).dropped(Counter::DropNotOwner);
}

#[test]
fn a_node_is_no_relay() {
    let mut node = Node::new();
    for ip in [D.ip, C.ip, C.gateway(), E.ip, Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::BROADCAST] {
        let frame = outer(THERE, BLUE).ethernet(C.mac, A.mac).ipv4(C.ip, ip).udp(1, 2).build();
        node.from_uplink(&frame).dropped(Counter::DropNotLocal);
        let arp = outer(THERE, BLUE).ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), ip);
        if ip != C.ip {
            node.from_uplink(&arp.build()).dropped(Counter::DropNotLocal);
        }
    }
}

#[test]
fn what_only_the_kernel_does_right_is_left_to_it() {
    let mut node = Node::new();
    let inside = delivered(C, A).udp(1, 2).build();
    let vxlan = |packet: Packet| packet.udp_without_checksum(FLOW, VXLAN_PORT).vxlan(BLUE);
    for packet in [
        vxlan(to_here().fragment(0x2000)).payload(&inside),
        vxlan(to_here().options(&[1; 8])).payload(&inside),
        vxlan(to_here().tos(CONGESTED)).payload(&inside),
        to_here().udp(FLOW, VXLAN_PORT).vxlan(BLUE).payload(&inside),
    ] {
        node.from_uplink(&packet.build()).passed(Counter::PassedToVxlan);
    }
    for tos in [0, 1, 2, 0xb8] {
        let frame = vxlan(to_here().tos(tos)).payload(&inside).build();
        node.from_uplink(&frame).redirected(Counter::Decapsulated, &inside);
    }
}

#[test]
fn gso_packets_other_than_tcp_are_left_to_the_kernel() {
    let mut node = Node::new();
    let gso = Gso { size: 1000, segments: 4 };
    for packet in [inner(C, A).udp(1, 2), inner(C, A).protocol(132)] {
        node.gso_from_uplink(&packet.payload_of(3000).build(), gso).passed(Counter::PassedToVxlan);
    }
    // Not before it is admitted.
    let packet = inner(C, D).udp(1, 2).payload_of(3000);
    node.gso_from_uplink(&packet.build(), gso).dropped(Counter::DropNotLocal);
}

#[test]
fn what_is_inside_must_be_ipv4_or_arp_and_whole() {
    let mut node = Node::new();
    for ethertype in [0x86dd, 0x8100, 0x0000] {
        let packet = outer(THERE, BLUE).ethernet(C.mac, A.mac).ethertype(ethertype).payload_of(60);
        node.from_uplink(&packet.build()).dropped(Counter::DropOtherProtocol);
    }
    let valid = inner(C, A).udp(1, 2).payload_of(20).build();
    for (at, value) in [(64, 0x65), (64, 0x44), (64, 0x4f), (67, 49), (67, 19), (67, 0)] {
        let mut frame = valid.clone();
        frame[at] = value;
        node.from_uplink(&frame).dropped(Counter::DropMalformed);
    }
    let arp = outer(THERE, BLUE).ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), A.ip);
    for at in [65, 66, 68, 69] {
        let mut frame = arp.build();
        frame[at] ^= 1;
        node.from_uplink(&frame).dropped(Counter::DropMalformed);
    }
}

#[test]
fn arp_from_a_member_is_answered_through_the_tunnel() {
    let mut node = Node::new();
    for padding in [0, 18] {
        let request = outer(THERE, BLUE)
            .ethernet(C.mac, BROADCAST)
            .arp_request((C.mac, C.ip), A.ip)
            .payload_of(padding);
        // The kernel writes the outer Ethernet header afresh.
        let answer = ethernet(ROUTER, UPLINK)
            .ipv4(HERE, THERE)
            .udp_without_checksum(FLOW, VXLAN_PORT)
            .vxlan(BLUE)
            .ethernet(A.mac, C.mac)
            .arp_reply((A.mac, A.ip), (C.mac, C.ip))
            .payload_of(padding);
        node.from_uplink(&request.build()).redirected(Counter::ArpAnsweredRemote, &answer.build());
    }
}

#[test]
fn arp_that_asks_for_nothing_is_dropped() {
    let mut node = Node::new();
    let start = || outer(THERE, BLUE).ethernet(C.mac, BROADCAST);
    for packet in
        [start().arp_request((C.mac, C.ip), C.ip), start().arp_reply((C.mac, C.ip), (A.mac, A.ip))]
    {
        node.from_uplink(&packet.build()).dropped(Counter::DropArp);
    }
    let probe = start().arp_request((C.mac, Ipv4Addr::UNSPECIFIED), A.ip);
    node.from_uplink(&probe.build()).dropped(Counter::DropNotOwner);
}
