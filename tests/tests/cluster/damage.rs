//! Files that are damaged and disks that are full: said clearly, made no worse, and what
//! runs goes on.

use netagent_tests::lab::{Workload, eventually, inspect, list, must, refusal, three, verify};
use xtask::disk::Disk;
use xtask::node::{Datapath, Node};
use xtask::playground::{Playground, Topology};

/// What the agent says when it does not start.
fn does_not_start(node: &Node) -> String {
    format!("{:#}", node.start_agent().expect_err("it started"))
}

#[test]
fn a_damaged_store_is_refused_and_a_backup_helps() {
    let cluster = three([Datapath::Ebpf; 3]);
    let n1 = cluster.node(1);
    must(n1.netagent(&["network", "create", "net1"]));
    let a = Workload::start(n1, &["--network", "net1", "--name", "a"]);
    let b = Workload::start(cluster.node(2), &["--network", "net1", "--name", "b"]);
    let backup = n1.directory.join("backup").display().to_string();
    must(n1.netagent(&["cluster", "backup", &backup]));
    n1.stop_agent().expect("stop");
    let store = n1.directory.join("data/store.db");
    let good = std::fs::read(&store).expect("the store");
    let half = good.len() / 2;
    let mut torn = good.clone();
    torn[half..half + 4096].fill(0xa5);
    let mut header = good.clone();
    header[..100].fill(0xa5);
    for bad in [&torn[..], &header, &good[..half], b""] {
        std::fs::write(&store, bad).expect("the store");
        let said = does_not_start(n1);
        assert!(said.contains("store.db is damaged"), "{said}");
        assert!(said.contains("netagent cluster restore --force"), "{said}");
        assert_eq!(std::fs::read(&store).expect("the store"), bad, "it was changed");
    }
    std::fs::remove_file(&store).expect("the store");
    let said = does_not_start(n1);
    assert!(said.contains("store.db is damaged: No such file"), "{said}");
    assert!(a.pings(&b.ip(), 56) && b.pings(&a.ip(), 56), "the datapath flows on");

    let data = n1.directory.join("data").display().to_string();
    must(n1.netagent(&["cluster", "restore", "--force", "--data-dir", &data, &backup]));
    n1.start_agent().expect("start");
    cluster.wait_until_ready().expect("all nodes follow again");
    assert!(a.pings("b", 56) && b.pings("a", 56));
    assert_eq!(list(n1, "endpoint").len(), 2);
}

/// Without its copy and without a manager a worker knows nothing, and so leaves everything
/// as it is.
#[test]
fn a_worker_with_a_damaged_copy_waits_for_its_manager() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        let cluster = three([Datapath::Ebpf, datapath, Datapath::Ebpf]);
        let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
        must(n1.netagent(&["network", "create", "net1"]));
        let b = Workload::start(n2, &["--network", "net1", "--name", "b"]);
        let c = Workload::start(n3, &["--network", "net1", "--name", "c"]);
        for node in [n1, n2] {
            node.kill_agent().expect("kill");
        }
        let copy = n2.directory.join("data/snapshot.json");
        let good = std::fs::read_to_string(&copy).expect("the copy");
        let whole = good.find('\n').expect("a line with a snapshot");
        std::fs::write(&copy, &good[..whole / 2]).expect("the copy");
        n2.start_agent().expect("start");
        eventually("it says so", || n2.log_end().contains("snapshot.json is damaged"));
        // Longer than an agent waits that has a copy.
        std::thread::sleep(std::time::Duration::from_secs(5));
        assert!(b.pings(&c.ip(), 56) && c.pings(&b.ip(), 56), "it threw away what it had");
        n1.start_agent().expect("start");
        cluster.wait_until_ready().expect("it has fetched another");
        eventually("a pass", || verify(n2)["passes"].as_u64() > Some(0));
        assert!(b.pings("c", 56) && c.pings("b", 56));
        let text = std::fs::read_to_string(&copy).expect("the copy");
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("whole again");
        }
    }
}

#[test]
fn full_disks_are_said_and_recovered_from() {
    let topology = Topology::test("t", &[Datapath::Ebpf; 3]);
    let cluster = Playground::hosts(&topology).expect("hosts");
    let disk = |n| Disk::mount(&cluster.node(n).directory.join("data"), 2).expect("a disk");
    let disks = [1, 2].map(disk);
    for node in cluster.nodes() {
        node.start_agent().expect("an agent");
    }
    cluster.form_cluster().expect("a cluster");
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    must(n1.netagent(&["network", "create", "net1"]));
    let b = Workload::start(n2, &["--network", "net1", "--name", "b"]);
    let c = Workload::start(n3, &["--network", "net1", "--name", "c"]);

    // The manager's: nothing new, and it says why.
    disks[0].fill().expect("fill");
    let labels: Vec<_> = (0..60).map(|n| format!("{n}={}", "x".repeat(900))).collect();
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    // More than fits into what a file's last block has left.
    let create = |network| -> Vec<_> {
        ["network", "create", network].into_iter().chain(labels.clone()).collect()
    };
    let refused = refusal(n1.netagent(&create("net2")));
    assert!(refused.contains("store.db") && refused.contains("full"), "{refused}");
    assert!(!must(n1.netagent(&["network", "ls"])).contains("net2"), "half done");
    assert!(b.pings("c", 56) && c.pings("b", 56));
    // An agent that is started now does not take its store for damaged.
    n1.kill_agent().expect("kill");
    if let Err(e) = n1.start_agent() {
        let said = format!("{e:#}");
        assert!(!said.contains("damaged"), "{said}");
    }
    disks[0].free().expect("free");
    n1.start_agent().expect("start");
    cluster.wait_until_ready().expect("ready");
    must(n1.netagent(&["network", "create", "net2"]));

    // A worker's: workloads cannot be recorded, all else goes on.
    must(n1.netagent(&["service", "create", "--name", "web", "--network", "net1"]));
    let ends = Workload::start(n2, &["--service", "web", "--name", "ends"]);
    disks[1].fill().expect("fill");
    must(n1.netagent(&create("net3")));
    eventually("it says so", || n2.log_end().contains("snapshot is not on disk"));
    let refused = refusal(n2.netagent(&["run", "--network", "net1", "--", "true"]));
    assert!(refused.contains("No space left on device"), "{refused}");
    assert!(b.pings("c", 56) && c.pings("b", 56));
    ends.kill();
    eventually("nobody is sent to a backend that has ended", || {
        inspect(n1, "service", "web")["tasks"][0]["task"]["health"] == "unhealthy"
    });
    disks[1].free().expect("free");
    cluster.wait_until_ready().expect("what was not written is written by itself");
    must(n2.netagent(&["run", "--network", "net3", "--", "true"]));
    eventually("nothing half-made is left", || list(n1, "endpoint").len() == 2);
}
