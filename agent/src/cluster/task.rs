//! What makes an endpoint the backend of a service, and what its node tells of it
//! later. Pure.

use std::collections::BTreeMap;

use super::decide::{Decision, list};
use super::view::{self, View};
use super::{Error, ports};
use crate::api::types::{Serve, UpdateEndpoint};
use crate::model::{
    Datapath, Endpoint, EndpointId, EndpointMode, Network, Node, NodeId, PublishMode, Service,
    Snapshot, Task, WorkloadId,
};

/// The task that a new endpoint of `workload` is.
///
/// # Errors
/// If the service is not on the network, or the node cannot run this task.
pub(super) fn of(
    snapshot: &Snapshot,
    service: &Service,
    serve: &Serve,
    network: &Network,
    node: &Node,
    workload: &WorkloadId,
) -> Result<Task, Error> {
    if !service.is_on(&network.id) {
        let on = service.networks.iter().filter_map(|n| snapshot.networks.get(&n.network));
        let on: Vec<_> = on.map(|n| n.name.as_str()).collect();
        return Err(Error::Conflict(format!(
            "service {} is not on network {}: it is on {}",
            service.name,
            network.name,
            on.join(", ")
        )));
    }
    carried_by(service, node)?;
    let other =
        snapshot.tasks_of(&service.id).find(|e| e.node == node.id && e.workload != *workload);
    if let (Some(port), Some(other)) = (host_port(service), other) {
        return Err(Error::Conflict(format!(
            "port {port} of node {} leads to {} already, of the same service {}: run this one on \
             another node, or publish the port with mode=ingress",
            node.hostname,
            list(snapshot, &[other]),
            service.name
        )));
    }
    let Serve { weight, health, .. } = *serve;
    Ok(Task { service: service.id.clone(), weight, health, draining: false })
}

/// Whether the tasks that a service has can go on with what it is to be.
///
/// # Errors
/// If one cannot, naming it.
pub(super) fn can_stay(snapshot: &Snapshot, service: &Service) -> Result<(), Error> {
    let mut first: BTreeMap<&NodeId, &Endpoint> = BTreeMap::new();
    for task in snapshot.tasks_of(&service.id) {
        let Some(node) = snapshot.nodes.get(&task.node) else { continue };
        carried_by(service, node)?;
        let other = *first.entry(&task.node).or_insert(task);
        if let Some(port) = host_port(service)
            && other.workload != task.workload
        {
            return Err(Error::Conflict(format!(
                "port {port} cannot be published with mode=host: node {} runs several tasks of \
                 service {}, {}",
                node.hostname,
                service.name,
                list(snapshot, &[other, task])
            )));
        }
    }
    Ok(())
}

fn carried_by(service: &Service, node: &Node) -> Result<(), Error> {
    if service.endpoint_mode == EndpointMode::Vip && node.datapath == Datapath::Kernel {
        return Err(Error::Conflict(format!(
            "node {} runs with --datapath kernel, which carries no virtual addresses: it can run \
             no task of service {}; run it on another node, or give the service \
             --endpoint-mode dnsrr",
            node.hostname, service.name
        )));
    }
    Ok(())
}

/// A port of the service that each node can give to one task only.
fn host_port(service: &Service) -> Option<String> {
    service.ports.iter().find(|p| p.mode == PublishMode::Host).map(ports::text)
}

/// What a node tells of an endpoint that serves.
pub(super) fn update(view: &View, id: &EndpointId, update: &UpdateEndpoint) -> Decision<Endpoint> {
    let (new, changed) = updated(&view.snapshot, id, update)?;
    let ops = if changed { vec![view::put_endpoint(&new)] } else { vec![] };
    Ok((ops, new))
}

/// An endpoint with this change, and whether it makes a difference.
///
/// # Errors
/// If there is none, or if it serves nothing.
pub(super) fn updated(
    snapshot: &Snapshot,
    id: &EndpointId,
    update: &UpdateEndpoint,
) -> Result<(Endpoint, bool), Error> {
    let endpoint = snapshot.endpoints.get(id);
    let old = endpoint.ok_or_else(|| Error::NotFound(format!("no endpoint {id}")))?;
    let mut new = old.clone();
    let Some(task) = &mut new.task else {
        return Err(Error::Conflict(format!(
            "{} serves no service: it has no weight, health or drain",
            list(snapshot, &[old])
        )));
    };
    update.apply(task);
    let changed = new != *old;
    Ok((new, changed))
}
