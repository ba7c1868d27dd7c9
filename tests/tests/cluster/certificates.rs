//! Certificates end, and the CA is replaced, and nobody notices, for nodes renew by themselves.
//!
//! ```text
//!   n1 manager     n2 as it joined     n3 leaves, stays away, joins again
//! ```

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use netagent_tests::lab::{Workload, eventually, eventually_within, list, must, refusal, three};
use serde_json::Value;
use xtask::node::{Datapath, Node, Shell as _};

/// Longest wait for the end of a certificate: several times its life.
const LIVES: Duration = Duration::from_secs(240);

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
    eventually_within(LIVES, "n3 has another certificate", || certificate(n3, "-serial") != first);
    eventually("with another key", || {
        key(n3) != first_key && certificate(n3, "-pubkey") == key(n3)
    });
    // The first certificate has ended by then: whoever still showed it would be refused.
    eventually_within(LIVES, "two renewals later", || {
        n3.log_end().matches("certificate is renewed").count() > 2
    });
    assert_eq!(certificate(n2, "-serial"), others, "n2's lasts for months");
    must(n1.netagent(&["network", "create", "net2"]));
    must(n3.netagent(&["run", "--network", "net2", "--", "true"]));
    assert!(a.pings("c", 56) && c.pings("a", 56));

    // Away for longer than the certificate lasts: clear words, and a way back.
    n3.kill_agent().expect("kill");
    eventually_within(LIVES, "it ends", || has_ended(n3));
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

/// What a server says of a connection with these files.
fn shown_to(manager: &Node, certificate: &Path, key: &Path) -> String {
    let path = |path: &Path| path.display().to_string();
    let (certificate, key) = (path(certificate), path(key));
    let url = "https://manager.netagent:2377/v1/cluster";
    let resolve = format!("manager.netagent:2377:{}", manager.address);
    let line = ["curl", "-sS", "-k", "--max-time", "5", "--resolve", &resolve];
    let own = ["--cert", &certificate, "--key", &key, url];
    let output = manager.exec(&[&line[..], &own].concat()).expect("curl");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn token(manager: &Node) -> String {
    must(manager.netagent(&["cluster", "join-token", "-q", "worker"])).trim().to_owned()
}

fn info(node: &Node) -> String {
    must(node.netagent(&["cluster", "info"]))
}

#[test]
fn a_new_ca_takes_the_place_of_the_old_while_all_goes_on() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    must(n1.netagent(&["network", "create", "net1"]));
    let a = Workload::start(n1, &["--network", "net1", "--name", "a"]);
    let b = Workload::start(n2, &["--network", "net1", "--name", "b"]);
    let old = token(n1);
    let copies = [("node.crt", "copied.crt"), ("node.key", "copied.key")]
        .map(|(name, copy)| (file(n2, name), n2.directory.join(copy)));
    for (from, to) in &copies {
        std::fs::copy(from, to).expect("a copy");
    }
    let [copied, copied_key] = copies.map(|(_, to)| to);
    let refused = refusal(n2.netagent(&["cluster", "ca", "rotate"]));
    assert!(refused.contains("run this on a manager: n1"), "{refused}");
    let refused = refusal(n1.netagent(&["cluster", "ca", "rotate", "--force"]));
    assert!(refused.contains("no rotation of the CA is under way"), "{refused}");
    let taken = shown_to(n1, &copied, &copied_key);
    assert!(taken.contains("workers may not do this"), "it is taken for the node: {taken}");

    // It waits for a node that is away, over a restart of the manager's agent.
    let ping = ["ping", "-n", "-q", "-i", "0.02", "-W", "2", "b"];
    let pings = a.command(&ping).stdout(Stdio::piped()).spawn().expect("ping");
    n3.kill_agent().expect("kill");
    must(n1.netagent(&["cluster", "ca", "rotate", "--detach"]));
    let waits = "CA rotation:       1 of 3 nodes renewed, waiting for n1, n3";
    for node in [n1, n2] {
        eventually("n2 renews", || info(node).contains(waits));
    }
    n1.kill_agent().expect("kill");
    n1.start_agent().expect("start");
    eventually("n2 is back", || info(n2).contains("Manager reachable: yes"));
    assert!(info(n1).contains(waits), "{}", info(n1));
    assert_eq!(token(n1), old, "it is the old CA that a newcomer can tell the manager by");
    n3.start_agent().expect("start");
    let said = must(n1.netagent(&["cluster", "ca", "rotate"]));
    assert!(said.ends_with("The CA is replaced, and with it the join tokens.\n"), "{said}");
    cluster.wait_until_ready().expect("ready");
    eventually("nodes trust one CA again", || {
        [n1, n2, n3].iter().all(|node| {
            let ca = std::fs::read_to_string(file(node, "ca.crt")).expect("ca.crt");
            ca.matches("BEGIN").count() == 1 && !info(node).contains("CA rotation")
        })
    });

    // Nothing was lost, and what the old CA had signed is worth nothing.
    let pid = i32::try_from(pings.id()).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGINT).expect("INT");
    let counted = must(Ok(pings.wait_with_output().expect("ping")));
    assert!(counted.contains(" 0% packet loss"), "{counted}");
    let refused = shown_to(n1, &copied, &copied_key);
    assert!(refused.contains("unknown ca"), "{refused}");
    let renewed = shown_to(n1, &file(n2, "node.crt"), &file(n2, "node.key"));
    assert!(renewed.contains("workers may not do this"), "{renewed}");
    let ends = list(n1, "node");
    let dated = |node: &Value| node["certificate"]["expires"].as_str().is_some();
    assert!(ends.iter().all(dated), "{ends:?}");

    // New nodes need the new token.
    must(n3.netagent(&["cluster", "leave"]));
    let address = n1.address.to_string();
    let refused = refusal(n3.netagent(&["cluster", "join", "--token", &old, &address]));
    assert!(refused.contains("`netagent cluster join-token worker`"), "{refused}");
    assert_ne!(token(n1), old);
    join(n3, n1);
    must(n1.netagent(&["network", "create", "net2"]));
    must(n3.netagent(&["run", "--network", "net2", "--", "true"]));
    assert!(a.pings("b", 56) && b.pings("a", 56));
}

#[test]
fn a_rotation_that_is_ended_early_names_who_must_join_again() {
    let cluster = three([Datapath::Ebpf; 3]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    n3.kill_agent().expect("kill");
    must(n1.netagent(&["cluster", "ca", "rotate", "--detach"]));
    eventually("n2 renews", || info(n1).contains("1 of 3 nodes renewed, waiting for n1, n3"));
    let said = must(n1.netagent(&["cluster", "ca", "rotate", "--force"]));
    assert!(said.contains("they must join again: n3\n"), "{said}");
    assert!(said.contains("`netagent cluster leave --force`"), "{said}");
    n3.start_agent().expect("start");
    eventually("it says what to do", || {
        n3.log_end().contains("the cluster's CA was replaced while this node was away")
    });
    must(n3.netagent(&["cluster", "leave", "--force"]));
    eventually("n3 is down", || list(n1, "node").iter().any(|node| node["status"] == "down"));
    assert!(info(n2).contains("they must join again: n3"), "{}", info(n2));
    must(n1.netagent(&["node", "rm", "n3"]));
    join(n3, n1);
    cluster.wait_until_ready().expect("ready");
    assert!(!info(n1).contains("CA rotation"), "{}", info(n1));
}
