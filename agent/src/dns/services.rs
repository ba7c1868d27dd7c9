//! The names of services on one network, and what each of their forms means:
//!
//! ```text
//! web                    the virtual address, or the backends where there is none
//! tasks.web              the backends
//! _80._tcp.web           SRV of published ports by their target (RFC 2782); of tasks.web too
//! 10-0-0-5.tasks.web     one backend, as SRV records call it
//! ```
//!
//! Backends are those that may take new connections; the others are never named. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::model::{Backend, Datapath, Name, Network, Protocol, Service};

use super::zone::Found;

/// Where a service is to be had: what an SRV record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Name that resolves to `address` alone, without the root.
    pub host: String,
    /// Address.
    pub address: Ipv4Addr,
    /// Port there, host order.
    pub port: u16,
    /// Share beside that of the others; 0 if there are none.
    pub weight: u16,
}

/// The services on one network.
#[derive(Debug, Default)]
pub(super) struct Services {
    all: Vec<Served>,
    /// By name and alias, which no two of a network share.
    by_name: BTreeMap<Name, usize>,
}

/// A service on this network.
#[derive(Debug)]
struct Served {
    vip: Option<Instance>,
    backends: Vec<Instance>,
    /// Target ports of what is published.
    ports: BTreeSet<(Protocol, u16)>,
}

#[derive(Clone, Debug)]
struct Instance {
    host: String,
    address: Ipv4Addr,
    weight: u16,
}

impl Services {
    /// Adds one that is on `network`, with its backends there. A node whose datapath knows
    /// no virtual addresses names the backends instead.
    pub(super) fn add(
        &mut self,
        service: &Service,
        network: &Network,
        backends: &[Backend<'_>],
        datapath: Datapath,
    ) {
        let index = self.all.len();
        self.by_name.extend(service.names().map(|name| (name.clone(), index)));
        let vip = service.vip_on(&network.id).filter(|_| datapath == Datapath::Ebpf);
        self.all.push(Served::new(service, network, vip, backends));
    }

    /// What the name with these labels means, if it is one of a service.
    pub(super) fn find(&self, labels: &[&[u8]]) -> Option<Found> {
        let (name, form) = labels.split_last()?;
        let index = self.by_name.get(&std::str::from_utf8(name).ok()?.parse().ok()?)?;
        let served = &self.all[*index];
        Some(match form {
            [] => served.found(served.called()),
            [tasks] if is_tasks(tasks) => served.found(&served.backends),
            [host, tasks] if is_tasks(tasks) => served.host(host),
            [port, protocol] => served.located(port, protocol, served.called())?,
            [port, protocol, tasks] if is_tasks(tasks) => {
                served.located(port, protocol, &served.backends).unwrap_or(Found::Missing)
            }
            [.., tasks] if is_tasks(tasks) => Found::Missing,
            _ => return None,
        })
    }
}

impl Served {
    fn new(
        service: &Service,
        network: &Network,
        vip: Option<Ipv4Addr>,
        backends: &[Backend<'_>],
    ) -> Self {
        let host = format!("{}.{}", service.name, network.name);
        let eligible = backends.iter().filter(|backend| backend.eligible);
        let task = eligible.map(|Backend { endpoint, .. }| Instance {
            host: format!("{}.tasks.{host}", endpoint.address.to_string().replace('.', "-")),
            address: endpoint.address,
            weight: endpoint.task.as_ref().map_or(0, |task| task.weight),
        });
        Self {
            backends: task.collect(),
            vip: vip.map(|address| Instance { host, address, weight: 0 }),
            ports: service.ports.iter().map(|port| (port.protocol, port.target)).collect(),
        }
    }

    /// What its name stands for.
    fn called(&self) -> &[Instance] {
        self.vip.as_ref().map_or(&self.backends, std::slice::from_ref)
    }

    fn found(&self, instances: &[Instance]) -> Found {
        let ports: BTreeSet<u16> = self.ports.iter().map(|(_, port)| *port).collect();
        Found::Service {
            addresses: instances.iter().map(|instance| instance.address).collect(),
            locations: ports.into_iter().flat_map(|port| at(port, instances)).collect(),
        }
    }

    /// The one backend with the address that `label` spells with dashes.
    fn host(&self, label: &[u8]) -> Found {
        let spelt = || std::str::from_utf8(label).ok()?.replace('-', ".").parse().ok();
        let address: Option<Ipv4Addr> = spelt();
        let backend = self.backends.iter().find(|backend| Some(backend.address) == address);
        backend.map_or(Found::Missing, |backend| Found::Addresses(vec![backend.address]))
    }

    /// None if these are not labels of an SRV name.
    fn located(&self, port: &[u8], protocol: &[u8], instances: &[Instance]) -> Option<Found> {
        let text = |label: &[u8]| Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
        let (port, protocol) = (text(port)?, text(protocol)?);
        let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
        let mut offers = self.ports.iter();
        let offer = offers.find(|(p, n)| p.to_string() == protocol && n.to_string() == port);
        Some(offer.map_or(Found::Missing, |(_, port)| Found::Service {
            addresses: Vec::new(),
            locations: at(*port, instances).collect(),
        }))
    }
}

fn is_tasks(label: &[u8]) -> bool {
    label.eq_ignore_ascii_case(b"tasks")
}

fn at(port: u16, instances: &[Instance]) -> impl Iterator<Item = Location> {
    instances.iter().cloned().map(move |Instance { host, address, weight }| Location {
        host,
        address,
        port,
        weight,
    })
}

#[cfg(test)]
mod tests;
