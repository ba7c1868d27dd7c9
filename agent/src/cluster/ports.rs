//! Published ports: which can be, which collide, which are free. A port of the nodes
//! leads to one service, whatever the mode. Pure.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::validate::{self, MOST_PORTS, MOST_SOURCES};
use super::{Error, PORT};
use crate::api::types::{PortRef, Publish};
use crate::model::{
    ClusterInfo, EndpointMode, Protocol, PublishMode, PublishedPort, Service, ServiceId, Snapshot,
};

/// Where ports that no request names are taken from: Docker's range.
const FREE: RangeInclusive<u16> = 30000..=32767;

/// Takes the ports that `gone` names away from a service.
///
/// # Errors
/// If it does not publish one of them.
pub(super) fn withdraw(service: &mut Service, gone: &[PortRef]) -> Result<(), Error> {
    for PortRef { target, protocol } in gone {
        let before = service.ports.len();
        service.ports.retain(|p| (p.target, p.protocol) != (*target, *protocol));
        if service.ports.len() == before {
            return Err(Error::NotFound(format!(
                "service {} publishes nothing for target port {target}/{protocol}",
                service.name
            )));
        }
    }
    Ok(())
}

/// Gives `service` the ports that `wanted` names; one with the same published port,
/// transport and address takes the place of what is there. `last` is the port that was
/// given last to one who named none. Returns what is the last one then.
///
/// # Errors
/// If one cannot be, or is another service's, naming it.
pub(super) fn publish(
    snapshot: &Snapshot,
    service: &mut Service,
    wanted: &[Publish],
    mut last: Option<u16>,
) -> Result<Option<u16>, Error> {
    let mut added = vec![];
    // Those that are named first, so that no other gets their port.
    for publish in wanted.iter().filter(|p| p.published.is_some()) {
        let port = checked(snapshot, publish, publish.published.unwrap_or_default())?;
        if let Some(twin) = added.iter().find(|other| collide(other, &port)) {
            return Err(Error::Invalid(format!(
                "published port {} is given twice: also as {}",
                text(&port),
                text(twin)
            )));
        }
        service.ports.retain(|p| place(p) != place(&port));
        added.push(port);
    }
    for port in &added {
        must_be_free(snapshot, service, port)?;
    }
    service.ports.append(&mut added);
    for publish in wanted.iter().filter(|p| p.published.is_none()) {
        let (port, given) = free(snapshot, service, publish, last)?;
        service.ports.push(port);
        last = Some(given);
    }
    if service.ports.len() > MOST_PORTS {
        return Err(Error::Invalid(format!("a service has at most {MOST_PORTS} published ports")));
    }
    Ok(last)
}

/// Whether the service's mode can have its ports.
///
/// # Errors
/// If not, naming the port.
pub(super) fn fit_mode(service: &Service) -> Result<(), Error> {
    let ingress = service.ports.iter().find(|p| p.mode == PublishMode::Ingress);
    match ingress {
        Some(port) if service.endpoint_mode == EndpointMode::Dnsrr => Err(Error::Invalid(format!(
            "port {} of service {} cannot be published in mode ingress: that leads to a \
                 virtual address, which endpoint mode dnsrr has not; publish it with mode=host, \
                 or take --endpoint-mode vip",
            text(port),
            service.name
        ))),
        _ => Ok(()),
    }
}

/// `8080/tcp`, `192.168.50.11:8080/tcp`
pub(super) fn text(port: &PublishedPort) -> String {
    let PublishedPort { published, protocol, .. } = port;
    match port.address {
        Some(address) => format!("{address}:{published}/{protocol}"),
        None => format!("{published}/{protocol}"),
    }
}

fn checked(snapshot: &Snapshot, publish: &Publish, published: u16) -> Result<PublishedPort, Error> {
    let Publish { target, protocol, mode, .. } = *publish;
    if published == 0 || target == 0 {
        return Err(Error::Invalid(format!(
            "{published}:{target}/{protocol}: ports are from 1 to 65535"
        )));
    }
    let vxlan = snapshot.cluster.as_ref().map(|c| c.data_path_port);
    let encrypted = snapshot.cluster.as_ref().map(ClusterInfo::encrypted_port);
    let own = match protocol {
        Protocol::Tcp if published == PORT => Some("managers listen there for the other nodes"),
        Protocol::Udp if Some(published) == vxlan => Some("it carries the networks (VXLAN)"),
        Protocol::Udp if Some(published) == encrypted => {
            Some("it carries the encrypted networks (VXLAN)")
        }
        _ => None,
    };
    if let Some(reason) = own {
        return Err(Error::Conflict(format!(
            "port {published}/{protocol} is the cluster's own: {reason}; publish another"
        )));
    }
    // The way in which people write "all of them".
    let address = publish.address.filter(|a| !a.is_unspecified());
    if let Some(address) = address {
        node_address(snapshot, address)?;
    }
    let mut allow = publish.allow.clone();
    allow.sort();
    allow.dedup();
    if allow.len() > MOST_SOURCES {
        return Err(Error::Invalid(format!(
            "port {published}/{protocol}: a port has at most {MOST_SOURCES} allowed sources"
        )));
    }
    for source in &allow {
        validate::aligned("allowed source", *source)?;
    }
    Ok(PublishedPort { published, target, protocol, mode, address, allow })
}

/// Whether this could be an address of a node.
fn node_address(snapshot: &Snapshot, address: Ipv4Addr) -> Result<(), Error> {
    if address.is_multicast() || address.is_broadcast() {
        return Err(Error::Invalid(format!("{address} cannot be an address of a node")));
    }
    if address.is_loopback() && address != Ipv4Addr::LOCALHOST {
        return Err(Error::Invalid(format!(
            "nothing answers at {address}: of the loopback addresses, ports are published at \
             127.0.0.1"
        )));
    }
    match snapshot.networks.values().find(|n| n.subnet.contains(address)) {
        Some(network) => Err(Error::Invalid(format!(
            "{address} is in network {}: ports are published at addresses of the nodes",
            network.name
        ))),
        None => Ok(()),
    }
}

fn free(
    snapshot: &Snapshot,
    service: &Service,
    publish: &Publish,
    last: Option<u16>,
) -> Result<(PublishedPort, u16), Error> {
    let start =
        last.filter(|l| FREE.contains(l) && l < FREE.end()).map_or(*FREE.start(), |l| l + 1);
    for published in (start..=*FREE.end()).chain(*FREE.start()..start) {
        // A cluster's own port may lie in the range.
        let Ok(port) = checked(snapshot, publish, published) else { continue };
        if holder(snapshot, service, &port).is_none() {
            return Ok((port, published));
        }
    }
    // Nothing is free, or nothing of what is wanted can be: then this says so.
    checked(snapshot, publish, *FREE.start())?;
    Err(Error::Conflict(format!(
        "no {} port from {} to {} is free: name one",
        publish.protocol,
        FREE.start(),
        FREE.end()
    )))
}

fn must_be_free(snapshot: &Snapshot, service: &Service, port: &PublishedPort) -> Result<(), Error> {
    match holder(snapshot, service, port) {
        None => Ok(()),
        Some((other, taken)) => Err(Error::Conflict(format!(
            "port {} is published by service {} already{}: choose another",
            text(port),
            other.name,
            if text(taken) == text(port) { String::new() } else { format!(" ({})", text(taken)) }
        ))),
    }
}

/// Which service has a port that collides with this one.
fn holder<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
    port: &PublishedPort,
) -> Option<(&'a Service, &'a PublishedPort)> {
    let id: &ServiceId = &service.id;
    let others = snapshot.services.values().filter(move |s| s.id != *id);
    let mut taken = others.chain([service]).flat_map(|s| s.ports.iter().map(move |p| (s, p)));
    taken.find(|(_, other)| collide(other, port))
}

/// Whether a packet could be meant for both.
fn collide(a: &PublishedPort, b: &PublishedPort) -> bool {
    let apart = matches!((a.address, b.address), (Some(a), Some(b)) if a != b);
    (a.protocol, a.published) == (b.protocol, b.published) && !apart
}

/// What two ports must not have in common, or one replaces the other.
fn place(port: &PublishedPort) -> (u16, Protocol, Option<Ipv4Addr>) {
    (port.published, port.protocol, port.address)
}
