//! The programs between real interfaces, without an agent: where redirects lead, what
//! the kernel makes of pushed and popped packets, and that nothing gets lost.
//!
//! ```text
//!  n1 .11                          n2 .12               client .100
//! ┌──────────────────────────┐   ┌─────────────────┐   ┌──────────────────────┐
//! │ A 10.0.9.2    B 10.0.9.3 │   │ C 10.0.9.4      │   │ vx 10.0.9.6          │
//! │   │na-a         │na-b    │   │   │na-c         │   │  a vxlan device as   │
//! │   └── eBPF ─────┘        │   │   └── eBPF      │   │  `ip` makes it       │
//! │        │     na-vxlan    │   │        │ na-vxlan   │   │                      │
//! └───────eth0───────────────┘   └───────eth0──────┘   └─────────eth0─────────┘
//!          └──────────────────────────────┴───────────────────────┘  192.168.50.0/24
//! ```

#![expect(clippy::unwrap_used, reason = "tests and what they share panic")]

mod mesh;
mod service;
mod site;

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::{SocketAddr, SocketAddrV4};

use netagent_common::{Count, Counter, GATEWAY_MAC, VXLAN_PORT};
use netagent_tests::lab::eventually;
use netagent_tests::packet::ethernet;
use netagent_tests::world::{A, B, BLUE, C, HERE, MTU};
use nix::sys::socket::{
    ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt::RcvBufForce,
};
use site::{PLAIN, Site, Workload, inside, send_in_pages, send_raw};
use std::os::fd::AsRawFd as _;
use xtask::node::Shell as _;
use xtask::playground::CLIENT;

type Moved = [Vec<(Counter, Count)>; 2];

/// Packets of one counter.
fn packets(moved: &[(Counter, Count)], counter: Counter) -> u64 {
    moved.iter().filter(|(each, _)| *each == counter).map(|(_, count)| count.packets).sum()
}

/// Panics if a packet was dropped.
#[track_caller]
fn nothing_dropped(moved: &Moved) {
    for (node, moved) in ["n1", "n2"].iter().zip(moved) {
        let dropped = moved.iter().any(|(counter, _)| counter.name().starts_with("drop_"));
        assert!(!dropped, "{node} dropped packets: {moved:?}");
    }
}

#[test]
fn pings_cross_up_to_the_mtu() {
    let site = Site::new("ping");
    let before = site.counters();
    for to in [C.ip, B.ip, A.gateway()] {
        let (came, said) = site.a.ping(to, MTU, "-M do");
        assert!(came, "{said}");
    }
    let (came, said) = site.c.ping(A.ip, 28, "");
    assert!(came, "{said}");
    let moved = site.since(&before);
    nothing_dropped(&moved);
    let [here, there] = &moved;
    // Two requests of A and two replies of C on the way out, the others' on the way in.
    assert_eq!(packets(here, Counter::Encapsulated), 4, "{here:?}");
    assert_eq!(packets(here, Counter::Decapsulated), 4, "{here:?}");
    assert_eq!(packets(there, Counter::Encapsulated), 4, "{there:?}");
    assert_eq!(packets(here, Counter::DeliveredLocally), 4, "{here:?}");
    assert_eq!(packets(here, Counter::EchoAnswered), 2, "{here:?}");
    assert!(packets(here, Counter::ArpAnswered) >= 3, "{here:?}");
}

#[test]
fn workloads_see_the_macs_that_the_agent_knows() {
    let site = Site::new("macs");
    for to in [C.ip, B.ip, A.gateway()] {
        assert!(site.a.ping(to, 28, "").0);
    }
    let neighbours = site.a.read(&["ip", "neighbour"]).unwrap();
    for (ip, mac) in [(C.ip, C.mac), (B.ip, B.mac), (A.gateway(), GATEWAY_MAC)] {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let line = format!("{ip} dev eth0 lladdr {mac}");
        assert!(neighbours.contains(&line), "no `{line}` in\n{neighbours}");
    }
}

/// A workload whose own interface was told that it may send more.
fn raise_mtu(site: &Site) {
    site.a.read(&["ip", "link", "set", "eth0", "mtu", "1500"]).unwrap();
    let node = site.playground.node(1);
    node.read(&["ip", "link", "set", "na-a", "mtu", "1500"]).unwrap();
}

#[test]
fn what_is_too_big_learns_the_mtu() {
    let site = Site::new("big");
    raise_mtu(&site);
    for to in [C.ip, B.ip] {
        let before = site.counters();
        let (came, said) = site.a.ping(to, MTU + 1, "-M do");
        assert!(!came, "{said}");
        let answer =
            format!("From {} icmp_seq=1 Frag needed and DF set (mtu = {MTU})", A.gateway());
        assert!(said.contains(&answer), "{said}");
        // The stack has learned: now it says so itself, and fragments what it may.
        assert!(said.contains("message too long, mtu=1450"), "{said}");
        let (came, said) = site.a.ping(to, MTU + 1, "-M dont");
        assert!(came, "{said}");
        let moved = site.since(&before);
        nothing_dropped(&moved);
        assert_eq!(packets(&moved[0], Counter::FragNeeded), 1, "{moved:?}");
    }
}

#[test]
fn tcp_finds_the_mtu() {
    for features in OFFLOADS {
        let site = Site::new("pmtu");
        site.set_offloads(features);
        raise_mtu(&site);
        for (to, ip) in [(&site.c, C.ip), (&site.b, B.ip)] {
            let before = site.counters();
            // The other side allows it 1460 bytes a segment only if it would send them too.
            to.read(&["ip", "link", "set", "eth0", "mtu", "1500"]).unwrap();
            site.a.transfers(to, ip, 1 << 20);
            let moved = site.since(&before);
            nothing_dropped(&moved);
            assert!(packets(&moved[0], Counter::FragNeeded) > 0, "{features}: {moved:?}");
        }
        assert_eq!(site.a.checksum_errors(), 0, "{features}");
    }
}

/// With everything; without segmenting and merging; without checksums; with nothing.
const OFFLOADS: [&str; 4] = [
    "tx on rx on tso on gso on gro on",
    "tx on rx on tso off gso off gro off",
    "tx off rx off gso on gro on",
    "tx off rx off tso off gso off gro off",
];

#[test]
fn tcp_and_udp_arrive_whole_with_any_offloads() {
    let site = Site::new("offload");
    for features in OFFLOADS {
        site.set_offloads(features);
        let before = site.counters();
        let ways = [(&site.a, &site.c), (&site.c, &site.a), (&site.a, &site.b)];
        for (from, to) in ways {
            from.transfers(to, to.host.ip, 8 << 20);
            // Up to what fills the MTU, and fragments.
            datagrams(from, to, &[0, 1, 500, MTU - 28, MTU - 27, 5000]);
        }
        let moved = site.since(&before);
        nothing_dropped(&moved);
        for counter in [Counter::Encapsulated, Counter::Decapsulated] {
            assert!(packets(&moved[0], counter) > 100, "{features}: {moved:?}");
        }
        assert_eq!(packets(&moved[0], Counter::PassedToVxlan), 0, "{features}: {moved:?}");
        for workload in [&site.a, &site.b, &site.c] {
            assert_eq!(workload.checksum_errors(), 0, "{features}");
        }
    }
}

/// On a wire that carries every segment by itself, the receiver merges them before a program
/// sees them: as long as the kernel has a VXLAN socket open, and so knows what is inside.
#[test]
fn segments_are_merged_that_came_one_by_one() {
    let site = Site::new("merge");
    site.playground.node(1).read(&["ethtool", "-K", "eth0", "tso", "off"]).unwrap();
    // A veth merges nothing that came from one that could have sent it whole.
    site.playground.wire().read(&["ethtool", "-K", "n2", "tso", "off"]).unwrap();
    site.playground.node(2).read(&["ethtool", "-K", "eth0", "gro", "on"]).unwrap();
    let before = site.counters();
    site.a.transfers(&site.c, C.ip, 8 << 20);
    let moved = site.since(&before);
    nothing_dropped(&moved);
    let of = |moved: &[(Counter, Count)], counter| {
        moved
            .iter()
            .find(|(each, _)| *each == counter)
            .map_or((0, 0), |(_, c)| (c.packets, c.bytes))
    };
    let (merged, bytes) = of(&moved[1], Counter::Decapsulated);
    assert!(bytes > 8 << 20, "{moved:?}");
    // None would be larger than a full frame on the wire.
    assert!(merged * (MTU as u64 + 64) < bytes, "{merged} packets of {bytes} bytes: {moved:?}");
    assert_eq!(site.c.checksum_errors(), 0);
}

/// A merged packet keeps the size of the segments that it was made of: what a program
/// took out of the tunnel may be cut again on its way.
#[test]
fn segments_keep_their_size() {
    let site = Site::new("segment");
    // So that C would take larger ones.
    site.c.read(&["ip", "link", "set", "eth0", "mtu", "9000"]).unwrap();
    let (mut sender, mut receiver) = site.a.connect(&site.c, C.ip);
    std::io::Write::write_all(&mut sender, &[0; 1 << 16]).unwrap();
    std::io::Read::read_exact(&mut receiver, &mut [0; 1 << 16]).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let said = site.c.read(&["ss", "-tinH", "sport", "=", &port.to_string()]).unwrap();
    // IPv4, TCP, and its timestamps.
    let segment = format!("rcvmss:{}", MTU - 20 - 20 - 12);
    assert!(said.contains(&segment), "no {segment} in {said}");
}

/// Sends datagrams of these sizes, a few at a time, each of which must come once and whole.
fn datagrams(from: &Workload, to: &Workload, sizes: &[usize]) {
    let (sender, receiver) = (from.socket(), to.socket());
    let address = SocketAddrV4::new(to.host.ip, receiver.local_addr().unwrap().port());
    let mut buffer = vec![0; 65_536];
    for round in 0..50_u8 {
        let sent: BTreeSet<Vec<u8>> = sizes
            .iter()
            .map(|size| (0..*size).map(|i| (i % 251) as u8 ^ round).collect())
            .collect();
        for datagram in &sent {
            sender.send_to(datagram, address).unwrap();
        }
        let received: BTreeSet<Vec<u8>> = sent
            .iter()
            .map(|_| {
                let (len, source) = receiver.recv_from(&mut buffer).expect("a datagram is lost");
                assert_eq!(source.ip(), SocketAddr::from((from.host.ip, 0)).ip());
                buffer[..len].to_vec()
            })
            .collect();
        assert!(sent == received, "other datagrams came in round {round}");
    }
}

/// A prototype that popped these itself lost all of them: their mark of a tunnel stays,
/// and UDP takes no such packet.
#[test]
fn udp_segmentation_loses_nothing() {
    const SEGMENT: usize = 1000;
    const SEGMENTS: usize = 40;
    for features in OFFLOADS {
        let site = Site::new("udpgso");
        site.set_offloads(features);
        let before = site.counters();
        for to in [&site.c, &site.b] {
            let (sender, receiver) = (site.a.socket(), to.socket());
            setsockopt(&receiver, RcvBufForce, &(32 << 20)).unwrap();
            let port = receiver.local_addr().unwrap().port();
            let address = SockaddrIn::from(SocketAddrV4::new(to.host.ip, port));
            for round in 0..100_usize {
                let sent: Vec<u8> =
                    (0..SEGMENT * SEGMENTS).map(|i| ((i + round) % 251) as u8).collect();
                let segment = SEGMENT as u16;
                let messages = [ControlMessage::UdpGsoSegments(&segment)];
                let bytes = [IoSlice::new(&sent)];
                let flags = MsgFlags::empty();
                sendmsg(sender.as_raw_fd(), &bytes, &messages, flags, Some(&address)).unwrap();
                let mut received = vec![0; SEGMENT * SEGMENTS];
                for segment in received.chunks_mut(SEGMENT) {
                    let len = receiver.recv(segment).expect("a segment is lost");
                    assert_eq!(len, SEGMENT);
                }
                assert!(sent == received, "other segments came in round {round}");
            }
        }
        let moved = site.since(&before);
        nothing_dropped(&moved);
        if features.contains("gso on") && features.contains("tx on") {
            // Packets of many segments crossed the wire, and the kernel took them out.
            assert_eq!(packets(&moved[0], Counter::Encapsulated), 100, "{moved:?}");
            assert_eq!(packets(&moved[1], Counter::PassedToVxlan), 100, "{moved:?}");
            assert_eq!(packets(&moved[1], Counter::DeliveredFromVxlan), 100, "{moved:?}");
        }
        assert_eq!(site.c.checksum_errors() + site.b.checksum_errors(), 0, "{features}");
    }
}

/// Workloads that make a tunnel of their own inside ours: its packets are a tunnel's
/// already, so that only the kernel's device can take them.
#[test]
fn a_tunnel_within_the_tunnel_works() {
    for features in OFFLOADS {
        let site = Site::new("nested");
        site.set_offloads(features);
        // The tunnel's address is not the one that the kernel would choose.
        let node = site.playground.node(1);
        node.read(&["ip", "address", "add", "192.168.50.211/24", "dev", "eth0"]).unwrap();
        let route = "ip route replace 192.168.50.0/24 dev eth0 src 192.168.50.211";
        node.read(&route.split(' ').collect::<Vec<_>>()).unwrap();
        let before = site.counters();
        for (workload, peer, ip) in [(&site.a, C.ip, "172.16.0.1"), (&site.c, A.ip, "172.16.0.2")] {
            let script = format!(
                "ip link add nest mtu {} type vxlan id 7 dstport 8472 local {} remote {peer} && \
                 ip address add {ip}/24 dev nest && ip link set nest up",
                MTU - 50,
                workload.host.ip
            );
            workload.read(&["sh", "-c", &script]).unwrap();
        }
        site.a.transfers(&site.c, "172.16.0.2".parse().unwrap(), 4 << 20);
        let moved = site.since(&before);
        nothing_dropped(&moved);
        if features.contains("tso on") {
            assert!(packets(&moved[0], Counter::PassedToVxlan) > 0, "{moved:?}");
        }
        assert_eq!(site.a.checksum_errors() + site.c.checksum_errors(), 0, "{features}");
    }
}

#[test]
fn a_plain_linux_vtep_can_take_part() {
    // Linux writes outer checksums unless told not to; these the kernel verifies.
    for (options, counter) in
        [("noudpcsum", Counter::Decapsulated), ("udpcsum", Counter::DeliveredFromVxlan)]
    {
        let site = Site::new("plain");
        let client = site.plain_vtep(&[options]);
        let before = site.counters();
        for ip in [A.ip, B.ip, C.ip] {
            let bytes = (MTU - 28).to_string();
            client
                .read(&[
                    "ping",
                    "-n",
                    "-c",
                    "2",
                    "-i",
                    "0.2",
                    "-M",
                    "do",
                    "-s",
                    &bytes,
                    &ip.to_string(),
                ])
                .unwrap();
        }
        let (came, said) = site.a.ping(PLAIN.ip, MTU, "-M do");
        assert!(came, "{said}");
        let [here, there] = site.since(&before);
        // ARP for A and B came to both nodes; n2 has neither, and likewise n1 with C.
        assert_eq!(packets(&here, Counter::ArpAnsweredRemote), 2, "{here:?}");
        assert_eq!(packets(&there, Counter::ArpAnsweredRemote), 1, "{there:?}");
        assert!(packets(&here, Counter::DropNotLocal) > 0, "{here:?}");
        assert!(packets(&here, counter) >= 4, "{options}: {here:?}");
        let neighbours = client.read(&["ip", "neighbour", "show", "dev", "vx"]).unwrap();
        assert!(neighbours.contains("10.0.9.2 lladdr 02:42:0a:00:09:02"), "{neighbours}");
        for ip in [A.ip, C.ip] {
            let errors: Vec<_> = [&site.a, &site.c].map(Workload::checksum_errors).to_vec();
            assert_eq!(errors, [0, 0], "{options} {ip}");
        }
    }
}

/// The tag of a VLAN, once it is taken out of the bytes, leaves a frame like any other.
#[test]
fn frames_of_a_vlan_are_not_ours() {
    let site = Site::new("vlan");
    // Replies that nobody waits for: nothing answers them.
    let outwards = ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).icmp(0, 0, [0; 4]).build();
    let inwards = ethernet([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4(CLIENT, HERE)
        .udp_without_checksum(1, VXLAN_PORT)
        .vxlan(BLUE)
        .ethernet(PLAIN.mac, A.mac)
        .ipv4(PLAIN.ip, A.ip)
        .icmp(0, 0, [0; 4])
        .build();
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0x00, 0x00, 0x05], &frame[12..]].concat();
    let client = site.playground.client().netns_path();
    let before = site.counters();
    // The second of each must not be the second that is taken.
    site.a.inside(|| [tagged(&outwards), outwards].iter().for_each(|frame| send_raw(frame)));
    inside(&client, || [tagged(&inwards), inwards].iter().for_each(|frame| send_raw(frame)));
    let moved = || site.since(&before)[0].clone();
    eventually("the frames without a tag to be taken", || {
        packets(&moved(), Counter::Encapsulated) > 0 && packets(&moved(), Counter::Decapsulated) > 0
    });
    let moved = moved();
    assert_eq!(packets(&moved, Counter::Encapsulated), 1, "{moved:?}");
    assert_eq!(packets(&moved, Counter::DropOtherProtocol), 1, "{moved:?}");
    assert_eq!(packets(&moved, Counter::Decapsulated), 1, "{moved:?}");
    assert!(packets(&moved, Counter::PassedAtUplink) >= 1, "{moved:?}");
}

/// TEST_RUN does not take these.
#[test]
fn frames_without_a_whole_header_are_malformed() {
    let site = Site::new("short");
    let frame = ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).icmp(0, 0, [0; 4]).build();
    let before = site.counters();
    site.a.inside(|| (14..=34).for_each(|len| send_raw(&frame[..len])));
    let moved = || site.since(&before)[0].clone();
    eventually("all frames to be counted", || packets(&moved(), Counter::DropMalformed) >= 21);
    assert_eq!(packets(&moved(), Counter::DropMalformed), 21, "{:?}", moved());
    assert_eq!(packets(&moved(), Counter::Encapsulated), 0, "{:?}", moved());
}

/// The kernel may hand over a packet whose bytes behind the Ethernet header lie elsewhere.
#[test]
fn headers_may_lie_in_pages() {
    let site = Site::new("pages");
    site.a.read(&["ip", "link", "set", "eth0", "mtu", "9000"]).unwrap();
    let node = site.playground.node(1);
    node.read(&["ip", "link", "set", "na-a", "mtu", "9000"]).unwrap();
    // Only a frame longer than a page comes so, and that is too big for the network.
    let frame = ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).icmp(0, 0, [0; 4]).payload_of(6000);
    let before = site.counters();
    site.a.inside(|| send_in_pages(&frame.build()));
    let moved = || site.since(&before)[0].clone();
    let seen = [Counter::FragNeeded, Counter::DropMalformed];
    let counted = || seen.iter().any(|counter| packets(&moved(), *counter) > 0);
    eventually("the frame to be counted", counted);
    assert_eq!(packets(&moved(), Counter::FragNeeded), 1, "{:?}", moved());
}

/// What others see on the wire: tcpdump knows VXLAN and checks every checksum in it.
#[test]
fn packets_on_the_wire_are_right() {
    let site = Site::new("dump");
    site.set_offloads("tx off rx off tso off gso off gro off");
    let wire = site.playground.wire();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let mut dump = wire
        .command(&["tcpdump", "-i", "br0", "-U", "-n", "-w", path, "udp", "port", "4789"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It says when it listens.
    let mut stderr = std::io::BufReader::new(dump.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut stderr, &mut line).unwrap(),
            0,
            "tcpdump ended"
        );
    }
    site.a.transfers(&site.c, C.ip, 1 << 20);
    datagrams(&site.a, &site.c, &[0, 1, MTU - 28, 5000]);
    assert!(site.a.ping(C.ip, MTU, "-M do").0);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(dump.id().cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    dump.wait().unwrap();
    let text = wire.read(&["tcpdump", "-n", "-vv", "-r", path]).unwrap();
    let count = |what: &str| text.matches(what).count();
    assert!(count("VXLAN, flags [I] (0x08), vni 4097") > 500, "{text}");
    assert!(count("[no cksum]") > 500, "{text}");
    assert!(count("(correct)") > 500, "{text}");
    for bad in ["bad cksum", "incorrect", "bad udp", "truncated", "bad length"] {
        assert_eq!(count(bad), 0, "{bad}: {}", text.lines().find(|l| l.contains(bad)).unwrap());
    }
}
