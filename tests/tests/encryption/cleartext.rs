//! What comes or would go in clear is dropped and counted, whoever sends it and whatever has
//! become of IPsec.

use netagent_tests::lab::{must, packets};
use xtask::node::Shell as _;

use crate::world::{Capture, Ping, cluster, eventually, reaches, settled, workload};

/// VXLAN with the network's VNI and a whole frame in it, in clear, on both ports, from the
/// address of a member and from a stranger's.
#[test]
fn injected_cleartext_is_dropped_and_counted() {
    let Some(cluster) = cluster("injected_cleartext_is_dropped_and_counted") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    let (client, n1) = (cluster.client(), cluster.node(1));
    // As n3, whose own frames for this address no longer matter.
    must(cluster.wire().exec(&["ip", "link", "set", "n3", "down"]));
    must(client.exec(&["ip", "address", "add", "192.168.50.13/32", "dev", "eth0"]));
    let inner = "printf '\\x08\\0\\0\\0\\0\\x10\\0\\0%042d' 0";
    for port in [4789, 4790] {
        for (from, counter) in
            [("192.168.50.13", "drop_cleartext_in"), ("192.168.50.100", "drop_not_member")]
        {
            let before = packets(n1, counter);
            let script = format!("{inner} | nc.openbsd -u -w 1 -s {from} 192.168.50.11 {port}");
            // That nobody answers is as it should be.
            client.exec(&["bash", "-c", &script]).expect("nc");
            eventually(&format!("{counter} for port {port}"), || packets(n1, counter) > before);
        }
    }
    assert!(a.pings(&b.ip(), 56));
}

/// Policies and associations are flushed under load: nothing is seen in clear, and all of it
/// comes back by itself.
#[test]
fn what_is_flushed_comes_back_and_nothing_leaks() {
    let Some(cluster) = cluster("what_is_flushed_comes_back_and_nothing_leaks") else { return };
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    settled(&cluster);
    let capture = Capture::start(&cluster);
    let leaks = packets(cluster.node(1), "drop_cleartext_out");
    for flush in [&["policy"][..], &["state"], &["policy", "state"]] {
        let ping = Ping::start(&a, &b);
        for what in flush {
            must(cluster.node(1).exec(&["ip", "xfrm", what, "flush"]));
        }
        eventually(&format!("packets flow after a flush of {flush:?}"), || a.pings(&b.ip(), 56));
        eventually("and the other way", || b.pings(&a.ip(), 56));
        ping.end();
        settled(&cluster);
    }
    capture.is_encrypted();
    assert!(packets(cluster.node(1), "drop_cleartext_out") > leaks, "the hook held it back");
    // What somebody changes is seen, and put back, too.
    // UDP by its number: a test machine has no list of protocols.
    let policy = "dst 192.168.50.12/32 src 192.168.50.11/32 proto 17 dport 4790 dir out";
    let line = format!("ip xfrm policy update {policy} priority 28257 action allow");
    must(cluster.node(1).exec(&["bash", "-c", &line]));
    eventually("the policy has its template again", || {
        must(cluster.node(1).exec(&["bash", "-c", &format!("ip xfrm policy get {policy}")]))
            .contains("tmpl")
    });
    settled(&cluster);
    capture.is_encrypted();
    assert!(a.pings(&b.ip(), 56));
}
