//! Networks do not see each other; an endpoint speaks as itself only.

use netagent_tests::lab::{LAYOUTS, Workload, eventually, must, packets, three};
use nix::sys::signal::Signal;
use xtask::node::{Datapath, Shell as _};

/// ```text
///   a ── net1 ── both ── net2 ── b        a and b on n1 and n2, both on n3
/// ```
#[test]
fn two_networks_and_an_endpoint_on_both() {
    for (layout, datapaths) in LAYOUTS {
        println!("isolation on {layout}");
        let cluster = three(datapaths);
        for name in ["net1", "net2"] {
            must(cluster.node(1).netagent(&["network", "create", name]));
        }
        let a = Workload::start(cluster.node(1), &["--network", "net1", "--name", "a"]);
        let b = Workload::start(cluster.node(2), &["--network", "net2", "--name", "b"]);
        let near = Workload::start(cluster.node(1), &["--network", "net2", "--name", "near"]);
        let both = Workload::start(
            cluster.node(3),
            &["--network", "net1", "--network", "net2", "--name", "both"],
        );
        for (from, to) in [(&a, &b), (&b, &a), (&a, &near), (&near, &a)] {
            assert!(!from.pings(&to.ip(), 56), "{} reaches {}", from.ip(), to.ip());
        }
        assert!(near.pings(&b.ip(), 56));
        assert!(a.pings(&both.addresses[0].to_string(), 56));
        assert!(b.pings(&both.addresses[1].to_string(), 56));
        assert!(both.pings("a", 56) && both.pings("b", 56));
        // Names stop at the network's edge too.
        assert_eq!(a.resolves(&["both"]), both.addresses[0].to_string());
        assert_eq!(a.resolves(&["b.net2"]), "");
        // A dual-homed workload is not a way across: it does not forward unless its
        // owner says so, and even then the sources are not its own.
        both.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        let via = both.addresses[0].to_string();
        a.run(&["ip", "route", "add", &format!("{}/32", b.ip()), "via", &via]);
        if layout == "ebpf" {
            assert!(!a.pings(&b.ip(), 56), "spoofed across by a dual-homed endpoint");
        }
    }
}

/// An endpoint that takes another's address or MAC is heard by nobody, and counted.
#[test]
fn an_endpoint_cannot_speak_as_another() {
    let cluster = three([Datapath::Ebpf; 3]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let honest = Workload::start(cluster.node(2), &["--network", "net1", "--name", "honest"]);
    let liar = Workload::start(cluster.node(1), &["--network", "net1", "--name", "liar"]);
    assert!(liar.pings(&honest.ip(), 56));
    // An agent that runs would put address and MAC right again.
    let agent = cluster.node(1).agent().expect("an agent");
    let unseen = |lie: &dyn Fn()| {
        agent.signal(Signal::SIGSTOP).expect("a signal");
        lie();
        agent.signal(Signal::SIGCONT).expect("a signal");
    };
    let before = packets(cluster.node(1), "drop_spoofed_address");
    unseen(&|| {
        liar.run(&["ip", "address", "add", "10.0.0.77/24", "dev", "eth0"]);
        let ping = ["ping", "-n", "-c", "2", "-W", "1", "-I", "10.0.0.77", &honest.ip()];
        assert!(!liar.exec(&ping).status.success());
        liar.run(&["ip", "address", "del", "10.0.0.77/24", "dev", "eth0"]);
    });
    assert!(packets(cluster.node(1), "drop_spoofed_address") > before);
    let before = packets(cluster.node(1), "drop_spoofed_mac");
    unseen(&|| {
        liar.run(&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]);
        assert!(!liar.pings(&honest.ip(), 56));
    });
    assert!(packets(cluster.node(1), "drop_spoofed_mac") > before);
}

/// VXLAN that a workload makes itself does not leave its node, although the host
/// would masquerade it with a member's address.
#[test]
fn a_workload_cannot_inject_vxlan() {
    let cluster = three([Datapath::Ebpf; 3]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    let liar = Workload::start(cluster.node(1), &["--network", "net1"]);
    let before = packets(cluster.node(1), "drop_forged_tunnel");
    liar.run(&["bash", "-c", "echo forged > /dev/udp/192.168.50.12/4789"]);
    assert_eq!(packets(cluster.node(1), "drop_forged_tunnel"), before + 1);
}

/// Who sends VXLAN without being a member is counted, and named in the agent's log.
#[test]
fn a_stranger_is_counted_and_named() {
    let cluster = three([Datapath::Ebpf; 3]);
    let n1 = cluster.node(1);
    let before = packets(n1, "drop_not_member");
    // A valid VXLAN header for VNI 4096, and an inner frame's worth of zeros.
    let script = "printf '\\x08\\0\\0\\0\\0\\x10\\0\\0%042d' 0 > /dev/udp/192.168.50.11/4789";
    must(cluster.client().exec(&["bash", "-c", script]));
    eventually("counted", || packets(n1, "drop_not_member") > before);
    eventually("named", || {
        std::fs::read_to_string(n1.log()).is_ok_and(|log| log.contains("192.168.50.100"))
    });
}
