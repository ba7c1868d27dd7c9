//! What a service leaves when it is removed: nothing.

use std::time::{Duration, Instant};

use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{eventually, must, verify};
use xtask::node::Shell as _;

use crate::world::{at, backend, client, cluster, netns, service};

/// After `service rm` each node is as it was before, flows of the service included.
#[test]
fn a_removed_service_leaves_nothing() {
    let cluster = cluster();
    let client = client(&cluster, 3);
    let _other = netagent_tests::lab::Workload::start(cluster.node(2), &["--network", "net1"]);
    let _third = netagent_tests::lab::Workload::start(cluster.node(1), &["--network", "net1"]);
    let view = || -> Vec<String> {
        let of = |node: &xtask::node::Node| {
            let words = "ip -d link; ip -4 addr; ip route; nft -s list ruleset; \
                         sysctl -a 2>/dev/null | grep '^net.ipv4.conf.lo'; ip netns";
            let kernel = must(node.exec(&["bash", "-c", words]));
            let maps =
                ["SERVICES", "RING", "PUBLISHED", "ALLOWED", "FLOWS", "ENDPOINTS"].map(|map| {
                    let find = format!("{}/v*/maps/{map}", node.pins.display());
                    let dump = format!("bpftool -j map dump pinned $(echo {find})");
                    must(node.exec(&["bash", "-c", &dump]))
                });
            format!("{}\n{kernel}\n{}", node.name(), maps.join("\n"))
        };
        cluster.nodes().iter().map(of).collect()
    };
    let clean = |text: &str| {
        // Indexes and times that count upwards.
        text.lines().filter(|l| !l.contains("valid_lft")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before: Vec<_> = view().iter().map(|v| clean(v)).collect();
    let vip = service(&cluster, &["-p", "8080:8000"]);
    let task = backend(&cluster, 2, "task", &[]);
    inside(&netns(&client), || {
        Connection::open(at(vip)).expect("a connection").echo("hello").expect("an echo");
    });
    inside(&cluster.client().netns_path(), || {
        let to = std::net::SocketAddrV4::new(cluster.node(1).address, 8080);
        Connection::open(to).expect("a connection").echo("hello").expect("an echo");
    });
    task.kill();
    eventually("its task is gone", || {
        netagent_tests::lab::inspect(cluster.node(1), "service", "web")["tasks"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    must(cluster.node(1).netagent(&["service", "rm", "web"]));
    let mut left = vec![];
    let start = Instant::now();
    // Flows are gone through every half minute.
    while start.elapsed() < Duration::from_secs(50) {
        let now: Vec<_> = view().iter().map(|v| clean(v)).collect();
        let differs = |n: &_| !verify(n)["differences"].as_array().is_some_and(Vec::is_empty);
        left = now.into_iter().flatten().filter(|l| !before.concat().contains(l)).collect();
        if left.is_empty() && !cluster.nodes().iter().any(differs) {
            return;
        }
    }
    panic!("it left {left:#?}");
}
