//! Published ports, from outside and from the nodes themselves.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use netagent_tests::client::{ANSWER, Connection, ask, inside};
use netagent_tests::lab::{eventually, inspect, must, refusal};
use xtask::playground::CLIENT;

use crate::world::{backend, client, cluster, netns, service};

const PUBLISHED: u16 = 8080;

fn published(ip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(ip, PUBLISHED)
}

/// Every node answers, by TCP and UDP, to a client outside and to its own programs;
/// the backends see who is calling.
#[test]
fn every_node_answers_everybody() {
    let cluster = cluster();
    let tcp = "published=8080,target=8000";
    let udp = "published=8080,target=8000,protocol=udp";
    service(&cluster, &["--publish", tcp, "--publish", udp]);
    let one = backend(&cluster, 1, "one", &[]);
    let _two = backend(&cluster, 2, "two", &[]);
    let outside = cluster.client().netns_path();
    for node in cluster.nodes() {
        let names: BTreeSet<String> = inside(&outside, || {
            let open = |_| {
                let mut connection = Connection::open(published(node.address)).expect("TCP");
                assert_eq!(connection.seen.ip(), CLIENT, "through {}", node.name());
                connection.echo("hello").expect("an echo");
                connection.backend
            };
            (0..8).map(open).collect()
        });
        assert_eq!(names, ["one", "two"].map(str::to_owned).into(), "{}", node.name());
        inside(&outside, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let (_, seen) = ask(&socket, published(node.address), ANSWER).expect("UDP");
            assert!(seen.starts_with(&format!("{CLIENT}:")), "{seen}");
        });
        inside(&node.host.netns_path(), || {
            for own in [Ipv4Addr::LOCALHOST, node.address] {
                let to = published(own);
                let mut connection = Connection::open(to).unwrap_or_else(|e| panic!("{to}: {e}"));
                connection.echo("hello").expect("an echo");
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                ask(&socket, to, ANSWER).unwrap_or_else(|e| panic!("UDP {to}: {e}"));
            }
        });
    }
    // Workloads, on the network or not, reach it at their own node and at others.
    inside(&netns(&client(&cluster, 3)), || {
        for node in cluster.nodes() {
            Connection::open(published(node.address)).expect("from a workload");
        }
    });
    inside(&netns(&one), || {
        Connection::open(published(cluster.node(1).address)).expect("from a backend");
    });
}

/// One port of the client, several nodes, one backend: each connection is its own.
#[test]
fn the_same_port_through_all_nodes() {
    let cluster = cluster();
    service(&cluster, &["-p", "8080:8000", "-p", "8081:8000"]);
    let _only = backend(&cluster, 1, "only", &[]);
    inside(&cluster.client().netns_path(), || {
        let to = cluster.nodes().iter().flat_map(|n| {
            [PUBLISHED, PUBLISHED + 1].map(|port| SocketAddrV4::new(n.address, port))
        });
        let mut open: Vec<_> =
            to.map(|to| Connection::open_from(40_003, to).expect("a connection")).collect();
        for _ in 0..3 {
            open.iter_mut().for_each(|c| c.echo("still here").expect("an echo"));
        }
        let seen: BTreeSet<_> = open.iter().map(|c| c.seen).collect();
        assert_eq!(seen.len(), open.len(), "the backend tells them apart");
    });
}

/// Who is not on the list gets nothing, and is counted; an address that was asked for is
/// the only one; host mode answers where a backend is.
#[test]
fn who_may_and_where() {
    let cluster = cluster();
    let (n1, n2) = (cluster.node(1), cluster.node(2));
    let only_other = "published=8080,target=8000,allow=192.168.50.200/32";
    let at_n2 = format!("published=8081,target=8000,addr={}", n2.address);
    let on_host = "published=8082,target=8000,mode=host";
    let publish = ["--publish", only_other, "--publish", &at_n2, "--publish", on_host];
    service(&cluster, &publish);
    let _only = backend(&cluster, 1, "only", &[]);
    let reach = |ip: Ipv4Addr, port: u16| {
        inside(&cluster.client().netns_path(), || {
            let to = SocketAddrV4::new(ip, port);
            std::net::TcpStream::connect_timeout(&to.into(), Duration::from_millis(500)).is_ok()
                && Connection::open(to).is_ok()
        })
    };
    let before = netagent_tests::lab::packets(n1, "drop_not_allowed");
    assert!(!reach(n1.address, 8080), "not on the list");
    assert!(netagent_tests::lab::packets(n1, "drop_not_allowed") > before);
    assert!(reach(n2.address, 8081), "the address asked for");
    assert!(!reach(n1.address, 8081), "another address");
    assert!(reach(n1.address, 8082), "host mode where the backend is");
    assert!(!reach(n2.address, 8082), "host mode where none is");
    must(n1.netagent(&["service", "update", "web", "--publish-add", "8080:8000"]));
    eventually("anybody may now", || reach(n1.address, 8080));
    must(n1.netagent(&["service", "update", "web", "--publish-rm", "8000"]));
    eventually("it is published no longer", || !reach(n1.address, 8080));
}

/// A port is one service's; one that nobody asked for by number is chosen.
#[test]
fn ports_are_given_once() {
    let cluster = cluster();
    service(&cluster, &["-p", "8080:8000", "-p", "9000"]);
    let ports = inspect(cluster.node(1), "service", "web")["ports"].take();
    let of_9000 = ports.as_array().expect("ports").iter().find(|port| port["target"] == 9000);
    let chosen = of_9000.and_then(|port| port["published"].as_u64());
    assert!((30_000..=32_767).contains(&chosen.expect("a port")), "{ports}");
    let again = ["service", "create", "--name", "other", "--network", "net1", "-p", "8080:1"];
    let said = refusal(cluster.node(1).netagent(&again));
    assert!(said.contains("8080") && said.contains("web"), "{said}");
}
