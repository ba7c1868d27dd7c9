//! Whose a name is. On one network a name means either workloads or one service,
//! never both: a client that asks for a service must not get a stray workload. Pure.

use super::Error;
use super::decide::list;
use crate::model::{Name, Network, Service, Snapshot};

/// `tasks.NAME` are the backends of service NAME.
const TASKS: &str = "tasks";

/// Whether a workload can have these names on this network.
///
/// # Errors
/// If one is a service's, naming it.
pub(super) fn for_workload<'a>(
    snapshot: &Snapshot,
    network: &Network,
    names: impl IntoIterator<Item = &'a Name>,
) -> Result<(), Error> {
    let services: Vec<_> = snapshot.services.values().filter(|s| s.is_on(&network.id)).collect();
    for name in names {
        if let Some(service) = services.iter().find(|s| s.names().any(|n| n == name)) {
            return Err(Error::Conflict(format!(
                "name {name} means service {} on network {}: give the workload another",
                service.name, network.name
            )));
        }
    }
    Ok(())
}

/// Whether a service, which may be there already, can have its names on its networks.
///
/// # Errors
/// If one is taken, naming by whom.
pub(super) fn for_service(snapshot: &Snapshot, service: &Service) -> Result<(), Error> {
    let others = || snapshot.services.values().filter(|s| s.id != service.id);
    if others().any(|s| s.name == service.name) {
        return Err(Error::Conflict(format!("service {} exists", service.name)));
    }
    if service.names().any(|n| n.as_str() == TASKS) {
        return Err(Error::Invalid(format!(
            "a service cannot be called {TASKS}: {TASKS}.NAME are the backends of service NAME"
        )));
    }
    let shared = |theirs: &Name| service.names().any(|own| own == theirs);
    for network in service.networks.iter().filter_map(|on| snapshot.networks.get(&on.network)) {
        let mut there = others().filter(|s| s.is_on(&network.id));
        if let Some((other, name)) =
            there.find_map(|s| s.names().find(|n| shared(n)).map(|n| (s, n)))
        {
            return Err(Error::Conflict(format!(
                "name {name} means service {} on network {}: choose another",
                other.name, network.name
            )));
        }
        let mut endpoints = snapshot.endpoints_on(&network.id);
        let taken = endpoints.find_map(|e| {
            [&e.name].into_iter().chain(&e.aliases).find(|n| shared(n)).map(|n| (e, n))
        });
        if let Some((endpoint, name)) = taken {
            return Err(Error::Conflict(format!(
                "name {name} means workload {} on network {}: choose another for the service, or \
                 end the workload",
                list(snapshot, &[endpoint]),
                network.name
            )));
        }
    }
    Ok(())
}
