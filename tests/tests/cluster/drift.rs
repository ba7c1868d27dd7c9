//! Somebody else alters what an agent has made in the kernel: the agent puts it back
//! by itself, and counts it. Every kind of damage by itself is in the `kernel` target.

use netagent_tests::lab::{Workload, eventually, must, three, verify};
use xtask::node::{Datapath, Shell as _};

#[test]
fn damage_is_mended_and_counted() {
    let cluster = three([Datapath::Ebpf; 3]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let here = Workload::start(cluster.node(2), &["--network", "net1"]);
    let there = Workload::start(cluster.node(3), &["--network", "net1"]);
    assert!(here.pings(&there.ip(), 56));
    let node = cluster.node(2);
    let rules = || must(node.exec(&["nft", "list", "ruleset"]));
    let listed = rules();
    assert!(listed.contains("table ip netagent"), "{listed}");
    for damage in [
        &["nft", "flush", "ruleset"][..],
        &["ip", "link", "delete", "na-vxlan"],
        &["ip", "route", "flush", "proto", "110"],
    ] {
        eventually("all is as it should be", || {
            node.netagent(&["verify"]).is_ok_and(|o| o.status.success())
        });
        let before = verify(node)["drift"].as_u64().expect("a number");
        must(node.exec(damage));
        eventually("it is mended and counted", || {
            let now = verify(node);
            now["differences"].as_array().is_some_and(Vec::is_empty)
                && now["drift"].as_u64() > Some(before)
        });
    }
    assert_eq!(rules(), listed);
    eventually("packets flow", || here.pings(&there.ip(), 56));
}
