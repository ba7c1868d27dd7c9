//! Load of every kind: on the wire there is ESP and nothing else.

use std::process::Stdio;

use netagent_tests::lab::{Workload, inspect, must, packets};
use xtask::node::Shell as _;

use crate::world::{Capture, NET, cluster, reaches, settled, workload};

/// ICMP up to the MTU, and beyond it, TCP and UDP; on the host the parameters are as they
/// should be, and a plain network beside it works as ever.
#[test]
fn only_esp_is_on_the_wire() {
    let Some(cluster) = cluster("only_esp_is_on_the_wire") else { return };
    let capture = Capture::start(&cluster);
    let (a, b) = (workload(&cluster, 1), workload(&cluster, 2));
    reaches(&cluster, &a, &b);
    assert_eq!(inspect(cluster.node(1), "network", NET)["effective_mtu"], 1416);
    for size in [0, 56, 1000, 1416 - 28] {
        assert!(a.pings(&b.ip(), size), "{size} bytes");
    }
    // A stack that was told it may send more is answered, and then sends less.
    a.run(&["ip", "link", "set", "eth0", "mtu", "1500"]);
    let too_big = a.exec(&["ping", "-n", "-M", "do", "-c", "1", "-W", "2", "-s", "1389", &b.ip()]);
    let said = String::from_utf8_lossy(&too_big.stdout);
    assert!(said.contains("mtu = 1416") || said.contains("mtu=1416"), "{said}");
    let server = b.command(&["iperf3", "--server"]).stdout(Stdio::null()).spawn().expect("iperf3");
    let mut server = scopeguard(server);
    crate::world::eventually("iperf3 listens", || b.run(&["ss", "-Hltn"]).contains(":5201"));
    let server_ip = b.ip();
    for options in [&[][..], &["--reverse"], &["--udp", "-b", "20M"]] {
        let line = [&["iperf3", "-c", &server_ip, "-t", "3"][..], options].concat();
        must(Ok(a.exec(&line)));
    }
    server.end();
    capture.is_encrypted();
    // Packets that IPsec had to cut would be fragments.
    assert_eq!(capture.count("ip[6:2] & 0x3fff != 0"), 0, "fragments");
    drop(capture);
    for (n, node) in [1, 2].map(|n| (n, cluster.node(n))) {
        assert!(packets(node, "encrypted") > 0, "n{n}");
        for none in ["drop_cleartext_in", "drop_cleartext_out", "drop_refused"] {
            assert_eq!(packets(node, none), 0, "n{n}: {none}");
        }
    }
    let state = must(cluster.node(1).exec(&["ip", "-d", "xfrm", "state"]));
    for text in ["mode transport", "rfc4106(gcm(aes))", " 128", "flag esn", "replay_window 1024"] {
        assert!(state.contains(text), "{text} in\n{state}");
    }
    // Two each way with two others.
    assert_eq!(state.matches("proto esp").count(), 4, "{state}");
    must(cluster.node(1).netagent(&["network", "create", "plain"]));
    let [c, d] = [1, 2].map(|n| Workload::start(cluster.node(n), &["--network", "plain"]));
    crate::world::eventually("the plain network is there", || c.pings(&d.ip(), 1450 - 28));
    assert!(!c.pings(&b.ip(), 56), "networks do not see each other");
    settled(&cluster);
    leaves_nothing(&cluster, [a, b]);
}

/// With the network goes all that it needed.
fn leaves_nothing(cluster: &xtask::playground::Playground, workloads: [Workload; 2]) {
    drop(workloads);
    crate::world::eventually("the network can be removed", || {
        cluster.node(1).netagent(&["network", "rm", NET]).is_ok_and(|out| out.status.success())
    });
    for node in cluster.nodes() {
        crate::world::eventually("nothing of IPsec is left", || {
            let [state, policy] =
                ["state", "policy"].map(|what| must(node.exec(&["ip", "xfrm", what])));
            state.is_empty() && policy.lines().all(|line| !line.contains("dport 4790"))
        });
        crate::world::eventually("nor the device", || {
            !must(node.exec(&["ip", "link"])).contains("na-ipsec")
        });
    }
}

struct Running(std::process::Child);

fn scopeguard(child: std::process::Child) -> Running {
    Running(child)
}

impl Running {
    fn end(&mut self) {
        // Already gone is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
