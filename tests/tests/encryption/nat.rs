//! A node behind NAT that forwards UDP and no ESP: through it ESP goes in UDP, elsewhere as
//! ever. `netagent_tests::nat` has the picture.

use netagent_tests::lab::{Workload, inspect, must, packets};
use netagent_tests::nat;
use xtask::node::{Datapath, Shell as _};

use crate::world::{Capture, NET, Ping, eventually, missing, reaches, settled, workload};

#[test]
fn esp_goes_in_udp_to_a_worker_behind_nat() {
    esp_goes_in_udp("esp_goes_in_udp_to_a_worker_behind_nat", 3);
}

#[test]
fn esp_goes_in_udp_to_a_manager_behind_nat() {
    esp_goes_in_udp("esp_goes_in_udp_to_a_manager_behind_nat", 1);
}

/// All that goes between the node with this number, which is behind NAT, and the others.
fn esp_goes_in_udp(test: &str, inside: usize) {
    let cluster = nat::cluster(&[Datapath::Ebpf; 3], inside);
    if let Some(missing) = missing(&cluster) {
        println!("SKIP: {test}: {missing}");
        return;
    }
    let manager = cluster.node(1);
    must(manager.netagent(&["network", "create", "--opt", "encrypted", NET]));
    must(manager.netagent(&["network", "create", "plain"]));
    let public = cluster.node(inside).address;
    let capture = Capture::start(&cluster);
    let [a, b] = [1, 2, 3].into_iter().filter(|n| *n != inside).collect::<Vec<_>>()[..] else {
        panic!("two are outside")
    };
    let [a, b, c] = [a, b, inside].map(|n| workload(&cluster, n));
    for (from, to) in [(&a, &c), (&c, &a), (&b, &c), (&c, &b), (&a, &b)] {
        reaches(&cluster, from, to);
    }
    settled(&cluster);
    assert_eq!(inspect(manager, "network", NET)["effective_mtu"], 1408);
    for (from, to) in [(&a, &c), (&c, &b), (&b, &a)] {
        assert!(from.pings(&to.ip(), 1408 - 28), "{} to {}", from.ip(), to.ip());
    }
    // Packets that stand for several are cut before they are encrypted.
    for (from, to) in [(&a, &c), (&c, &a)] {
        let server = to.command(&["iperf3", "--server", "--one-off"]).spawn();
        let mut server = server.expect("iperf3");
        eventually("iperf3 listens", || to.run(&["ss", "-Hltn"]).contains(":5201"));
        must(Ok(from.exec(&["iperf3", "-c", &to.ip(), "-t", "2"])));
        server.wait().expect("it ends");
    }
    // No agent has any part in it.
    let ping = [Ping::start(&a, &c), Ping::start(&c, &b)];
    for node in cluster.nodes() {
        node.kill_agent().expect("kill");
    }
    assert!(a.pings(&c.ip(), 1408 - 28) && c.pings(&b.ip(), 1408 - 28), "without agents");
    for ping in ping {
        ping.end();
        ping.lost_nothing();
    }
    for node in cluster.nodes() {
        node.begin_agent().expect("start");
        eventually("the agent answers", || {
            node.netagent(&["cluster", "info"]).is_ok_and(|info| info.status.success())
        });
    }
    cluster.wait_until_ready().expect("ready");
    settled(&cluster);
    // Each with each, by two associations; those to and from the one behind NAT send in UDP.
    for node in cluster.nodes() {
        let state = must(node.exec(&["ip", "xfrm", "state"]));
        let in_udp = if node.address == public { 2 } else { 1 };
        let encap = state.matches("encap type espinudp sport 4500 dport 4500").count();
        assert_eq!((encap, state.matches("proto esp").count()), (in_udp, 4), "{state}");
        assert!(packets(node, "taken_out_of_udp") > 0, "{}", node.name());
        for none in ["drop_cleartext_in", "drop_cleartext_out", "drop_refused"] {
            assert_eq!(packets(node, none), 0, "{}: {none}", node.name());
        }
    }
    capture.is_encrypted();
    assert!(capture.count(&format!("udp port 4500 and host {public}")) > 0);
    assert_eq!(capture.count(&format!("esp and host {public}")), 0);
    assert_eq!(capture.count(&format!("udp port 4500 and not host {public}")), 0);
    assert_eq!(capture.count("ip[6:2] & 0x3fff != 0"), 0, "fragments");
    drop(capture);
    let plain = |n| Workload::start(cluster.node(n), &["--network", "plain"]);
    let (d, e) = (plain(1), plain(3));
    eventually("the plain network is there", || d.pings(&e.ip(), 1450 - 28));
    assert!(e.pings(&d.ip(), 1450 - 28));
    // What somebody changes of that is seen, too, and is as if it had been removed.
    let outside = cluster.nodes().iter().find(|node| node.address != public).expect("one");
    let flush = ["ip", "xfrm", "state", "deleteall", "dst", &public.to_string()];
    must(outside.exec(&flush));
    reaches(&cluster, &a, &c);
    settled(&cluster);
}
