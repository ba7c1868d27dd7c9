//! A manager that has lost everything comes back from a backup, and the cluster with it.
//!
//! ```text
//!   n1 manager       n2: old       n3: young, which the backup does not know
//! ```

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use netagent_tests::lab::{LAYOUTS, Workload, eventually, inspect, list, must, refusal, three};
use serde_json::Value;
use xtask::node::{Datapath, Node};

fn info(node: &Node) -> Value {
    let text = must(node.netagent(&["cluster", "info", "--format", "json"]));
    serde_json::from_str(&text).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// `netagent cluster restore` on a node.
fn restore(node: &Node, file: &Path, more: &[&str]) -> anyhow::Result<std::process::Output> {
    let data = node.directory.join("data");
    let line = ["cluster", "restore", "--data-dir", text(&data), text(file)];
    node.netagent(&[&line, more].concat())
}

#[test]
fn a_manager_comes_back_from_a_backup() {
    for (layout, datapaths) in LAYOUTS {
        println!("restore on {layout}");
        let cluster = three(datapaths);
        let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
        must(n1.netagent(&["network", "create", "net1"]));
        must(n1.netagent(&[
            "service",
            "create",
            "--name",
            "web",
            "--network",
            "net1",
            "--endpoint-mode",
            "dnsrr",
        ]));
        let old = Workload::start(n2, &["--network", "net1", "--name", "old"]);
        let ended = Workload::start(n2, &["--network", "net1", "--name", "ended"]);
        let file = n1.directory.join("backup");
        must(n1.netagent(&["cluster", "backup", text(&file)]));
        let mode = std::fs::metadata(&file).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = refusal(n1.netagent(&["cluster", "backup", text(&file)]));
        assert!(refused.contains("--force"), "{refused}");
        let refused = refusal(n2.netagent(&["cluster", "backup", "/dev/null", "--force"]));
        assert!(refused.contains("run this on a manager: n1"), "{refused}");

        // What comes later is not in it.
        let young = Workload::start(n3, &["--service", "web", "--name", "young"]);
        must(n1.netagent(&["network", "create", "net2"]));
        let lost = Workload::start(n3, &["--network", "net2", "--name", "lost"]);
        let address = young.ip();
        ended.kill();
        eventually("it is released", || list(n1, "endpoint").len() == 3);
        let before = info(n2);

        let refused = refusal(restore(n1, &file, &["--force"]));
        assert!(refused.contains("another agent runs"), "{refused}");
        n1.kill_agent().expect("kill");
        std::fs::remove_dir_all(n1.directory.join("data")).expect("the data directory");
        assert!(old.pings(&young.ip(), 56), "nobody needs the manager for this");
        let said = must(restore(n1, &file, &[]));
        assert!(said.contains("is the manager of cluster"), "{said}");
        n1.start_agent().expect("start");

        cluster.wait_until_ready().expect("all nodes follow again");
        eventually("everybody knows what runs", || {
            [n1, n2, n3].iter().all(|node| {
                let mut names: Vec<_> =
                    list(node, "endpoint").iter().map(|e| e["name"].clone()).collect();
                names.sort_by_key(Value::to_string);
                names == ["old", "young"]
            })
        });
        let after = info(n2);
        assert!(after["applied"].as_u64() > before["applied"].as_u64(), "{before} {after}");
        assert_eq!(after["cluster"]["id"], before["cluster"]["id"]);
        let shown = must(n3.netagent(&["cluster", "info"]));
        assert!(shown.contains("from a backup of"), "{shown}");
        eventually("they reach each other", || old.pings("young", 56) && young.pings("old", 56));
        assert_eq!(old.resolves(&["web"]), address, "it serves again");
        assert_eq!(young.ip(), address);
        // What could not come back is said, and its name and address are nobody else's yet.
        eventually("n3 says what is lost", || n3.log_end().contains("workload=lost"));
        let refused = refusal(n1.netagent(&["network", "inspect", "net2"]));
        assert!(refused.contains("no network net2"), "{refused}");
        drop(lost);

        // And life goes on: new networks, new workloads, restarts.
        must(n1.netagent(&["network", "create", "net3"]));
        let new = Workload::start(n2, &["--network", "net1", "--network", "net3"]);
        assert!(![old.ip(), address].contains(&new.ip()), "an address twice: {}", new.ip());
        assert!(new.pings("young", 56));
        for node in [n3, n1] {
            node.kill_agent().expect("kill");
            node.start_agent().expect("start");
        }
        cluster.wait_until_ready().expect("ready again");
        assert!(new.pings("young", 56));
        // What an administrator removes now stays removed.
        let id = inspect(n1, "endpoint", "young")["id"].clone();
        must(n1.netagent(&["endpoint", "rm", id.as_str().expect("text")]));
        eventually("removed", || list(n3, "endpoint").len() == 3);
        must(n1.netagent(&["network", "create", "net4"]));
        eventually("n3 has seen more since", || list(n3, "network").len() == 3);
        assert_eq!(list(n1, "endpoint").len(), 3, "it came back");
    }
}

#[test]
fn what_is_no_backup_changes_nothing() {
    let cluster = three([Datapath::Ebpf; 3]);
    let n1 = cluster.node(1);
    let [file, bad] = ["backup", "bad"].map(|name| n1.directory.join(name));
    must(n1.netagent(&["cluster", "backup", text(&file)]));
    let good = std::fs::read(&file).expect("the file");
    n1.stop_agent().expect("stop");
    let store = std::fs::read(n1.directory.join("data/store.db")).expect("the store");
    std::fs::copy(n1.directory.join("data/store.db"), n1.directory.join("store")).expect("copy");
    let half = good.len() / 2;
    let mut torn = good.clone();
    torn[half..half + 4096].fill(0xa5);
    for (content, reason) in [
        (&b""[..], "it is empty"),
        (&b"something else altogether"[..], "not a database"),
        (&good[..half], "is damaged"),
        (&torn[..], "is damaged"),
        (&store[..], "file of another kind"),
    ] {
        std::fs::write(&bad, content).expect("a file");
        let refused = refusal(restore(n1, &bad, &["--force"]));
        assert!(refused.contains("bad is not a sound backup"), "{refused}");
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
    let refused = refusal(restore(n1, &file, &[]));
    assert!(refused.contains("node.json is there") && refused.contains("--force"), "{refused}");
    assert_eq!(std::fs::read(n1.directory.join("data/store.db")).expect("the store"), store);
    n1.start_agent().expect("it starts as before");
    cluster.wait_until_ready().expect("nothing was changed");
}
