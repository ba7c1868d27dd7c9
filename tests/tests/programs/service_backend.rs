//! At the backend's node: the virtual address becomes the backend's own just before
//! delivery, and again the virtual address as the backend answers.

use netagent_common::{Counter, Flow, GATEWAY_MAC, Kind, Scheduler, Service};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::{Gso, Node, Run};
use netagent_tests::world::{A, B, BLUE, C, D, E, ELSEWHERE, Host, MTU, RED, STRANGER, THERE, VIP};
use std::net::Ipv4Addr;

use crate::{of_every_protocol, outer, tunnelled};

/// Outside of all networks.
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const SYN: u8 = 0x02;
const FIN: u8 = 0x11;
const MORE_FRAGMENTS: u16 = 0x2000;

fn node(backends: &[Host]) -> Node {
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Turn, backends.len() as u32, 0, 3600), backends);
    node
}

/// From C, to the service, for backend B.
fn call() -> Packet {
    outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, VIP.ip)
}

/// The same as B gets it.
fn called() -> Packet {
    ethernet(C.mac, B.mac).ipv4(C.ip, B.ip)
}

/// What B answers.
fn answer() -> Packet {
    ethernet(B.mac, C.mac).ipv4(B.ip, C.ip)
}

/// The same as C gets it.
fn answered() -> Packet {
    ethernet(B.mac, C.mac).ipv4(VIP.ip, C.ip)
}

#[track_caller]
fn to_node(run: &Run, macs: [Mac; 2], vtep: Ipv4Addr, expected: &Packet) {
    let expected = tunnelled(run, macs, vtep, &expected.build()[14..]);
    run.redirected(Counter::Encapsulated, &expected);
}

/// The source port that B sees.
#[track_caller]
fn seen_port(run: &Run) -> u16 {
    assert_eq!(run.counter(), Counter::Decapsulated);
    u16::from_be_bytes([run.output[34], run.output[35]])
}

#[test]
fn the_backend_is_called_by_its_own_address_and_answers_as_the_service() {
    let mut node = node(&[B]);
    let calls = of_every_protocol(&call(), 1000, 80);
    for (call, called) in calls.iter().zip(of_every_protocol(&called(), 1000, 80)) {
        for _ in 0..2 {
            node.from_uplink(&call.build()).redirected(Counter::Decapsulated, &called.build());
            let bytes = &call.build()[64 - 14..];
            node.from_overlay(THERE, BLUE, bytes)
                .redirected(Counter::DeliveredFromVxlan, &called.build());
        }
    }
    let answers = of_every_protocol(&answer(), 80, 1000);
    for (answer, answered) in answers.iter().zip(of_every_protocol(&answered(), 80, 1000)) {
        let run = node.from_endpoint(B, &answer.build());
        to_node(&run, [B.mac, C.mac], THERE, &answered);
    }
}

#[test]
fn checksums_are_right_for_every_carry() {
    let mut node = node(&[B]);
    for word in (0..=0xffff_u16).step_by(37).chain([0xfffe, 0xffff]) {
        let payload = word.to_be_bytes();
        let frame = call().udp(1000, 80).payload(payload).build();
        let expected = called().udp(1000, 80).payload(payload).build();
        node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
        let frame = call().tcp(1000, 80).payload(payload).build();
        let expected = called().tcp(1000, 80).payload(payload).build();
        node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
    }
}

#[test]
fn client_and_backend_may_be_on_one_node() {
    let mut node = node(&[B]);
    let calls = of_every_protocol(&ethernet(A.mac, VIP.mac).ipv4(A.ip, VIP.ip), 1000, 80);
    let called = of_every_protocol(&ethernet(A.mac, B.mac).ipv4(A.ip, B.ip), 1000, 80);
    for (call, called) in calls.iter().zip(called) {
        node.from_endpoint(A, &call.build()).redirected(Counter::DeliveredLocally, &called.build());
    }
    let answers = of_every_protocol(&ethernet(B.mac, A.mac).ipv4(B.ip, A.ip), 80, 1000);
    let answered = of_every_protocol(&ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip), 80, 1000);
    for (answer, answered) in answers.iter().zip(answered) {
        node.from_endpoint(B, &answer.build())
            .redirected(Counter::DeliveredLocally, &answered.build());
    }
}

#[test]
fn what_a_backend_says_by_itself_is_its_own() {
    let mut node = node(&[B]);
    node.from_uplink(&call().udp(1000, 80).build());
    for packet in [answer().udp(80, 1001), answer().udp(81, 1000), answer().tcp(80, 1000)] {
        let run = node.from_endpoint(B, &packet.build());
        to_node(&run, [B.mac, C.mac], THERE, &packet);
    }
    let packet = ethernet(B.mac, GATEWAY_MAC).ipv4(B.ip, "203.0.113.1").udp(80, 1000);
    node.from_endpoint(B, &packet.build()).passed(Counter::PassedToHost);
}

#[test]
fn a_backend_may_be_called_directly_too() {
    let mut node = node(&[B]);
    let direct = || outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, B.ip);
    for packet in of_every_protocol(&direct(), 1000, 80) {
        let frame = packet.build();
        node.from_uplink(&frame).redirected(Counter::Decapsulated, &frame[50..]);
    }
    for packet in of_every_protocol(&answer(), 80, 1000) {
        let run = node.from_endpoint(B, &packet.build());
        to_node(&run, [B.mac, C.mac], THERE, &packet);
    }
    for packet in [direct().icmp(8, 0, [0; 4]).payload_of(50), direct().protocol(47)] {
        let frame = packet.build();
        node.from_uplink(&frame).redirected(Counter::Decapsulated, &frame[50..]);
    }
}

/// The same client port to the backend directly and by the service: the backend sees two.
#[test]
fn the_same_flow_by_two_addresses_is_two_flows() {
    for by_service_first in [true, false] {
        let mut node = node(&[B]);
        let direct = || outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, B.ip);
        let mut calls = [(call(), VIP.ip), (direct(), B.ip)];
        if !by_service_first {
            calls.reverse();
        }
        let ports = calls.clone().map(|(call, address)| {
            let frame = call.tcp(1000, 80).flags(SYN).payload_of(20).build();
            let port = seen_port(&node.from_uplink(&frame));
            let expected = called().tcp(port, 80).flags(SYN).payload_of(20).build();
            node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
            (port, address)
        });
        assert_eq!(ports[0].0, 1000);
        assert!(ports[1].0 >= 0x8000, "{ports:?}");
        for (port, address) in ports {
            let frame = answer().tcp(80, port).payload_of(30).build();
            let expected = ethernet(B.mac, C.mac).ipv4(address, C.ip).tcp(80, 1000);
            let run = node.from_endpoint(B, &frame);
            to_node(&run, [B.mac, C.mac], THERE, &expected.payload_of(30));
        }
    }
}

#[test]
fn a_port_is_free_when_its_flow_has_long_ended() {
    let mut node = node(&[B]);
    let direct = outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, B.ip).tcp(1000, 80);
    let direct = direct.flags(SYN).build();
    seen_port(&node.from_uplink(&call().tcp(1000, 80).flags(SYN).build()));
    seen_port(&node.from_uplink(&call().tcp(1000, 80).flags(FIN).build()));
    let age = |node: &mut Node, seconds| {
        for (key, mut flow) in node.object().flows() {
            flow.seen = flow.seen.wrapping_sub(seconds);
            node.object().set_flow(key, flow);
        }
    };
    let forget = |node: &mut Node| {
        let flows = node.object().flows();
        let direct =
            |key: &netagent_common::FlowKey| key.kind() == Some(Kind::In) && key.called().0 == B.ip;
        let key = flows.iter().find(|(key, _)| direct(key)).expect("it is remembered").0;
        node.object().remove_flow(key);
    };
    assert_ne!(seen_port(&node.from_uplink(&direct)), 1000);
    forget(&mut node);
    age(&mut node, 11);
    assert_eq!(seen_port(&node.from_uplink(&direct)), 1000);
}

#[test]
fn a_flow_finds_no_port_when_all_that_it_may_have_are_taken() {
    let mut node = node(&[B]);
    let frame = call().udp(1000, 80).build();
    let mut ports = std::collections::BTreeSet::new();
    // Each port that it gets is another's the next time; it tries its own and 16 more.
    for _ in 0..17 {
        let run = node.from_uplink(&frame);
        if run.counter() == Counter::DropNoPort {
            break;
        }
        ports.insert(seen_port(&run));
        for (key, flow) in node.object().flows() {
            match key.kind() {
                Some(Kind::In) => node.object().remove_flow(key),
                _ => node.object().set_flow(key, Flow { via: [1, 2, 3, 4], ..flow }),
            }
        }
    }
    assert!(ports.contains(&1000) && ports.len() > 12, "{ports:?}");
    node.from_uplink(&frame).dropped(Counter::DropNoPort);
}

/// A backend that calls its own service and gets itself.
#[test]
fn a_backend_that_gets_itself_sees_the_gateway() {
    let mut node = node(&[B]);
    let calls = of_every_protocol(&ethernet(B.mac, VIP.mac).ipv4(B.ip, VIP.ip), 1000, 80);
    let called = of_every_protocol(&ethernet(GATEWAY_MAC, B.mac).ipv4(B.gateway(), B.ip), 1000, 80);
    for (call, called) in calls.iter().zip(called) {
        node.from_endpoint(B, &call.build()).redirected(Counter::DeliveredLocally, &called.build());
    }
    let answers =
        of_every_protocol(&ethernet(B.mac, GATEWAY_MAC).ipv4(B.ip, B.gateway()), 80, 1000);
    let answered = of_every_protocol(&ethernet(VIP.mac, B.mac).ipv4(VIP.ip, B.ip), 80, 1000);
    for (answer, answered) in answers.iter().zip(answered) {
        node.from_endpoint(B, &answer.build())
            .redirected(Counter::DeliveredLocally, &answered.build());
    }
    // To the gateway itself all is as before.
    let echo = ethernet(B.mac, GATEWAY_MAC).ipv4(B.ip, B.gateway()).icmp(8, 0, [0; 4]).build();
    assert_eq!(node.from_endpoint(B, &echo).counter(), Counter::EchoAnswered);
}

#[test]
fn only_a_backend_of_the_service_here_is_delivered_to() {
    let mut node = node(&[B, C]);
    let to = |mac: Mac| outer(THERE, BLUE).ethernet(C.mac, mac).ipv4(C.ip, VIP.ip).udp(1, 2);
    // No backend, not here, no endpoint, no MAC of ours.
    for mac in [A.mac, C.mac, E.mac, VIP.mac, [0x02, 0x43, 10, 0, 9, 3], GATEWAY_MAC] {
        node.from_uplink(&to(mac).build()).dropped(Counter::DropNotBackend);
    }
    node.set_backend(B, Some(false));
    assert_eq!(node.from_uplink(&to(B.mac).build()).counter(), Counter::Decapsulated);
    node.set_backend(B, None);
    node.from_uplink(&to(B.mac).build()).dropped(Counter::DropNotBackend);
}

#[test]
fn a_service_takes_nothing_else_from_the_tunnel_either() {
    let mut node = node(&[B]);
    node.from_uplink(&call().protocol(47).payload_of(20).build())
        .dropped(Counter::DropServiceProtocol);
    node.from_uplink(&call().icmp(8, 0, [0; 4]).build()).dropped(Counter::DropUnknownFlow);
}

#[test]
fn a_service_answers_from_the_nodes_of_its_backends() {
    let mut node = node(&[C]);
    let answer = |vtep, mac: Mac| outer(vtep, BLUE).ethernet(mac, A.mac).ipv4(VIP.ip, A.ip);
    let expected = ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip).tcp(80, 1000).build();
    let frame = answer(THERE, C.mac).tcp(80, 1000).build();
    node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
    node.from_overlay(THERE, BLUE, &frame[50..]).redirected(Counter::DeliveredFromVxlan, &expected);
    for (vtep, mac, reason) in [
        (ELSEWHERE, C.mac, Counter::DropNotOwner),
        (THERE, D.mac, Counter::DropNotOwner),
        (ELSEWHERE, D.mac, Counter::DropNotOwner),
        (THERE, VIP.mac, Counter::DropNotOwner),
        (THERE, B.mac, Counter::DropNotOwner),
        (STRANGER, C.mac, Counter::DropNotMember),
        (Ipv4Addr::UNSPECIFIED, VIP.mac, Counter::DropNotMember),
    ] {
        node.from_uplink(&answer(vtep, mac).tcp(80, 1000).build()).dropped(reason);
    }
    // One that drains answers still, one that is none any more does not.
    node.set_backend(C, Some(false));
    node.from_uplink(&frame).redirected(Counter::Decapsulated, &expected);
    node.set_backend(C, None);
    node.from_uplink(&frame).dropped(Counter::DropNotOwner);
}

#[test]
fn from_outside_a_member_brings_whoever_is_in_no_network() {
    let mut node = node(&[B]);
    let from = |vtep, source: Ipv4Addr| {
        outer(vtep, BLUE).ethernet(GATEWAY_MAC, B.mac).ipv4(source, VIP.ip).udp(1000, 80)
    };
    let expected = ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, B.ip).udp(1000, 80).build();
    node.from_uplink(&from(THERE, CLIENT).build()).redirected(Counter::Decapsulated, &expected);
    node.from_uplink(&from(STRANGER, CLIENT).build()).dropped(Counter::DropNotMember);
    for source in [A.ip, D.ip, E.ip, A.gateway(), VIP.ip, Ipv4Addr::new(10, 0, 9, 77)] {
        node.from_uplink(&from(THERE, source).build()).dropped(Counter::DropNotOwner);
    }
    // To a service alone, and in a network that is here.
    let frame = outer(THERE, BLUE).ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, B.ip).udp(1, 2);
    node.from_uplink(&frame.build()).dropped(Counter::DropNotLocal);
    let frame = outer(THERE, RED).ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, VIP.ip).udp(1, 2);
    node.from_uplink(&frame.build()).dropped(Counter::DropNotLocal);
    let frame = outer(THERE, 5000).ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, VIP.ip).udp(1, 2);
    node.from_uplink(&frame.build()).dropped(Counter::DropUnknownVni);
}

#[test]
fn answers_go_back_to_where_the_client_came_in() {
    let mut node = node(&[B]);
    // The same client and port, come in at two nodes.
    for (vtep, payload) in [(THERE, 10), (ELSEWHERE, 20)] {
        let frame = outer(vtep, BLUE).ethernet(GATEWAY_MAC, B.mac).ipv4(CLIENT, VIP.ip);
        let run = node.from_uplink(&frame.tcp(1000, 80).flags(SYN).payload_of(payload).build());
        let port = seen_port(&run);
        assert_eq!(port == 1000, vtep == THERE);
        let frame = ethernet(B.mac, GATEWAY_MAC).ipv4(B.ip, CLIENT).tcp(80, port).payload_of(9);
        let expected = ethernet(B.mac, GATEWAY_MAC).ipv4(VIP.ip, CLIENT).tcp(80, 1000);
        let run = node.from_endpoint(B, &frame.build());
        to_node(&run, [B.mac, GATEWAY_MAC], vtep, &expected.payload_of(9));
    }
}

#[test]
fn fragments_are_translated() {
    let mut node = node(&[B]);
    let first = |start: Packet, ports: (u16, u16)| {
        start.id(5).fragment(MORE_FRAGMENTS).udp(ports.0, ports.1).payload_of(1000)
    };
    let later = |start: Packet| start.id(5).fragment(126).protocol(17).payload_of(300);
    let whole = first(called(), (1000, 80)).build();
    node.from_uplink(&first(call(), (1000, 80)).build()).redirected(Counter::Decapsulated, &whole);
    node.from_uplink(&later(call()).build())
        .redirected(Counter::Decapsulated, &later(called()).build());
    let run = node.from_endpoint(B, &first(answer(), (80, 1000)).build());
    to_node(&run, [B.mac, C.mac], THERE, &first(answered(), (80, 1000)));
    let run = node.from_endpoint(B, &later(answer()).build());
    to_node(&run, [B.mac, C.mac], THERE, &later(answered()));
    // Of nothing that is known: as it is.
    let other = later(answer()).id(6).build();
    let run = node.from_endpoint(B, &other);
    assert_eq!(run.counter(), Counter::Encapsulated);
    assert_eq!(run.output[64 + 12..64 + 16], B.ip.octets());
}

#[test]
fn what_a_backend_answers_must_fit() {
    let mut node = node(&[B]);
    node.from_uplink(&call().udp(1000, 80).build());
    let frame = answer().udp(80, 1000).payload_of(MTU - 27).build();
    let [high, low] = (MTU as u16).to_be_bytes();
    let expected = ethernet(GATEWAY_MAC, B.mac).ipv4(B.gateway(), B.ip);
    let expected = expected.icmp(3, 4, [0, 0, high, low]).payload(&frame[14..14 + 128]).build();
    node.from_endpoint(B, &frame).redirected(Counter::FragNeeded, &expected);
    node.from_uplink(&call().tcp(1000, 80).build());
    let gso = Gso { size: 1000, segments: 3 };
    let run = node.gso_from_endpoint(B, &answer().tcp(80, 1000).payload_of(2500).build(), gso);
    // TEST_RUN's kind of GSO is not one that can be put into a tunnel here.
    let expected = answered().tcp(80, 1000).payload_of(2500).build();
    run.redirected(Counter::PassedToVxlan, &expected);
}

/// An ICMP error about `quoted`, from `start`.
fn error(start: Packet, quoted: &Packet) -> Packet {
    start.icmp(3, 3, [0; 4]).payload(&quoted.build()[14..])
}

#[test]
fn errors_of_the_backend_are_about_the_service() {
    let mut node = node(&[B]);
    for calls in [of_every_protocol(&called(), 1000, 80)
        .into_iter()
        .zip(of_every_protocol(&ethernet(C.mac, B.mac).ipv4(C.ip, VIP.ip), 1000, 80))
        .zip(of_every_protocol(&call(), 1000, 80))]
    {
        for ((seen, meant), sent) in calls {
            node.from_uplink(&sent.build());
            let run = node.from_endpoint(B, &error(answer(), &seen).build());
            to_node(&run, [B.mac, C.mac], THERE, &error(answered(), &meant));
        }
    }
    // About what it never got, as it is.
    let frame = error(answer(), &called().udp(7, 7));
    let run = node.from_endpoint(B, &frame.build());
    to_node(&run, [B.mac, C.mac], THERE, &frame);
}

#[test]
fn errors_of_the_client_are_about_the_backend() {
    let mut node = node(&[B]);
    // With the client's port changed for the backend.
    let direct = outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, B.ip).udp(1000, 80);
    seen_port(&node.from_uplink(&direct.build()));
    let port = seen_port(&node.from_uplink(&call().udp(1000, 80).build()));
    assert_ne!(port, 1000);
    let meant = ethernet(B.mac, C.mac).ipv4(VIP.ip, C.ip).udp(80, 1000).payload_of(40);
    let seen = answer().udp(80, port).payload_of(40);
    node.from_uplink(&error(call(), &meant).build())
        .redirected(Counter::Decapsulated, &error(called(), &seen).build());
    let unknown = ethernet(B.mac, C.mac).ipv4(VIP.ip, C.ip).udp(80, 1001).payload_of(40);
    node.from_uplink(&error(call(), &unknown).build()).dropped(Counter::DropUnknownFlow);
    // Of the direct flow, and of one that nobody knows.
    for port in [1000, 1001] {
        let own = answer().udp(80, port).payload_of(40);
        let frame = error(outer(THERE, BLUE).ethernet(C.mac, B.mac).ipv4(C.ip, B.ip), &own);
        node.from_uplink(&frame.build())
            .redirected(Counter::Decapsulated, &error(called(), &own).build());
    }
}
