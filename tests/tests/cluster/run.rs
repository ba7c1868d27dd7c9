//! `netagent run`: a command like any other, only in a network of its own.

use netagent_tests::lab::{Workload, eventually, list, must, refusal, three, workloads};
use xtask::node::{Datapath, Shell as _};

#[test]
fn stdio_exit_code_names_and_release() {
    let cluster = three([Datapath::Ebpf; 3]);
    let node = cluster.node(2);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let run = |extra: &[&str], script: &str| {
        let mut line = vec!["run", "--network", "net1"];
        line.extend(extra);
        line.extend(["--", "bash", "-c", script]);
        node.netagent(&line).expect("netagent")
    };
    assert_eq!(must(Ok(run(&["--name", "web"], "hostname"))).trim(), "web");
    assert_eq!(run(&[], "exit 7").status.code(), Some(7));
    assert!(must(Ok(run(&[], "cat /etc/resolv.conf"))).contains("127.0.0.11"));
    assert!(must(Ok(run(&[], "ip -o -4 address show dev eth0"))).contains("10.0."));
    let missing =
        node.netagent(&["run", "--network", "net1", "--", "no-such-command"]).expect("netagent");
    assert_eq!(missing.status.code(), Some(127));
    let unknown = node.netagent(&["run", "--network", "nowhere", "--", "true"]).expect("netagent");
    assert_eq!(unknown.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nowhere"));
    eventually("all of them released", || list(node, "endpoint").is_empty());
    let links = must(node.exec(&["ip", "-o", "link"]));
    assert!(!links.lines().any(|l| l.contains("na-") && !l.contains("na-vxlan")), "{links}");
}

#[test]
fn connect_disconnect_and_a_namespace_that_exists() {
    let cluster = three([Datapath::Ebpf; 3]);
    let (n1, n2) = (cluster.node(1), cluster.node(2));
    for name in ["net1", "net2"] {
        must(n1.netagent(&["network", "create", name]));
    }
    let peer = Workload::start(n1, &["--network", "net2", "--name", "peer"]);
    let app = Workload::start(n2, &["--network", "net1", "--name", "app"]);
    assert!(!app.pings(&peer.ip(), 56));
    must(n2.netagent(&["network", "connect", "--alias", "second", "net2", "app"]));
    assert!(app.pings("peer", 56) && peer.pings("second", 56));
    must(n2.netagent(&["network", "disconnect", "net2", "app"]));
    assert!(!app.pings(&peer.ip(), 56));

    let namespace = "t-vm";
    must(n2.exec(&["ip", "netns", "add", namespace]));
    let path = format!("/run/netns/{namespace}");
    must(n2.netagent(&["run", "--network", "net2", "--name", "vm", "--netns", &path]));
    let inside = |line: &[&str]| {
        let mut all = vec!["nsenter", "--net=/run/netns/t-vm", "--"];
        all.extend(line);
        n2.exec(&all).expect("nsenter")
    };
    assert!(inside(&["ping", "-c", "1", "-W", "2", &peer.ip()]).status.success());
    assert!(peer.pings("vm", 56));
    must(n2.exec(&["ip", "netns", "del", namespace]));
    eventually("released with its namespace", || workloads(n2).len() == 1);
}

#[test]
fn an_address_can_be_asked_for_once() {
    let cluster = three([Datapath::Ebpf; 3]);
    must(cluster.node(1).netagent(&[
        "network",
        "create",
        "--subnet",
        "10.9.0.0/24",
        "--gateway",
        "10.9.0.9",
        "--ip-range",
        "10.9.0.128/25",
        "--aux-address",
        "router=10.9.0.130",
        "net9",
    ]));
    let chosen = Workload::start(cluster.node(2), &["--network", "net9", "--ip", "10.9.0.20"]);
    assert_eq!(chosen.ip(), "10.9.0.20");
    for taken in ["10.9.0.20", "10.9.0.9", "10.9.0.130", "10.9.0.0", "10.9.0.255", "10.8.0.1"] {
        let said = refusal(cluster.node(3).netagent(&[
            "run",
            "--network",
            "net9",
            "--ip",
            taken,
            "--",
            "true",
        ]));
        assert!(said.contains(taken), "{said}");
    }
    for expected in ["10.9.0.128", "10.9.0.129", "10.9.0.131"] {
        let dynamic = Workload::start(cluster.node(3), &["--network", "net9"]);
        assert_eq!(dynamic.ip(), expected);
        // Kept until the end of the test: a freed address is reused as late as possible.
        std::mem::drop(dynamic);
    }
    assert!(chosen.run(&["ip", "route"]).contains("default via 10.9.0.9"));
}
