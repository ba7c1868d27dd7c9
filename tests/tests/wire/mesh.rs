//! Published ports between real interfaces: from outside, from the node itself and from its
//! workloads, to a backend on the entry node and on another.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use netagent_common::Counter;
use netagent_tests::world::{B, C, HERE, Host, MTU};
use xtask::node::Shell as _;
use xtask::playground::CLIENT;

use super::{OFFLOADS, nothing_dropped, packets};
use crate::site::{Site, Workload, inside};

const PATIENCE: Duration = Duration::from_secs(10);

/// Who calls, and whom.
struct Caller {
    netns: PathBuf,
    called: SocketAddrV4,
    /// As whom the backend sees it.
    seen: Ipv4Addr,
}

/// From outside; the node by its own address and by 127.0.0.1; a workload of the node.
fn callers(site: &Site) -> [Caller; 4] {
    let client = site.playground.client().netns_path();
    let node = site.playground.node(1).host.netns_path();
    let at = |netns: &PathBuf, ip, seen| Caller {
        netns: netns.clone(),
        called: SocketAddrV4::new(ip, 8080),
        seen,
    };
    [
        at(&client, HERE, CLIENT),
        at(&node, HERE, HERE),
        at(&node, Ipv4Addr::LOCALHOST, HERE),
        at(&site.a.netns(), HERE, HERE),
    ]
}

/// The service, published, with one backend.
fn site(name: &str, backend: Host) -> Site {
    let mut site = Site::new(name);
    site.serve(&[backend]);
    site.publish();
    site
}

fn server(site: &Site, backend: Host) -> &Workload {
    if backend.ip == B.ip { &site.b } else { &site.c }
}

/// Wrong checksums that anybody saw.
fn errors(site: &Site) -> u64 {
    let hosts = [site.playground.client(), &site.playground.node(1).host];
    let outside = hosts.map(|host| {
        let text = host.read(&["nstat", "-asz"]).unwrap();
        let values = text.lines().filter(|line| line.contains("CsumErrors"));
        values.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    });
    let workloads = [&site.a, &site.b, &site.c].map(Workload::checksum_errors);
    outside.iter().sum::<u64>() + workloads.iter().sum::<u64>()
}

/// As many bytes there and back.
fn transfers(caller: &Caller, server: &Workload, len: usize) {
    let listener = server.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    let called = caller.called.into();
    let mut client =
        inside(&caller.netns, || TcpStream::connect_timeout(&called, PATIENCE).unwrap());
    let (mut accepted, source) = listener.accept().unwrap();
    assert_eq!(source.ip(), caller.seen);
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let mut received = vec![0; len];
    carries(&mut client, &mut accepted, &sent, &mut received);
    carries(&mut accepted, &mut client, &sent, &mut received);
}

fn carries(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8], received: &mut [u8]) {
    received.fill(0);
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(sent).unwrap());
        to.read_exact(received).unwrap();
    });
    assert!(sent == received, "other bytes came");
}

/// Datagrams of these sizes, each of which must come back from whom it was sent to. One
/// that is too big for the network is sent again in pieces, once its sender knows.
fn echoes(caller: &Caller, server: &Workload, sizes: &[usize]) {
    let socket = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let client = inside(&caller.netns, socket);
    let server = server.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    // Only what comes from there is received.
    client.connect(caller.called).unwrap();
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        let sent: Vec<u8> = (0..*size).map(|i| (i % 251) as u8).collect();
        // The first may be refused with an error of the socket.
        let (len, source) = (0..4)
            .find_map(|_| {
                client.send(&sent).ok()?;
                server.recv_from(&mut buffer).ok()
            })
            .unwrap_or_else(|| panic!("{size} bytes are lost"));
        assert!(buffer[..len] == sent, "{size} bytes: other ones came");
        assert_eq!(source.ip(), caller.seen);
        server.send_to(&sent, source).unwrap();
        let len = client.recv(&mut buffer).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        assert!(buffer[..len] == sent, "{size} bytes: other ones came back");
    }
}

fn everybody_reaches(name: &str, backend: Host) {
    for features in OFFLOADS {
        let site = site(name, backend);
        site.set_offloads(features);
        let server = server(&site, backend);
        for caller in callers(&site) {
            let before = site.counters();
            transfers(&caller, server, 8 << 20);
            echoes(&caller, server, &[0, 1, 500, MTU - 28]);
            let moved = site.since(&before);
            nothing_dropped(&moved);
            for counter in [Counter::EnteredMesh, Counter::LeftMesh] {
                assert!(packets(&moved[0], counter) > 50, "{features}: {moved:?}");
            }
        }
        assert_eq!(errors(&site), 0, "{features}");
    }
}

#[test]
fn everybody_reaches_a_backend_elsewhere() {
    everybody_reaches("meshthere", C);
}

#[test]
fn everybody_reaches_a_backend_on_the_entry_node() {
    everybody_reaches("meshhere", B);
}

#[test]
fn who_sends_too_much_learns_the_mtu() {
    for backend in [C, B] {
        let site = site("meshmtu", backend);
        let [client, _, _, workload] = callers(&site);
        // The workload's own interface has the network's MTU.
        for (caller, told) in [(client, true), (workload, false)] {
            let before = site.counters();
            echoes(&caller, server(&site, backend), &[MTU - 27, 5000, 60_000]);
            let moved = site.since(&before);
            nothing_dropped(&moved);
            assert_eq!(packets(&moved[0], Counter::FragNeeded) > 0, told, "{moved:?}");
        }
        assert_eq!(errors(&site), 0);
    }
}

/// The backend's stack says that nobody listens; the client must understand it.
#[test]
fn a_closed_port_is_refused_at_once() {
    for backend in [C, B] {
        let site = site("meshclosed", backend);
        for caller in callers(&site) {
            let called = caller.called.into();
            let tcp = inside(&caller.netns, || TcpStream::connect_timeout(&called, PATIENCE));
            assert_eq!(tcp.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
            let udp = inside(&caller.netns, || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(caller.called).unwrap();
                socket.send(b"anybody?").unwrap();
                socket.recv(&mut [0; 10])
            });
            assert_eq!(udp.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(errors(&site), 0);
    }
}

/// The same port of the node by both its addresses, from one port.
#[test]
fn two_connections_of_one_port_stay_apart() {
    let site = site("meshtwice", C);
    let node = site.playground.node(1).host.netns_path();
    let server = site.c.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 100];
    let mut seen = Vec::new();
    for ip in [HERE, Ipv4Addr::LOCALHOST, HERE, Ipv4Addr::LOCALHOST] {
        let client = inside(&node, || UdpSocket::bind((ip, 5000)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect((ip, 8080)).unwrap();
        client.send(&ip.octets()).unwrap();
        let (_, source) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", source).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        seen.push(source);
    }
    assert_eq!((seen[0], seen[1]), (seen[2], seen[3]));
    assert_ne!(seen[0], seen[1]);
}
