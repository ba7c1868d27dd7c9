//! What becomes of connections when backends, settings and agents change.

use std::net::Ipv4Addr;

use aya::maps::{HashMap, Map, MapData};
use netagent_common::{ABI_VERSION, Flow, FlowKey, maps};
use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{eventually, must};
use xtask::node::Node;

use crate::world::{at, backend, client, cluster, netns, service};

/// A connection to a backend that drains goes on; new ones go to the other; when it is
/// taken back it gets new ones again.
#[test]
fn draining_keeps_what_is_open() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "rr"]);
    let _stays = backend(&cluster, 1, "stays", &[]);
    let _drains = backend(&cluster, 2, "drains", &[]);
    let client = client(&cluster, 3);
    let open = || Connection::open(at(vip)).expect("a connection");
    inside(&netns(&client), || {
        let mut old = open();
        while old.backend != "drains" {
            old = open();
        }
        must(cluster.node(2).netagent(&["endpoint", "update", "drains", "--drain"]));
        for _ in 0..10 {
            assert_eq!(open().backend, "stays");
            old.echo("still here").expect("an echo");
        }
        must(cluster.node(2).netagent(&["endpoint", "update", "drains", "--no-drain"]));
        eventually("it takes connections again", || open().backend == "drains");
        old.echo("still here").expect("an echo");
    });
}

/// A service gets another virtual address: clients find it there, and no longer at the old one.
#[test]
fn another_address() {
    let cluster = cluster();
    let old = service(&cluster, &["--vip", "10.0.0.77"]);
    let _backend = backend(&cluster, 1, "b1", &[]);
    let client = client(&cluster, 3);
    let open = |vip| inside(&netns(&client), || Connection::open(at(vip)));
    open(old).expect("a connection");
    must(cluster.node(1).netagent(&["service", "update", "--vip", "10.0.0.78", "web"]));
    open(Ipv4Addr::new(10, 0, 0, 78)).expect("a connection");
    eventually("its name leads there", || client.resolves(&["web"]) == "10.0.0.78");
    must(cluster.node(1).netagent(&[
        "service",
        "create",
        "--name",
        "next",
        "--network",
        "net1",
        "--vip",
        "10.0.0.77",
    ]));
    open(old).expect_err("nobody serves the next");
}

/// A client that only waits hears within a moment that its backend is gone, through the
/// virtual address and through a published port.
#[test]
fn who_waits_for_the_dead_is_told() {
    let cluster = cluster();
    let vip = service(&cluster, &["-p", "8080:8000"]);
    let dies = backend(&cluster, 1, "dies", &[]);
    let client = client(&cluster, 3);
    let mesh = std::net::SocketAddrV4::new(cluster.node(2).address, 8080);
    let mut inner = inside(&netns(&client), || Connection::open(at(vip)).expect("by its VIP"));
    let mut outer = inside(&cluster.client().netns_path(), || {
        Connection::open(mesh).expect("by its published port")
    });
    let _lives = backend(&cluster, 2, "lives", &[]);
    // Cut off first, or its kernel would say goodbye for it.
    dies.run(&["ip", "link", "set", "eth0", "down"]);
    dies.kill();
    for connection in [&mut inner, &mut outer] {
        let error = connection.ended().expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// Agents are killed and come back; connections through the virtual address and through
/// the mesh notice nothing.
#[test]
fn agents_come_and_go() {
    let cluster = cluster();
    let vip = service(&cluster, &["-p", "8080:8000"]);
    let _only = backend(&cluster, 1, "only", &[]);
    let client = client(&cluster, 3);
    let mesh = std::net::SocketAddrV4::new(cluster.node(2).address, 8080);
    let mut inner = inside(&netns(&client), || Connection::open(at(vip)).expect("by its VIP"));
    let mut outer = inside(&cluster.client().netns_path(), || {
        Connection::open(mesh).expect("by its published port")
    });
    for node in cluster.nodes() {
        node.kill_agent().expect("a kill");
        inner.echo("without an agent").expect("an echo");
        outer.echo("without an agent").expect("an echo");
        inside(&netns(&client), || Connection::open(at(vip)).expect("a new one"));
        inside(&cluster.client().netns_path(), || Connection::open(mesh).expect("a new one"));
        node.start_agent().expect("a start");
        inner.echo("with its successor").expect("an echo");
        outer.echo("with its successor").expect("an echo");
    }
}

/// Makes every flow that a node knows older by `seconds`, as a moved clock would.
fn age(node: &Node, seconds: u32) {
    let pin = node.pins.join(format!("v{ABI_VERSION}/maps/{}", maps::FLOWS));
    let map = MapData::from_pin(pin).expect("the pinned map");
    let mut flows: HashMap<_, FlowKey, Flow> =
        Map::LruHashMap(map).try_into().expect("keys and values of flows");
    let all: Vec<_> = flows.iter().map(|entry| entry.expect("an entry")).collect();
    assert!(!all.is_empty(), "{} knows no flow", node.name());
    for (key, flow) in all {
        let older = Flow { seen: flow.seen.wrapping_sub(seconds), ..flow };
        flows.insert(key, older, 0).expect("a write");
    }
}

/// Connections that said nothing for an hour carry their next byte, through the virtual
/// address and through the mesh; by the clock of the flows, which is moved.
#[test]
fn idle_connections_live_on() {
    let cluster = cluster();
    let vip = service(&cluster, &["-p", "8080:8000", "--scheduler", "rr"]);
    let _backends = [1, 2].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    let client = client(&cluster, 3);
    let mesh = std::net::SocketAddrV4::new(cluster.node(3).address, 8080);
    let open = |n: usize| {
        let to = if n == 0 { at(vip) } else { mesh };
        let netns = if n == 0 { netns(&client) } else { cluster.client().netns_path() };
        inside(&netns, || Connection::open(to).expect("a connection"))
    };
    let mut both = [open(0), open(1)];
    for node in cluster.nodes() {
        age(node, 3600);
    }
    // New ones, so that a flow that is chosen anew would go elsewhere.
    let _others = [open(0), open(1)];
    for connection in &mut both {
        connection.echo("after an hour").expect("an echo");
    }
}
