//! Plain Linux, set up by hand with `ip` and `bridge`, speaks with both datapaths; and
//! what the kernel datapath programs is what `bridge fdb` and `ip neigh` show.

use netagent_tests::lab::{Workload, inspect, list, must, three};
use xtask::node::{Datapath, Shell as _};

/// n3's agent is gone and its endpoint is rebuilt by hand:
///
/// ```text
///   n1 ebpf ─┐
///            ├─ underlay ── n3: hand0 (vxlan, id = VNI, the endpoint's MAC and IP)
///   n2 kernel┘
/// ```
#[test]
fn a_vxlan_device_made_by_hand_is_a_full_peer() {
    let cluster = three([Datapath::Ebpf, Datapath::Kernel, Datapath::Kernel]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let a = Workload::start(cluster.node(1), &["--network", "net1", "--name", "a"]);
    let b = Workload::start(cluster.node(2), &["--network", "net1", "--name", "b"]);
    let c = Workload::start(cluster.node(3), &["--network", "net1", "--name", "c"]);
    let network = inspect(cluster.node(1), "network", "net1");
    let vni = network["vni"].to_string();
    let endpoints = list(cluster.node(1), "endpoint");
    let mac = |ip: &str| {
        let found = endpoints.iter().find(|e| e["address"] == *ip);
        found.expect("the endpoint")["mac"].as_str().expect("text").to_owned()
    };
    let (ip, own_mac) = (c.ip(), mac(&c.ip()));
    cluster.node(3).kill_agent().expect("kill");
    cluster.node(3).teardown().expect("teardown");
    let n3 = cluster.node(3);
    let hand = |line: &str| must(n3.exec(&line.split(' ').collect::<Vec<_>>()));
    hand(&format!(
        "ip link add hand0 address {own_mac} type vxlan id {vni} dstport 4789 local 192.168.50.13 nolearning"
    ));
    hand(&format!("ip address add {ip}/24 dev hand0"));
    hand("ip link set hand0 mtu 1450 up");
    for (workload, vtep) in [(&a, "192.168.50.11"), (&b, "192.168.50.12")] {
        let peer_mac = mac(&workload.ip());
        hand(&format!("bridge fdb append {peer_mac} dev hand0 dst {vtep}"));
    }
    // By ARP through the tunnel to the eBPF node, by a static neighbour to the other.
    hand("bridge fdb append 00:00:00:00:00:00 dev hand0 dst 192.168.50.11");
    hand(&format!("ip neigh replace {} lladdr {} dev hand0", b.ip(), mac(&b.ip())));
    for workload in [&a, &b] {
        assert!(
            n3.exec(&["ping", "-c", "2", "-W", "2", "-M", "do", "-s", "1422", &workload.ip()])
                .expect("nsenter")
                .status
                .success(),
            "by hand to {}",
            workload.ip()
        );
        assert!(workload.pings(&ip, 1422), "{} to the hand-made one", workload.ip());
    }
}

/// `bridge fdb` and `ip neigh` agree with the API on a kernel node.
#[test]
fn fdb_and_neighbours_are_what_the_api_says() {
    let cluster = three([Datapath::Ebpf, Datapath::Kernel, Datapath::Ebpf]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let _workloads: Vec<_> =
        (1..=3).map(|n| Workload::start(cluster.node(n), &["--network", "net1"])).collect();
    let n2 = cluster.node(2);
    let me = inspect(n2, "node", "n2")["id"].as_str().expect("id").to_owned();
    let network = inspect(n2, "network", "net1");
    let device = format!("vx{}", network["vni"]);
    let inside = |line: &str| {
        let namespace = format!("--net=/run/netns/na-{}", &me[..11]);
        let mut all = vec!["nsenter", &namespace, "--"];
        all.extend(line.split(' '));
        must(n2.exec(&all))
    };
    let mut expected_fdb = Vec::new();
    let mut expected_neighbours = Vec::new();
    let nodes = list(n2, "node");
    for endpoint in list(n2, "endpoint") {
        if endpoint["node"] == *me {
            continue;
        }
        let node = nodes.iter().find(|n| n["id"] == endpoint["node"]);
        let vtep = node.expect("its node")["address"].as_str().expect("text");
        let text = |field: &str| endpoint[field].as_str().expect("text").to_owned();
        expected_fdb.push(format!("{} {vtep}", text("mac")));
        expected_neighbours.push(format!("{} {}", text("address"), text("mac")));
    }
    let list = |line: &str, pick: &dyn Fn(&serde_json::Value) -> Option<String>| {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&inside(line)).expect("JSON");
        let mut rows: Vec<String> = rows.iter().filter_map(pick).collect();
        rows.sort();
        rows
    };
    let fdb = list(&format!("bridge -j fdb show dev {device}"), &|row| {
        Some(format!("{} {}", row["mac"].as_str()?, row["dst"].as_str()?))
    });
    let neighbours = list(&format!("ip -j -4 neigh show dev {device}"), &|row| {
        Some(format!("{} {}", row["dst"].as_str()?, row["lladdr"].as_str()?))
    });
    expected_fdb.sort();
    expected_neighbours.sort();
    assert_eq!(fdb, expected_fdb);
    assert_eq!(neighbours, expected_neighbours);
    assert_eq!(fdb.len(), 2);
}
