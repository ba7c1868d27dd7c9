//! Another version of the agent takes over.

use std::fs;

use netagent_common::ABI_VERSION;
use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{eventually, verify};

use crate::world::{at, backend, client, cluster, netns, service};

/// An agent with other maps than those of the programs that run: connections go on with their
/// backends, and nothing is left of what it replaced.
#[test]
fn connections_outlive_the_maps_that_remember_them() {
    let cluster = cluster();
    let vip = service(&cluster, &["-p", "8080:8000", "--scheduler", "rr"]);
    let _backends = [1, 2].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    let client = client(&cluster, 3);
    let mesh = std::net::SocketAddrV4::new(cluster.node(3).address, 8080);
    let inner = inside(&netns(&client), || {
        [(); 3].map(|()| Connection::open(at(vip)).expect("by its VIP"))
    });
    let outer = inside(&cluster.client().netns_path(), || {
        [(); 3].map(|()| Connection::open(mesh).expect("by its published port"))
    });
    // An odd number each: who was chosen anew would be somebody else.
    let mut all: Vec<_> = inner.into_iter().chain(outer).collect();
    for node in cluster.nodes() {
        node.stop_agent().expect("a stop");
        // As the agent of the version before would have left them: its maps were the same.
        let version = |number: u32| node.pins.join(format!("v{number}"));
        fs::rename(version(ABI_VERSION), version(ABI_VERSION - 1)).expect("one file system");
        for connection in &mut all {
            connection.echo("without an agent").expect("an echo");
        }
        node.start_agent().expect("a start");
        eventually("the other version has gone", || !version(ABI_VERSION - 1).exists());
        eventually("all is as it should be", || {
            let verified = verify(node);
            verified["differences"].as_array().is_some_and(Vec::is_empty)
        });
        for connection in &mut all {
            connection.echo("with its successor").expect("an echo");
        }
        inside(&netns(&client), || Connection::open(at(vip)).expect("a new one"));
    }
}
