//! What requests about services do to the store. Pure but for new identifiers and the
//! clock, as [`decide`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::decide::{self, Decision, find_network, find_service, list};
use super::view::{self, View};
use super::{Error, names, ports, task, validate};
use crate::api::types::{CreateService, UpdateService};
use crate::model::{EndpointMode, Name, Network, Service, ServiceId, ServiceNetwork, Snapshot};
use crate::store::Op;

/// Networks of a service: the snapshot travels to every node.
const MOST_NETWORKS: usize = 64;
/// Times in seconds that a service can have, up to what IPVS takes: 31 days.
const TIMES: RangeInclusive<u32> = 1..=31 * 24 * 3600;

pub(super) fn create(view: &View, request: &CreateService) -> Decision<Service> {
    let snapshot = &*view.snapshot;
    let networks = networks(view, request)?;
    let on = networks.iter().map(|n| ServiceNetwork { network: n.id.clone(), vip: None });
    let mut service = Service {
        id: ServiceId::new(),
        name: request.name.clone(),
        aliases: vec![],
        networks: on.collect(),
        endpoint_mode: request.endpoint_mode,
        ports: vec![],
        scheduler: request.scheduler,
        affinity: request.affinity.filter(|seconds| *seconds > 0),
        idle_timeout: request.idle_timeout.unwrap_or(Service::IDLE_TIMEOUT),
        prefer: request.prefer,
        labels: request.labels.clone(),
        created: decide::now(),
    };
    give_aliases(snapshot, &mut service, &request.aliases)?;
    check(&service)?;
    let last = ports::publish(snapshot, &mut service, &request.ports, view.last_port)?;
    ports::fit_mode(&service)?;
    let mut ops = ports_given(view, last);
    ops.extend(give_addresses(view, &mut service, request.vip)?);
    ops.push(view::put_service(&service));
    Ok((ops, service))
}

fn networks<'a>(view: &'a View, request: &CreateService) -> Result<Vec<&'a Network>, Error> {
    if request.networks.is_empty() || request.networks.len() > MOST_NETWORKS {
        return Err(Error::Invalid(format!(
            "service {} is on {} networks: 1 to {MOST_NETWORKS} are possible, choose with --network",
            request.name,
            request.networks.len()
        )));
    }
    let named = request.networks.iter().map(|name| find_network(&view.snapshot, name));
    let networks = named.collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    match networks.iter().find(|n| !seen.insert(&n.id)) {
        Some(twice) => Err(Error::Invalid(format!("network {} is given twice", twice.name))),
        None => Ok(networks),
    }
}

pub(super) fn update(view: &View, name_or_id: &str, request: &UpdateService) -> Decision<Service> {
    let snapshot = &*view.snapshot;
    let old = find_service(snapshot, name_or_id)?;
    let mut new = old.clone();
    new.scheduler = request.scheduler.unwrap_or(new.scheduler);
    new.prefer = request.prefer.unwrap_or(new.prefer);
    new.idle_timeout = request.idle_timeout.unwrap_or(new.idle_timeout);
    match request.affinity {
        None => {}
        Some(0) => new.affinity = None,
        seconds => new.affinity = seconds,
    }
    new.labels.retain(|key, _| !request.label_rm.contains(key));
    new.labels.extend(request.label_add.clone());
    new.endpoint_mode = request.endpoint_mode.unwrap_or(new.endpoint_mode);
    if let Some(unknown) = request.alias_rm.iter().find(|alias| !new.aliases.contains(alias)) {
        return Err(Error::NotFound(format!("service {} has no alias {unknown}", new.name)));
    }
    let mut aliases = std::mem::take(&mut new.aliases);
    aliases.retain(|alias| !request.alias_rm.contains(alias));
    aliases.extend(request.alias_add.iter().cloned());
    give_aliases(snapshot, &mut new, &aliases)?;
    check(&new)?;
    ports::withdraw(&mut new, &request.publish_rm)?;
    let last = ports::publish(snapshot, &mut new, &request.publish_add, view.last_port)?;
    ports::fit_mode(&new)?;
    task::can_stay(snapshot, &new)?;
    let mut ops = ports_given(view, last);
    ops.extend(give_addresses(view, &mut new, request.vip)?);
    if new != *old {
        ops.push(view::put_service(&new));
    }
    Ok((ops, new))
}

/// Its endpoints, if `force` leaves some, go on without it.
pub(super) fn remove(view: &View, name_or_id: &str, force: bool) -> Decision<Service> {
    let snapshot = &*view.snapshot;
    let service = find_service(snapshot, name_or_id)?;
    let tasks: Vec<_> = snapshot.tasks_of(&service.id).collect();
    if !tasks.is_empty() && !force {
        return Err(Error::Conflict(format!(
            "service {} is served by {}: end them, or remove it with --force, after which they \
             serve nothing",
            service.name,
            list(snapshot, &tasks)
        )));
    }
    let detached = tasks.into_iter().map(|task| {
        let mut endpoint = task.clone();
        endpoint.task = None;
        view::put_endpoint(&endpoint)
    });
    let mut ops: Vec<_> = detached.collect();
    ops.push(view::delete_service(&service.id));
    Ok((ops, service.clone()))
}

/// What does not depend on the rest of the cluster.
fn check(service: &Service) -> Result<(), Error> {
    validate::labels("service", &service.labels)?;
    let times = [("affinity", service.affinity), ("idle timeout", Some(service.idle_timeout))];
    for (what, seconds) in times {
        if let Some(seconds) = seconds.filter(|seconds| !TIMES.contains(seconds)) {
            return Err(Error::Invalid(format!(
                "{what} {seconds} s: from {} to {} seconds are possible",
                TIMES.start(),
                TIMES.end()
            )));
        }
    }
    Ok(())
}

/// Gives the service these aliases, its own name excepted.
fn give_aliases(snapshot: &Snapshot, service: &mut Service, given: &[Name]) -> Result<(), Error> {
    service.aliases = validate::aliases(given)?;
    service.aliases.retain(|alias| *alias != service.name);
    names::for_service(snapshot, service)
}

/// Gives the service the virtual addresses that its mode wants and it has not, above all the
/// one that is `asked` for, and takes those away that it does not want.
fn give_addresses(
    view: &View,
    service: &mut Service,
    asked: Option<Ipv4Addr>,
) -> Result<Vec<Op>, Error> {
    if let Some(vip) = asked {
        ask_for(view, service, vip)?;
    }
    let mut ops = vec![];
    for ServiceNetwork { network: id, vip } in &mut service.networks {
        match (service.endpoint_mode, &vip) {
            (EndpointMode::Dnsrr, _) => *vip = None,
            (EndpointMode::Vip, Some(_)) => {}
            (EndpointMode::Vip, None) => {
                let network = find_network(&view.snapshot, id.as_str())?;
                let address = decide::address(view, network, None)?;
                *vip = Some(address);
                ops.push(view::put_last_address(id, address));
            }
        }
    }
    Ok(ops)
}

fn ask_for(view: &View, service: &mut Service, vip: Ipv4Addr) -> Result<(), Error> {
    match &mut service.networks[..] {
        _ if service.endpoint_mode == EndpointMode::Dnsrr => Err(Error::Invalid(format!(
            "virtual address {vip}: a service of --endpoint-mode dnsrr has none"
        ))),
        [on] if on.vip == Some(vip) => Ok(()),
        [on] => {
            let network = find_network(&view.snapshot, on.network.as_str())?;
            on.vip = Some(decide::address(view, network, Some(vip))?);
            Ok(())
        }
        all => Err(Error::Invalid(format!(
            "virtual address {vip} can be asked for on a service of one network; this one is on {}",
            all.len()
        ))),
    }
}

fn ports_given(view: &View, last: Option<u16>) -> Vec<Op> {
    let moved = last.filter(|_| last != view.last_port);
    moved.map(view::put_last_port).into_iter().collect()
}

#[cfg(test)]
mod tests;
