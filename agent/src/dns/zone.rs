//! An index of one snapshot, made for lookups by name and by address. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::model::{Datapath, Name, NetworkId, Snapshot};

use super::services::{Location, Services};

/// What a name means to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It names endpoints with these addresses, in order of address.
    Addresses(Vec<Ipv4Addr>),
    /// It names a service, which may be without backends.
    Service {
        /// Its virtual address, or its backends'.
        addresses: Vec<Ipv4Addr>,
        /// Where its published ports are to be had.
        locations: Vec<Location>,
    },
    /// It is the reverse name of an endpoint's or service's address: `NAME.NETWORK`.
    Pointer(Name, Name),
    /// It exists and has no records: a network's own name.
    Nothing,
    /// It belongs to the cluster, or may not leave it, and does not exist.
    Missing,
    /// It is not the cluster's: the host's resolvers know.
    Elsewhere,
}

/// The names of one snapshot.
#[derive(Debug, Default)]
pub struct Zone {
    networks: BTreeMap<NetworkId, NetworkNames>,
    /// Blocks by first address; they are disjoint.
    subnets: BTreeMap<Ipv4Addr, (Ipv4Network, NetworkId)>,
}

#[derive(Debug)]
struct NetworkNames {
    name: Name,
    internal: bool,
    addresses: BTreeMap<Name, Vec<Ipv4Addr>>,
    services: Services,
    pointers: BTreeMap<Ipv4Addr, Name>,
}

impl Zone {
    /// Indexes a snapshot for the workloads of a node with this datapath.
    #[must_use]
    pub fn new(snapshot: &Snapshot, datapath: Datapath) -> Self {
        let mut zone = Self::default();
        for network in snapshot.networks.values() {
            let names = NetworkNames {
                name: network.name.clone(),
                internal: network.internal,
                addresses: BTreeMap::new(),
                services: Services::default(),
                pointers: BTreeMap::new(),
            };
            zone.networks.insert(network.id.clone(), names);
            let block = (network.subnet, network.id.clone());
            zone.subnets.insert(network.subnet.network(), block);
        }
        for endpoint in snapshot.endpoints.values() {
            let Some(network) = zone.networks.get_mut(&endpoint.network) else { continue };
            for name in std::iter::once(&endpoint.name).chain(&endpoint.aliases) {
                network.addresses.entry(name.clone()).or_default().push(endpoint.address);
            }
            network.pointers.insert(endpoint.address, endpoint.name.clone());
        }
        for ((service, network), backends) in snapshot.backends() {
            let service = &snapshot.services[service];
            let Some(network) = snapshot.networks.get(network) else { continue };
            let Some(names) = zone.networks.get_mut(&network.id) else { continue };
            names.services.add(service, network, &backends, datapath);
            let vip = service.vip_on(&network.id);
            names.pointers.extend(vip.map(|vip| (vip, service.name.clone())));
        }
        for addresses in zone.networks.values_mut().flat_map(|n| n.addresses.values_mut()) {
            addresses.sort_unstable();
            addresses.dedup();
        }
        zone
    }

    /// What the name with these `labels` (as on the wire, any case, without the
    /// root) means to a workload on the networks `asker`.
    ///
    /// A bare name is looked for network by network, in the order given, and the
    /// first that knows it answers: two applications that both have a `db` are
    /// not mixed. A service's name means the service before anything else. Names under a network of the asker's never leave the node, nor
    /// does the reverse name of any overlay address; a workload that is on
    /// internal networks alone has no way out, and so none for its questions.
    #[must_use]
    pub fn resolve(&self, labels: &[&[u8]], asker: &[NetworkId]) -> Found {
        if let Some(found) = reverse(labels).and_then(|address| self.pointer(address, asker)) {
            return found;
        }
        let own = || asker.iter().filter_map(|id| self.networks.get(id));
        let known = own().find_map(|network| network.find(labels)).or_else(|| {
            let (zone, labels) = labels.split_last()?;
            own().find(|network| network.is_called(zone)).map(|network| network.under(labels))
        });
        known.unwrap_or(if own().all(|network| network.internal) {
            Found::Missing
        } else {
            Found::Elsewhere
        })
    }

    /// None if the address is in no overlay network.
    fn pointer(&self, address: Ipv4Addr, asker: &[NetworkId]) -> Option<Found> {
        let (_, (subnet, id)) = self.subnets.range(..=address).next_back()?;
        if !subnet.contains(address) {
            return None;
        }
        let network = asker.contains(id).then(|| self.networks.get(id)).flatten();
        Some(match network.and_then(|n| Some((n.pointers.get(&address)?, n))) {
            Some((name, network)) => Found::Pointer(name.clone(), network.name.clone()),
            None => Found::Missing,
        })
    }
}

impl NetworkNames {
    fn is_called(&self, label: &[u8]) -> bool {
        self.name.as_str().as_bytes().eq_ignore_ascii_case(label)
    }

    fn find(&self, labels: &[&[u8]]) -> Option<Found> {
        self.services.find(labels).or_else(|| {
            let [label] = labels else { return None };
            let name: Name = std::str::from_utf8(label).ok()?.parse().ok()?;
            self.addresses.get(&name).cloned().map(Found::Addresses)
        })
    }

    /// What the name with these labels before the network's own means.
    fn under(&self, labels: &[&[u8]]) -> Found {
        match labels {
            [] => Found::Nothing,
            _ => self.find(labels).unwrap_or(Found::Missing),
        }
    }
}

/// The address that a whole reverse name (`4.3.2.1.in-addr.arpa`) stands for.
fn reverse(labels: &[&[u8]]) -> Option<Ipv4Addr> {
    let [d, c, b, a, in_addr, arpa] = labels else { return None };
    if !in_addr.eq_ignore_ascii_case(b"in-addr") || !arpa.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let octet = |label: &[u8]| -> Option<u8> {
        label
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| std::str::from_utf8(label).ok()?.parse().ok())?
    };
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

#[cfg(test)]
mod tests;
