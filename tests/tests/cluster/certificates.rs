//! Certificates end, and nobody notices, for nodes renew them by themselves.
//!
//! ```text
//!   n1 manager     n2 as it joined     n3 with certificates that last a minute
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use netagent_tests::lab::{Workload, eventually, list, must, refusal, three};
use xtask::node::{Datapath, Node, Shell as _};

/// Longest wait for the end of a certificate: several times its life.
const LIVES: Duration = Duration::from_secs(240);

/// Waits much longer than for what should happen at once.
fn in_its_time(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIVES, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn file(node: &Node, name: &str) -> PathBuf {
    node.directory.join("data").join(name)
}

/// What `openssl` says of the node's certificate.
fn certificate(node: &Node, what: &str) -> String {
    let path = file(node, "node.crt").display().to_string();
    must(node.exec(&["openssl", "x509", "-noout", "-in", &path, what]))
}

/// The public half of the node's key.
fn key(node: &Node) -> String {
    let path = file(node, "node.key").display().to_string();
    must(node.exec(&["openssl", "pkey", "-pubout", "-in", &path]))
}

/// Whether the node's certificate has ended.
fn has_ended(node: &Node) -> bool {
    let path = file(node, "node.crt").display().to_string();
    let check = ["openssl", "x509", "-noout", "-checkend", "0", "-in", &path];
    !node.exec(&check).expect("openssl").status.success()
}

fn join(node: &Node, manager: &Node) {
    let token = must(manager.netagent(&["cluster", "join-token", "-q", "worker"]));
    let address = manager.address.to_string();
    must(node.netagent(&["cluster", "join", "--token", token.trim(), &address]));
}

#[test]
fn a_node_renews_its_certificate_or_has_to_join_again() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    let refused = refusal(n2.netagent(&["cluster", "update", "--cert-expiry", "1h"]));
    assert!(refused.contains("run this on a manager: n1"), "{refused}");
    let refused = refusal(n1.netagent(&["cluster", "update", "--cert-expiry", "59s"]));
    assert!(refused.contains("60 s to 20 years"), "{refused}");
    must(n1.netagent(&["cluster", "update", "--cert-expiry", "1m"]));
    must(n3.netagent(&["cluster", "leave"]));
    join(n3, n1);
    must(n1.netagent(&["network", "create", "net1"]));
    let a = Workload::start(n1, &["--network", "net1", "--name", "a"]);
    let c = Workload::start(n3, &["--network", "net1", "--name", "c"]);
    let (first, first_key) = (certificate(n3, "-serial"), key(n3));
    let shown = must(n3.netagent(&["cluster", "info"]));
    assert!(shown.contains("Certificate until:"), "{shown}");

    let others = certificate(n2, "-serial");
    in_its_time("n3 has another certificate", || certificate(n3, "-serial") != first);
    eventually("with another key", || {
        key(n3) != first_key && certificate(n3, "-pubkey") == key(n3)
    });
    // The first certificate has ended by then: whoever still showed it would be refused.
    in_its_time("two renewals later", || {
        n3.log_end().matches("certificate is renewed").count() > 2
    });
    assert_eq!(certificate(n2, "-serial"), others, "n2's lasts for months");
    must(n1.netagent(&["network", "create", "net2"]));
    must(n3.netagent(&["run", "--network", "net2", "--", "true"]));
    assert!(a.pings("c", 56) && c.pings("a", 56));

    // Away for longer than the certificate lasts: clear words, and a way back.
    n3.kill_agent().expect("kill");
    in_its_time("it ends", || has_ended(n3));
    // It is valid to the end of the second that it names.
    std::thread::sleep(Duration::from_secs(1));
    n3.start_agent().expect("start");
    eventually("it says so", || n3.log_end().contains("this node's certificate ended at"));
    assert!(a.pings("c", 56), "what runs goes on");
    drop(c);
    must(n3.netagent(&["cluster", "leave", "--force"]));
    eventually("the old node is down", || {
        list(n1, "node").iter().any(|node| node["status"] == "down")
    });
    must(n1.netagent(&["node", "rm", "n3"]));
    join(n3, n1);
    cluster.wait_until_ready().expect("ready");
}
