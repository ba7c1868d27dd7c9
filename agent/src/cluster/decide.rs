//! What each request does to the store: the writes, or why not. Pure but for new
//! identifiers and the clock; [`manager`](super::manager) commits what is decided
//! here on the very state that it was decided on.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::view::{self, View};
use super::{Error, allocate, keys, names, task, validate};
use crate::api::types::{CreateEndpoint, CreateNetwork, NodeFacts, UpdateCluster};
use crate::model::{
    Endpoint, EndpointId, Mac, Name, Network, NetworkId, Node, NodeId, NodeStatus, Role, Service,
    Snapshot,
};
use crate::store::Op;

/// Writes, and what to answer once they are committed.
pub(super) type Decision<T> = Result<(Vec<Op>, T), Error>;

/// Endpoints that an error names; more are counted.
const NAMED: usize = 5;

pub(super) fn create_network(view: &View, request: &CreateNetwork) -> Decision<Network> {
    let snapshot = &*view.snapshot;
    let validate::Options { mtu, encrypted } = validate::network(request, snapshot)?;
    let subnet = match request.subnet {
        Some(subnet) => {
            validate::subnet(subnet, snapshot)?;
            subnet
        }
        None => free_subnet(view)?,
    };
    let gateway = validate::addresses(request, subnet)?;
    let taken = snapshot.networks.values().map(|n| n.vni).collect();
    let vni = allocate::vni(view.last_vni, &taken)
        .ok_or_else(|| Error::Conflict("every VXLAN network identifier is in use".to_owned()))?;
    let network = Network {
        id: NetworkId::new(),
        name: request.name.clone(),
        driver: request.driver.clone(),
        vni,
        subnet,
        gateway,
        ip_range: request.ip_range,
        aux_addresses: request.aux_addresses.clone(),
        internal: request.internal,
        encrypted,
        mtu,
        labels: request.labels.clone(),
        created: now(),
    };
    let mut ops = Vec::from(view::put_network(&network));
    if encrypted {
        ops.extend(keys::first(view));
    }
    Ok((ops, network))
}

/// Shortest life of a certificate, in seconds: renewing takes its time.
const SHORTEST: u32 = 60;
/// Longest: the CA itself ends then.
const LONGEST: u32 = 20 * 365 * 24 * 3600;

pub(super) fn update_cluster(view: &View, request: &UpdateCluster) -> Decision<()> {
    let Some(mut settings) = view.settings.clone() else {
        return Err(Error::Internal("the store holds no cluster".to_owned()));
    };
    if let Some(expiry) = request.cert_expiry {
        if !(SHORTEST..=LONGEST).contains(&expiry) {
            return Err(Error::Invalid(format!(
                "certificates are valid for {SHORTEST} s to 20 years, not {expiry} s"
            )));
        }
        settings.cert_expiry = expiry;
    }
    let key = keys::update(view, &mut settings, request);
    let put = view::put(view::CLUSTER, &settings);
    Ok(([put].into_iter().chain(key).collect(), ()))
}

fn free_subnet(view: &View) -> Result<ipnetwork::Ipv4Network, Error> {
    let pool = match &view.settings {
        Some(settings) => settings.pool,
        None => return Err(Error::Internal("the store holds no cluster".to_owned())),
    };
    let taken = validate::taken(&view.snapshot);
    allocate::subnet(pool.block, pool.prefix, &taken).ok_or_else(|| {
        Error::Conflict(format!(
            "no subnet of /{} is free in pool {}: networks or the hosts' own routes take all of \
             it; choose one with --subnet",
            pool.prefix, pool.block
        ))
    })
}

pub(super) fn remove_network(view: &View, name_or_id: &str) -> Decision<()> {
    let network = find_network(&view.snapshot, name_or_id)?;
    let endpoints: Vec<_> = view.snapshot.endpoints_on(&network.id).collect();
    if !endpoints.is_empty() {
        return Err(Error::Conflict(format!(
            "network {} is in use by {}",
            network.name,
            list(&view.snapshot, &endpoints)
        )));
    }
    let services: Vec<_> =
        view.snapshot.services.values().filter(|s| s.is_on(&network.id)).map(|s| &s.name).collect();
    if !services.is_empty() {
        return Err(Error::Conflict(format!(
            "network {} is in use by {}",
            network.name,
            several("service", &services)
        )));
    }
    let mut ops = Vec::from(view::delete_network(&network.id));
    ops.extend(keys::last(view, |other| other.id == network.id));
    Ok((ops, ()))
}

pub(super) fn prune(view: &View) -> Decision<Vec<Name>> {
    let served = view.snapshot.services.values().flat_map(|s| &s.networks).map(|n| &n.network);
    let used: BTreeSet<_> =
        view.snapshot.endpoints.values().map(|e| &e.network).chain(served).collect();
    let unused = view.snapshot.networks.values().filter(|n| !used.contains(&n.id));
    let (ops, mut names): (Vec<_>, Vec<_>) =
        unused.map(|n| (view::delete_network(&n.id), n.name.clone())).unzip();
    names.sort();
    let mut ops: Vec<_> = ops.into_iter().flatten().collect();
    ops.extend(keys::last(view, |network| !used.contains(&network.id)));
    Ok((ops, names))
}

/// A repetition of the same request by the same workload gets the endpoint that
/// it has: a node that heard no answer may ask again.
pub(super) fn create_endpoint(view: &View, request: &CreateEndpoint) -> Decision<Endpoint> {
    let snapshot = &*view.snapshot;
    let network = find_network(snapshot, &request.network)?;
    let node = snapshot.nodes.get(&request.node);
    let node = node.ok_or_else(|| Error::NotFound(format!("no node {}", request.node)))?;
    if let Some(why) = validate::unable(node).filter(|_| network.encrypted) {
        return Err(Error::Conflict(format!("network {} is encrypted; {why}", network.name)));
    }
    let aliases = validate::aliases(&request.aliases)?;
    let service = request.serve.as_ref().map(|s| find_service(snapshot, &s.service)).transpose()?;
    let existing: Vec<_> = snapshot.endpoints_on(&network.id).collect();
    if let Some(own) = existing.iter().find(|e| e.workload == request.workload) {
        let same = own.node == request.node
            && own.name == request.name
            && own.aliases == aliases
            && own.task.as_ref().map(|t| &t.service) == service.map(|s| &s.id)
            && request.address.is_none_or(|address| address == own.address);
        return if same {
            Ok((vec![], (*own).clone()))
        } else {
            Err(Error::Conflict(format!(
                "workload {} is on network {} already",
                own.name, network.name
            )))
        };
    }
    if let Some(id) = request.id.as_ref().filter(|id| snapshot.endpoints.contains_key(id)) {
        return Err(Error::Conflict(format!("endpoint {id} exists already")));
    }
    names::for_workload(snapshot, network, [&request.name].into_iter().chain(&aliases))?;
    let task = match (&request.serve, service) {
        (Some(serve), Some(service)) => {
            Some(task::of(snapshot, service, serve, network, node, &request.workload)?)
        }
        _ => None,
    };
    let address = address(view, network, request.address)?;
    let endpoint = Endpoint {
        id: request.id.clone().unwrap_or_else(EndpointId::new),
        network: network.id.clone(),
        node: request.node.clone(),
        workload: request.workload.clone(),
        name: request.name.clone(),
        aliases,
        address,
        mac: Mac::of(address),
        task,
        created: now(),
    };
    let mut ops = vec![view::put_endpoint(&endpoint)];
    if request.address.is_none() {
        // One that was asked for says nothing of where to go on.
        ops.push(view::put_last_address(&network.id, address));
    }
    Ok((ops, endpoint))
}

/// An address of `network` for an endpoint or a service: the one asked for, if it is
/// free, or else the next.
pub(super) fn address(
    view: &View,
    network: &Network,
    asked: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, Error> {
    let Some(address) = asked else { return free_address(view, network) };
    let snapshot = &*view.snapshot;
    validate::address(address, network)?;
    let endpoint = snapshot.endpoints.values().find(|e| e.address == address);
    let service = snapshot.services.values().find(|s| s.vip_on(&network.id) == Some(address));
    let holder = match (endpoint, service) {
        (Some(endpoint), _) => list(snapshot, &[endpoint]),
        (None, Some(service)) => format!("service {}", service.name),
        (None, None) => return Ok(address),
    };
    Err(Error::Conflict(format!("address {address} is in use by {holder}")))
}

fn free_address(view: &View, network: &Network) -> Result<Ipv4Addr, Error> {
    let mut taken = validate::reserved(network);
    taken.extend(in_use(&view.snapshot, &network.id));
    let range = network.ip_range.unwrap_or(network.subnet);
    let cursor = view.last_address.get(&network.id).copied();
    allocate::address(network.subnet, range, cursor, &taken).ok_or_else(|| {
        Error::Conflict(format!("no address is free in {range} of network {}", network.name))
    })
}

/// Addresses of a network that endpoints and services have.
pub(super) fn in_use(snapshot: &Snapshot, network: &NetworkId) -> impl Iterator<Item = Ipv4Addr> {
    let endpoints = snapshot.endpoints.values().filter(move |e| e.network == *network);
    let vips = snapshot.services.values().filter_map(move |s| s.vip_on(network));
    endpoints.map(|e| e.address).chain(vips)
}

pub(super) fn remove_endpoint(view: &View, id: &EndpointId) -> Decision<()> {
    match view.snapshot.endpoints.get(id) {
        Some(_) => Ok((vec![view::delete_endpoint(id)], ())),
        None => Err(Error::NotFound(format!("no endpoint {id}"))),
    }
}

pub(super) fn admit(view: &View, id: &NodeId, role: Role, facts: &NodeFacts) -> Decision<()> {
    validate::newcomer(facts, &view.snapshot)?;
    Ok((vec![view::put_node(&node(id.clone(), role, facts.clone()))], ()))
}

/// A node's record from its facts.
pub(super) fn node(id: NodeId, role: Role, facts: NodeFacts) -> Node {
    let NodeFacts {
        hostname,
        address,
        local_address,
        mtu,
        datapath,
        version,
        routes,
        certificate,
        ipsec,
    } = facts;
    let (status, epoch) = (NodeStatus::Ready, 0);
    Node {
        id,
        hostname,
        role,
        address,
        local_address,
        mtu,
        datapath,
        version,
        status,
        routes,
        certificate,
        ipsec,
        epoch,
    }
}

/// A node has spoken: it is ready, and its facts are these.
pub(super) fn report(view: &View, id: &NodeId, facts: Option<&NodeFacts>) -> Decision<()> {
    let Some(old) = view.snapshot.nodes.get(id) else {
        return Err(Error::Forbidden(format!("node {id} is not a member of this cluster")));
    };
    let mut new = Node { status: NodeStatus::Ready, ..Node::clone(old) };
    if let Some(facts) = facts {
        validate::facts(facts)?;
        if facts.address != old.address {
            return Err(Error::Conflict(format!(
                "node {} joined with address {}, which it cannot change to {}: leave and join \
                 again",
                old.hostname, old.address, facts.address
            )));
        }
        new = Node { epoch: old.epoch, ..node(id.clone(), old.role, facts.clone()) };
        // An agent that does not tell of it has the one that it got when it joined.
        new.certificate = new.certificate.or_else(|| old.certificate.clone());
    }
    let ops = if new == **old { vec![] } else { vec![view::put_node(&new)] };
    Ok((ops, ()))
}

pub(super) fn mark_down(view: &View, silent: &BTreeSet<NodeId>) -> Decision<Vec<Node>> {
    let down = silent
        .iter()
        .filter_map(|id| view.snapshot.nodes.get(id))
        .map(|node| Node { status: NodeStatus::Down, ..Node::clone(node) });
    let nodes: Vec<_> = down.collect();
    Ok((nodes.iter().map(view::put_node).collect(), nodes))
}

/// Expels a node, and with it its endpoints.
pub(super) fn remove_node(view: &View, name_or_id: &str, force: bool) -> Decision<Node> {
    let snapshot = &*view.snapshot;
    let node = find_node(snapshot, name_or_id)?;
    if node.role == Role::Manager {
        return Err(Error::Conflict(format!(
            "node {} is the manager: `netagent cluster leave --force` there ends the cluster",
            node.hostname
        )));
    }
    if node.status == NodeStatus::Ready && !force {
        return Err(Error::Conflict(format!(
            "node {} is ready: run `netagent cluster leave` there, or expel it with --force",
            node.hostname
        )));
    }
    let own = snapshot.endpoints.values().filter(|e| e.node == node.id);
    let mut ops: Vec<_> = own.map(|e| view::delete_endpoint(&e.id)).collect();
    ops.push(view::delete_node(&node.id));
    // It knows the present keys.
    ops.extend(keys::renew(view, keys::rotation(view)));
    Ok((ops, node.clone()))
}

/// The network that is meant.
pub(super) fn find_network<'a>(
    snapshot: &'a Snapshot,
    name_or_id: &str,
) -> Result<&'a Network, Error> {
    snapshot.network(name_or_id).ok_or_else(|| Error::NotFound(format!("no network {name_or_id}")))
}

/// The node that is meant. Host names need not be unique.
///
/// # Errors
/// If there is none, or more than one.
pub fn find_node<'a>(snapshot: &'a Snapshot, name_or_id: &str) -> Result<&'a Node, Error> {
    let mut namesakes = snapshot.nodes.values().filter(|n| n.hostname == name_or_id);
    if let (Some(one), Some(other)) = (namesakes.next(), namesakes.next()) {
        return Err(Error::Conflict(format!(
            "several nodes are called {name_or_id}: name one by its identifier ({}, {}, ...)",
            one.id, other.id
        )));
    }
    snapshot.node(name_or_id).ok_or_else(|| Error::NotFound(format!("no node {name_or_id}")))
}

/// The service that is meant.
pub(super) fn find_service<'a>(
    snapshot: &'a Snapshot,
    name_or_id: &str,
) -> Result<&'a Service, Error> {
    snapshot.service(name_or_id).ok_or_else(|| Error::NotFound(format!("no service {name_or_id}")))
}

/// The endpoint with this identifier; its first twelve characters are enough.
///
/// # Errors
/// If there is none.
pub fn find_endpoint<'a>(snapshot: &'a Snapshot, id: &str) -> Result<&'a Endpoint, Error> {
    let found = snapshot.endpoints.values().find(|e| e.id.is_meant_by(id));
    found.ok_or_else(|| Error::NotFound(format!("no endpoint {id}")))
}

/// `web (10.0.0.2 on n1), ...`
pub(super) fn list(snapshot: &Snapshot, endpoints: &[&Endpoint]) -> String {
    let one = |e: &&Endpoint| {
        let node = snapshot.nodes.get(&e.node).map_or(e.node.as_str(), |n| n.hostname.as_str());
        format!("{} ({} on {node})", e.name, e.address)
    };
    let mut text: Vec<_> = endpoints.iter().take(NAMED).map(one).collect();
    if endpoints.len() > NAMED {
        text.push(format!("{} more", endpoints.len() - NAMED));
    }
    text.join(", ")
}

/// `service web`, `services a, b`
pub(super) fn several(kind: &str, names: &[&Name]) -> String {
    let mut text: Vec<_> = names.iter().take(NAMED).map(|name| name.to_string()).collect();
    if names.len() > NAMED {
        text.push(format!("{} more", names.len() - NAMED));
    }
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{kind}{plural} {}", text.join(", "))
}

/// The time in the form that objects carry.
pub(super) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
