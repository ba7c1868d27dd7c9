//! Whoever cannot be reached gets no new flows.
//!
//! ```text
//!   n1: a client    n2: backend `b2`    n3: backend `b3`    the wire cuts n3 off
//! ```

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use netagent_tests::client::{ANSWER, Connection, ask, inside};
use netagent_tests::lab::{block, eventually, reaches, unblock, verify};
use xtask::playground::Playground;

use crate::world::{at, backend, client, cluster, netns, service};

/// Cuts the tunnel to and from n3, and nothing else: the manager hears it all the while.
fn cut(cluster: &Playground) {
    let n3 = cluster.node(3).address;
    block(cluster, &format!("ip daddr {n3} udp dport 4789"));
    block(cluster, &format!("ip saddr {n3} udp dport 4789"));
}

/// Waits until the node's kernel is as it should be.
fn settled(cluster: &Playground, node: usize) {
    eventually("the kernel follows", || {
        let verified = verify(cluster.node(node));
        verified["differences"].as_array().is_some_and(Vec::is_empty)
    });
}

/// Who answers the next connections.
fn answer(vip: Ipv4Addr) -> BTreeSet<String> {
    (0..8).map(|_| Connection::open(at(vip)).expect("a connection").backend).collect()
}

#[test]
fn new_flows_avoid_a_node_that_cannot_be_reached_and_old_ones_outlive_the_cut() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "rr", "--publish", "8080:8000"]);
    let _backends = [2, 3].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    let client = client(&cluster, 1);
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    for node in [n2, n3] {
        reaches(n1, node, "reachable");
    }
    let both: BTreeSet<_> = ["b2", "b3"].map(str::to_owned).into();
    let one: BTreeSet<_> = ["b2".to_owned()].into();
    inside(&netns(&client), || {
        let mut open: Vec<_> = (0..4).map(|_| Connection::open(at(vip)).expect("open")).collect();
        assert_eq!(open.iter().filter(|c| c.backend == "b3").count(), 2);
        let asked = std::iter::repeat_with(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let (name, _) = ask(&socket, at(vip), ANSWER).expect("UDP");
            (name, socket)
        });
        let (_, to_b3) = asked.take(8).find(|(name, _)| name == "b3").expect("its turn comes");

        cut(&cluster);
        reaches(n1, n3, "unreachable");
        settled(&cluster, 1);
        assert_eq!(answer(vip), one);
        assert_eq!(client.resolves(&["tasks.web"]).split(' ').count(), 1);
        // What has no connection finds another.
        eventually("UDP goes elsewhere", || {
            ask(&to_b3, at(vip), Duration::from_millis(200)).is_ok_and(|(name, _)| name == "b2")
        });
        // Whoever calls from outside, too.
        let published = SocketAddrV4::new(n1.address, 8080);
        inside(&cluster.client().netns_path(), || {
            let names = (0..8).map(|_| Connection::open(published).expect("open").backend);
            assert_eq!(names.collect::<BTreeSet<_>>(), one);
        });

        unblock(&cluster);
        reaches(n1, n3, "reachable");
        settled(&cluster, 1);
        assert_eq!(answer(vip), both);
        for connection in &mut open {
            connection.echo("still there").expect("no connection was lost");
        }
    });
}

#[test]
fn where_nobody_can_be_reached_that_is_no_reason() {
    let cluster = cluster();
    let vip = service(&cluster, &["--scheduler", "rr"]);
    let _backend = backend(&cluster, 3, "b3", &[]);
    let client = client(&cluster, 1);
    let (n1, n3) = (cluster.node(1), cluster.node(3));
    reaches(n1, n3, "reachable");
    // Probes alone are lost: what has another VNI passes.
    block(&cluster, &format!("ip daddr {} udp dport 4789 @th,96,24 0", n3.address));
    reaches(n1, n3, "unreachable");
    settled(&cluster, 1);
    assert_eq!(inside(&netns(&client), || answer(vip)), ["b3".to_owned()].into());
    assert!(client.resolves(&["tasks.web"]).contains("10."));
}
