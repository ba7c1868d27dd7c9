//! Truncated and malformed frames, from a workload and from the underlay: nothing
//! falls over, everything is counted, and good traffic goes on.

use std::fmt::Write as _;

use netagent_tests::lab::{LAYOUTS, Workload, inspect, must, packets, three};
use xtask::node::{Datapath, Shell as _};

/// Sends `frames` (hexadecimal) as they are on `interface`, by a raw socket; Python,
/// so that what sends is nothing of ours.
const SEND: &str = "
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for line in sys.stdin:
    try:
        s.send(bytes.fromhex(line))
    except OSError:
        pass
";

/// Every prefix of `frame` from the Ethernet header on, and each byte after that
/// header inverted, one at a time.
fn mutations(frame: &[u8]) -> String {
    let mut lines = String::new();
    let mut line = |bytes: &[u8]| {
        for byte in bytes {
            write!(lines, "{byte:02x}").expect("a string");
        }
        lines.push('\n');
    };
    for length in 14..=frame.len() {
        line(&frame[..length]);
    }
    for at in 12..frame.len() {
        let mut changed = frame.to_vec();
        changed[at] = !changed[at];
        line(&changed);
    }
    lines
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("small");
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("small");
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn mac_of(ip: [u8; 4]) -> [u8; 6] {
    [0x02, 0x6e, ip[0], ip[1], ip[2], ip[3]]
}

#[test]
fn malformed_frames_are_counted_and_survived() {
    for (layout, datapaths) in LAYOUTS {
        println!("garbage on {layout}");
        let cluster = three(datapaths);
        must(cluster.node(1).netagent(&["network", "create", "net1"]));
        let a = Workload::start(cluster.node(1), &["--network", "net1", "--name", "a"]);
        let b = Workload::start(cluster.node(3), &["--network", "net1", "--name", "b"]);
        let (ip_a, ip_b) = (a.addresses[0].octets(), b.addresses[0].octets());
        let vni = inspect(cluster.node(1), "network", "net1")["vni"].clone();
        let vni = u32::try_from(vni.as_u64().expect("a VNI")).expect("24 bits");

        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac_of(ip_a), &ip_a, &[0; 6], &ip_b].concat();
        let datagram = ipv4(17, ip_a, ip_b, &udp(1111, 2222, b"hello"));
        let inner = ethernet(mac_of(ip_b), mac_of(ip_a), 0x0800, &datagram);
        let from_workload =
            mutations(&ethernet([0xff; 6], mac_of(ip_a), 0x0806, &arp)) + &mutations(&inner);
        send(a.command(&["python3", "-c", SEND, "eth0"]), &from_workload);

        // From the underlay: n1's eth0 is the sender of valid VXLAN to n3.
        let [_, v1, v2, v3] = vni.to_be_bytes();
        let vxlan = [&[8, 0, 0, 0, v1, v2, v3, 0][..], &inner].concat();
        let outer = ipv4(17, [192, 168, 50, 11], [192, 168, 50, 13], &udp(50000, 4789, &vxlan));
        let frame = ethernet(eth0(&cluster, 3), eth0(&cluster, 1), 0x0800, &outer);
        send(cluster.node(1).command(&["python3", "-c", SEND, "eth0"]), &mutations(&frame));
        // A stranger, who is no member.
        let outer = ipv4(17, [192, 168, 50, 100], [192, 168, 50, 13], &udp(50000, 4789, &vxlan));
        let frame = ethernet(eth0(&cluster, 3), eth0(&cluster, 1), 0x0800, &outer);
        send(cluster.client().command(&["python3", "-c", SEND, "eth0"]), &mutations(&frame));

        assert!(a.pings(&b.ip(), 1422) && b.pings(&a.ip(), 1422));
        if datapaths[2] == Datapath::Ebpf {
            for counter in
                ["drop_not_member", "drop_unknown_vni", "drop_not_owner", "drop_malformed"]
            {
                assert!(packets(cluster.node(3), counter) > 0, "{counter} did not move");
            }
        }
    }
}

/// MAC of a node's uplink. Read by `ip`, since /sys shows another namespace's.
fn eth0(cluster: &xtask::playground::Playground, node: usize) -> [u8; 6] {
    let text = must(cluster.node(node).exec(&["ip", "-j", "link", "show", "eth0"]));
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let bytes: Vec<u8> = list[0]["address"]
        .as_str()
        .expect("a MAC")
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).expect("hexadecimal"))
        .collect();
    bytes.try_into().expect("six bytes")
}

fn send(mut command: std::process::Command, lines: &str) {
    use std::io::Write as _;
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("python3");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("python3 reads");
    assert!(child.wait().expect("python3").success());
}
