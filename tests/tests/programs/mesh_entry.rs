//! Published ports, inwards: what comes from outside of all networks becomes a packet to
//! the service.

use netagent_common::{Counter, GATEWAY_MAC, Kind, Published};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Gso, Node, Run};
use netagent_tests::world::{A, B, BLUE, C, G, HERE, MTU, THERE, VIP};
use std::net::Ipv4Addr;

use crate::mesh::{
    CLIENT, HERE_TOO, LIST, LOCALHOST, NO_MAC, TCP, UDP, answered, call, called, error, node,
};
use crate::{ROUTER, UPLINK, of_every_protocol, tunnelled};

const MORE_FRAGMENTS: u16 = 0x2000;

/// Went through the tunnel to C.
#[track_caller]
fn to_c(run: &Run, expected: &Packet) {
    let expected = tunnelled(run, [GATEWAY_MAC, C.mac], THERE, &expected.build()[14..]);
    run.redirected(Counter::EnteredMesh, &expected);
}

/// The client's port as the service sees it.
#[track_caller]
fn port_of(run: &Run) -> u16 {
    assert_eq!(run.counter(), Counter::EnteredMesh);
    u16::from_be_bytes([run.output[84], run.output[85]])
}

#[test]
fn a_published_port_leads_to_the_service() {
    let mut node = node(&[C]);
    for _ in 0..2 {
        let calls = of_every_protocol(&call(), 1000, 8080);
        for (call, called) in calls.iter().zip(of_every_protocol(&called(CLIENT), 1000, 80)) {
            to_c(&node.from_uplink(&call.build()), &called);
        }
    }
}

#[test]
fn a_backend_on_the_entry_node_is_called_by_its_own_address() {
    let mut node = node(&[B]);
    let calls = of_every_protocol(&call(), 1000, 8080);
    let called = of_every_protocol(&ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, B.ip), 1000, 80);
    for (call, called) in calls.iter().zip(called) {
        node.from_uplink(&call.build()).redirected(Counter::EnteredMesh, &called.build());
    }
}

#[test]
fn checksums_are_right_for_every_carry() {
    let mut node = node(&[C]);
    for word in (0..=0xffff_u16).step_by(41).chain([0xfffe, 0xffff]) {
        let payload = word.to_be_bytes();
        let sent = call().udp(1000, 8080).payload(payload).build();
        to_c(&node.from_uplink(&sent), &called(CLIENT).udp(1000, 80).payload(payload));
        let sent = call().tcp(1000, 8080).payload(payload).build();
        to_c(&node.from_uplink(&sent), &called(CLIENT).tcp(1000, 80).payload(payload));
    }
}

#[test]
fn what_is_not_published_is_the_hosts() {
    let mut node = node(&[C]);
    let elsewhere = || ethernet(ROUTER, UPLINK).ipv4(CLIENT, "192.168.50.77");
    for packet in [
        call().tcp(8080, 22),
        call().tcp(8080, 8082),
        elsewhere().tcp(1000, 8080),
        call().protocol(47).payload_of(40),
        call().icmp(8, 0, [0; 4]).payload_of(40),
        call().fragment(100).protocol(17).payload_of(40),
        call().protocol(6).payload([0x1f]),
        error(call(), &answered(HERE, CLIENT).tcp(8080, 1000)),
        error(call(), &answered(HERE, CLIENT).icmp(0, 0, [0; 4])),
    ] {
        node.from_uplink(&packet.build()).passed(Counter::PassedAtUplink);
        node.from_host(&packet.build()).passed(Counter::PassedAtLoopback);
    }
}

#[test]
fn only_who_is_allowed_gets_in() {
    let mut node = node(&[C]);
    node.object().allow(LIST, Ipv4Addr::new(203, 0, 113, 0), 28);
    node.object().allow(LIST + 1, Ipv4Addr::UNSPECIFIED, 0);
    for (last, enters) in [(7, true), (15, true), (16, false), (200, false)] {
        let client = Ipv4Addr::new(203, 0, 113, last);
        let packet = ethernet(ROUTER, UPLINK).ipv4(client, HERE).tcp(1000, 8081);
        let run = node.from_uplink(&packet.build());
        if enters {
            to_c(&run, &called(client).tcp(1000, 80));
        } else {
            run.dropped(Counter::DropNotAllowed);
        }
    }
    let own = ethernet(NO_MAC, NO_MAC).ipv4(LOCALHOST, LOCALHOST).tcp(1000, 8081);
    node.from_host(&own.build()).dropped(Counter::DropNotAllowed);
}

#[test]
fn the_hosts_own_clients_come_in_as_the_node() {
    let mut node = node(&[C]);
    for (address, port) in [(LOCALHOST, 1000), (HERE, 2000), (HERE_TOO, 3000)] {
        let own = ethernet(NO_MAC, NO_MAC).ipv4(address, address);
        let calls = of_every_protocol(&own, port, 8080);
        for (call, called) in calls.iter().zip(of_every_protocol(&called(HERE), port, 80)) {
            to_c(&node.from_host(&call.build()), &called);
        }
    }
    let other = ethernet(NO_MAC, NO_MAC).ipv4(LOCALHOST, LOCALHOST).tcp(1, 2);
    node.from_host(&other.build()).passed(Counter::PassedAtLoopback);
}

#[test]
fn a_workload_comes_in_as_its_node() {
    let mut node = node(&[C]);
    let from = |host: netagent_tests::world::Host| ethernet(host.mac, GATEWAY_MAC);
    let calls = of_every_protocol(&from(A).ipv4(A.ip, HERE), 1000, 8080);
    for (call, called) in calls.iter().zip(of_every_protocol(&called(HERE), 1000, 80)) {
        to_c(&node.from_endpoint(A, &call.build()), &called);
    }
    let other = from(A).ipv4(A.ip, HERE).tcp(1000, 22).build();
    node.from_endpoint(A, &other).passed(Counter::PassedToHost);
    // Not out of an internal network.
    let inner = from(G).ipv4(G.ip, HERE).tcp(1000, 8080).build();
    node.from_endpoint(G, &inner).dropped(Counter::DropInternal);
}

/// Clients that the service could not tell apart.
#[test]
fn two_clients_of_one_port_are_two() {
    let mut node = node(&[C]);
    let mut ports = Vec::new();
    for to in [HERE, HERE_TOO] {
        let packet = ethernet(ROUTER, UPLINK).ipv4(CLIENT, to).tcp(1000, 8080).build();
        let port = port_of(&node.from_uplink(&packet));
        for _ in 0..2 {
            to_c(&node.from_uplink(&packet), &called(CLIENT).tcp(port, 80));
        }
        ports.push(port);
    }
    assert_eq!(ports[0], 1000);
    assert!(ports[1] != 1000 && ports[1] >= 1024, "{ports:?}");
    let own = |ip: Ipv4Addr| ethernet(NO_MAC, NO_MAC).ipv4(ip, ip).tcp(2000, 8080).build();
    let workload = ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, HERE).tcp(2000, 8080).build();
    let mut ports = vec![
        port_of(&node.from_host(&own(LOCALHOST))),
        port_of(&node.from_host(&own(HERE))),
        port_of(&node.from_endpoint(A, &workload)),
    ];
    assert_eq!(ports[0], 2000);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3, "{ports:?}");
}

#[test]
fn a_client_whose_ports_are_all_taken_is_refused_until_one_is_idle() {
    let mut node = node(&[C]);
    let packet = call().tcp(1000, 8080).build();
    port_of(&node.from_uplink(&packet));
    let flows = node.object().flows();
    let kind = |kind| *flows.iter().find(|(key, _)| key.kind() == Some(kind)).expect("made");
    let ((entry, _), (exit, back)) = (kind(Kind::Entry), kind(Kind::Exit));
    // Somebody else has it now, and spoke lately or long ago.
    node.object().remove_flow(entry);
    for (silent, free) in [(0, false), (100_000, true)] {
        let other = netagent_common::Flow {
            client: [203, 0, 113, 8],
            seen: back.seen.wrapping_sub(silent),
            ..back
        };
        node.object().set_flow(exit, other);
        assert_eq!(port_of(&node.from_uplink(&packet)) == 1000, free);
        node.object().remove_flow(entry);
    }
}

#[test]
fn a_port_that_leads_elsewhere_now_begins_anew() {
    let mut node = node(&[C]);
    let packet = call().udp(1000, 8080).build();
    to_c(&node.from_uplink(&packet), &called(CLIENT).udp(1000, 80));
    node.object().publish(HERE, UDP, 8080, Published::new(BLUE, VIP.ip, 81, 0, MTU as u32));
    to_c(&node.from_uplink(&packet), &called(CLIENT).udp(1000, 81));
}

#[test]
fn in_host_mode_a_port_leads_to_its_backend() {
    let mut node = Node::new();
    node.object().publish(HERE, TCP, 9090, Published::new(BLUE, A.ip, 80, 0, MTU as u32));
    let expected = ethernet(GATEWAY_MAC, A.mac).ipv4(CLIENT, A.ip).tcp(1000, 80).flags(2).build();
    node.from_uplink(&call().tcp(1000, 9090).flags(2).build())
        .redirected(Counter::EnteredMesh, &expected);
}

#[test]
fn a_port_that_drains_keeps_its_flows_and_begins_none() {
    let mut node = Node::new();
    let published = Published::new(BLUE, A.ip, 80, 0, MTU as u32);
    let call = |port| call().tcp(port, 9090).flags(2).build();
    node.object().publish(HERE, TCP, 9090, published);
    assert_eq!(node.from_uplink(&call(1000)).counter(), Counter::EnteredMesh);
    node.object().publish(HERE, TCP, 9090, published.draining(true));
    assert_eq!(node.from_uplink(&call(1000)).counter(), Counter::EnteredMesh);
    node.from_uplink(&call(1001)).passed(Counter::PassedAtUplink);
    node.object().publish(HERE, TCP, 9090, published);
    assert_eq!(node.from_uplink(&call(1001)).counter(), Counter::EnteredMesh);
}

#[test]
fn a_service_without_backends_is_nobody() {
    let mut node = node(&[]);
    node.from_uplink(&call().udp(1000, 8080).build()).dropped(Counter::DropNoBackend);
}

#[test]
fn what_is_too_big_is_told_in_the_clients_words() {
    let mut node = node(&[C]);
    let [high, low] = (MTU as u16).to_be_bytes();
    let answer = |frame: &[u8], start: Packet| {
        start.icmp(3, 4, [0, 0, high, low]).payload(&frame[14..14 + 128]).build()
    };
    let frame = call().udp(1000, 8080).payload_of(MTU - 27).build();
    let expected = answer(&frame, answered(HERE, CLIENT));
    node.from_uplink(&frame).redirected(Counter::FragNeeded, &expected);
    let own = ethernet(NO_MAC, NO_MAC).ipv4(LOCALHOST, LOCALHOST);
    let frame = own.udp(1000, 8080).payload_of(MTU - 27).build();
    let expected = answer(&frame, ethernet(GATEWAY_MAC, NO_MAC).ipv4(LOCALHOST, LOCALHOST));
    node.from_host(&frame).redirected(Counter::FragNeeded, &expected);
    let frame = ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, HERE).udp(1000, 8080).payload_of(MTU - 27);
    let frame = frame.build();
    let expected = answer(&frame, ethernet(GATEWAY_MAC, A.mac).ipv4(HERE, A.ip));
    node.from_endpoint(A, &frame).redirected(Counter::FragNeeded, &expected);
    // What just fits, and segments that do.
    let frame = call().udp(1000, 8080).payload_of(MTU - 28);
    to_c(&node.from_uplink(&frame.build()), &called(CLIENT).udp(1000, 80).payload_of(MTU - 28));
    let segments = |size| Gso { size, segments: 3 };
    let frame = call().tcp(1000, 8080).payload_of(3000).build();
    let run = node.gso_from_uplink(&frame, segments(MTU as u32 - 40));
    // TEST_RUN's kind of GSO is not one that can be put into a tunnel here.
    assert_eq!(run.counter(), Counter::PassedToVxlan);
    assert_eq!(run.output[14..], called(CLIENT).tcp(1000, 80).payload_of(3000).build()[14..]);
    let run = node.gso_from_uplink(&frame, segments(MTU as u32 - 39));
    assert_eq!(run.counter(), Counter::FragNeeded);
}

#[test]
fn errors_about_answers_reach_the_service() {
    let mut node = node(&[C]);
    for client in [1000, 1001] {
        let frame = ethernet(ROUTER, UPLINK).ipv4(CLIENT, HERE_TOO).tcp(client, 8080);
        port_of(&node.from_uplink(&frame.build()));
    }
    let frame = call().tcp(1001, 8080).build();
    let port = port_of(&node.from_uplink(&frame));
    assert_ne!(port, 1001);
    for quoted_bytes in [8, 20, 40] {
        let sent = answered(HERE, CLIENT).tcp(8080, 1001).payload_of(20).build();
        let meant = ethernet(C.mac, GATEWAY_MAC).ipv4(VIP.ip, CLIENT).tcp(80, port).payload_of(20);
        let cut = |frame: &[u8]| frame[14..14 + 20 + quoted_bytes].to_vec();
        for (from, seen) in [(CLIENT, CLIENT), (HERE_TOO, HERE_TOO)] {
            let error = |start: Packet, quoted| start.icmp(3, 1, [0; 4]).payload(quoted);
            let frame = error(ethernet(ROUTER, UPLINK).ipv4(from, HERE), cut(&sent)).build();
            to_c(&node.from_uplink(&frame), &error(called(seen), cut(&meant.build())));
        }
    }
}

#[test]
fn fragments_follow_the_first() {
    let mut node = node(&[C]);
    let first =
        |start: Packet, port| start.id(5).fragment(MORE_FRAGMENTS).udp(1000, port).payload_of(1000);
    let later = |start: Packet| start.id(5).fragment(126).protocol(17).payload_of(300);
    node.from_uplink(&later(call()).build()).passed(Counter::PassedAtUplink);
    to_c(&node.from_uplink(&first(call(), 8080).build()), &first(called(CLIENT), 80));
    to_c(&node.from_uplink(&later(call()).build()), &later(called(CLIENT)));
    let other = later(call()).id(6).build();
    node.from_uplink(&other).passed(Counter::PassedAtUplink);
}
