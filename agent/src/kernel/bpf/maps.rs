//! Entries of the pinned maps, as state and back. Links are names there and indexes
//! here; an index without a link is the name `#INDEX`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key as Prefix;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray};
use ipnetwork::Ipv4Network;
use netagent_common::{
    Config, Count, Counter, Endpoint, EndpointKey, Network, Peer, Port, Published, SlotKey,
    SubnetKey, maps as names,
};

use crate::model::{Mac, Vni};
use crate::plan::{Key, MapKey, State, Value};

use super::pins::{Pins, map_info, open_map};
use super::services::{Services, gone};

/// The pinned maps, open.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    networks: HashMap<MapData, u32, Network>,
    subnets: LpmTrie<MapData, SubnetKey, u32>,
    peers: HashMap<MapData, [u8; 4], Peer>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    ports: HashMap<MapData, u32, Port>,
    encrypted: HashMap<MapData, u32, u32>,
    services: Services,
}

/// Names of the host's links that an entry refers to.
pub(in crate::kernel) fn links_in<'a>(key: &'a MapKey, value: &'a Value) -> Vec<&'a str> {
    match (key, value) {
        (_, Value::Config { uplink, vxlan, lb, .. }) => {
            [uplink, vxlan].into_iter().chain(lb).map(String::as_str).collect()
        }
        (_, Value::Endpoint { link: Some(link), .. } | Value::Through(Some(link)))
        | (MapKey::Port(link), _) => vec![link],
        _ => vec![],
    }
}

impl Maps {
    /// `None` if a map is missing.
    pub(super) fn open(pins: &Pins) -> Result<Option<Self>> {
        if names::ALL.iter().any(|name| !pins.map(name).exists()) {
            return Ok(None);
        }
        let open = |name: &str| open_map(pins, name);
        Ok(Some(Self {
            config: of(names::CONFIG, open(names::CONFIG)?.try_into())?,
            networks: of(names::NETWORKS, open(names::NETWORKS)?.try_into())?,
            subnets: of(names::SUBNETS, open(names::SUBNETS)?.try_into())?,
            peers: of(names::PEERS, open(names::PEERS)?.try_into())?,
            endpoints: of(names::ENDPOINTS, open(names::ENDPOINTS)?.try_into())?,
            ports: of(names::PORTS, open(names::PORTS)?.try_into())?,
            encrypted: of(names::ENCRYPTED, open(names::ENCRYPTED)?.try_into())?,
            services: Services::open(open)?,
        }))
    }

    /// Adds all entries to `state`; `links` has the host's links by index.
    pub(super) fn observe(&self, links: &BTreeMap<u32, String>, state: &mut State) -> Result<()> {
        let name = |index: u32| links.get(&index).cloned().unwrap_or_else(|| format!("#{index}"));
        let mut add = |key, value| drop(state.insert(Key::Map(key), value));
        let config = self.config.get(&0, 0)?;
        if config != Config::default() {
            let (uplink, vxlan) = (name(config.uplink), name(config.vxlan));
            let value = Value::Config {
                uplink,
                vxlan,
                vtep: config.vtep.into(),
                advertised: config.advertised.into(),
                port: config.port(),
                neighbour_bits: config.neighbour_bits(),
                lb: (config.lb != 0).then(|| name(config.lb)),
                encrypted: config.encrypted_port(),
            };
            add(MapKey::Config, value);
        }
        for entry in self.encrypted.iter() {
            let (vni, index) = entry?;
            let link = (index != 0).then(|| name(index));
            add(MapKey::Encrypted(Vni(vni)), Value::Through(link));
        }
        for entry in self.networks.iter() {
            let (vni, network) = entry?;
            let (gateway, mtu) = (network.gateway.into(), mtu(network.mtu));
            add(MapKey::Network(Vni(vni)), Value::Network { gateway, mtu });
        }
        for entry in self.subnets.iter() {
            let (prefix, vni) = entry?;
            let length = u8::try_from(prefix.prefix_len()).unwrap_or(u8::MAX);
            let subnet = Ipv4Network::new(prefix.data().ip.into(), length)?;
            add(MapKey::Subnet(subnet), Value::Vni(Vni(vni)));
        }
        for entry in self.peers.iter() {
            let (vtep, peer) = entry?;
            add(MapKey::Peer(vtep.into()), Value::Peer { in_udp: peer.is_in_udp() });
        }
        for entry in self.endpoints.iter() {
            let (key, endpoint) = entry?;
            let link = (endpoint.ifindex != 0).then(|| name(endpoint.ifindex));
            let (mac, vtep) = (Mac(endpoint.mac), endpoint.vtep.into());
            let (serves, eligible) = (endpoint.serves.into(), endpoint.is_eligible());
            let value = match endpoint.is_vip() {
                true => Value::Vip(mac),
                false => Value::Endpoint { mac, link, vtep, serves, eligible },
            };
            add(MapKey::Endpoint(Vni(key.vni), key.ip()), value);
        }
        for entry in self.ports.iter() {
            let (index, port) = entry?;
            let value = Value::Port {
                vni: Vni(port.vni),
                ip: port.ip.into(),
                mac: Mac(port.mac),
                mtu: mtu(port.mtu),
                internal: port.flags & Port::INTERNAL != 0,
                backend: port.flags & Port::BACKEND != 0,
                gateway: port.gateway.into(),
            };
            add(MapKey::Port(name(index)), value);
        }
        self.services.observe(state)
    }

    /// Writes an entry; `indexes` has those of [`links_in`] it.
    pub(super) fn put(
        &mut self,
        key: &MapKey,
        value: &Value,
        indexes: &BTreeMap<String, u32>,
    ) -> Result<()> {
        let index = |link: &str| {
            indexes.get(link).copied().with_context(|| format!("there is no link {link}"))
        };
        match (key, value) {
            (
                MapKey::Config,
                Value::Config {
                    uplink,
                    vxlan,
                    vtep,
                    advertised,
                    port,
                    neighbour_bits,
                    lb,
                    encrypted,
                },
            ) => {
                let lb = lb.as_deref().map(index).transpose()?.unwrap_or(0);
                let config = Config::new(index(uplink)?, index(vxlan)?, *vtep, *port)
                    .advertised_as(*advertised)
                    .with_neighbours(*neighbour_bits)
                    .with_scheduler(lb)
                    .with_encrypted(encrypted.unwrap_or(0));
                self.config.set(0, config, 0)?;
            }
            (MapKey::Encrypted(vni), Value::Through(link)) => {
                let device = link.as_deref().map(index).transpose()?.unwrap_or(0);
                self.encrypted.insert(vni.0, device, 0)?;
            }
            (MapKey::Network(vni), Value::Network { gateway, mtu }) => {
                let network = Network { gateway: gateway.octets(), mtu: (*mtu).into() };
                self.networks.insert(vni.0, network, 0)?;
            }
            (MapKey::Subnet(subnet), Value::Vni(vni)) => {
                self.subnets.insert(&prefix(*subnet), vni.0, 0)?;
            }
            (MapKey::Peer(vtep), Value::Peer { in_udp }) => {
                self.peers.insert(vtep.octets(), Peer::new(*in_udp), 0)?;
            }
            (MapKey::Endpoint(vni, ip), Value::Endpoint { mac, link, vtep, serves, eligible }) => {
                let endpoint = match link {
                    Some(link) => Endpoint::local(mac.0, index(link)?, *vtep),
                    None => Endpoint::remote(mac.0, *vtep),
                };
                let endpoint = endpoint.serving(*serves, *eligible);
                self.endpoints.insert(EndpointKey::new(vni.0, *ip), endpoint, 0)?;
            }
            (MapKey::Endpoint(vni, ip), Value::Vip(mac)) => {
                let key = EndpointKey::new(vni.0, *ip);
                self.endpoints.insert(key, Endpoint::vip(mac.0), 0)?;
            }
            (MapKey::Port(link), Value::Port { vni, ip, mac, mtu, internal, backend, gateway }) => {
                let flag = |on: bool, flag| if on { flag } else { 0 };
                let port = Port {
                    vni: vni.0,
                    ip: ip.octets(),
                    mac: mac.0,
                    _pad: [0; 2],
                    mtu: (*mtu).into(),
                    flags: flag(*internal, Port::INTERNAL) | flag(*backend, Port::BACKEND),
                    gateway: gateway.octets(),
                };
                self.ports.insert(index(link)?, port, 0)?;
            }
            (MapKey::Service(vni, vip), Value::Service(want)) => {
                self.services.put_service(*vni, *vip, want)?;
            }
            (MapKey::Allowed(list, source), Value::Present) => {
                self.services.put_allowed(*list, *source)?;
            }
            (
                MapKey::Published(socket),
                Value::Published { vni, ip, port, allowed, draining, mtu },
            ) => {
                let published = Published::new(vni.0, *ip, *port, *allowed, (*mtu).into());
                let published = published.draining(*draining);
                self.services.put_published(*socket, published)?;
            }
            (MapKey::Virtual(socket), Value::Present) => self.services.put_virtual(*socket)?,
            (_, value) => bail!("it cannot be {value:?}"),
        }
        Ok(())
    }

    /// Removes an entry; it being gone is success.
    pub(super) fn delete(&mut self, key: &MapKey, index: Option<u32>) -> Result<()> {
        match key {
            // The one entry of an array cannot be removed.
            MapKey::Config => gone(self.config.set(0, Config::default(), 0)),
            MapKey::Encrypted(vni) => gone(self.encrypted.remove(&vni.0)),
            MapKey::Network(vni) => gone(self.networks.remove(&vni.0)),
            MapKey::Subnet(subnet) => gone(self.subnets.remove(&prefix(*subnet))),
            MapKey::Peer(vtep) => gone(self.peers.remove(&vtep.octets())),
            MapKey::Endpoint(vni, ip) => gone(self.endpoints.remove(&EndpointKey::new(vni.0, *ip))),
            MapKey::Port(link) => {
                let index = index.or_else(|| link.strip_prefix('#')?.parse().ok());
                // A link that went before its entry: the next look finds that by number.
                index.map_or(Ok(()), |index| gone(self.ports.remove(&index)))
            }
            MapKey::Service(vni, vip) => self.services.delete_service(*vni, *vip),
            MapKey::Slot { vni, vip, half, slot } => {
                self.services.delete_slot(SlotKey::new(vni.0, vip.octets(), *half, *slot))
            }
            MapKey::Allowed(list, source) => self.services.delete_allowed(*list, *source),
            MapKey::Published(socket) => self.services.delete_published(*socket),
            MapKey::Virtual(socket) => self.services.delete_virtual(*socket),
        }
    }
}

/// The map `name` as what it should be.
pub(super) fn of<T>(name: &str, map: Result<T, MapError>) -> Result<T> {
    map.with_context(|| format!("the map {name} is not what it should be"))
}

fn prefix(subnet: Ipv4Network) -> Prefix<SubnetKey> {
    Prefix::new(subnet.prefix().into(), SubnetKey { ip: subnet.network().octets() })
}

/// What no network can have stands for what does not fit.
pub(super) fn mtu(found: u32) -> u16 {
    u16::try_from(found).unwrap_or(u16::MAX)
}

/// See [`super::counters`].
pub(super) fn counters(pins: &Pins) -> Result<Vec<(Counter, Count)>> {
    if map_info(pins, names::COUNTERS)?.is_none() {
        return Ok(vec![]);
    }
    let map: PerCpuArray<_, Count> = open_map(pins, names::COUNTERS)?.try_into()?;
    let sum = |counter: Counter| -> Result<(Counter, Count)> {
        let mut sum = Count::default();
        for count in map.get(&(counter as u32), 0)?.iter() {
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        }
        Ok((counter, sum))
    };
    Counter::ALL.iter().copied().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_subnet_is_a_prefix_of_its_network_address() {
        let key = prefix("10.0.3.7/24".parse().unwrap());
        assert_eq!(key.prefix_len(), 24);
        assert_eq!(key.data().ip, [10, 0, 3, 0]);
    }

    #[test]
    fn an_mtu_that_is_none_is_not_taken_for_one() {
        assert_eq!(mtu(1450), 1450);
        assert_eq!(mtu(1 << 16), u16::MAX);
    }

    #[test]
    fn the_links_of_an_entry_are_found() {
        let local = Value::Endpoint {
            mac: Mac([0; 6]),
            link: Some("na-x".into()),
            vtep: Ipv4Addr::LOCALHOST,
            serves: Ipv4Addr::UNSPECIFIED,
            eligible: false,
        };
        let key = MapKey::Endpoint(Vni(1), Ipv4Addr::LOCALHOST);
        assert_eq!(links_in(&key, &local), ["na-x"]);
        assert_eq!(links_in(&MapKey::Port("na-y".into()), &Value::Present), ["na-y"]);
        assert!(links_in(&MapKey::Peer(Ipv4Addr::LOCALHOST), &Value::Present).is_empty());
    }
}
