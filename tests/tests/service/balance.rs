//! Virtual addresses, from within the network.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use netagent_tests::client::{ANSWER, Connection, ask, inside};
use netagent_tests::lab::{eventually, must};

use crate::world::{at, backend, client, cluster, netns, service};

/// Three hundred connections to three backends on three nodes: a hundred each, from a
/// client beside a backend and from one that is not; each sees the client's own address.
#[test]
fn turns_are_even_and_the_client_is_seen() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "rr"]);
    let _backends = [1, 2, 3].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    for node in [1, 3] {
        let client = client(&cluster, node);
        let mut answered = BTreeMap::new();
        inside(&netns(&client), || {
            for _ in 0..300 {
                let mut connection = Connection::open(at(vip)).expect("a connection");
                assert_eq!(connection.seen.ip(), client.addresses[0]);
                connection.echo("hello").expect("an echo");
                *answered.entry(connection.backend).or_insert(0) += 1;
            }
        });
        let even = ["b1", "b2", "b3"].map(|name| (name.to_owned(), 100));
        assert_eq!(answered, even.into(), "from n{node}");
    }
}

/// One with three times the weight gets three times the connections.
#[test]
fn weights_are_shares() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "wrr"]);
    let _one = backend(&cluster, 1, "one", &[]);
    let _three = backend(&cluster, 2, "three", &["--weight", "3"]);
    let client = client(&cluster, 3);
    let heavy = inside(&netns(&client), || {
        let names = (0..80).map(|_| Connection::open(at(vip)).expect("a connection").backend);
        names.filter(|name| name == "three").count()
    });
    assert_eq!(heavy, 60);
}

/// A client keeps its backend, by its affinity and by the hash of its address.
#[test]
fn a_client_keeps_its_backend() {
    for options in [&["--affinity", "clientip"][..], &["--scheduler", "sh"], &["--scheduler", "mh"]]
    {
        let cluster = cluster();
        let vip = service(&cluster, options);
        let _backends = [1, 2, 3].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
        let client = client(&cluster, 2);
        inside(&netns(&client), || {
            let first = Connection::open(at(vip)).expect("a connection").backend;
            for _ in 0..20 {
                let other = Connection::open(at(vip)).expect("a connection").backend;
                assert_eq!(other, first, "{options:?}");
            }
        });
    }
}

/// A backend reaches its own service, itself included.
#[test]
fn a_backend_calls_its_own_service() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "rr"]);
    let one = backend(&cluster, 1, "one", &[]);
    let _two = backend(&cluster, 2, "two", &[]);
    let mut names: Vec<_> = inside(&netns(&one), || {
        let open = |_| {
            let mut connection = Connection::open(at(vip)).expect("a connection");
            connection.echo("hello").expect("an echo");
            connection.backend
        };
        (0..4).map(open).collect()
    });
    names.sort();
    assert_eq!(names, ["one", "one", "two", "two"]);
}

/// The same port of a client talks to the backend directly and through the service, in
/// either order, and neither connection notices the other.
#[test]
fn the_same_port_by_both_ways() {
    let cluster = cluster();
    let vip = service(&cluster, &[]);
    let only = backend(&cluster, 1, "only", &[]);
    for node in [1, 2] {
        let client = client(&cluster, node);
        inside(&netns(&client), || {
            for (port, order) in
                [(40_001, [vip, only.addresses[0]]), (40_002, [only.addresses[0], vip])]
            {
                let mut both =
                    order.map(|ip| Connection::open_from(port, at(ip)).expect("a connection"));
                for _ in 0..3 {
                    both.iter_mut().for_each(|c| c.echo("still here").expect("an echo"));
                }
                let [a, b] = both.map(|c| c.seen);
                assert!([a, b].iter().all(|seen| seen.ip() == client.addresses[0]), "{a} {b}");
                assert_ne!(a, b, "the backend tells them apart");
            }
        });
    }
}

/// UDP from a wildcard socket: the answer comes from the service's address, a client's
/// port stays with one backend, and goes to another within a second of its end.
#[test]
fn udp_keeps_its_backend_and_finds_another() {
    let cluster = cluster();
    let vip = service(&cluster, &[]);
    let mut backends: BTreeMap<String, _> =
        [1, 2].map(|n| (format!("b{n}"), backend(&cluster, n, &format!("b{n}"), &[]))).into();
    let client = client(&cluster, 3);
    inside(&netns(&client), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let (first, seen) = ask(&socket, at(vip), ANSWER).expect("an answer");
        let own =
            SocketAddr::new(client.addresses[0].into(), socket.local_addr().expect("bound").port());
        assert_eq!(seen, own.to_string());
        for _ in 0..10 {
            assert_eq!(ask(&socket, at(vip), ANSWER).expect("an answer").0, first);
        }
        backends.remove(&first).expect("one of them").kill();
        let soon = std::time::Duration::from_millis(100);
        eventually("the other one answers", || {
            ask(&socket, at(vip), soon).is_ok_and(|(name, _)| name != first)
        });
    });
}

/// Names: the service, its tasks, and both with the network's name.
#[test]
fn names_of_a_service() {
    let cluster = cluster();
    let vip = service(&cluster, &["--alias", "shop"]);
    let one = backend(&cluster, 1, "one", &[]);
    let two = backend(&cluster, 2, "two", &[]);
    let client = client(&cluster, 3);
    for name in ["web", "web.net1", "shop"] {
        assert_eq!(client.resolves(&[name]), vip.to_string(), "{name}");
    }
    let mut tasks = [one.ip(), two.ip()];
    tasks.sort();
    let sorted = |name: &str| {
        let text = client.resolves(&[name]);
        let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(sorted("tasks.web"), tasks);
    assert!(client.pings("web", 56), "the virtual address answers echo requests");
    two.kill();
    eventually("who is gone is not named", || client.resolves(&["tasks.web"]) == one.ip());
    must(cluster.node(1).netagent(&["service", "update", "web", "--endpoint-mode", "dnsrr"]));
    eventually("its name is its tasks", || client.resolves(&["web"]) == one.ip());
}
