//! A cluster with a network, a service and backends.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use netagent_tests::lab::{Workload, eventually, inspect, must, three};
use xtask::node::Datapath;
use xtask::playground::Playground;

/// The program that backends run.
pub(crate) const BACKEND: &str = env!("CARGO_BIN_EXE_test-backend");
/// Port at which backends listen, for TCP and UDP.
pub(crate) const PORT: u16 = 8000;

/// Three eBPF nodes and network `net1`.
pub(crate) fn cluster() -> Playground {
    let cluster = three([Datapath::Ebpf; 3]);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    cluster
}

/// Creates service `web` on `net1`; its virtual address.
pub(crate) fn service(cluster: &Playground, options: &[&str]) -> Ipv4Addr {
    let create = ["service", "create", "--name", "web", "--network", "net1"];
    must(cluster.node(1).netagent(&[&create[..], options].concat()));
    let shown = inspect(cluster.node(1), "service", "web");
    shown["networks"][0]["vip"].as_str().expect("a VIP").parse().expect("IPv4")
}

/// Starts a backend of `web` on a node; every node may choose it when this returns.
pub(crate) fn backend(cluster: &Playground, node: usize, name: &str, options: &[&str]) -> Workload {
    let run = [&["--service", "web", "--name", name][..], options].concat();
    let (tcp, udp) = (format!("tcp:{PORT}"), format!("udp:{PORT}"));
    let task = Workload::start_command(cluster.node(node), &run, &[BACKEND, name, &tcp, &udp]);
    // Attached is one thing, listening another.
    eventually("the backend listens", || task.run(&["ss", "-Hltn"]).contains(&format!(":{PORT}")));
    task
}

/// A plain workload on `net1`, to be a client.
pub(crate) fn client(cluster: &Playground, node: usize) -> Workload {
    Workload::start(cluster.node(node), &["--network", "net1"])
}

/// A workload's network namespace.
pub(crate) fn netns(workload: &Workload) -> PathBuf {
    format!("/proc/{}/ns/net", workload.pid()).into()
}

/// `ip` at [`PORT`].
pub(crate) fn at(ip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(ip, PORT)
}
