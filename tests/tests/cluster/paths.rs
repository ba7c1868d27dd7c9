//! What nodes find out about the paths between them.
//!
//! ```text
//!   n1 .11 ────┐
//!   n2 .12 ────┼── wire: may drop what goes from one to another
//!   n3 .13 ────┘
//! ```

use netagent_tests::lab::{
    block, blocked, eventually, list, must, packets, path, reaches, three, unblock,
};
use nix::sys::signal::Signal;
use xtask::node::{Datapath, Node, Shell as _};

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.log()).expect("a log")
}

fn tunnel(from: &Node, to: &Node) -> String {
    format!("ip saddr {} ip daddr {} udp dport 4789", from.address, to.address)
}

#[test]
fn every_node_knows_its_paths() {
    let cluster = three([Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    for (from, to) in [(n1, n2), (n2, n1)] {
        reaches(from, to, "reachable");
        eventually("the path's MTU is known", || path(from, to)["mtu"] == 1500);
        eventually("the other's probes arrive", || path(from, to)["heard"] == true);
        let known = path(from, to);
        assert!(known["round_trip_us"].as_u64().is_some(), "{known}");
        assert!(known["remark"].is_null(), "{known}");
        assert!(path(from, from).is_null());
    }
    // Neither asks the other.
    for (from, to) in [(n1, n3), (n3, n1)] {
        reaches(from, to, "unprobed");
    }
    let table = must(n1.netagent(&["node", "ls", "--filter", "path=reachable"]));
    assert!(table.contains(" ms ") && table.contains(" n2 ") && !table.contains(" n3 "), "{table}");
    assert_eq!(list(n1, "node").iter().filter(|n| n["path"]["reach"] == "reachable").count(), 1);
    // Somebody else sees what goes over the wire: as many bytes back as forth.
    let pair =
        format!("udp port 4789 and less 100 and host {} and host {}", n1.address, n2.address);
    let dump = ["timeout", "20", "tcpdump", "-nn", "-l", "-i", "br0", "-c", "8", "-v", &pair];
    let seen = must(cluster.wire().exec(&dump));
    assert_eq!(seen.matches("vni 0").count(), 8, "{seen}");
    assert_eq!(seen.matches("length 62").count(), 8, "{seen}");
}

#[test]
fn what_is_blocked_one_way_is_told_on_both_sides() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    reaches(n1, n2, "reachable");
    reaches(n2, n1, "reachable");
    block(&cluster, &tunnel(n1, n2));
    reaches(n1, n2, "unreachable");
    reaches(n2, n1, "unreachable");
    assert!(blocked(&cluster) > 0);
    let remark = |from, to| path(from, to)["remark"].as_str().unwrap_or_default().to_owned();
    eventually("who is heard is said to be", || {
        remark(n1, n2).contains("ours do not arrive there")
    });
    eventually("and who is not, not", || remark(n2, n1).contains("nothing of it arrives here"));
    for (from, to) in [(n1, n3), (n2, n3), (n3, n1), (n3, n2)] {
        assert_eq!(path(from, to)["reach"], "reachable");
    }
    // The manager hears both all the while.
    assert!(list(n1, "node").iter().all(|node| node["status"] == "ready"));
    let line = format!("node n2 ({}) does not answer on UDP port 4789", n2.address);
    assert_eq!(log(n1).matches(&line).count(), 1, "{}", log(n1));
    unblock(&cluster);
    reaches(n1, n2, "reachable");
    reaches(n2, n1, "reachable");
    let line = format!("node n2 ({}) answers on UDP port 4789 again", n2.address);
    eventually("the log says so, once", || log(n1).matches(&line).count() == 1);
}

/// Its datapath answers; what the agent would do it does not do.
#[test]
fn a_node_is_reachable_without_its_agent() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    reaches(n1, n2, "reachable");
    reaches(n1, n3, "reachable");
    let status = |node: &Node, status| {
        let what = format!("{} is {status}", node.name());
        eventually(&what, || {
            list(n1, "node").iter().any(|n| n["hostname"] == node.name() && n["status"] == status)
        });
    };
    let frozen = n2.agent().expect("it runs");
    frozen.signal(Signal::SIGSTOP).expect("a signal");
    n3.kill_agent().expect("kill");
    status(n2, "down");
    status(n3, "down");
    let answers = packets(n1, "probe_returned");
    eventually("both answer on", || packets(n1, "probe_returned") > answers + 10);
    for node in [n2, n3] {
        assert_eq!(path(n1, node)["reach"], "reachable");
        eventually("it asks no more", || path(n1, node)["heard"] == false);
    }
    frozen.signal(Signal::SIGCONT).expect("a signal");
    n3.start_agent().expect("start");
    for node in [n2, n3] {
        status(node, "ready");
        eventually("it asks again", || path(n1, node)["heard"] == true);
        reaches(node, n1, "reachable");
    }
    for node in [n1, n2, n3] {
        assert!(!log(node).contains("does not answer"), "{}", log(node));
    }
}

#[test]
fn a_path_that_takes_less_than_the_uplinks_is_measured() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    // Before the first look at it: the next comes half a minute later.
    block(&cluster, &format!("ip daddr {} udp dport 4789 meta length > 1400", n2.address));
    for node in [n1, n2, n3] {
        node.kill_agent().expect("kill");
        node.start_agent().expect("start");
    }
    eventually("the path's MTU", || path(n1, n2)["mtu"] == 1400);
    eventually("it is the same backwards", || path(n2, n1)["mtu"] == 1400);
    eventually("that of another", || path(n1, n3)["mtu"] == 1500);
    assert_eq!(path(n1, n2)["reach"], "reachable");
    let remark = path(n1, n2)["remark"].take();
    assert!(remark.as_str().is_some_and(|text| text.contains("an mtu of 1350")), "{remark}");
    eventually("it is logged", || log(n1).contains("packets of more than 1400 bytes"));
    assert!(path(n1, n3)["remark"].is_null());
}
