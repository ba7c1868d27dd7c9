//! Connectivity that no user may miss, on all-eBPF, all-kernel and mixed clusters.

use std::process::Stdio;

use netagent_tests::lab::{LAYOUTS, Workload, eventually, list, must, refusal, three};
use xtask::node::Shell as _;
use xtask::playground::Playground;

/// Largest payload of an ICMP echo on a network of MTU 1450.
const PING_AT_MTU: u32 = 1450 - 28;

fn on_each_layout(name: &str, test: impl Fn(&Playground)) {
    for (layout, datapaths) in LAYOUTS {
        println!("{name} on {layout}");
        let cluster = three(datapaths);
        must(cluster.node(1).netagent(&["network", "create", "--driver", "overlay", "mydrupal"]));
        test(&cluster);
    }
}

/// Every pair, ping of exactly the MTU and of one byte more: the first arrives, the
/// second is refused with a message and never silently.
#[test]
fn pings_of_mtu_size_and_one_more() {
    on_each_layout("ping", |cluster| {
        let all: Vec<Workload> = (1..=3)
            .map(|n| {
                let name = format!("w{n}");
                Workload::start(cluster.node(n), &["--network", "mydrupal", "--name", &name])
            })
            .collect();
        // A second one on n1, so that both ends are on one node too.
        let neighbour = Workload::start(cluster.node(1), &["--network", "mydrupal"]);
        for from in all.iter().chain([&neighbour]) {
            for to in all.iter().filter(|to| to.pid() != from.pid()) {
                assert!(from.pings(&to.ip(), PING_AT_MTU), "{} to {}", from.ip(), to.ip());
                let refused = from.exec(&[
                    "ping",
                    "-n",
                    "-M",
                    "do",
                    "-c",
                    "1",
                    "-W",
                    "1",
                    "-s",
                    "1423",
                    &to.ip(),
                ]);
                let said = String::from_utf8_lossy(&refused.stdout).into_owned()
                    + &String::from_utf8_lossy(&refused.stderr);
                assert!(!refused.status.success() && said.contains("message too long"), "{said}");
            }
        }
        for to in ["w2", "w3", "w2.mydrupal"] {
            assert!(all[0].pings(to, 56), "by name {to}");
        }
    });
}

/// TCP bulk both ways, with the offloads of every device switched off, so that
/// checksums are real on the way and verified by the receiver's kernel.
#[test]
fn bulk_tcp_and_udp_both_ways_with_real_checksums() {
    on_each_layout("bulk", |cluster| {
        let server = Workload::start_command(
            cluster.node(1),
            &["--network", "mydrupal", "--name", "server"],
            &["iperf3", "--server"],
        );
        for (node, offloads) in [(2, true), (3, false), (1, false)] {
            let client = Workload::start(cluster.node(node), &["--network", "mydrupal"]);
            if !offloads {
                for workload in [&server, &client] {
                    let off = "tx off rx off tso off gso off gro off";
                    let mut line = vec!["ethtool", "-K", "eth0"];
                    line.extend(off.split(' '));
                    workload.run(&line);
                }
            }
            for direction in [None, Some("--reverse")] {
                let mut tcp = vec!["iperf3", "--client", "server", "--bytes", "40M", "--json"];
                tcp.extend(direction);
                let report = iperf(&client, &tcp);
                let received = report["end"]["sum_received"]["bytes"].as_u64();
                // The receiver stops counting when the sender has handed all to its kernel,
                // so what was still under way then is not in the count.
                assert!(received > Some(20_000_000), "{received:?} bytes arrived");
                let mut udp = vec!["iperf3", "--client", "server", "--udp", "--bitrate", "20M"];
                udp.extend(["--time", "2", "--length", "1400", "--json"]);
                udp.extend(direction);
                let report = iperf(&client, &udp);
                let lost = report["end"]["sum"]["lost_packets"].as_i64().expect("a count");
                let sent = report["end"]["sum"]["packets"].as_i64().expect("a count");
                // A busy machine drops some in a socket buffer; a datapath that
                // breaks checksums loses all of them.
                assert!(sent > 1000 && lost * 4 < sent, "{lost} of {sent} lost");
            }
            for workload in [&server, &client] {
                assert_eq!(checksum_errors(workload), 0);
            }
        }
    });
}

fn iperf(client: &Workload, line: &[&str]) -> serde_json::Value {
    let mut last = String::new();
    let mut report = None;
    // The server of iperf3 serves one client at a time and needs a moment between.
    eventually(&format!("{line:?}"), || {
        let output = client.exec(line);
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        report = output.status.success().then(|| serde_json::from_str(&last).expect("JSON"));
        report.is_some()
    });
    report.expect(&last)
}

/// Segments and datagrams that the workload's kernel threw away for their checksum.
fn checksum_errors(workload: &Workload) -> u64 {
    let table = workload.run(&["nstat", "-asz", "--json"]);
    let table: serde_json::Value = serde_json::from_str(&table).expect("JSON");
    ["TcpInCsumErrors", "UdpInCsumErrors", "IcmpInCsumErrors"]
        .iter()
        .map(|name| table["kernel"][name].as_u64().expect("a counter"))
        .sum()
}

/// Egress leaves with the host's address; an internal network has none; nothing from
/// outside gets in.
#[test]
fn the_outside_is_reached_with_the_hosts_address_unless_internal() {
    on_each_layout("egress", |cluster| {
        must(cluster.node(1).netagent(&["network", "create", "--internal", "inner"]));
        let outward = Workload::start(cluster.node(2), &["--network", "mydrupal"]);
        let inner = Workload::start(cluster.node(2), &["--network", "inner"]);
        // The client is a host outside the cluster: it sees the node, not the workload.
        let mut listener = cluster
            .client()
            .command(&["nc", "-l", "-n", "-v", "192.168.50.100", "7777"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nc");
        eventually("connection to the outside", || {
            outward.exec(&["nc", "-z", "-w", "1", "192.168.50.100", "7777"]).status.success()
        });
        let seen = std::io::read_to_string(listener.stderr.take().expect("piped")).expect("text");
        listener.wait().expect("nc");
        assert!(seen.contains("192.168.50.12"), "{seen}");
        assert!(!inner.pings("192.168.50.100", 56));
        assert!(outward.pings("192.168.50.100", 56));
        // A route to the network by way of a node does not let an outsider in.
        let client = cluster.client();
        must(client.exec(&["ip", "route", "add", "10.0.0.0/8", "via", "192.168.50.12"]));
        refusal(client.exec(&["ping", "-n", "-c", "2", "-W", "1", &outward.ip()]));
    });
}

/// Every name that `endpoint ls` shows is gone from everywhere when its workload is
/// killed, and a network in use cannot be removed.
#[test]
fn what_ends_is_released_and_what_is_used_stays() {
    on_each_layout("release", |cluster| {
        let n1 = cluster.node(1);
        let psql = Workload::start(cluster.node(3), &["--network", "mydrupal", "--name", "psql"]);
        let said = refusal(n1.netagent(&["network", "rm", "mydrupal"]));
        assert!(said.contains("psql") && said.contains("n3"), "{said}");
        psql.kill();
        eventually("endpoint released everywhere", || {
            (1..=3).all(|n| list(cluster.node(n), "endpoint").is_empty())
        });
        must(n1.netagent(&["network", "rm", "mydrupal"]));
    });
}
