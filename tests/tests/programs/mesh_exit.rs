//! Published ports, outwards: what the service answers leaves as an answer of the port that
//! the client has called.

use netagent_common::{Counter, GATEWAY_MAC, Published};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::{Gso, Node, Run};
use netagent_tests::world::{A, B, BLUE, C, D, ELSEWHERE, HERE, MTU, STRANGER, THERE, VIP};
use std::net::Ipv4Addr;

use crate::mesh::{CLIENT, HERE_TOO, LOCALHOST, NO_MAC, TCP, answer, answered, call, error, node};
use crate::{ROUTER, UPLINK, of_every_protocol, outer};

const MORE_FRAGMENTS: u16 = 0x2000;

/// Lets the client call from port 1000, by every protocol.
fn connect(node: &mut Node) {
    for packet in of_every_protocol(&call(), 1000, 8080) {
        assert_eq!(node.from_uplink(&packet.build()).counter(), Counter::EnteredMesh);
    }
}

#[track_caller]
fn left(run: &Run, expected: &Packet) {
    run.redirected(Counter::LeftMesh, &expected.build());
}

#[test]
fn the_client_is_answered_by_whom_it_called() {
    let mut node = node(&[C]);
    connect(&mut node);
    let answers = of_every_protocol(&answer(CLIENT), 80, 1000);
    for (answer, answered) in
        answers.iter().zip(of_every_protocol(&answered(HERE, CLIENT), 8080, 1000))
    {
        let frame = answer.build();
        left(&node.from_uplink(&frame), &answered);
        // Popped by the kernel, it has the inner MACs.
        let bytes = node.from_overlay(THERE, BLUE, &frame[50..]);
        assert_eq!(bytes.counter(), Counter::LeftMesh);
        assert_eq!(bytes.output[14..], answered.build()[14..]);
    }
}

#[test]
fn a_backend_on_the_entry_node_answers_too() {
    let mut node = node(&[B]);
    connect(&mut node);
    let macs = || ethernet(B.mac, GATEWAY_MAC);
    let answers = of_every_protocol(&macs().ipv4(B.ip, CLIENT), 80, 1000);
    let answered = of_every_protocol(&macs().ipv4(HERE, CLIENT), 8080, 1000);
    for (answer, answered) in answers.iter().zip(answered) {
        left(&node.from_endpoint(B, &answer.build()), &answered);
    }
}

#[test]
fn in_host_mode_too() {
    let mut node = node(&[B]);
    node.object().publish(HERE, TCP, 9090, Published::new(BLUE, B.ip, 80, 0, MTU as u32));
    let frame = call().tcp(1000, 9090).flags(2).build();
    assert_eq!(node.from_uplink(&frame).counter(), Counter::EnteredMesh);
    let macs = || ethernet(B.mac, GATEWAY_MAC);
    let frame = macs().ipv4(B.ip, CLIENT).tcp(80, 1000).payload_of(10).build();
    left(&node.from_endpoint(B, &frame), &macs().ipv4(HERE, CLIENT).tcp(9090, 1000).payload_of(10));
}

#[test]
fn the_host_is_answered_on_its_loopback_device() {
    let mut node = node(&[C]);
    for (address, port) in [(LOCALHOST, 1000), (HERE, 2000), (HERE_TOO, 3000)] {
        let own = ethernet(NO_MAC, NO_MAC).ipv4(address, address);
        for packet in of_every_protocol(&own, port, 8080) {
            assert_eq!(node.from_host(&packet.build()).counter(), Counter::EnteredMesh);
        }
        let answers = of_every_protocol(&answer(HERE), 80, port);
        let back = ethernet(GATEWAY_MAC, NO_MAC).ipv4(address, address);
        for (answer, answered) in answers.iter().zip(of_every_protocol(&back, 8080, port)) {
            left(&node.from_uplink(&answer.build()), &answered);
            // There it meets the same program, which leaves it alone.
            node.from_host(&answered.build()).passed(Counter::PassedAtLoopback);
        }
    }
    // Even to a client whose port is itself a published one.
    let back = ethernet(GATEWAY_MAC, NO_MAC).ipv4(LOCALHOST, LOCALHOST).tcp(8080, 8080).build();
    node.from_host(&back).passed(Counter::PassedAtLoopback);
}

#[test]
fn a_workload_is_answered_at_its_interface() {
    let mut node = node(&[C]);
    for packet in of_every_protocol(&ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, HERE), 1000, 8080) {
        assert_eq!(node.from_endpoint(A, &packet.build()).counter(), Counter::EnteredMesh);
    }
    let answers = of_every_protocol(&answer(HERE), 80, 1000);
    let back = ethernet(GATEWAY_MAC, A.mac).ipv4(HERE, A.ip);
    for (answer, answered) in answers.iter().zip(of_every_protocol(&back, 8080, 1000)) {
        left(&node.from_uplink(&answer.build()), &answered);
    }
}

#[test]
fn each_of_two_clients_gets_its_own_answers() {
    let mut node = node(&[C]);
    for to in [HERE, HERE_TOO] {
        let frame = ethernet(ROUTER, UPLINK).ipv4(CLIENT, to).tcp(1000, 8080).build();
        let run = node.from_uplink(&frame);
        let port = u16::from_be_bytes([run.output[84], run.output[85]]);
        let frame = answer(CLIENT).tcp(80, port).payload_of(30).build();
        let expected = answered(to, CLIENT).tcp(8080, 1000).payload_of(30);
        left(&node.from_uplink(&frame), &expected);
    }
}

#[test]
fn nobody_leaves_who_was_not_called() {
    let mut node = node(&[C]);
    connect(&mut node);
    let from = |vtep, mac: Mac, ip: Ipv4Addr| {
        outer(vtep, BLUE).ethernet(mac, GATEWAY_MAC).ipv4(ip, CLIENT)
    };
    for (vtep, mac, ip, reason) in [
        (ELSEWHERE, C.mac, VIP.ip, Counter::DropNotOwner),
        (ELSEWHERE, D.mac, VIP.ip, Counter::DropNotOwner),
        (THERE, VIP.mac, VIP.ip, Counter::DropNotOwner),
        (STRANGER, C.mac, VIP.ip, Counter::DropNotMember),
        (HERE, C.mac, VIP.ip, Counter::DropNotMember),
        // An endpoint by itself, and one that poses as a client.
        (THERE, C.mac, C.ip, Counter::DropUnknownFlow),
        (THERE, C.mac, CLIENT, Counter::DropNotOwner),
    ] {
        node.from_uplink(&from(vtep, mac, ip).tcp(80, 1000).build()).dropped(reason);
    }
    for packet in [
        answer(CLIENT).tcp(80, 1001),
        answer(CLIENT).tcp(81, 1000),
        answer(Ipv4Addr::new(203, 0, 113, 8)).tcp(80, 1000),
        answer(CLIENT).icmp(8, 0, [0; 4]),
        answer(CLIENT).protocol(47).payload_of(40),
        answer(CLIENT).fragment(100).protocol(17).payload_of(40),
        error(answer(CLIENT), &ethernet(NO_MAC, NO_MAC).ipv4(CLIENT, VIP.ip).tcp(7, 80)),
    ] {
        node.from_uplink(&packet.build()).dropped(Counter::DropUnknownFlow);
    }
    // From the mesh into the mesh.
    let frame = outer(THERE, BLUE).ethernet(GATEWAY_MAC, GATEWAY_MAC).ipv4(CLIENT, HERE);
    node.from_uplink(&frame.tcp(1000, 80).build()).dropped(Counter::DropNotLocal);
}

#[test]
fn errors_of_the_service_are_about_what_the_client_sent() {
    let mut node = node(&[C]);
    connect(&mut node);
    let forms: [fn(Packet, u16) -> Packet; 4] = [
        |packet, port| packet.tcp(1000, port).payload_of(30),
        |packet, port| packet.udp(1000, port).payload_of(31),
        |packet, port| packet.udp_without_checksum(1000, port).payload_of(30),
        |packet, port| packet.options(&[1; 8]).udp(1000, port).payload_of(3),
    ];
    for form in forms {
        let seen = form(ethernet(GATEWAY_MAC, C.mac).ipv4(CLIENT, VIP.ip), 80);
        let sent = form(call(), 8080);
        let frame = error(answer(CLIENT), &seen).build();
        left(&node.from_uplink(&frame), &error(answered(HERE, CLIENT), &sent));
    }
}

#[test]
fn fragments_follow_the_first() {
    let mut node = node(&[C]);
    connect(&mut node);
    let first =
        |start: Packet, port| start.id(5).fragment(MORE_FRAGMENTS).udp(port, 1000).payload_of(1000);
    let later = |start: Packet| start.id(5).fragment(126).protocol(17).payload_of(300);
    left(
        &node.from_uplink(&first(answer(CLIENT), 80).build()),
        &first(answered(HERE, CLIENT), 8080),
    );
    left(&node.from_uplink(&later(answer(CLIENT)).build()), &later(answered(HERE, CLIENT)));
}

/// Popped here it would keep the mark of a tunnel's GSO packet on its way out.
#[test]
fn gso_packets_that_leave_are_popped_by_the_kernel() {
    let mut node = node(&[C]);
    connect(&mut node);
    let frame = answer(CLIENT).tcp(80, 1000).payload_of(3000).build();
    let gso = Gso { size: 1000, segments: 3 };
    node.gso_from_uplink(&frame, gso).passed(Counter::PassedToVxlan);
    let expected = answered(HERE, CLIENT).tcp(8080, 1000).payload_of(3000).build();
    let run = node.from_overlay(THERE, BLUE, &frame[50..]);
    assert_eq!(run.counter(), Counter::LeftMesh);
    assert_eq!(run.output[14..], expected[14..]);
}
