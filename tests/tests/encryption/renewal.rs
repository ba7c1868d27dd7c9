//! Keys are renewed, by hand, by time and by packets, agents restart, nodes join: no packet
//! is lost, and none is seen in clear.

use netagent_tests::lab::must;
use xtask::node::Shell as _;

use crate::world::{Capture, Ping, cluster, epoch, eventually, reaches, settled, workload};

/// Every 5 s for half a minute, and agents die and come back meanwhile.
#[test]
fn keys_are_renewed_under_load() {
    let Some(cluster) = cluster("keys_are_renewed_under_load") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    settled(&cluster);
    let capture = Capture::start(&cluster);
    must(cluster.node(1).netagent(&["cluster", "update", "--key-rotation", "5s"]));
    let (first, ping) = (epoch(&cluster), Ping::start(&a, &b));
    eventually("two renewals", || epoch(&cluster) >= first + 2);
    for n in [2, 1] {
        cluster.node(n).kill_agent().expect("kill");
        cluster.node(n).start_agent().expect("start");
    }
    // The one that comes later has the keys that there are then.
    let c = workload(&cluster, 3);
    eventually("a third node takes part", || c.pings(&a.ip(), 56) && b.pings(&c.ip(), 56));
    let later = epoch(&cluster);
    eventually("two more renewals", || epoch(&cluster) >= later + 2);
    ping.end();
    ping.lost_nothing();
    capture.is_encrypted();
    must(cluster.node(1).netagent(&["cluster", "update", "--key-rotation", "12h"]));
    // What was used before goes.
    eventually("each node has one key each way for each other", || {
        cluster
            .nodes()
            .iter()
            .all(|node| must(node.exec(&["ip", "xfrm", "state"])).matches("proto esp").count() == 4)
    });
    settled(&cluster);
    let log = std::fs::read_to_string(cluster.node(1).log()).expect("a log");
    let keys = must(cluster.node(1).exec(&["ip", "xfrm", "state"]));
    for key in keys.split_whitespace().filter(|word| word.len() == 74 && word.starts_with("0x")) {
        assert!(!log.contains(&key[2..]), "a key is in the log");
    }
}

/// After so many packets, and on demand.
#[test]
fn packets_wear_keys_out() {
    let Some(cluster) = cluster("packets_wear_keys_out") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    let said = must(cluster.node(1).netagent(&["cluster", "rotate-key"]));
    assert!(said.contains("epoch 2"), "{said}");
    must(cluster.node(1).netagent(&["cluster", "update", "--key-packets", "1000"]));
    eventually("it is a renewal itself", || epoch(&cluster) == 3);
    settled(&cluster);
    let ping = Ping::start(&a, &b);
    eventually("packets wear the keys out", || epoch(&cluster) > 3);
    ping.end();
    ping.lost_nothing();
}

/// A node goes, for which keys are renewed, and joins again.
#[test]
fn a_node_joins_under_load() {
    let Some(cluster) = cluster("a_node_joins_under_load") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    settled(&cluster);
    let [n1, n3] = [1, 3].map(|n| cluster.node(n));
    let (capture, ping) = (Capture::start(&cluster), Ping::start(&a, &b));
    let first = epoch(&cluster);
    must(n3.netagent(&["cluster", "leave"]));
    eventually("keys are renewed", || epoch(&cluster) > first);
    eventually("nothing of IPsec is left where it was", || {
        let [state, policy] = ["state", "policy"].map(|what| must(n3.exec(&["ip", "xfrm", what])));
        state.is_empty() && policy.is_empty()
    });
    let token = must(n1.netagent(&["cluster", "join-token", "worker", "-q"]));
    let manager = format!("{}:2377", n1.address);
    must(n3.netagent(&["cluster", "join", "--token", token.trim(), &manager]));
    let c = workload(&cluster, 3);
    for (from, to) in [(&c, &a), (&b, &c)] {
        reaches(&cluster, from, to);
    }
    ping.end();
    ping.lost_nothing();
    capture.is_encrypted();
    settled(&cluster);
}
