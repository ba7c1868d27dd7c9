//! What the kernel's vxlan device took out of the tunnel. The checks are those of
//! `from_uplink`; here is that they are made.

use netagent_common::Counter;
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::Node;
use netagent_tests::world::{
    A, B, BLUE, C, D, E, ELSEWHERE, F, Host, NO_NETWORK, RED, STRANGER, THERE,
};

const BROADCAST: [u8; 6] = [0xff; 6];

fn packet(from: Host, to: Host) -> Packet {
    ethernet(from.mac, to.mac).ipv4(from.ip, to.ip).udp(1, 2).payload_of(100)
}

#[test]
fn a_member_reaches_local_endpoints() {
    let mut node = Node::new();
    for (from, to) in [(C, A), (C, B), (F, E)] {
        let frame = packet(from, to).build();
        node.from_overlay(THERE, from.vni, &frame).redirected(Counter::DeliveredFromVxlan, &frame);
    }
    let foreign = ethernet([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8]).ipv4(C.ip, A.ip).tcp(1, 2);
    let frame = ethernet(C.mac, A.mac).ipv4(C.ip, A.ip).tcp(1, 2).build();
    node.from_overlay(THERE, BLUE, &foreign.build())
        .redirected(Counter::DeliveredFromVxlan, &frame);
}

#[test]
fn nobody_else_reaches_anyone() {
    let mut node = Node::new();
    let cases = [
        (STRANGER, BLUE, packet(C, A), Counter::DropNotMember),
        (THERE, NO_NETWORK, packet(C, A), Counter::DropUnknownVni),
        (THERE, RED, packet(C, A), Counter::DropNotOwner),
        (ELSEWHERE, BLUE, packet(C, A), Counter::DropNotOwner),
        (THERE, BLUE, packet(B, A), Counter::DropNotOwner),
        (THERE, BLUE, packet(C, D), Counter::DropNotLocal),
        (THERE, BLUE, ethernet(C.mac, A.mac).ethertype(0x88cc), Counter::DropOtherProtocol),
        (THERE, BLUE, ethernet(C.mac, A.mac).ethertype(0x0806), Counter::DropMalformed),
    ];
    for (vtep, vni, packet, reason) in cases {
        node.from_overlay(vtep, vni, &packet.build()).dropped(reason);
    }
}

#[test]
fn a_packet_of_no_tunnel_is_malformed() {
    let frame = packet(C, A).build();
    Node::new().from_overlay_untunnelled(&frame).dropped(Counter::DropMalformed);
}

#[test]
fn arp_from_a_member_is_answered_through_the_tunnel() {
    let mut node = Node::new();
    let request = ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), A.ip).build();
    let answer = ethernet(A.mac, C.mac).arp_reply((A.mac, A.ip), (C.mac, C.ip)).build();
    node.from_overlay(THERE, BLUE, &request).redirected(Counter::ArpAnsweredRemote, &answer);
    node.from_overlay(ELSEWHERE, BLUE, &request).dropped(Counter::DropNotOwner);
    let reply = ethernet(C.mac, A.mac).arp_reply((C.mac, C.ip), (A.mac, A.ip)).build();
    node.from_overlay(THERE, BLUE, &reply).dropped(Counter::DropArp);
    let elsewhere = ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), D.ip).build();
    node.from_overlay(THERE, BLUE, &elsewhere).dropped(Counter::DropNotLocal);
}
