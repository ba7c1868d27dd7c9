//! Agents die and come back; nothing that runs notices.

use std::process::Stdio;
use std::time::Duration;

use netagent_tests::lab::{
    LAYOUTS, Workload, confine, eventually, list, must, refusal, three, verify, workloads,
};
use xtask::node::Datapath;

/// `kill -9` and restart of both agents, several times, under an iperf3 stream: the
/// connection lives, and so does a ping every 10 ms.
#[test]
fn kill_and_restart_under_load() {
    for (layout, datapaths) in LAYOUTS {
        println!("kill -9 on {layout}");
        let cluster = three(datapaths);
        must(cluster.node(1).netagent(&["network", "create", "net1"]));
        let server = Workload::start_command(
            cluster.node(2),
            &["--network", "net1", "--name", "server"],
            &["iperf3", "--server"],
        );
        let client = Workload::start(cluster.node(3), &["--network", "net1"]);
        let load = client
            // Not at full speed: it would starve the ping of this machine's processors.
            .command(&["iperf3", "-c", &server.ip(), "-t", "10", "-b", "2G", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("iperf3");
        let ping = client
            .command(&["ping", "-n", "-q", "-i", "0.01", "-c", "800", &server.ip()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ping");
        for _ in 0..2 {
            for n in [2, 3] {
                cluster.node(n).kill_agent().expect("kill");
                std::thread::sleep(Duration::from_millis(500));
                cluster.node(n).start_agent().expect("start");
            }
        }
        let ping = must(Ok(ping.wait_with_output().expect("ping")));
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        let report = must(Ok(load.wait_with_output().expect("iperf3")));
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        let stalled = report["intervals"]
            .as_array()
            .expect("intervals")
            .iter()
            .filter(|i| i["sum"]["bytes"].as_u64() == Some(0))
            .count();
        assert_eq!(stalled, 0, "seconds without a byte");
    }
}

/// A restarted agent that finds everything as it left it writes nothing to the kernel.
#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        let cluster = three([datapath; 3]);
        must(cluster.node(1).netagent(&["network", "create", "net1"]));
        let here = Workload::start(cluster.node(2), &["--network", "net1"]);
        let there = Workload::start(cluster.node(3), &["--network", "net1"]);
        cluster.node(2).kill_agent().expect("kill");
        cluster.node(2).start_agent().expect("start");
        eventually("the restarted agent's first pass", || {
            verify(cluster.node(2))["passes"].as_u64() >= Some(1)
        });
        let outcome = verify(cluster.node(2));
        assert_eq!(outcome["writes"], 0, "{outcome}");
        assert!(here.pings(&there.ip(), 56));
    }
}

/// With the manager away: packets flow, names resolve, agents restart, and a workload
/// that ends can be started again with its name and address.
#[test]
fn the_manager_is_away_while_endpoints_restart() {
    let cluster = three([Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel]);
    confine(&cluster);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let psql = Workload::start(cluster.node(2), &["--network", "net1", "--name", "psql"]);
    let client = Workload::start(cluster.node(3), &["--network", "net1"]);
    let address = psql.ip();
    cluster.node(1).kill_agent().expect("kill");
    for n in [2, 3] {
        cluster.node(n).kill_agent().expect("kill");
        cluster.node(n).start_agent().expect("start");
    }
    eventually("names after a restart without a manager", || client.pings("psql", 56));
    psql.kill();
    // The agent must have noticed the end before the name is free again.
    eventually("released on its node", || workloads(cluster.node(2)).is_empty());
    let again = Workload::start(cluster.node(2), &["--network", "net1", "--name", "psql"]);
    assert_eq!(again.ip(), address);
    assert!(client.pings("psql", 56));
    // Something new needs a manager, and says so.
    let said = refusal(cluster.node(2).netagent(&["run", "--network", "net1", "--", "true"]));
    assert!(said.contains("manager"), "{said}");
    cluster.node(1).start_agent().expect("start");
    eventually("the manager is back and all nodes are ready", || {
        list(cluster.node(1), "node").iter().filter(|n| n["status"] == "ready").count() == 3
    });
    eventually("the cluster knows exactly what runs", || {
        list(cluster.node(1), "endpoint").len() == 2
    });
    assert!(client.pings("psql", 56));
}
