//! Probes of the way between two nodes.

use netagent_common::{Counter, GATEWAY_MAC, PROBE_ETHERTYPE, PROBE_VNI, Probe, VXLAN_PORT};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::Node;
use netagent_tests::world::{A, BLUE, ELSEWHERE, HERE, NO_NETWORK, STRANGER, THERE};
use std::net::Ipv4Addr;

use crate::{FLOW, ROUTER, UPLINK, outer};

const FROM: Mac = [0x02, 0, 0, 0, 0, 1];
const TO: Mac = [0x02, 0, 0, 0, 0, 2];
const ID: [u8; 8] = *b"number 1";

/// `probe` with `padding` bytes behind it, in the tunnel's frame that `start` has begun.
fn framed(start: Packet, probe: &[u8], padding: usize) -> Vec<u8> {
    let ethertype = u16::from_be_bytes(PROBE_ETHERTYPE);
    let payload = [probe, &vec![0; padding]].concat();
    start.ethernet(FROM, TO).ethertype(ethertype).payload(&payload).build()
}

fn request(from: Ipv4Addr, padding: usize) -> Vec<u8> {
    framed(outer(from, PROBE_VNI), &Probe::request(ID).bytes(), padding)
}

fn answer(from: Ipv4Addr, padding: usize) -> Vec<u8> {
    framed(outer(from, PROBE_VNI), &Probe::request(ID).answer().bytes(), padding)
}

#[test]
fn a_request_of_a_member_goes_back_as_long_as_it_came() {
    for (vtep, padding) in [(THERE, 0), (ELSEWHERE, 0), (THERE, 100), (THERE, 1438)] {
        let mut node = Node::new();
        let back = ethernet(ROUTER, UPLINK)
            .ipv4(HERE, vtep)
            .udp_without_checksum(FLOW, VXLAN_PORT)
            .vxlan(PROBE_VNI);
        let expected = framed(back, &Probe::request(ID).answer().bytes(), padding);
        let run = node.from_uplink(&request(vtep, padding));
        run.redirected(Counter::ProbeAnswered, &expected);
        assert_eq!(run.output.len(), run.input.len());
        let [record] = node.object().probed()[..] else { panic!("not one record") };
        assert_eq!((record.vtep, record.id), (vtep.octets(), ID));
        assert!(!record.is_answer() && record.at != 0);
    }
}

#[test]
fn an_answer_is_the_agents_and_is_not_answered() {
    let mut node = Node::new();
    node.from_uplink(&answer(THERE, 100)).dropped(Counter::ProbeReturned);
    let [record] = node.object().probed()[..] else { panic!("not one record") };
    assert_eq!((record.vtep, record.id, record.is_answer()), (THERE.octets(), ID, true));
}

#[test]
fn requests_are_answered_although_no_agent_reads_of_them() {
    let mut node = Node::new();
    // More than there is room for in the ring.
    for _ in 0..3000 {
        let run = node.from_uplink(&request(THERE, 0));
        assert_eq!(run.counter(), Counter::ProbeAnswered);
    }
    node.from_uplink(&answer(THERE, 0)).dropped(Counter::DropRefused);
    let read = node.object().probed().len();
    assert!((1000..3000).contains(&read), "{read}");
    node.from_uplink(&answer(THERE, 0)).dropped(Counter::ProbeReturned);
}

#[test]
fn strangers_are_not_answered() {
    let mut node = Node::new();
    for from in [STRANGER, HERE] {
        node.from_uplink(&request(from, 0)).dropped(Counter::DropNotMember);
        node.from_uplink(&answer(from, 0)).dropped(Counter::DropNotMember);
    }
    assert_eq!(node.object().probed(), []);
}

#[test]
fn what_only_looks_like_a_probe_is_dropped() {
    let mut node = Node::new();
    let probe = Probe::request(ID).bytes();
    for vni in [BLUE, NO_NETWORK] {
        let frame = framed(outer(THERE, vni), &probe, 0);
        node.from_uplink(&frame).dropped(Counter::DropOtherProtocol);
    }
    for ethertype in [0x88b6, 0x86dd] {
        let start = outer(THERE, PROBE_VNI).ethernet(FROM, TO).ethertype(ethertype);
        node.from_uplink(&start.payload(probe).build()).dropped(Counter::DropOtherProtocol);
    }
    for at in 0..4 {
        let mut wrong = probe;
        wrong[at] ^= 1;
        let frame = framed(outer(THERE, PROBE_VNI), &wrong, 0);
        node.from_uplink(&frame).dropped(Counter::DropMalformed);
    }
    for len in 0..Probe::LEN {
        let frame = framed(outer(THERE, PROBE_VNI), &probe[..len], 0);
        node.from_uplink(&frame).dropped(Counter::DropMalformed);
    }
    assert_eq!(node.object().probed(), []);
}

#[test]
fn what_the_kernel_took_out_of_the_tunnel_is_no_probe() {
    let frame = request(THERE, 0)[50..].to_vec();
    Node::new().from_overlay(THERE, PROBE_VNI, &frame).dropped(Counter::DropOtherProtocol);
    Node::new().from_overlay(STRANGER, PROBE_VNI, &frame).dropped(Counter::DropNotMember);
}

#[test]
fn a_workload_cannot_send_one() {
    let mut node = Node::new();
    let ethertype = u16::from_be_bytes(PROBE_ETHERTYPE);
    let probe = Probe::request(ID).bytes();
    let bare = ethernet(A.mac, TO).ethertype(ethertype).payload(probe).build();
    node.from_endpoint(A, &bare).dropped(Counter::DropOtherProtocol);
    let tunnelled =
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, THERE).udp(1, VXLAN_PORT).vxlan(PROBE_VNI);
    node.from_endpoint(A, &framed(tunnelled, &probe, 0)).dropped(Counter::DropForgedTunnel);
}
