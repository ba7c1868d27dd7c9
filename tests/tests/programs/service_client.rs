//! At the client's node: a packet to a service's virtual address gets a backend, and goes
//! to its node with the virtual address still in it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netagent_common::{Counter, Scheduler, Service, Slot, SlotKey};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Gso, Node, Run};
use netagent_tests::world::{A, B, BLUE, C, D, ELSEWHERE, Host, MTU, THERE, VIP};

use crate::{of_every_protocol, tunnelled};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;

fn service(scheduler: Scheduler, slots: u32) -> Service {
    Service::new(scheduler, slots, 0, 3600)
}

fn node(scheduler: Scheduler, backends: &[Host]) -> Node {
    let mut node = Node::new();
    node.serve(service(scheduler, backends.len() as u32), backends);
    node
}

fn call() -> Packet {
    ethernet(A.mac, VIP.mac).ipv4(A.ip, VIP.ip)
}

/// The backend that the packet went to, by the inner destination MAC.
#[track_caller]
fn went_to(run: &Run) -> Ipv4Addr {
    let mac = match run.counter() {
        Counter::Encapsulated => &run.output[50..56],
        Counter::DeliveredLocally => &run.output[..6],
        other => panic!("{other:?}:\n{run}"),
    };
    let host = [A, B, C, D].into_iter().find(|host| host.mac == mac);
    host.unwrap_or_else(|| panic!("to nobody:\n{run}")).ip
}

#[track_caller]
fn send(node: &mut Node, packet: &Packet) -> Ipv4Addr {
    went_to(&node.from_endpoint(A, &packet.build()))
}

#[test]
fn the_address_stays_and_the_mac_says_which_backend() {
    for (backend, vtep) in [(C, THERE), (D, ELSEWHERE)] {
        let mut node = node(Scheduler::Turn, &[backend]);
        for packet in of_every_protocol(&call(), 1000, 80) {
            let frame = packet.build();
            let run = node.from_endpoint(A, &frame);
            let expected = tunnelled(&run, [A.mac, backend.mac], vtep, &frame[14..]);
            run.redirected(Counter::Encapsulated, &expected);
        }
    }
}

#[test]
fn flows_take_turns() {
    let mut node = node(Scheduler::Turn, &[B, C, D]);
    let mut flows = BTreeMap::<_, u32>::new();
    for port in 1..=300 {
        *flows.entry(send(&mut node, &call().udp(port, 80))).or_default() += 1;
    }
    assert_eq!(flows, BTreeMap::from([B, C, D].map(|host| (host.ip, 100))));
}

#[test]
fn a_backend_with_twice_the_slots_gets_twice_the_flows() {
    let mut node = node(Scheduler::Turn, &[B, C, B]);
    let flows = (1..=300).map(|port| send(&mut node, &call().tcp(port, 80).flags(SYN)));
    assert_eq!(flows.filter(|backend| *backend == B.ip).count(), 200);
}

#[test]
fn a_flow_keeps_its_backend() {
    let mut node = node(Scheduler::Turn, &[B, C, D]);
    for port in 1..=9 {
        let backend = send(&mut node, &call().tcp(port, 80).flags(SYN));
        for flags in [SYN, ACK, ACK, FIN, ACK] {
            assert_eq!(send(&mut node, &call().tcp(port, 80).flags(flags)), backend);
        }
    }
    // Another port, another protocol: another flow.
    let backends = [call().tcp(1, 81), call().udp(1, 80), call().sctp(1, 80).payload_of(20)]
        .map(|packet| send(&mut node, &packet));
    assert_eq!(backends.into_iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[test]
fn who_drains_keeps_its_flows_and_gets_no_new_ones() {
    let mut node = node(Scheduler::Turn, &[C, D]);
    let [tcp, udp] = [call().tcp(1, 80), call().udp(1, 80)];
    assert_eq!(send(&mut node, &tcp), C.ip);
    assert_eq!(send(&mut node, &call().udp(2, 80)), D.ip);
    assert_eq!(send(&mut node, &udp), C.ip);
    node.set_backend(C, Some(false));
    assert_eq!(send(&mut node, &tcp), C.ip);
    assert_eq!(send(&mut node, &udp), C.ip);
    // Its connections that begin anew are new ones.
    assert_eq!(send(&mut node, &tcp.flags(SYN)), D.ip);
    for port in 10..30 {
        assert_eq!(send(&mut node, &call().udp(port, 80)), D.ip);
    }
}

#[test]
fn a_flow_whose_backend_is_gone_gets_another() {
    let mut node = node(Scheduler::Turn, &[C, D]);
    let packets = [call().tcp(1, 80), call().udp(1, 80), call().sctp(1, 80).payload_of(20)];
    for packet in &packets {
        send(&mut node, packet);
    }
    node.set_backend(C, None);
    for packet in &packets {
        assert_eq!(send(&mut node, packet), D.ip);
    }
}

#[test]
fn a_connection_that_has_ended_does_not_bind_the_next() {
    for end in [FIN, RST] {
        let mut node = node(Scheduler::Turn, &[C, D]);
        assert_eq!(send(&mut node, &call().tcp(1, 80).flags(SYN)), C.ip);
        assert_eq!(send(&mut node, &call().tcp(1, 80).flags(end)), C.ip);
        assert_eq!(send(&mut node, &call().tcp(1, 80).flags(SYN)), D.ip);
        assert_eq!(send(&mut node, &call().tcp(1, 80).flags(SYN)), D.ip);
    }
}

#[test]
fn a_flow_that_was_silent_too_long_is_forgotten() {
    let mut node = node(Scheduler::Turn, &[C, D]);
    assert_eq!(send(&mut node, &call().udp(1, 80)), C.ip);
    let (key, mut flow) = node.object().flows()[0];
    flow.seen = flow.seen.wrapping_sub(3500);
    node.object().set_flow(key, flow);
    assert_eq!(send(&mut node, &call().udp(1, 80)), C.ip);
    flow.seen = flow.seen.wrapping_sub(200);
    node.object().set_flow(key, flow);
    assert_eq!(send(&mut node, &call().udp(1, 80)), D.ip);
}

#[test]
fn a_client_keeps_its_backend_where_the_service_says_so() {
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Turn, 3, 60, 3600), &[C, D, B]);
    for port in 1..50 {
        assert_eq!(send(&mut node, &call().udp(port, 80)), C.ip);
    }
    node.set_backend(C, Some(false));
    assert_eq!(send(&mut node, &call().udp(1, 80)), C.ip);
    let next = send(&mut node, &call().udp(60, 80));
    assert_ne!(next, C.ip);
    node.set_backend(C, Some(true));
    assert_eq!(send(&mut node, &call().udp(61, 80)), next);
}

#[test]
fn the_source_hash_sends_a_client_to_one_backend() {
    let mut node = node(Scheduler::Source, &[B, C, D]);
    let backend = send(&mut node, &call().udp(1, 80));
    for port in 2..60 {
        assert_eq!(send(&mut node, &call().udp(port, 80)), backend);
    }
    // Also on another node, and whatever was scheduled there before.
    let mut node = self::node(Scheduler::Source, &[B, C, D]);
    node.from_endpoint(B, &ethernet(B.mac, VIP.mac).ipv4(B.ip, VIP.ip).udp(1, 80).build());
    assert_eq!(send(&mut node, &call().udp(1, 80)), backend);
}

#[test]
fn the_least_loaded_backend_is_next() {
    let mut node = node(Scheduler::Least, &[B, C, D]);
    let begin = |node: &mut Node, port| send(node, &call().tcp(port, 80).flags(SYN));
    let first: Vec<_> = (1..=3).map(|port| begin(&mut node, port)).collect();
    for port in 4..=6 {
        begin(&mut node, port);
    }
    // Two of the same backend end: it gets the next two.
    let emptied = first[1];
    let ended: Vec<_> =
        (1..=6).filter(|port| send(&mut node, &call().tcp(*port, 80)) == emptied).collect();
    assert_eq!(ended.len(), 2);
    for port in ended {
        send(&mut node, &call().tcp(port, 80).flags(FIN));
        // A flow ends once.
        send(&mut node, &call().tcp(port, 80).flags(RST));
    }
    assert_eq!([7, 8].map(|port| begin(&mut node, port)), [emptied; 2]);
    let last = [9, 10, 11].map(|port| begin(&mut node, port));
    assert_eq!(BTreeMap::from(last.map(|backend| (backend, ()))).len(), 3);
}

#[test]
fn the_least_load_is_by_weight() {
    let mut node = node(Scheduler::Least, &[C, D]);
    let key = SlotKey::new(BLUE, VIP.ip.octets(), 0, 1);
    node.object().set_slot(key, Slot { ip: D.ip.octets(), weight: 3 });
    let flows = (1..=80).map(|port| send(&mut node, &call().tcp(port, 80).flags(SYN)));
    assert_eq!(flows.filter(|backend| *backend == D.ip).count(), 60);
}

#[test]
fn the_half_of_the_ring_in_force_counts() {
    let mut node = node(Scheduler::Turn, &[C]);
    let key = SlotKey::new(BLUE, VIP.ip.octets(), 1, 0);
    node.object().set_slot(key, Slot { ip: D.ip.octets(), weight: 1 });
    node.set_backend(D, Some(true));
    assert_eq!(send(&mut node, &call().udp(1, 80)), C.ip);
    let mut service = service(Scheduler::Turn, 1);
    service.half = 1;
    node.object().set_service(BLUE, VIP.ip, service);
    assert_eq!(send(&mut node, &call().udp(2, 80)), D.ip);
}

#[test]
fn a_slot_whose_backend_may_take_nothing_is_passed_over() {
    let mut node = node(Scheduler::Turn, &[B, C, D]);
    node.set_backend(B, Some(false));
    node.set_backend(C, None);
    for port in 1..20 {
        assert_eq!(send(&mut node, &call().udp(port, 80)), D.ip);
    }
}

#[test]
fn without_a_backend_the_client_is_told_so() {
    let mut node = node(Scheduler::Turn, &[]);
    let answer = ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip);
    let reset = |flags: u8, seq: u32, ack: u32| {
        let mut frame = answer.clone().tcp(80, 1000).flags(flags).build();
        frame[38..42].copy_from_slice(&seq.to_be_bytes());
        frame[42..46].copy_from_slice(&ack.to_be_bytes());
        frame[48..50].fill(0);
        let sum = |frame: &[u8]| {
            let [tcp, ip] = [&frame[34..], &frame[26..34]];
            netagent_tests::packet::checksum(&[ip, &[0, 6, 0, 20], tcp])
        };
        frame[50..52].fill(0);
        let sum = sum(&frame);
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    // A segment's sequence number is 1.
    for (packet, expected) in [
        (call().tcp(1000, 80).flags(SYN), reset(0x14, 0, 2)),
        (call().tcp(1000, 80).flags(0).payload_of(100), reset(0x14, 0, 101)),
        (call().tcp(1000, 80).flags(SYN | 1).payload_of(9), reset(0x14, 0, 12)),
    ] {
        node.from_endpoint(A, &packet.build()).redirected(Counter::NoBackendAnswered, &expected);
    }
    // With an acknowledgment, that is where the reset stands.
    let mut frame = call().tcp(1000, 80).payload_of(100).build();
    frame[42..46].copy_from_slice(&77_u32.to_be_bytes());
    node.from_endpoint(A, &frame).redirected(Counter::NoBackendAnswered, &reset(RST, 77, 0));
    for packet in [call().udp(1000, 80).payload_of(300), call().sctp(1000, 80).payload_of(200)] {
        let sent = packet.build();
        let expected = answer.clone().icmp(3, 3, [0; 4]).payload(&sent[14..14 + 128]).build();
        node.from_endpoint(A, &sent).redirected(Counter::NoBackendAnswered, &expected);
    }
    let sent = call().udp(1000, 80).payload_of(3).build();
    let quote = [&sent[14..], &[0; 97]].concat();
    let expected = answer.icmp(3, 3, [0; 4]).payload(quote).build();
    node.from_endpoint(A, &sent).redirected(Counter::NoBackendAnswered, &expected);
    // A reset is never answered.
    let frame = call().tcp(1000, 80).flags(RST).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropNoBackend);
}

#[test]
fn a_service_that_is_not_written_down_yet_has_no_backend() {
    let mut node = Node::new();
    let vip = netagent_common::Endpoint::vip(VIP.mac);
    node.object().set_endpoint(BLUE, VIP.ip, vip);
    let run = node.from_endpoint(A, &call().tcp(1, 2).flags(SYN).build());
    assert_eq!(run.counter(), Counter::NoBackendAnswered);
}

#[test]
fn a_virtual_address_answers_arp_and_echo() {
    let mut node = node(Scheduler::Turn, &[]);
    let request = ethernet(A.mac, [0xff; 6]).arp_request((A.mac, A.ip), VIP.ip).build();
    let answer = ethernet(VIP.mac, A.mac).arp_reply((VIP.mac, VIP.ip), (A.mac, A.ip)).build();
    node.from_endpoint(A, &request).redirected(Counter::ArpAnswered, &answer);
    let request = call().icmp(8, 0, [1, 2, 3, 4]).payload_of(56).build();
    let answer = ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip).icmp(0, 0, [1, 2, 3, 4]);
    node.from_endpoint(A, &request)
        .redirected(Counter::EchoAnswered, &answer.payload_of(56).build());
}

#[test]
fn a_service_takes_tcp_udp_and_sctp() {
    let mut node = node(Scheduler::Turn, &[C]);
    for protocol in [47, 50, 51, 253] {
        let frame = call().protocol(protocol).payload_of(40).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropServiceProtocol);
    }
    // Of ICMP, what the gateway does not answer either.
    let frame = call().icmp(13, 0, [0; 4]).payload_of(12).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropUnknownDestination);
}

#[test]
fn what_is_too_big_is_answered_before_it_has_a_backend() {
    let mut node = node(Scheduler::Turn, &[C]);
    let frame = call().udp(1, 80).payload_of(MTU - 27).build();
    let run = node.from_endpoint(A, &frame);
    assert_eq!(run.counter(), Counter::FragNeeded);
    // TEST_RUN's kind of GSO is not one that can be put into a tunnel here.
    let gso = Gso { size: 1000, segments: 3 };
    let run = node.gso_from_endpoint(A, &call().tcp(1, 80).payload_of(2500).build(), gso);
    assert_eq!(run.counter(), Counter::PassedToVxlan);
}

#[test]
fn later_fragments_follow_the_first() {
    let mut node = node(Scheduler::Turn, &[C, D]);
    let first = |id, port| call().id(id).fragment(0x2000).udp(port, 80).payload_of(1000);
    let later = |id| call().id(id).fragment(126).protocol(17).payload_of(500);
    let unknown = later(1).build();
    node.from_endpoint(A, &unknown).dropped(Counter::DropUnknownFlow);
    for id in 1..20 {
        let backend = send(&mut node, &first(id, id));
        let frame = later(id).build();
        let run = node.from_endpoint(A, &frame);
        assert_eq!(went_to(&run), backend);
        assert!(run.output.ends_with(&frame[14..]));
        // Of a flow that is known, too.
        assert_eq!(send(&mut node, &first(id + 100, id)), backend);
        assert_eq!(send(&mut node, &later(id + 100)), backend);
    }
    let (key, mut flow) = *node
        .object()
        .flows()
        .iter()
        .find(|(key, _)| key.kind() == Some(netagent_common::Kind::Fragment))
        .expect("a fragment is remembered");
    flow.seen = flow.seen.wrapping_sub(31);
    node.object().set_flow(key, flow);
    let id = u16::from_be_bytes(key.client_port);
    node.from_endpoint(A, &later(id).build()).dropped(Counter::DropUnknownFlow);
}

/// The client's kernel says that nobody listens any more.
#[test]
fn errors_of_the_client_reach_the_backend_that_they_are_about() {
    let mut node = node(Scheduler::Turn, &[C, D]);
    for port in [1, 2] {
        let backend = send(&mut node, &call().udp(port, 80));
        let answer = ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip).udp(80, port).payload_of(50);
        let error = call().icmp(3, 3, [0; 4]).payload(&answer.build()[14..]);
        assert_eq!(send(&mut node, &error), backend);
    }
    let answer = ethernet(VIP.mac, A.mac).ipv4(VIP.ip, A.ip).udp(80, 3).payload_of(50);
    let error = call().icmp(3, 3, [0; 4]).payload(&answer.build()[14..]).build();
    node.from_endpoint(A, &error).dropped(Counter::DropUnknownFlow);
}
