//! netagent's own overlays: two nodes with an agent each and workloads in one network.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Child;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::lab::{Lab, PATIENCE, UNDERLAY};
use super::{End, Variant, ends, ipvs};
use crate::membership::form_cluster;
use crate::node::{Datapath, Host, Node, Shell};
use crate::wait::eventually;

const NETWORK: &str = "bench";

/// Who chooses the backends of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balancer {
    Ebpf,
    Ipvs,
}

impl Balancer {
    /// The agent's options for it.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Ebpf => &["--lb", "ebpf"],
            Self::Ipvs => &["--lb", "ipvs"],
        }
    }
}

/// eBPF programs; over the wire and on one host.
pub(crate) fn ebpf(lab: &Lab) -> Result<Vec<Variant>> {
    let nodes = cluster(lab, "ebpf", Datapath::Ebpf, Balancer::Ebpf.options())?;
    let [client, server] = pair(lab, &nodes[0], &nodes[1], "ebpf")?;
    let [near, nearer] = pair(lab, &nodes[0], &nodes[0], "ebpf-same")?;
    let called = called(lab, "ebpf-vip", &nodes)?;
    let wire = ends(nodes.iter().map(|node| &node.host));
    Ok(vec![
        variant("ebpf", client, server, wire)?,
        called,
        variant("ebpf-same", near, nearer, Vec::new())?,
    ])
}

/// The same where IPVS chooses the backends.
pub(crate) fn ipvs(lab: &Lab) -> Result<Vec<Variant>> {
    if !ipvs::is_there() {
        return Ok(Vec::new());
    }
    let nodes = cluster(lab, "ipvs", Datapath::Ebpf, Balancer::Ipvs.options())?;
    Ok(vec![called(lab, "ipvs-vip", &nodes)?])
}

/// A service on the other node, at its virtual address.
fn called(lab: &Lab, id: &'static str, nodes: &[Node; 2]) -> Result<Variant> {
    let name = service(&nodes[0], "vip", &[])?;
    let server = task(lab, &nodes[1], name, &format!("{id}-b"))?;
    let client = workload(lab, &nodes[0], NETWORK, &format!("{id}-a"))?;
    let target = vip(&nodes[0], name)?;
    let wire = ends(nodes.iter().map(|node| &node.host));
    Ok(Variant { id, client, server, target, wire })
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
    let known = || Ok(node.read(&["netagent", "service", "inspect", service]).ok().map(drop));
    eventually("the node to hear of the service", PATIENCE, known)?;
    let run = ["netagent", "run", "--service", service, "--name", name, "--", "sleep", "infinity"];
    let child = node.spawn(&run)?;
    // What runs is a child of `netagent run`, which stays to drain it when it is to end.
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let pid = eventually("the task to run", PATIENCE, || {
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
    let nodes = cluster(lab, "kernel", Datapath::Kernel, &[])?;
    let [client, server] = pair(lab, &nodes[0], &nodes[1], "kernel")?;
    Ok(vec![variant("kernel", client, server, ends(nodes.iter().map(|node| &node.host)))?])
}

pub(super) fn variant(
    id: &'static str,
    client: Host,
    server: Host,
    wire: Vec<End>,
) -> Result<Variant> {
    let target = address(&server)?;
    client.read(&["ping", "-c1", "-W5", &target.to_string()])?;
    Ok(Variant { id, client, server, target, wire })
}

/// Two nodes on a wire, and a network.
fn cluster(
    lab: &Lab,
    name: &str,
    datapath: Datapath,
    options: &'static [&'static str],
) -> Result<[Node; 2]> {
    let nodes = nodes(lab, lab.wired(name)?.each_ref(), datapath, options);
    form(&nodes)?;
    Ok(nodes)
}

/// Two hosts as nodes, with no agent yet.
pub(super) fn nodes(
    lab: &Lab,
    [first, second]: [&Host; 2],
    datapath: Datapath,
    options: &'static [&'static str],
) -> [Node; 2] {
    [(first, UNDERLAY[0]), (second, UNDERLAY[1])]
        .map(|(host, address)| Node { options, ..lab.node(host, address, datapath) })
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
    eventually("`netagent run` to start its command", PATIENCE, runs)
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
