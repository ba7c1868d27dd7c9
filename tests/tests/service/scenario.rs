//! What virtual machines are tried with, on the playground's hosts.

use netagent_tests::lab::three;
use xtask::node::{Datapath, Shell};
use xtask::playground::CLIENT;
use xtask::scenario::{self, Hosts};

#[test]
fn the_scenarios_of_the_machines() {
    let cluster = three([Datapath::Ebpf; 3]);
    let scratch = tempfile::tempdir().expect("a directory");
    let nodes = [1, 2, 3].map(|n| {
        let node = cluster.node(n);
        (node as &dyn Shell, node.address)
    });
    let restart = |number: usize| {
        let node = cluster.node(number + 1);
        node.stop_agent()?;
        node.start_agent()
    };
    let hosts =
        Hosts { nodes, client: cluster.client(), client_address: CLIENT, restart: &restart };
    let all = scenario::all(&hosts, scratch.path(), &|seen| println!("{seen}"));
    drop(all.expect("all of them"));
}
