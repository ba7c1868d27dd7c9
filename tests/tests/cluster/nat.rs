//! A node behind NAT takes part as any other; `netagent_tests::nat` has the picture.

use std::net::{Ipv4Addr, SocketAddrV4};

use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{LAYOUTS, Workload, eventually, inspect, must, refusal, verify};
use netagent_tests::nat::{self, OWN};
use xtask::node::{Datapath, Shell as _};
use xtask::playground::Playground;

const BACKEND: &str = env!("CARGO_BIN_EXE_test-backend");

/// Every workload reaches every other, with packets as large as there may be.
fn all_reach_all(cluster: &Playground, layout: &str) {
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let workloads = [1, 2, 3].map(|n| Workload::start(cluster.node(n), &["--network", "net1"]));
    for (n, from) in workloads.iter().enumerate() {
        for to in workloads.iter().filter(|to| to.ip() != from.ip()) {
            let what = format!("{layout}: a workload of n{} reaches {}", n + 1, to.ip());
            eventually(&what, || from.pings(&to.ip(), 1450 - 28));
        }
    }
    for node in cluster.nodes() {
        let what = format!("{layout}: {} has what it should", node.name());
        eventually(&what, || verify(node)["differences"].as_array().is_some_and(Vec::is_empty));
    }
}

#[test]
fn a_worker_behind_nat() {
    for (layout, datapaths) in LAYOUTS {
        let cluster = nat::cluster(&datapaths, 3);
        let n3 = cluster.node(3);
        all_reach_all(&cluster, layout);
        let shown = inspect(cluster.node(1), "node", "n3");
        assert_eq!(shown["address"], n3.address.to_string());
        assert_eq!(shown["local_address"], OWN.to_string());
        assert!(inspect(cluster.node(1), "node", "n2")["local_address"].is_null());
        let info = must(n3.netagent(&["cluster", "info"]));
        assert!(info.contains("192.168.50.13, by NAT to 10.99.0.2"), "{info}");
        // Somebody else looks: nobody outside has to do with the address inside.
        let dump = format!("timeout 5 tcpdump -nn -l -i eth0 host {OWN}");
        let seen = cluster.node(2).exec(&dump.split(' ').collect::<Vec<_>>()).expect("tcpdump");
        let seen = String::from_utf8_lossy(&seen.stdout);
        assert_eq!(seen.trim(), "", "{layout}");
    }
}

/// Others join by the address that it advertises, and its agent finds itself again.
#[test]
fn a_manager_behind_nat() {
    let cluster = nat::cluster(&[Datapath::Ebpf; 3], 1);
    let n1 = cluster.node(1);
    let invitation = must(n1.netagent(&["cluster", "join-token", "worker"]));
    assert!(invitation.contains("192.168.50.11:2377"), "{invitation}");
    all_reach_all(&cluster, "manager");
    n1.kill_agent().expect("kill");
    n1.start_agent().expect("start");
    cluster.wait_until_ready().expect("ready");
    eventually("it has what it should", || {
        verify(n1)["differences"].as_array().is_some_and(Vec::is_empty)
    });
}

/// Calls come in through the NAT and are answered through it; where the node itself calls, a
/// backend sees the address that the others know.
#[test]
fn published_ports_behind_nat() {
    let cluster = nat::cluster(&[Datapath::Ebpf; 3], 3);
    let (n1, n3) = (cluster.node(1), cluster.node(3));
    must(n1.netagent(&["network", "create", "net1"]));
    let create = ["service", "create", "--name", "web", "--network", "net1", "-p", "8080:8000"];
    must(n1.netagent(&create));
    for number in [1, 3] {
        let run = ["--service", "web", "--name", "one"];
        let task =
            Workload::start_command(cluster.node(number), &run, &[BACKEND, "one", "tcp:8000"]);
        eventually("the backend listens", || task.run(&["ss", "-Hltn"]).contains(":8000"));
        let outside = cluster.client().netns_path();
        let itself = n3.host.netns_path();
        for (netns, at, seen) in [
            (&outside, n3.address, Some("192.168.50.100")),
            (&outside, n1.address, Some("192.168.50.100")),
            (&itself, Ipv4Addr::LOCALHOST, Some("192.168.50.13")),
            (&itself, OWN, Some("192.168.50.13")),
            (&itself, n1.address, None),
        ] {
            let to = SocketAddrV4::new(at, 8080);
            let from = netns.display();
            let open = || inside(netns, || Connection::open(to));
            eventually(&format!("n{number} answers {from} at {to}"), || open().is_ok());
            let mut connection = open().unwrap_or_else(|e| panic!("{to}: {e}"));
            connection.echo("hello").unwrap_or_else(|e| panic!("{to}: {e}"));
            if let Some(seen) = seen {
                assert_eq!(connection.seen.ip().to_string(), seen, "n{number} from {from} at {to}");
            }
        }
        task.stop();
    }
}

/// The refusal names what the host has, and leaves nothing behind.
#[test]
fn an_address_that_nobody_has_is_refused() {
    let topology = xtask::playground::Topology::test("nat", &[Datapath::Ebpf]);
    let cluster = Playground::hosts(&topology).expect("hosts");
    let n1 = cluster.node(1);
    n1.start_agent().expect("an agent");
    let init = ["cluster", "init", "--advertise-addr"];
    for (addresses, parts) in [
        (&["203.0.113.7"][..], ["192.168.50.11 (eth0)", "--local-addr"]),
        (&["203.0.113.7", "--local-addr", "10.0.0.5"], ["192.168.50.11 (eth0)", "10.0.0.5"]),
        (&["192.168.50.11", "--local-addr", "127.0.0.1"], ["not behind NAT", "eth0"]),
    ] {
        let said = refusal(n1.netagent(&[&init[..], addresses].concat()));
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    }
    let said = refusal(n1.netagent(&["cluster", "init", "--local-addr", "192.168.50.11"]));
    assert!(said.contains("--advertise-addr"), "{said}");
    must(n1.netagent(&["cluster", "init"]));
}
