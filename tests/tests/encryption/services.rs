//! Services on an encrypted network: however a client has found its backend, between nodes
//! there is ESP.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use netagent_tests::client::{Connection, ask, inside};
use netagent_tests::lab::{Workload, inspect, must, packets};

use crate::world::{Capture, NET, PATIENCE, cluster, eventually, reaches, settled, workload};

const BACKEND: &str = env!("CARGO_BIN_EXE_test-backend");
/// What is called, and where backends listen.
const PORTS: [u16; 2] = [8080, 8000];

/// A published port, called at nodes that have no backend from outside and by their own
/// programs, and the virtual address, called by a workload: by TCP, with segments as big as
/// they get, and UDP.
#[test]
fn what_services_forward_is_encrypted() {
    let Some(cluster) = cluster("what_services_forward_is_encrypted") else { return };
    let (a, c) = (workload(&cluster, 1), workload(&cluster, 3));
    let create = ["service", "create", "--name", "web", "--network", NET];
    let tcp = format!("published={},target={}", PORTS[0], PORTS[1]);
    let udp = format!("{tcp},protocol=udp");
    let create = [&create[..], &["--publish", &tcp, "--publish", &udp]].concat();
    must(cluster.node(1).netagent(&create));
    let shown = inspect(cluster.node(1), "service", "web");
    let vip: Ipv4Addr = shown["networks"][0]["vip"].as_str().and_then(|s| s.parse().ok()).unwrap();
    let [tcp, udp] = ["tcp", "udp"].map(|protocol| format!("{protocol}:{}", PORTS[1]));
    let run = ["--service", "web", "--name", "one"];
    let one = Workload::start_command(cluster.node(2), &run, &[BACKEND, "one", &tcp, &udp]);
    let listens = format!(":{}", PORTS[1]);
    eventually("the backend listens", || one.run(&["ss", "-Hltn"]).contains(&listens));
    reaches(&cluster, &a, &one);
    reaches(&cluster, &c, &one);
    settled(&cluster);
    let encrypted = || [1, 2, 3].map(|n| packets(cluster.node(n), "encrypted"));
    let before = encrypted();
    let capture = Capture::start(&cluster);
    let outside = cluster.client().netns_path();
    let [n1, n3] = [1, 3].map(|n| cluster.node(n));
    let inside_of_c = format!("/proc/{}/ns/net", c.pid()).into();
    for (netns, ip, port) in [
        (&outside, n1.address, PORTS[0]),
        (&outside, n3.address, PORTS[0]),
        (&n1.host.netns_path(), n1.address, PORTS[0]),
        (&n1.host.netns_path(), Ipv4Addr::LOCALHOST, PORTS[0]),
        (&inside_of_c, vip, PORTS[1]),
    ] {
        let to = SocketAddrV4::new(ip, port);
        inside(netns, || {
            let mut connection = Connection::open(to).unwrap_or_else(|e| panic!("{to}: {e}"));
            for word in ["hello", "much ".repeat(10_000).trim_end()] {
                connection.echo(word).unwrap_or_else(|e| panic!("{to}: {e}"));
            }
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            ask(&socket, to, PATIENCE).unwrap_or_else(|e| panic!("UDP {to}: {e}"));
        });
    }
    capture.is_encrypted();
    // The clients' own calls were seen, which are in clear as everywhere; the nodes' were not.
    let called = format!("(port {} or port {})", PORTS[0], PORTS[1]);
    let client = format!("host {}", xtask::playground::CLIENT);
    assert!(capture.count(&format!("{called} and {client}")) > 0, "nothing was captured");
    assert_eq!(capture.count(&format!("{called} and not {client}")), 0, "between nodes");
    for (n, (now, before)) in encrypted().into_iter().zip(before).enumerate() {
        assert!(now > before + 20, "n{}: {before}, and then {now}", n + 1);
    }
    settled(&cluster);
}
