//! A thousand endpoints of one network: figures printed, never asserted.

use std::time::Instant;

use netagent_tests::lab::{Workload, eventually, inspect, must, verify};
use xtask::node::{Datapath, Shell as _};
use xtask::playground::{Playground, Topology};

/// Endpoints that exist as objects only: their node is n4, whose agent is away.
const REMOTE: usize = 1000;

#[test]
fn a_thousand_endpoints_and_one_more() {
    let [ebpf, kernel] = [Datapath::Ebpf, Datapath::Kernel];
    let topology = Topology::test("scale", &[ebpf, kernel, ebpf, ebpf]);
    let cluster = Playground::up(&topology).expect("a cluster");
    must(cluster.node(1).netagent(&["network", "create", "--subnet", "10.20.0.0/16", "big"]));
    let here: Vec<_> =
        (1..=2).map(|n| Workload::start(cluster.node(n), &["--network", "big"])).collect();
    // n1 is the manager: its own socket may make endpoints for any node. An agent that
    // runs would give up what no workload of its own has.
    let node = inspect(cluster.node(1), "node", "n4")["id"].clone();
    cluster.node(4).kill_agent().expect("kill");
    eventually("n4 is down", || inspect(cluster.node(1), "node", "n4")["status"] == "down");
    let start = Instant::now();
    must(cluster.node(1).exec(&[
        "python3",
        "-c",
        CREATE,
        &socket(&cluster),
        node.as_str().expect("an id"),
        &REMOTE.to_string(),
    ]));
    println!("{REMOTE} endpoints created one by one by the API in {:?}", start.elapsed());
    // They stay until the end: one that goes is written too.
    let mut more = Vec::new();
    for n in [1, 2] {
        let start = Instant::now();
        eventually("all applied", || {
            outcome(&cluster, n)["applied"] == outcome(&cluster, 1)["applied"]
        });
        println!("n{n} ({}) had them {:?} later", cluster.node(n).name(), start.elapsed());
        let before = outcome(&cluster, n)["writes"].as_u64().expect("a count");
        let one = Workload::start(cluster.node(3), &["--network", "big"]);
        eventually("reachable", || here[n - 1].pings(&one.ip(), 56));
        let after = outcome(&cluster, n)["writes"].as_u64().expect("a count");
        let writes = after - before;
        println!("n{n}: one more endpoint is {writes} write(s) to the kernel");
        // eBPF: one map entry. kernel: FDB and neighbour.
        assert!(writes <= 2, "{writes} writes");
        more.push(one);
    }
}

fn socket(cluster: &xtask::playground::Playground) -> String {
    cluster.node(1).socket().display().to_string()
}

fn outcome(cluster: &xtask::playground::Playground, node: usize) -> serde_json::Value {
    verify(cluster.node(node))
}

const CREATE: &str = r#"
import http.client, json, random, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
api = Unix("netagent")
for i in range(int(sys.argv[3])):
    workload = "".join(random.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(16))
    body = {"network": "big", "node": sys.argv[2], "workload": workload, "name": f"e{i}"}
    api.request("POST", "/v1/endpoints", json.dumps(body), {"Content-Type": "application/json"})
    reply = api.getresponse()
    text = reply.read()
    assert reply.status in (200, 201), text
"#;
