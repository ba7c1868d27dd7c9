//! What netagent made, it can remove: a node is the same before and after.

use std::collections::BTreeSet;

use netagent_tests::lab::{LAYOUTS, PATIENCE, Workload, eventually, must, three};
use xtask::node::{Node, Shell as _};
use xtask::playground::{Playground, Topology};

/// Everything of a node's kernel that a user could trip over, as text.
fn dump(node: &Node) -> String {
    let tools: &[&[&str]] = &[
        &["ip", "-o", "-d", "link"],
        &["ip", "-4", "-o", "address"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-4", "neigh", "show", "nud", "permanent"],
        &["bridge", "fdb"],
        &["nft", "list", "ruleset"],
        &["tc", "qdisc", "show"],
        &["sysctl", "-a", "-r", r"^net\.ipv4\.conf\.(all|default|eth0|lo)\.forwarding$"],
    ];
    tools.iter().map(|line| steady(&must(node.exec(line)))).collect()
}

/// Without what changes by itself.
fn steady(text: &str) -> String {
    let words = |line: &str| {
        let kept = line.split_whitespace().filter(|w| !w.ends_with("sec")).collect::<Vec<_>>();
        kept.join(" ") + "\n"
    };
    // IPv6 and its multicast groups come up on the uplink in their own time.
    text.lines().filter(|line| !line.starts_with("33:33:")).map(words).collect()
}

fn all(cluster: &Playground) -> Vec<String> {
    let mut dumps: Vec<_> = (1..=3).map(|n| dump(cluster.node(n))).collect();
    let mut namespaces: Vec<_> = std::fs::read_dir("/run/netns")
        .expect("/run/netns")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| {
            name.starts_with("na-") || name.starts_with(&cluster.node(1).host.netns[..2])
        })
        .collect();
    namespaces.sort();
    dumps.push(namespaces.join("\n"));
    for n in 1..=3 {
        dumps.push(pins(&cluster.node(n).pins));
    }
    dumps
}

fn pins(dir: &std::path::Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let mut found: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let below = if path.is_dir() { pins(&path) } else { String::new() };
            format!("{}\n{below}", path.display())
        })
        .collect();
    found.sort();
    found.concat()
}

#[test]
fn networks_come_and_go_without_a_trace() {
    for (layout, datapaths) in LAYOUTS {
        println!("residue on {layout}");
        let cluster = three(datapaths);
        let before = all(&cluster);
        for round in 0..2 {
            let n1 = cluster.node(1);
            must(n1.netagent(&["network", "create", "net1"]));
            must(n1.netagent(&["network", "create", "--internal", "net2"]));
            let workloads: Vec<_> = (1..=3)
                .map(|n| {
                    Workload::start(cluster.node(n), &["--network", "net1", "--network", "net2"])
                })
                .collect();
            assert!(workloads[0].pings(&workloads[1].ip(), 56));
            assert_ne!(all(&cluster), before, "round {round}");
            workloads.into_iter().for_each(Workload::kill);
            eventually("networks are free", || {
                n1.netagent(&["network", "rm", "net1", "net2"]).expect("netagent").status.success()
                    || n1.netagent(&["network", "ls", "-q"]).expect("netagent").stdout.is_empty()
            });
            let mut after = all(&cluster);
            let lines = |dumps: &[String]| -> BTreeSet<String> {
                dumps.iter().flat_map(|dump| dump.lines().map(str::to_owned)).collect()
            };
            let start = std::time::Instant::now();
            while after != before {
                let (now, then) = (lines(&after), lines(&before));
                let differences: Vec<_> = now.symmetric_difference(&then).collect();
                assert!(start.elapsed() < PATIENCE, "differs: {differences:#?}");
                std::thread::sleep(std::time::Duration::from_millis(200));
                after = all(&cluster);
            }
        }
    }
}

#[test]
fn teardown_removes_every_trace() {
    for (layout, datapaths) in LAYOUTS {
        println!("teardown on {layout}");
        let cluster = Playground::hosts(&Topology::test("t", &datapaths)).expect("hosts");
        let before = all(&cluster);
        for node in cluster.nodes() {
            node.start_agent().expect("an agent");
        }
        cluster.form_cluster().expect("a cluster");
        must(cluster.node(1).netagent(&["network", "create", "net1"]));
        let workloads: Vec<_> =
            (1..=3).map(|n| Workload::start(cluster.node(n), &["--network", "net1"])).collect();
        assert!(workloads[0].pings(&workloads[2].ip(), 56));
        for n in 1..=3 {
            cluster.node(n).kill_agent().expect("kill");
            cluster.node(n).teardown().expect("teardown");
        }
        drop(workloads);
        let after = all(&cluster);
        for (after, before) in after.iter().zip(&before) {
            assert_eq!(after, before);
        }
    }
}
