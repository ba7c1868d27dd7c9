//! Sequence numbers have 64 bits, of which 32 are on the wire: they pass over 2^32.

use std::net::{IpAddr, Ipv4Addr};

use netagent_tests::client::inside;
use netagent_tests::lab::must;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_xfrm::constants::IPPROTO_ESP;
use netlink_packet_xfrm::monitor::NewAsyncEventMessage;
use netlink_packet_xfrm::{Address, AsyncEventId, ReplayEsn, UserSaId, XfrmAttrs, XfrmMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_XFRM;
use xtask::node::{Node, Shell as _};

use crate::world::{Capture, Ping, cluster, reaches, settled, workload};

/// Packets before the lower half begins anew.
const BEFORE: u32 = 200;
/// Window of our associations, in bits.
const WINDOW: u32 = 1024;

#[test]
fn sequence_numbers_pass_over_32_bits() {
    let Some(cluster) = cluster("sequence_numbers_pass_over_32_bits") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    settled(&cluster);
    let capture = Capture::start(&cluster);
    let ends = [1, 2].map(|n| cluster.node(n));
    for [from, to] in [[ends[0], ends[1]], [ends[1], ends[0]]] {
        let index = index(from, to.address);
        // The receiver first: what the sender has sent by then is far behind its window.
        let last = u32::MAX - BEFORE;
        set(to, to.address, index, ReplayEsn { seq: last, ..ReplayEsn::default() });
        set(from, to.address, index, ReplayEsn { oseq: last, ..ReplayEsn::default() });
    }
    Ping::times(&a, &b, BEFORE * 3).lost_nothing();
    for (node, text) in [(ends[0], "oseq-hi 0x1"), (ends[1], "seq-hi 0x1")] {
        let state = must(node.exec(&["ip", "xfrm", "state"]));
        assert!(state.contains(text), "{text} in\n{state}");
    }
    settled(&cluster);
    capture.is_encrypted();
}

/// Index of the association by which a node sends to an address, as `ip` shows it.
fn index(node: &Node, to: Ipv4Addr) -> u32 {
    let state = must(node.exec(&["ip", "xfrm", "state"]));
    let mut lines = state.lines().skip_while(|line| !line.ends_with(&format!(" dst {to}")));
    let line = lines.nth(1).expect("an association").trim();
    let index = line.split_whitespace().nth(3).expect("an index");
    u32::from_str_radix(index.trim_start_matches("0x"), 16).expect("hexadecimal")
}

/// Sets where an association is in its sequence of packets (`XFRM_MSG_NEWAE`).
fn set(node: &Node, to: Ipv4Addr, index: u32, replay: ReplayEsn) {
    let words = WINDOW / u32::BITS;
    let replay =
        ReplayEsn { bmp_len: words, replay_window: WINDOW, bmp: vec![0; words as usize], ..replay };
    let sa_id = UserSaId {
        daddr: Address::from_ip(&IpAddr::V4(to)),
        spi: index,
        family: 2,
        proto: IPPROTO_ESP,
    };
    let id = AsyncEventId { sa_id, ..AsyncEventId::default() };
    let event = NewAsyncEventMessage { id, nlas: vec![XfrmAttrs::ReplayStateEsn(replay)] };
    let mut message = NetlinkMessage::from(XfrmMessage::NewAsyncEvent(event));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let answer = inside(&node.host.netns_path(), || {
        let mut socket = Socket::new(NETLINK_XFRM).expect("a socket");
        socket.bind_auto().expect("an address");
        socket.send(&bytes, 0).expect("sent");
        socket.recv_from_full().expect("an answer").0
    });
    let answer = NetlinkMessage::<XfrmMessage>::deserialize(&answer).expect("an answer");
    match answer.payload {
        NetlinkPayload::Error(error) => assert_eq!(error.code, None, "refused"),
        other => panic!("{other:?}"),
    }
}
