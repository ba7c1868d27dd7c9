//! Packets that nobody meant: every beginning of valid ones, and random edits of them.
//! Whatever they are, the programs return, count them once, and break no promise.

use netagent_common::{Counter, GATEWAY_MAC, VXLAN_PORT};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Action, Gso, LONGEST, Node, Run, is_runnable};
use netagent_tests::world::{A, B, BLUE, C, D, G, THERE};

use crate::{inner, outer};

const BROADCAST: [u8; 6] = [0xff; 6];

fn from_endpoint() -> Vec<Packet> {
    let gateway = || ethernet(A.mac, GATEWAY_MAC);
    vec![
        gateway().arp_request((A.mac, A.ip), C.ip),
        gateway().ipv4(A.ip, A.gateway()).icmp(8, 0, [0; 4]).payload_of(30),
        ethernet(A.mac, B.mac).ipv4(A.ip, B.ip).udp(1, 2).payload_of(30),
        ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).tcp(1, 2).payload_of(30),
        ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).options(&[1; 8]).udp(1, 2).payload_of(30),
        gateway().ipv4(A.ip, "203.0.113.1").udp(1, VXLAN_PORT).payload_of(30),
        gateway().ipv4(A.ip, "203.0.113.1").tcp(1, 80).payload_of(30),
        ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).udp(1, 2).payload_of(2000),
    ]
}

fn from_uplink() -> Vec<Packet> {
    vec![
        inner(C, A).udp(1, 2).payload_of(30),
        inner(C, B).options(&[1; 8]).tcp(1, 2).payload_of(30),
        inner(C, A).udp(1, 2).payload_of(1400),
        outer(THERE, BLUE).ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), A.ip),
        inner(C, D).udp(1, 2),
    ]
}

/// What the kernel hands on from these.
fn from_overlay() -> Vec<Vec<u8>> {
    from_uplink().iter().map(|packet| packet.build()[50..].to_vec()).collect()
}

/// The beginnings of a frame, the whole one last.
fn beginnings(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    (1..=frame.len()).map(|len| &frame[..len]).filter(|frame| is_runnable(frame))
}

/// What holds for every run of every program.
#[track_caller]
pub(crate) fn check(run: &Run) -> Counter {
    let counter = run.counter();
    let dropped = counter.name().starts_with("drop_");
    match run.action {
        Action::Drop => assert!(dropped, "dropped, but counted as {counter:?}:\n{run}"),
        Action::Pass | Action::Redirect => {
            assert!(!dropped, "counted as {counter:?}, but not dropped:\n{run}");
        }
        Action::Other(_) => panic!("an action that no verdict has:\n{run}"),
    }
    if run.action == Action::Pass {
        assert_eq!(run.input, run.output, "passed, but changed:\n{run}");
    }
    counter
}

/// What an endpoint may do: speak as itself, to its own network, and beyond it as itself.
#[track_caller]
fn check_from_endpoint(run: &Run) {
    let frame = &run.input;
    match check(run) {
        Counter::Encapsulated => {
            assert_eq!(run.output[14 + 36 + 6..][..6], A.mac, "inner MAC:\n{run}");
            assert_eq!(run.output[64 + 12..][..4], A.ip.octets(), "inner source:\n{run}");
            assert_eq!(run.output[14 + 28..][..8], [8, 0, 0, 0, 0, 0x10, 1, 0], "VNI:\n{run}");
            assert_eq!(run.output[64..], frame[14..], "what is carried:\n{run}");
        }
        Counter::PassedToHost => {
            assert_eq!(frame[6..12], A.mac);
            assert_eq!(frame[26..30], A.ip.octets());
            let overlay = matches!(frame[30..33], [10, 0, 9..=11]);
            assert!(!overlay, "an overlay's packet is left to the host:\n{run}");
        }
        Counter::DeliveredLocally => assert_eq!(run.output[26..30], A.ip.octets()),
        _ => {}
    }
}

/// What a member may do: reach a local endpoint as one of its own.
#[track_caller]
fn check_received(run: &Run) {
    if matches!(check(run), Counter::Decapsulated | Counter::DeliveredFromVxlan) {
        let output = &run.output;
        assert_eq!(output[6..12], C.mac, "source MAC:\n{run}");
        assert_eq!(output[26..30], C.ip.octets(), "source:\n{run}");
        assert!(
            [A, B].iter().any(|host| output[..6] == host.mac && output[30..34] == host.ip.octets()),
            "receiver:\n{run}"
        );
    }
}

#[test]
fn every_beginning_of_a_packet_has_one_verdict() {
    let mut node = Node::new();
    for frame in from_endpoint().iter().map(Packet::build) {
        for frame in beginnings(&frame) {
            check_from_endpoint(&node.from_endpoint(A, frame));
            check(&node.from_endpoint(G, frame));
        }
    }
    for frame in from_uplink().iter().map(Packet::build) {
        for frame in beginnings(&frame) {
            check_received(&node.from_uplink(frame));
        }
    }
    for frame in from_overlay() {
        for frame in beginnings(&frame) {
            check_received(&node.from_overlay(THERE, BLUE, frame));
        }
    }
}

#[test]
fn no_packet_is_taken_for_whole_that_is_not() {
    let mut node = Node::new();
    for packet in [
        inner(C, A).udp(1, 2).payload_of(30),
        inner(C, A).options(&[1; 40]).tcp(1, 2),
        outer(THERE, BLUE).ethernet(C.mac, BROADCAST).arp_request((C.mac, C.ip), A.ip),
    ] {
        let frame = packet.build();
        for frame in beginnings(&frame[..frame.len() - 1]) {
            let counter = node.from_uplink(frame).counter();
            // Up to the port, none can say that it is of the tunnel.
            let expected =
                if frame.len() < 38 { Counter::PassedAtUplink } else { Counter::DropMalformed };
            assert_eq!(counter, expected, "of {} bytes", frame.len());
        }
    }
    for packet in [
        ethernet(A.mac, BROADCAST).arp_request((A.mac, A.ip), C.ip),
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway()).icmp(8, 0, [0; 4]).payload_of(30),
        ethernet(A.mac, B.mac).ipv4(A.ip, B.ip).udp(1, 2).payload_of(30),
        ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).options(&[1; 40]).tcp(1, 2),
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, "203.0.113.1").udp(1, 53).payload_of(30),
    ] {
        let frame = packet.build();
        for frame in beginnings(&frame[..frame.len() - 1]) {
            node.from_endpoint(A, frame).dropped(Counter::DropMalformed);
        }
    }
}

/// xorshift64*: the same packets in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(value).expect("32 bits fit") % limit
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    /// One of the packets after a few edits; most hit the headers.
    pub(crate) fn edited(&mut self, frames: &[Vec<u8>]) -> Vec<u8> {
        loop {
            let mut frame = frames[self.below(frames.len())].clone();
            for _ in 0..=self.below(4) {
                self.edit(&mut frame);
            }
            if is_runnable(&frame) {
                return frame;
            }
        }
    }

    fn edit(&mut self, frame: &mut Vec<u8>) {
        let reach = if self.below(4) == 0 { frame.len() } else { frame.len().min(110) };
        let at = self.below(reach.max(1));
        match self.below(8) {
            0 => frame.truncate(at),
            1 => frame.extend(std::iter::repeat_n(self.byte(), self.below(LONGEST))),
            _ if at >= frame.len() => {}
            2 => frame[at] = 0,
            3 => frame[at] = 0xff,
            4 | 5 => frame[at] ^= 1 << self.below(8),
            _ => frame[at] = self.byte(),
        }
    }

    pub(crate) fn gso(&mut self) -> Gso {
        if self.below(4) > 0 {
            return Gso::default();
        }
        Gso { size: 1 + self.below(3000) as u32, segments: 1 + self.below(64) as u32 }
    }
}

pub(crate) const PACKETS: usize = 20_000;

#[test]
fn random_edits_from_endpoints_break_no_promise() {
    let (mut node, mut random) = (Node::new(), Random(1));
    let frames: Vec<_> = from_endpoint().iter().map(Packet::build).collect();
    for _ in 0..PACKETS {
        let frame = random.edited(&frames);
        check_from_endpoint(&node.gso_from_endpoint(A, &frame, random.gso()));
    }
}

#[test]
fn random_edits_from_members_break_no_promise() {
    let (mut node, mut random) = (Node::new(), Random(2));
    let frames: Vec<_> = from_uplink().iter().map(Packet::build).collect();
    for _ in 0..PACKETS {
        let frame = random.edited(&frames);
        check_received(&node.gso_from_uplink(&frame, random.gso()));
    }
}

#[test]
fn random_edits_behind_the_vxlan_device_break_no_promise() {
    let (mut node, mut random, frames) = (Node::new(), Random(3), from_overlay());
    for _ in 0..PACKETS {
        let frame = random.edited(&frames);
        check_received(&node.from_overlay(THERE, BLUE, &frame));
    }
}
