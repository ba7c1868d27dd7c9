//! What a kernel or a datapath cannot do is refused, by name, and nothing is half made.

use netagent_tests::lab::{Workload, inspect, list, must, refusal, three, verify};
use xtask::node::{Datapath, Shell as _};

use crate::world::{self, NET};

/// On a kernel without ESP (as on those that netagent is developed on).
#[test]
fn a_kernel_that_cannot_encrypt_is_named() {
    let cluster = three([Datapath::Ebpf; 3]);
    let Some(missing) = world::missing(&cluster) else {
        println!("SKIP: a_kernel_that_cannot_encrypt_is_named: this kernel has ESP and GCM");
        return;
    };
    let writes = || cluster.nodes().iter().map(|n| verify(n)["writes"].clone()).collect::<Vec<_>>();
    let before = writes();
    for options in ["encrypted", "encrypted=true"] {
        let create = ["network", "create", "--opt", options, NET];
        let said = refusal(cluster.node(1).netagent(&create));
        assert!(said.contains("node n1: ") && said.contains(&missing), "{said}");
        assert!(said.contains("CONFIG_"), "what is missing is named: {said}");
    }
    assert_eq!(list(cluster.node(1), "network").len(), 0);
    assert_eq!(writes(), before, "nothing was made");
    // What is not asked for is not refused; `false` is not a word for yes.
    must(cluster.node(1).netagent(&["network", "create", "--opt", "encrypted=false", NET]));
    assert_eq!(inspect(cluster.node(1), "network", NET)["encrypted"], false);
    let said = refusal(cluster.node(1).netagent(&["cluster", "rotate-key"]));
    assert!(said.contains("no network is encrypted"), "{said}");
}

/// A node of the kernel datapath: what it would send nobody would hold back.
#[test]
fn the_kernel_datapath_is_refused() {
    let cluster = three([Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel]);
    let said = refusal(cluster.node(1).netagent(&["network", "create", "--opt", "encrypted", NET]));
    assert!(said.contains("node n3: it runs the kernel datapath"), "{said}");
}

/// A node that became unable after the network was made gets no endpoint on it.
#[test]
fn a_node_that_cannot_encrypt_gets_no_endpoint() {
    let Some(cluster) = world::cluster("a_node_that_cannot_encrypt_gets_no_endpoint") else {
        return;
    };
    let mut node = cluster.node(3).clone();
    node.stop_agent().expect("stop");
    node.datapath = Datapath::Kernel;
    node.start_agent().expect("start");
    crate::world::eventually("the manager knows", || {
        inspect(cluster.node(1), "node", "n3")["datapath"] == "kernel"
    });
    let said = refusal(node.netagent(&["run", "--network", NET, "--", "true"]));
    assert!(said.contains("is encrypted; node n3: it runs the kernel datapath"), "{said}");
    let _others = [1, 2].map(|n| Workload::start(cluster.node(n), &["--network", NET]));
    node.stop_agent().expect("stop");
    must(node.exec(&["ip", "link"]));
}
