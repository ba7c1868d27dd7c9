//! A node that was removed is shut out at once, whatever it goes on doing: by the API,
//! on streams that are open, and on the wire.
//!
//! ```text
//!   n1 manager, ebpf: a      n2 kernel: b      n3 ebpf, removed while its agent is frozen: c
//! ```

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use netagent_tests::lab::{Workload, eventually, list, must, packets, refusal, three};
use nix::sys::signal::Signal;
use xtask::node::{Datapath, Node, Shell as _};

/// A call of n1's API with the certificate of `node`, made there.
fn call(node: &Node, path: &str) -> Command {
    let file = |name: &str| node.directory.join("data").join(name).display().to_string();
    let url = format!("https://manager.netagent:2377{path}");
    let (certificate, key, ca) = (file("node.crt"), file("node.key"), file("ca.crt"));
    let mut command = node.command(&["curl", "--silent", "--no-buffer", "--cert", &certificate]);
    command.args(["--key", &key, "--cacert", &ca, "--write-out", "%{http_code}\n"]);
    command.args(["--connect-to", "manager.netagent:2377:192.168.50.11:2377", &url]);
    command
}

/// Ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many packets our rule for strangers has dropped, as `nft` shows it.
fn dropped(node: &Node) -> u64 {
    let table = must(node.exec(&["nft", "list", "table", "ip", "netagent"]));
    let rule = table.lines().find(|line| line.contains("ip saddr !=")).expect("our rule");
    let count = rule.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    count.expect("a counter").parse().expect("a number")
}

/// Whether the node has the VTEP in its map of members, as `bpftool` shows it.
fn is_peer(node: &Node, vtep: &str) -> bool {
    let find = format!("ls {}/v*/maps/PEERS", node.pins.display());
    let map = must(node.exec(&["sh", "-c", &find]));
    let dump = must(node.exec(&["bpftool", "-j", "map", "dump", "pinned", map.trim()]));
    let entries: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let last: u8 = vtep.rsplit('.').next().expect("a part").parse().expect("a number");
    let key = format!("0x{last:02x}");
    entries.as_array().expect("an array").iter().any(|entry| entry["key"][3] == key.as_str())
}

#[test]
fn a_removed_node_is_shut_out_at_once() {
    let cluster = three([Datapath::Ebpf, Datapath::Kernel, Datapath::Ebpf]);
    let [n1, n2, n3] = [1, 2, 3].map(|n| cluster.node(n));
    must(n1.netagent(&["network", "create", "net1"]));
    let a = Workload::start(n1, &["--network", "net1", "--name", "a"]);
    let b = Workload::start(n2, &["--network", "net1", "--name", "b"]);
    let c = Workload::start(n3, &["--network", "net1", "--name", "c"]);
    assert!(c.pings(&a.ip(), 56) && c.pings(&b.ip(), 56));
    assert!(is_peer(n1, "192.168.50.13"));

    let mut watch =
        call(n3, "/v1/watch").stdout(Stdio::piped()).spawn().map(Running).expect("curl");
    let mut events = BufReader::new(watch.0.stdout.take().expect("piped"));
    let mut first = String::new();
    events.read_line(&mut first).expect("a line");
    assert!(first.contains("\"snapshot\""), "{first}");

    let agent = n3.agent().expect("an agent");
    agent.signal(Signal::SIGSTOP).expect("a signal");
    let said = refusal(n1.netagent(&["node", "rm", "n3"]));
    assert!(said.contains("--force"), "{said}");
    must(n1.netagent(&["node", "rm", "--force", "n3"]));
    // What comes after concerns it no more.
    must(n1.netagent(&["network", "create", "secret"]));
    let mut rest = String::new();
    events.read_to_string(&mut rest).expect("the end of the stream");
    assert!(!rest.contains("secret") && !rest.contains("delta"), "{rest}");
    assert_eq!(rest.lines().last(), Some("200"), "the stream ended in order: {rest}");
    let answer = must(call(n3, "/v1/watch").output().map_err(Into::into));
    assert!(answer.contains("is not a member of this cluster") && answer.ends_with("403\n"));

    // Its kernel knows nothing yet and sends on; nobody listens.
    eventually("the others know", || {
        [n1, n2].iter().all(|node| list(node, "node").len() == 2) && !is_peer(n1, "192.168.50.13")
    });
    eventually("n2's rule knows", || {
        let table = must(n2.exec(&["nft", "list", "table", "ip", "netagent"]));
        table.contains("ip saddr != { 192.168.50.11, 192.168.50.12 }")
    });
    let before = packets(n1, "drop_not_member");
    let mut capture = n1
        .command(&["tcpdump", "-nn", "-c", "1", "--immediate-mode", "-i", "eth0"])
        .args(["src host 192.168.50.13 and udp dst port 4789"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .expect("tcpdump");
    eventually("its packets still come, and are dropped", || {
        assert!(!c.pings(&a.ip(), 56), "a removed node is let in");
        packets(n1, "drop_not_member") > before && capture.0.try_wait().expect("ours").is_some()
    });
    let before = dropped(n2);
    eventually("the kernel datapath drops them, too", || {
        assert!(!c.pings(&b.ip(), 56), "a removed node is let in by the kernel datapath");
        dropped(n2) > before
    });
    assert!(a.pings(&b.ip(), 56) && b.pings(&a.ip(), 56));

    // As soon as its agent runs again it learns of it, and gives up what was the cluster's.
    agent.signal(Signal::SIGCONT).expect("a signal");
    eventually("it knows", || {
        let info = must(n3.netagent(&["cluster", "info"]));
        info.contains("it was removed from the cluster")
    });
    eventually("its programs are gone", || !n3.pins.exists());
    must(n3.netagent(&["cluster", "leave"]));
}
