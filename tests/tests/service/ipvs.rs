//! What `ipvsadm` shows on a client's node is what goes on. But for the first test, all backends
//! are on the manager's node, which is never taken for dead: on a slow machine the others may
//! be, for a moment, and then get no new connections.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netagent::reconcile::FULL_PASS;
use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{Workload, eventually, inspect, must, packets, verify};
use xtask::command::CommandExt as _;
use xtask::node::{Node, Shell as _};
use xtask::playground::Playground;
use xtask::wait;

use crate::world::{PORT, at, backend, client, cluster, netns, service};

/// Publishes the backends' port, so that IPVS schedules it.
const PUBLISH: [&str; 2] = ["--publish", "8080:8000"];

/// Whether the agents use IPVS; says `SKIP` if not.
fn has_ipvs(name: &str, cluster: &Playground) -> bool {
    let has = std::path::Path::new(&lb(cluster.node(1))).exists();
    if !has {
        println!("SKIP: {name}: this kernel has no IPVS (CONFIG_IP_VS)");
    }
    has
}

/// The namespace of a node's IPVS.
fn lb(node: &Node) -> String {
    let id = inspect(node, "node", node.name())["id"].as_str().expect("an id").to_owned();
    format!("/run/netns/na-{}-lb", &id[..11])
}

/// What `ipvsadm` says there, a line each, single spaces.
fn ipvsadm(node: &Node, options: &[&str]) -> Vec<String> {
    let netns = format!("--net={}", lb(node));
    let mut command = node.command(&["nsenter", &netns, "ipvsadm"]);
    let text = command.args(options).read().expect("ipvsadm");
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Of each real server of a virtual address: weight, active and inactive connections.
fn servers(node: &Node, vip: Ipv4Addr) -> BTreeMap<Ipv4Addr, [u32; 3]> {
    let lines = ipvsadm(node, &["-Ln", "-t", &format!("{vip}:{PORT}")]);
    let real = lines.iter().filter_map(|line| line.strip_prefix("-> 10."));
    real.map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let ip = words[0].split_once(':').expect("a port").0;
        assert_eq!(words[1], "Route", "{line}");
        let number = |i: usize| words[i].parse().expect("a number");
        (format!("10.{ip}").parse().expect("an address"), [number(2), number(3), number(4)])
    })
    .collect()
}

/// Active connections of backends as IPVS counts them.
fn active(node: &Node, vip: Ipv4Addr, backends: &[&Workload]) -> Vec<u32> {
    let servers = servers(node, vip);
    backends.iter().map(|b| servers[&b.addresses[0]][1]).collect()
}

/// Connections to a service, by backend.
fn open(vip: Ipv4Addr, number: usize) -> BTreeMap<String, Vec<Connection>> {
    let mut by_backend = BTreeMap::<_, Vec<_>>::new();
    for _ in 0..number {
        let connection = Connection::open(at(vip)).expect("a connection");
        by_backend.entry(connection.backend.clone()).or_default().push(connection);
    }
    by_backend
}

fn numbers(connections: &BTreeMap<String, Vec<Connection>>) -> Vec<(&str, usize)> {
    connections.iter().map(|(name, open)| (name.as_str(), open.len())).collect()
}

/// Three hundred connections, a hundred to the backend of each node; IPVS counts those that are
/// open.
#[test]
fn its_counts_are_the_connections() {
    let cluster = cluster();
    let vip = service(&cluster, &[&["--scheduler", "rr"][..], &PUBLISH].concat());
    if !has_ipvs("its_counts_are_the_connections", &cluster) {
        return;
    }
    let backends = [1, 2, 3].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    let all: Vec<_> = backends.iter().collect();
    let node = cluster.node(3);
    let client = client(&cluster, 3);
    inside(&netns(&client), || {
        let mut connections = open(vip, 300);
        assert_eq!(numbers(&connections), [("b1", 100), ("b2", 100), ("b3", 100)]);
        eventually("a hundred each", || active(node, vip, &all) == [100; 3]);
        for connection in connections.values_mut().flatten() {
            connection.echo("hello").expect("an echo");
        }
        assert!(packets(node, "drop_accounted") >= 300);
        // Closing is seen, too.
        connections.remove("b2");
        eventually("b2 has none", || active(node, vip, &all) == [100, 0, 100]);
        drop(connections);
        eventually("nobody has any", || active(node, vip, &all) == [0; 3]);
    });
    // Nodes without a client have the servers and no connection.
    assert_eq!(active(cluster.node(2), vip, &all), [0; 3]);
}

/// Each scheduler does what ipvsadm(8) says, and is changed while connections are open.
#[test]
fn each_scheduler_does_what_it_says() {
    let cluster = cluster();
    let vip = service(&cluster, &[&["--scheduler", "wrr"][..], &PUBLISH].concat());
    if !has_ipvs("each_scheduler_does_what_it_says", &cluster) {
        return;
    }
    let one = backend(&cluster, 1, "one", &[]);
    let three = backend(&cluster, 1, "three", &["--weight", "3"]);
    let node = cluster.node(3);
    let client = client(&cluster, 3);
    let scheduler = |name: &str| {
        must(cluster.node(1).netagent(&["service", "update", "--scheduler", name, "web"]));
        eventually("IPVS has it", || {
            let line = format!("TCP {vip}:{PORT} {name}");
            ipvsadm(node, &["-Ln"]).iter().any(|l| l.starts_with(&line))
        });
    };
    let idle = || eventually("all closed", || active(node, vip, &[&one, &three]) == [0; 2]);
    inside(&netns(&client), || {
        let mut kept = open(vip, 80);
        assert_eq!(numbers(&kept), [("one", 20), ("three", 60)]);
        scheduler("rr");
        assert_eq!(numbers(&open(vip, 10)), [("one", 5), ("three", 5)]);
        for connection in kept.values_mut().flatten() {
            connection.echo("still here").expect("an echo");
        }
        eventually("they are counted", || active(node, vip, &[&one, &three]) == [20, 60]);
        // With twenty there and sixty here, the next forty go there.
        scheduler("lc");
        let more: usize = (0..40).map(|_| open_one(node, vip, &mut kept, "one")).sum();
        assert!(more >= 38, "{more} of 40 to the one with less");
        drop(kept);
        idle();
        scheduler("wlc");
        let held = open(vip, 40);
        let heavy = held["three"].len();
        assert!((28..=32).contains(&heavy), "{heavy} of 40 to the one of weight 3");
        drop(held);
        idle();
        for hash in ["sh", "mh"] {
            scheduler(hash);
            assert_eq!(numbers(&open(vip, 12)).len(), 1, "one client, one backend: {hash}");
        }
    });
}

/// Opens one more connection, kept with the others; counts it if it went to `expected`.
fn open_one(
    node: &Node,
    vip: Ipv4Addr,
    kept: &mut BTreeMap<String, Vec<Connection>>,
    expected: &str,
) -> usize {
    let connection = Connection::open(at(vip)).expect("a connection");
    let name = connection.backend.clone();
    kept.entry(name.clone()).or_default().push(connection);
    let total = kept.values().map(Vec::len).sum::<usize>();
    // The next choice is made on what is counted.
    eventually("it is counted", || {
        servers(node, vip).values().map(|[_, active, _]| *active as usize).sum::<usize>() == total
    });
    usize::from(name == expected)
}

/// Who drains has weight 0 and keeps his connections; who is gone is gone; what somebody
/// does with ipvsadm is put back.
#[test]
fn backends_drain_and_go() {
    let cluster = cluster();
    let vip = service(&cluster, &[&["--scheduler", "rr"][..], &PUBLISH].concat());
    if !has_ipvs("backends_drain_and_go", &cluster) {
        return;
    }
    let stays = backend(&cluster, 1, "stays", &[]);
    let drains = backend(&cluster, 1, "drains", &[]);
    let node = cluster.node(3);
    let client = client(&cluster, 3);
    let ip = drains.addresses[0];
    inside(&netns(&client), || {
        let mut kept = open(vip, 10);
        assert_eq!(numbers(&kept), [("drains", 5), ("stays", 5)]);
        must(cluster.node(1).netagent(&["endpoint", "update", "drains", "--drain"]));
        eventually("it has weight 0", || servers(node, vip)[&ip][0] == 0);
        assert_eq!(numbers(&open(vip, 6)), [("stays", 6)]);
        for connection in kept.values_mut().flatten() {
            connection.echo("still here").expect("an echo");
        }
        eventually("both keep theirs", || active(node, vip, &[&stays, &drains]) == [5, 5]);
        must(cluster.node(1).netagent(&["endpoint", "update", "drains", "--no-drain"]));
        eventually("it has weight 1", || servers(node, vip)[&ip][0] == 1);
        assert_eq!(numbers(&open(vip, 6)).len(), 2);

        ipvsadm(node, &["-d", "-t", &format!("{vip}:{PORT}"), "-r", &ip.to_string()]);
        assert!(!verify(node)["differences"].as_array().expect("a list").is_empty());
        // With the next full pass.
        wait::eventually("it is put back", FULL_PASS * 2, || {
            Ok(servers(node, vip).contains_key(&ip).then_some(()))
        })
        .expect("what is planned");

        // Cut off first, or its kernel would say goodbye for it.
        drains.run(&["ip", "link", "set", "eth0", "down"]);
        drains.kill();
        eventually("it is gone", || !servers(node, vip).contains_key(&ip));
        for connection in kept.get_mut("drains").expect("some") {
            connection.ended().expect_err("a reset");
        }
        assert_eq!(numbers(&open(vip, 6)), [("stays", 6)]);
        drop(kept);
    });
    stays.kill();
    eventually("nobody serves it", || servers(node, vip).is_empty());
    inside(&netns(&client), || {
        let error = Connection::open(at(vip)).expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    });
}

/// A client keeps its backend, as IPVS's persistence.
#[test]
fn affinity_is_persistence() {
    let cluster = cluster();
    let affinity = ["--scheduler", "rr", "--affinity", "clientip:5m"];
    let vip = service(&cluster, &[&affinity[..], &PUBLISH].concat());
    if !has_ipvs("affinity_is_persistence", &cluster) {
        return;
    }
    let backends = [1, 2].map(|n| backend(&cluster, 1, &format!("b{n}"), &[]));
    let node = cluster.node(3);
    let shown = ipvsadm(node, &["-Ln"]);
    assert!(shown.contains(&format!("TCP {vip}:{PORT} rr persistent 300")), "{shown:?}");
    let clients = [3, 3, 3, 3].map(|node| client(&cluster, node));
    let mut chosen = BTreeMap::<String, usize>::new();
    let mut held = vec![];
    for client in &clients {
        let connections = inside(&netns(client), || open(vip, 5));
        let numbers = numbers(&connections);
        assert_eq!(numbers.len(), 1, "{numbers:?}");
        *chosen.entry(numbers[0].0.to_owned()).or_default() += 1;
        held.push(connections);
    }
    assert_eq!(chosen.into_values().collect::<Vec<_>>(), [2, 2], "clients in turn");
    let all: Vec<_> = backends.iter().collect();
    eventually("IPVS counts the same", || active(node, vip, &all) == [10, 10]);
}
