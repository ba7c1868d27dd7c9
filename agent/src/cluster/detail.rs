//! What the API tells of one network or service. Pure.

use std::collections::BTreeSet;

use super::{Error, allocate, decide, validate};
use crate::api::types::{AddressUse, NetworkDetail, NetworkPeer, ServiceAddress, ServiceDetail};
use crate::model::Snapshot;

/// A network with all that concerns it.
///
/// # Errors
/// If there is none with this name or identifier.
pub fn network_detail(snapshot: &Snapshot, name_or_id: &str) -> Result<NetworkDetail, Error> {
    let network = decide::find_network(snapshot, name_or_id)?;
    let endpoints: Vec<_> = snapshot.endpoints_on(&network.id).cloned().collect();
    let range = network.ip_range.unwrap_or(network.subnet);
    let taken = decide::in_use(snapshot, &network.id).collect();
    let (total, used) = allocate::room(network.subnet, range, &validate::reserved(network), &taken);
    let nodes: BTreeSet<_> = endpoints.iter().map(|e| &e.node).collect();
    let peers = nodes.into_iter().filter_map(|id| snapshot.nodes.get(id)).map(|node| NetworkPeer {
        node: node.id.clone(),
        hostname: node.hostname.clone(),
        address: node.address,
    });
    let services = snapshot.services.values().filter(|s| s.is_on(&network.id));
    let services = services.map(|service| ServiceAddress {
        service: service.id.clone(),
        name: service.name.clone(),
        vip: service.vip_on(&network.id),
    });
    Ok(NetworkDetail {
        network: network.clone(),
        effective_mtu: snapshot.mtu(network),
        addresses: AddressUse { total, used },
        peers: peers.collect(),
        services: services.collect(),
        endpoints,
    })
}

/// A service with the endpoints that serve it, in order of name and address.
///
/// # Errors
/// If there is none with this name or identifier.
pub fn service_detail(snapshot: &Snapshot, name_or_id: &str) -> Result<ServiceDetail, Error> {
    let service = decide::find_service(snapshot, name_or_id)?;
    let mut tasks: Vec<_> = snapshot.tasks_of(&service.id).cloned().collect();
    tasks.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
    Ok(ServiceDetail { service: service.clone(), tasks })
}
