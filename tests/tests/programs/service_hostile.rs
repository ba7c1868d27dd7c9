//! Packets of services that nobody meant, as in `hostile.rs`: A is a client of the service
//! and a backend of it, as B and C are.

use netagent_common::{Counter, GATEWAY_MAC, Scheduler, Service};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Node, Run};
use netagent_tests::world::{A, B, BLUE, C, Host, THERE, VIP};

use crate::hostile::{PACKETS, Random, check};
use crate::{of_every_protocol, outer};

const CLIENT: &str = "203.0.113.7";
const MORE_FRAGMENTS: u16 = 0x2000;

fn node() -> Node {
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Least, 3, 60, 3600), &[A, B, C]);
    node
}

/// All that can be said after this start, to and from port 80.
fn said(start: &Packet, quoted: &Packet) -> Vec<Packet> {
    let mut packets = of_every_protocol(start, 1000, 80);
    packets.extend(of_every_protocol(start, 80, 1000));
    packets.push(start.clone().tcp(1000, 80).flags(0x11));
    packets.push(start.clone().fragment(MORE_FRAGMENTS).udp(1000, 80).payload_of(80));
    packets.push(start.clone().fragment(10).protocol(17).payload_of(80));
    packets.push(start.clone().icmp(8, 0, [0; 4]).payload_of(20));
    for quoted in of_every_protocol(quoted, 80, 1000) {
        packets.push(start.clone().icmp(3, 3, [0; 4]).payload(&quoted.build()[14..]));
    }
    packets
}

fn from_endpoint() -> Vec<Vec<u8>> {
    let back = |to: Host| ethernet(to.mac, A.mac).ipv4(to.ip, A.ip);
    [VIP, B, C]
        .into_iter()
        .flat_map(|to| said(&ethernet(A.mac, to.mac).ipv4(A.ip, to.ip), &back(to)))
        .chain(said(
            &ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway()),
            &ethernet(GATEWAY_MAC, A.mac).ipv4(A.gateway(), A.ip),
        ))
        .map(|packet| packet.build())
        .collect()
}

fn from_uplink() -> Vec<Vec<u8>> {
    let outer = || outer(THERE, BLUE);
    let plain = || ethernet(A.mac, C.mac);
    [
        (outer().ethernet(C.mac, A.mac).ipv4(C.ip, VIP.ip), plain().ipv4(VIP.ip, C.ip)),
        (outer().ethernet(C.mac, A.mac).ipv4(C.ip, A.ip), plain().ipv4(A.ip, C.ip)),
        (outer().ethernet(C.mac, A.mac).ipv4(VIP.ip, A.ip), plain().ipv4(A.ip, VIP.ip)),
        (outer().ethernet(GATEWAY_MAC, A.mac).ipv4(CLIENT, VIP.ip), plain().ipv4(VIP.ip, CLIENT)),
    ]
    .into_iter()
    .flat_map(|(start, quoted)| said(&start, &quoted))
    .map(|packet| packet.build())
    .collect()
}

/// An endpoint speaks as itself, or as the service that it is a backend of.
#[track_caller]
fn check_sent(run: &Run) {
    let source = |at: usize| {
        let source = &run.output[at..at + 4];
        assert!(source == A.ip.octets() || source == VIP.ip.octets(), "source:\n{run}");
    };
    match check(run) {
        Counter::Encapsulated => {
            assert_eq!(run.output[56..62], A.mac, "inner MAC:\n{run}");
            source(64 + 12);
            // As the service it speaks to who has called it, and nobody has.
            assert_ne!(run.output[50..56], GATEWAY_MAC, "into the mesh:\n{run}");
        }
        Counter::DeliveredLocally => {
            let [to, from] = [&run.output[30..34], &run.output[26..30]];
            let own = from == A.gateway().octets() && to == A.ip.octets();
            let receiver = [A, B].iter().any(|host| to == host.ip.octets());
            assert!(receiver, "to who is not here:\n{run}");
            assert!(own || from == A.ip.octets() || from == VIP.ip.octets(), "source:\n{run}");
        }
        Counter::PassedToHost => {
            assert_eq!(run.output[26..30], A.ip.octets());
            assert!(!matches!(run.input[30..33], [10, 0, 9..=11]), "to the host:\n{run}");
        }
        _ => {}
    }
}

/// A member reaches a local endpoint as one of its own, as a service that it has a backend
/// of, or as who is in no network.
#[track_caller]
fn check_received(run: &Run) {
    if !matches!(check(run), Counter::Decapsulated | Counter::DeliveredFromVxlan) {
        return;
    }
    let (mac, source) = (&run.output[6..12], &run.output[26..30]);
    let from = (mac == C.mac && source == C.ip.octets())
        || (mac == VIP.mac && source == VIP.ip.octets())
        || (mac == GATEWAY_MAC && !matches!(source[..3], [10, 0, 9..=11]));
    assert!(from, "source:\n{run}");
    let receiver =
        |host: &Host| run.output[..6] == host.mac && run.output[30..34] == host.ip.octets();
    assert!([A, B].iter().any(receiver), "receiver:\n{run}");
}

#[test]
fn random_edits_from_a_client_and_backend_break_no_promise() {
    let (mut node, mut random, frames) = (node(), Random(11), from_endpoint());
    for _ in 0..PACKETS {
        let frame = random.edited(&frames);
        check_sent(&node.gso_from_endpoint(A, &frame, random.gso()));
    }
}

#[test]
fn random_edits_from_other_nodes_break_no_promise() {
    let (mut node, mut random, frames) = (node(), Random(12), from_uplink());
    for _ in 0..PACKETS {
        let frame = random.edited(&frames);
        check_received(&node.gso_from_uplink(&frame, random.gso()));
        check_received(&node.from_overlay(
            THERE,
            BLUE,
            frame.get(50..).filter(|inner| inner.len() > 40).unwrap_or(&frames[0][50..]),
        ));
    }
}

#[test]
fn random_edits_from_ipvs_break_no_promise() {
    let (mut node, mut random, frames) = (node(), Random(13), from_endpoint());
    for _ in 0..PACKETS {
        check_sent(&node.from_lb(&random.edited(&frames)));
    }
}
