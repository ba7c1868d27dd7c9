//! IPVS is asked about new flows, and told of what it must know of others; what it makes of
//! the packets comes back.

use std::net::Ipv4Addr;
use std::process::Command;

use netagent_common::{Counter, Flow, FlowKey, GATEWAY_MAC, Kind, LB_MAC, Scheduler, Service};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::Node;
use netagent_tests::world::{A, B, BLUE, C, D, E, HERE, VIP};
use xtask::command::CommandExt as _;

use crate::{of_every_protocol, outer, tunnelled};

const SYN: u8 = 0x02;
const TCP: u8 = 6;
const LB: Mac = [0x02, 0, 0, 0, 0, 0x1b];

fn node() -> Node {
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Turn, 3, 0, 3600), &[B, C, D]);
    for protocol in [TCP, 17, 132] {
        node.schedule(protocol, 80);
    }
    node
}

fn call() -> Packet {
    ethernet(A.mac, VIP.mac).ipv4(A.ip, VIP.ip)
}

/// What IPVS sends: it writes its own MAC and that of the backend.
fn scheduled(mac: Mac) -> Packet {
    ethernet(LB, mac).ipv4(A.ip, VIP.ip)
}

/// Frames that went out of the device towards it, those for its MAC or another's.
fn sent_to_it() -> u64 {
    let text =
        Command::new("ip").args(["-s", "-o", "link", "show", "lb"]).read().expect("it is there");
    let (_, sent) = text.split_once("TX:").expect("ip shows what was sent");
    let (_, numbers) = sent.split_once('\\').expect("numbers follow their names");
    let packets = numbers.split_whitespace().nth(1).expect("bytes, then packets");
    packets.parse().expect("a number")
}

#[test]
fn it_is_asked_about_new_flows_and_its_choice_is_kept() {
    let mut node = node();
    for call in of_every_protocol(&call(), 1000, 80) {
        let frame = call.build();
        let mut asked = frame.clone();
        asked[..6].copy_from_slice(&LB_MAC);
        node.from_endpoint(A, &frame).redirected(Counter::ToScheduler, &asked);
    }
    let calls = of_every_protocol(&call(), 1000, 80);
    for (call, scheduled) in calls.iter().zip(of_every_protocol(&scheduled(D.mac), 1000, 80)) {
        let forget: Vec<_> = node.object().flows().iter().map(|(key, _)| *key).collect();
        forget.into_iter().for_each(|key| node.object().remove_flow(key));
        let frame = scheduled.build();
        let run = node.from_lb(&frame);
        let vtep = netagent_tests::world::ELSEWHERE;
        let expected = tunnelled(&run, [A.mac, D.mac], vtep, &frame[14..]);
        run.redirected(Counter::Encapsulated, &expected);
        let frame = call.build();
        let run = node.from_endpoint(A, &frame);
        assert_eq!(run.counter(), Counter::Encapsulated);
        assert_eq!(run.output[50..56], D.mac);
    }
}

#[test]
fn its_choice_may_be_here() {
    let mut node = node();
    let called = ethernet(A.mac, B.mac).ipv4(A.ip, B.ip).tcp(1000, 80).flags(SYN);
    node.from_lb(&scheduled(B.mac).tcp(1000, 80).flags(SYN).build())
        .redirected(Counter::DeliveredLocally, &called.build());
}

#[test]
fn it_is_asked_about_its_ports_alone_and_only_where_it_is() {
    let mut node = node();
    let run = node.from_endpoint(A, &call().tcp(1, 81).build());
    assert_ne!(run.counter(), Counter::ToScheduler);
    // Not about fragments: it would wait for the rest.
    let run = node.from_endpoint(A, &call().fragment(0x2000).udp(1, 80).payload_of(99).build());
    assert_ne!(run.counter(), Counter::ToScheduler);
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Turn, 1, 0, 3600), &[B]);
    node.object().set_virtual(VIP.ip, TCP, 80);
    let run = node.from_endpoint(A, &call().tcp(1, 80).build());
    assert_eq!(run.counter(), Counter::DeliveredLocally);
}

/// It gets copies of what begins and ends a connection, of the second packet, and of one
/// packet a minute.
#[test]
fn a_known_flow_does_not_wait_for_it() {
    let mut node = node();
    Command::new("ip")
        .args(["link", "set", "lb", "addrgenmode", "none", "up"])
        .read()
        .expect("it can be set up");
    Command::new("ip")
        .args(["link", "set", "lb0", "addrgenmode", "none", "up"])
        .read()
        .expect("it can be set up");
    node.from_lb(&scheduled(C.mac).tcp(1000, 80).flags(SYN).build());
    for (flags, copies) in [(SYN, 1), (0x10, 1), (0x10, 0), (0x11, 1), (0x10, 0)] {
        let before = sent_to_it();
        let run = node.from_endpoint(A, &call().tcp(1000, 80).flags(flags).build());
        assert_eq!(run.counter(), Counter::Encapsulated, "{flags}");
        assert_eq!(run.output[50..56], C.mac);
        assert_eq!(sent_to_it() - before, copies, "{flags}");
    }
    for (key, mut flow) in node.object().flows() {
        flow.link = flow.link.wrapping_sub(60);
        node.object().set_flow(key, flow);
    }
    for copies in [1, 0] {
        let before = sent_to_it();
        let run = node.from_endpoint(A, &call().tcp(1000, 80).build());
        assert_eq!(run.counter(), Counter::Encapsulated);
        assert_eq!(sent_to_it() - before, copies);
    }
    // That one has ended.
    let run = node.from_endpoint(A, &call().tcp(1000, 80).flags(SYN).build());
    assert_eq!(run.counter(), Counter::ToScheduler);
}

#[test]
fn what_it_was_told_of_goes_no_further() {
    let mut node = node();
    let frame = scheduled(C.mac).tcp(1000, 80).flags(SYN).build();
    assert_eq!(node.from_lb(&frame).counter(), Counter::Encapsulated);
    node.from_lb(&frame).dropped(Counter::DropAccounted);
    let other = scheduled(D.mac).tcp(1000, 80).build();
    node.from_lb(&other).dropped(Counter::DropAccounted);
}

#[test]
fn a_client_that_keeps_its_backend_is_not_scheduled_again() {
    let mut node = node();
    node.object().set_service(BLUE, VIP.ip, Service::new(Scheduler::Turn, 3, 60, 3600));
    node.from_lb(&scheduled(D.mac).tcp(1000, 80).flags(SYN).build());
    let run = node.from_endpoint(A, &call().tcp(1001, 80).flags(SYN).build());
    assert_eq!(run.output[50..56], D.mac);
}

#[test]
fn clients_from_outside_come_through_this_node() {
    let mut node = node();
    let frame = ethernet(LB, C.mac).ipv4("203.0.113.7", VIP.ip).tcp(1000, 80).flags(SYN).build();
    let run = node.from_lb(&frame);
    let vtep = netagent_tests::world::THERE;
    let expected = tunnelled(&run, [GATEWAY_MAC, C.mac], vtep, &frame[14..]);
    run.redirected(Counter::Encapsulated, &expected);
    let frame = ethernet(LB, B.mac).ipv4("203.0.113.7", VIP.ip).udp(1000, 80).build();
    let called = ethernet(GATEWAY_MAC, B.mac).ipv4("203.0.113.7", B.ip).udp(1000, 80).build();
    node.from_lb(&frame).redirected(Counter::DeliveredLocally, &called);
    let flows = node.object().flows();
    let (key, _) = flows.iter().find(|(key, _)| key.kind() == Some(Kind::In)).unwrap();
    assert_eq!(key.via, HERE.octets());
}

/// Whom a workload calls at a published port of its own node answers as that port.
#[test]
fn workloads_that_called_this_nodes_port_come_through_it_too() {
    let mut node = node();
    let key = FlowKey {
        client: A.ip.octets(),
        client_port: 1000_u16.to_be_bytes(),
        called: VIP.ip.octets(),
        port: 80_u16.to_be_bytes(),
        ..FlowKey::new(Kind::Exit, BLUE, TCP)
    };
    node.object().set_flow(key, Flow::default());
    for (port, via, source) in [(1000, HERE, GATEWAY_MAC), (1001, Ipv4Addr::UNSPECIFIED, A.mac)] {
        let frame = scheduled(B.mac).tcp(port, 80).flags(SYN).build();
        let called = ethernet(source, B.mac).ipv4(A.ip, B.ip).tcp(port, 80).flags(SYN).build();
        node.from_lb(&frame).redirected(Counter::DeliveredLocally, &called);
        let flows = node.object().flows();
        let is_it = |key: &FlowKey| key.kind() == Some(Kind::In) && key.client().1 == port;
        let (key, _) = flows.iter().find(|(key, _)| is_it(key)).unwrap();
        assert_eq!(key.via, via.octets());
    }
}

/// It would have nobody to choose, and say so to nobody.
#[test]
fn it_is_not_asked_for_a_service_without_backends() {
    let mut node = node();
    node.object().set_service(BLUE, VIP.ip, Service::new(Scheduler::Turn, 0, 0, 3600));
    for call in of_every_protocol(&call(), 1000, 80) {
        let run = node.from_endpoint(A, &call.build());
        assert_ne!(run.counter(), Counter::ToScheduler);
    }
}

#[test]
fn its_namespace_says_nothing_of_its_own() {
    let mut node = node();
    let to = |mac: Mac| ethernet(LB, mac);
    for packet in [
        // To no service, to no backend of it.
        to(B.mac).ipv4(A.ip, B.ip).tcp(1, 2),
        to(A.mac).ipv4(A.ip, VIP.ip).tcp(1, 2),
        to(VIP.mac).ipv4(A.ip, VIP.ip).tcp(1, 2),
        // From no client of this node.
        to(B.mac).ipv4(C.ip, VIP.ip).tcp(1, 2),
        to(B.mac).ipv4(E.ip, VIP.ip).tcp(1, 2),
        to(B.mac).ipv4(A.gateway(), VIP.ip).tcp(1, 2),
        to(B.mac).ipv4(VIP.ip, A.ip).tcp(1, 2),
        to(B.mac).ipv4("203.0.113.7", "203.0.113.8").tcp(1, 2),
        to(B.mac).ipv4(A.ip, VIP.ip).icmp(3, 3, [0; 4]).payload_of(40),
        to(B.mac).ipv4(A.ip, VIP.ip).fragment(100).protocol(17).payload_of(40),
        to([0xff; 6]).arp_request((LB, VIP.ip), A.ip),
        to([0xff; 6]).ethertype(0x86dd).payload_of(60),
    ] {
        node.from_lb(&packet.build()).dropped(Counter::DropScheduler);
    }
}

/// The tunnel's side knows nothing of it.
#[test]
fn the_backends_node_does_not_ask() {
    let mut node = node();
    let frame = outer(netagent_tests::world::THERE, BLUE).ethernet(C.mac, B.mac);
    let run = node.from_uplink(&frame.ipv4(C.ip, VIP.ip).tcp(1, 80).flags(SYN).build());
    assert_eq!(run.counter(), Counter::Decapsulated);
}
