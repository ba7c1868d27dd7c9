//! Whose a name is. On one network a name means either workloads or one service,
//! never both: a client that asks for a service must not get a stray workload. Pure.

use super::Error;
use super::decide::list;
use crate::model::{Name, Network, Snapshot};

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

/// Whether a new service can have this name and these aliases on these networks.
///
/// # Errors
/// If one is taken, naming by whom.
pub(super) fn for_service(
    snapshot: &Snapshot,
    name: &Name,
    aliases: &[Name],
    networks: &[&Network],
) -> Result<(), Error> {
    if snapshot.services.values().any(|s| s.name == *name) {
        return Err(Error::Conflict(format!("service {name} exists")));
    }
    let names = || [name].into_iter().chain(aliases);
    if names().any(|n| n.as_str() == TASKS) {
        return Err(Error::Invalid(format!(
            "a service cannot be called {TASKS}: {TASKS}.NAME are the backends of service NAME"
        )));
    }
    for network in networks {
        let mut services = snapshot.services.values().filter(|s| s.is_on(&network.id));
        let shared = |theirs: &Name| names().any(|own| own == theirs);
        if let Some((other, name)) =
            services.find_map(|s| s.names().find(|n| shared(n)).map(|n| (s, n)))
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
