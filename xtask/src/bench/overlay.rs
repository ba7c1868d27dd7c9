//! netagent's own overlays: two nodes with an agent each and workloads in one network.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Variant;
use super::lab::{Lab, UNDERLAY};
use crate::membership::form_cluster;
use crate::node::{Datapath, Host, Node, Shell};
use crate::wait::eventually;

const NETWORK: &str = "bench";

/// eBPF programs; over the wire and on one host.
pub(crate) fn ebpf(lab: &Lab) -> Result<Vec<Variant>> {
    let nodes = cluster(lab, Datapath::Ebpf)?;
    let [client, server] = pair(lab, &nodes[0], &nodes[1], "ebpf")?;
    let [near, nearer] = pair(lab, &nodes[0], &nodes[0], "ebpf-same")?;
    let name = service(&nodes[0], "vip", &[])?;
    let backend = task(lab, &nodes[1], name, "ebpf-vip-b")?;
    let caller = workload(lab, &nodes[0], NETWORK, "ebpf-vip-a")?;
    let target = vip(&nodes[0], name)?;
    let wire: Vec<_> = nodes.map(|node| node.host).into();
    Ok(vec![
        variant("ebpf", client, server, wire.clone())?,
        Variant { id: "ebpf-vip", client: caller, server: backend, target, wire },
        variant("ebpf-same", near, nearer, Vec::new())?,
    ])
}

/// Creates a service on the network, published so; its name.
pub(super) fn service<'a>(node: &Node, name: &'a str, ports: &[&str]) -> Result<&'a str> {
    let mut words = vec!["netagent", "service", "create", "--name", name, "--network", NETWORK];
    words.extend(ports.iter().flat_map(|port| ["-p", port]));
    node.read(&words)?;
    Ok(name)
}

/// Starts a task of a service that does nothing; its network namespace.
pub(super) fn task(lab: &Lab, node: &Node, service: &str, name: &str) -> Result<Host> {
    let run = ["netagent", "run", "--service", service, "--name", name, "--", "sleep", "infinity"];
    let child = node.spawn(&run)?;
    // What runs is a child of `netagent run`, which stays to drain it when it is to end.
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let pid = eventually("the task to run", Duration::from_secs(20), || {
        let pid = fs::read_to_string(&children)?.trim().parse::<u32>().ok();
        Ok(pid.filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
        }))
    })?;
    lab.attach(name, pid)
}

/// The virtual address of a service.
fn vip(node: &Node, service: &str) -> Result<Ipv4Addr> {
    let shown: Value =
        serde_json::from_str(&node.read(&["netagent", "service", "inspect", service])?)?;
    let vip = shown[0]["networks"][0]["vip"].as_str();
    vip.with_context(|| format!("{service} has no virtual address"))?.parse().map_err(Into::into)
}

/// A bridge and a vxlan device, as netagent programs them.
pub(crate) fn kernel(lab: &Lab) -> Result<Vec<Variant>> {
    let nodes = cluster(lab, Datapath::Kernel)?;
    let [client, server] = pair(lab, &nodes[0], &nodes[1], "kernel")?;
    Ok(vec![variant("kernel", client, server, nodes.map(|node| node.host).into())?])
}

pub(super) fn variant(
    id: &'static str,
    client: Host,
    server: Host,
    wire: Vec<Host>,
) -> Result<Variant> {
    let target = address(&server)?;
    client.read(&["ping", "-c1", "-W5", &target.to_string()])?;
    Ok(Variant { id, client, server, target, wire })
}

/// Two nodes on a wire, and a network.
fn cluster(lab: &Lab, datapath: Datapath) -> Result<[Node; 2]> {
    let [first, second] = lab.wired(datapath.name())?;
    let nodes = [lab.node(&first, UNDERLAY[0], datapath), lab.node(&second, UNDERLAY[1], datapath)];
    form(&nodes)?;
    Ok(nodes)
}

/// Starts their agents and makes them one cluster with a network.
pub(super) fn form(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        node.start_agent()?;
    }
    form_cluster(nodes)?;
    nodes[0].read(&["netagent", "network", "create", "--driver", "overlay", NETWORK])?;
    Ok(())
}

fn pair(lab: &Lab, first: &Node, second: &Node, name: &str) -> Result<[Host; 2]> {
    let workload = |node, end| workload(lab, node, NETWORK, &format!("{name}-{end}"));
    Ok([workload(first, "a")?, workload(second, "b")?])
}

/// Starts a workload that does nothing; its network namespace.
pub(super) fn workload(lab: &Lab, node: &Node, network: &str, name: &str) -> Result<Host> {
    let mut child = node.spawn(&run(network, name, &["sleep", "infinity"]))?;
    wait_for(&mut child).with_context(|| format!("workload {name}"))?;
    lab.attach(name, child.id())
}

/// The command that runs another as a workload.
pub(super) fn run<'a>(network: &'a str, name: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&["netagent", "run", "--network", network, "--name", name, "--"], command].concat()
}

/// Waits until `netagent run` has become its command, which is `sleep`: then all of the
/// workload's network is there.
pub(super) fn wait_for(run: &mut Child) -> Result<()> {
    let comm = format!("/proc/{}/comm", run.id());
    let runs = || match run.try_wait()? {
        Some(status) => bail!("`netagent run` ended: {status}"),
        None => Ok((fs::read_to_string(&comm)? == "sleep\n").then_some(())),
    };
    eventually("`netagent run` to start its command", Duration::from_secs(20), runs)
}

/// Its address in the overlay.
fn address(workload: &Host) -> Result<Ipv4Addr> {
    let text = workload.read(&["ip", "-json", "-4", "address", "show", "scope", "global"])?;
    let links: Value = serde_json::from_str(&text)?;
    let address = links[0]["addr_info"][0]["local"].as_str();
    address
        .with_context(|| format!("{} has no address", workload.name))?
        .parse()
        .map_err(Into::into)
}
