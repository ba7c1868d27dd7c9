//! Services between real interfaces: the kernel's stacks at both ends judge every checksum
//! that was rewritten, also where it had still to be written.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use netagent_common::Counter;
use netagent_tests::world::{A, B, C, Host, MTU, VIP};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use super::{OFFLOADS, nothing_dropped, packets};
use crate::site::{Site, Workload};
use xtask::node::Shell as _;

/// Sends datagrams of these sizes to the service, each of which must come back as it is.
fn echoes(from: &Workload, to: &Workload, sizes: &[usize]) {
    let (client, server) = (from.socket(), to.socket());
    let port = server.local_addr().unwrap().port();
    let called = SocketAddrV4::new(VIP.ip, port);
    // Only what comes from there is received.
    client.connect(called).unwrap();
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        let sent: Vec<u8> = (0..*size).map(|i| (i % 251) as u8).collect();
        client.send(&sent).unwrap();
        let (len, source) = server.recv_from(&mut buffer).expect("a datagram is lost");
        assert!(buffer[..len] == sent, "{size} bytes: other ones came");
        server.send_to(&sent, source).unwrap();
        let len = client.recv(&mut buffer).expect("an answer is lost");
        assert!(buffer[..len] == sent, "{size} bytes: other ones came back");
    }
}

fn errors(site: &Site) -> u64 {
    [&site.a, &site.b, &site.c].iter().map(|workload| workload.checksum_errors()).sum()
}

/// A service with one backend.
fn site(name: &str, backend: Host) -> Site {
    let mut site = Site::new(name);
    site.serve(&[backend]);
    site
}

#[test]
fn connections_reach_a_backend_elsewhere() {
    for features in OFFLOADS {
        let site = site("vipthere", C);
        site.set_offloads(features);
        let before = site.counters();
        site.a.transfers(&site.c, VIP.ip, 16 << 20);
        echoes(&site.a, &site.c, &[0, 1, 500, MTU - 28, 5000, 60_000]);
        nothing_dropped(&site.since(&before));
        assert_eq!(errors(&site), 0, "{features}");
    }
}

#[test]
fn connections_reach_a_backend_on_the_same_node() {
    for features in OFFLOADS {
        let site = site("viphere", B);
        site.set_offloads(features);
        let before = site.counters();
        site.a.transfers(&site.b, VIP.ip, 16 << 20);
        echoes(&site.a, &site.b, &[0, 1, 500, MTU - 28, 5000, 60_000]);
        nothing_dropped(&site.since(&before));
        assert_eq!(errors(&site), 0, "{features}");
    }
}

#[test]
fn a_backend_reaches_itself_by_its_service() {
    for features in OFFLOADS {
        let site = site("hairpin", C);
        site.set_offloads(features);
        let before = site.counters();
        site.c.transfers(&site.c, VIP.ip, 4 << 20);
        echoes(&site.c, &site.c, &[0, 1, 500, MTU - 28]);
        nothing_dropped(&site.since(&before));
        assert_eq!(errors(&site), 0, "{features}");
    }
}

/// The client's port is that of its direct connection, so the backend sees another.
#[test]
fn a_port_that_is_taken_is_translated() {
    let site = site("twice", C);
    let (client, server) = (site.a.socket(), site.c.socket());
    let port = server.local_addr().unwrap().port();
    let mut seen = Vec::new();
    let mut buffer = [0; 2000];
    for address in [C.ip, VIP.ip, C.ip, VIP.ip] {
        client.send_to(&address.octets(), SocketAddrV4::new(address, port)).unwrap();
        let (len, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], address.octets());
        server.send_to(&address.octets(), source).unwrap();
        let (len, source_of_answer) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(source_of_answer, SocketAddrV4::new(address, port).into());
        assert_eq!(buffer[..len], address.octets());
        seen.push(source.port());
    }
    assert_eq!(seen[0], client.local_addr().unwrap().port());
    assert_eq!((seen[0], seen[1]), (seen[2], seen[3]));
    assert_ne!(seen[0], seen[1]);
    assert_eq!(errors(&site), 0);
}

#[test]
fn udp_segmentation_reaches_a_backend() {
    const SEGMENT: u16 = 1000;
    for features in OFFLOADS {
        for backend in [B, C] {
            let site = site("vipgso", backend);
            site.set_offloads(features);
            let to = if backend.ip == B.ip { &site.b } else { &site.c };
            let (client, server) = (site.a.socket(), to.socket());
            let port = server.local_addr().unwrap().port();
            let address = SockaddrIn::from(SocketAddrV4::new(VIP.ip, port));
            for round in 0..10_usize {
                let sent: Vec<u8> = (0..20_000).map(|i| ((i + round) % 251) as u8).collect();
                let messages = [ControlMessage::UdpGsoSegments(&SEGMENT)];
                let bytes = [std::io::IoSlice::new(&sent)];
                let flags = MsgFlags::empty();
                sendmsg(client.as_raw_fd(), &bytes, &messages, flags, Some(&address)).unwrap();
                for expected in sent.chunks(usize::from(SEGMENT)) {
                    let mut segment = [0; 2000];
                    let len = server.recv(&mut segment).expect("a segment is lost");
                    assert!(segment[..len] == *expected, "other bytes in round {round}");
                }
            }
            assert_eq!(errors(&site), 0, "{features}");
        }
    }
}

fn refused(workload: &Workload, address: Ipv4Addr) -> ErrorKind {
    let address = SocketAddrV4::new(address, 9).into();
    let limit = Duration::from_secs(10);
    workload.inside(|| TcpStream::connect_timeout(&address, limit)).unwrap_err().kind()
}

fn unreachable(socket: &UdpSocket) -> ErrorKind {
    socket.send(b"anybody?").unwrap();
    socket.recv(&mut [0; 100]).unwrap_err().kind()
}

#[test]
fn who_is_refused_learns_it_at_once() {
    // By the backend's kernel, there and here, and by the datapath where there is none.
    for backends in [&[C][..], &[B], &[]] {
        let mut site = Site::new("refused");
        site.serve(backends);
        let before = site.counters();
        assert_eq!(refused(&site.a, VIP.ip), ErrorKind::ConnectionRefused);
        let client = site.a.socket();
        client.connect(SocketAddrV4::new(VIP.ip, 9)).unwrap();
        assert_eq!(unreachable(&client), ErrorKind::ConnectionRefused);
        let moved = site.since(&before);
        nothing_dropped(&moved);
        let answered = packets(&moved[0], Counter::NoBackendAnswered);
        assert_eq!(answered, if backends.is_empty() { 2 } else { 0 }, "{moved:?}");
        assert_eq!(errors(&site), 0);
    }
}

/// The client's stack learns from the error what it may send to the service.
#[test]
fn the_mtu_of_the_way_is_learnt() {
    let site = site("vippmtu", C);
    site.a.read(&["ip", "link", "set", "eth0", "mtu", "9000"]).unwrap();
    site.c.read(&["ip", "link", "set", "eth0", "mtu", "9000"]).unwrap();
    site.a.transfers(&site.c, VIP.ip, 1 << 20);
    let (came, said) = site.a.ping(VIP.ip, 28, "");
    assert!(came, "{said}");
    assert_eq!(errors(&site), 0);
}

#[test]
fn flows_are_spread_over_all_backends() {
    let mut site = Site::new("spread");
    site.serve(&[A, B, C]);
    let port = 7777;
    let servers = [&site.a, &site.b, &site.c].map(|workload| {
        let socket = workload.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    });
    for _ in 0..30 {
        site.a.socket().send_to(b"x", SocketAddrV4::new(VIP.ip, port)).unwrap();
    }
    for server in &servers {
        for _ in 0..10 {
            server.recv(&mut [0; 10]).expect("each backend gets a third");
        }
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
