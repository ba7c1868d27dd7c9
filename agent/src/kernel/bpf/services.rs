//! Entries of the maps of services, as state and back. A service's entry and its ring are
//! one value: a change is written where no packet looks, to the half of the ring that is
//! not in force, and comes into force as a whole with the entry.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::Key as Prefix;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use ipnetwork::Ipv4Network;
use netagent_common::{
    ALLOWED_LIST_BITS, AllowedKey, EndpointKey, Published, PublishedKey, Service, Slot as Entry,
    SlotKey, VirtualKey, maps as names,
};

use crate::model::Vni;
use crate::plan::{Balance, Key, MapKey, Slot, Socket, State, Value};

use super::maps::{mtu, of};

/// What stands for a member of a set.
const MEMBER: u32 = 1;

/// The pinned maps of services, open.
pub(super) struct Services {
    services: HashMap<MapData, EndpointKey, Service>,
    ring: HashMap<MapData, SlotKey, Entry>,
    allowed: LpmTrie<MapData, AllowedKey, u32>,
    published: HashMap<MapData, PublishedKey, Published>,
    virtuals: HashMap<MapData, VirtualKey, u32>,
}

impl Services {
    /// Opens them with `open`, which takes a map's name.
    pub(super) fn open(open: impl Fn(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            services: of(names::SERVICES, open(names::SERVICES)?.try_into())?,
            ring: of(names::RING, open(names::RING)?.try_into())?,
            allowed: of(names::ALLOWED, open(names::ALLOWED)?.try_into())?,
            published: of(names::PUBLISHED, open(names::PUBLISHED)?.try_into())?,
            virtuals: of(names::VIRTUAL, open(names::VIRTUAL)?.try_into())?,
        })
    }

    /// Adds all entries to `state`.
    pub(super) fn observe(&self, state: &mut State) -> Result<()> {
        let mut add = |key, value| drop(state.insert(Key::Map(key), value));
        let mut strays = BTreeSet::new();
        for key in self.ring.keys() {
            let key = key?;
            strays.insert((key.vni, key.vip(), key.half, key.slot));
        }
        for entry in self.services.iter() {
            let (key, service) = entry?;
            let slots = (0..service.slots).map(|slot| {
                strays.remove(&(key.vni, key.ip(), service.half, slot));
                self.slot(SlotKey::new(key.vni, key.ip().octets(), service.half, slot))
            });
            let balance = Balance {
                scheduler: service.scheduler(),
                affinity: service.affinity,
                idle: service.idle,
                ring: slots.collect::<Result<_>>()?,
            };
            add(MapKey::Service(Vni(key.vni), key.ip()), Value::Service(balance));
        }
        for (vni, vip, half, slot) in strays {
            add(MapKey::Slot { vni: Vni(vni), vip, half, slot }, Value::Present);
        }
        for entry in self.allowed.iter() {
            let (prefix, _) = entry?;
            let key = prefix.data();
            let bits = prefix.prefix_len().saturating_sub(ALLOWED_LIST_BITS);
            let source = Ipv4Network::new(key.ip.into(), u8::try_from(bits).unwrap_or(u8::MAX))?;
            add(MapKey::Allowed(key.list, source), Value::Present);
        }
        for entry in self.published.iter() {
            let (key, published) = entry?;
            let value = Value::Published {
                vni: Vni(published.vni),
                ip: published.ip.into(),
                port: published.port(),
                allowed: published.allowed,
                draining: published.is_draining(),
                mtu: mtu(published.mtu),
            };
            add(MapKey::Published(socket(&key)), value);
        }
        for key in self.virtuals.keys() {
            add(MapKey::Virtual(socket(&key?)), Value::Present);
        }
        Ok(())
    }

    fn slot(&self, key: SlotKey) -> Result<Slot> {
        match self.ring.get(&key, 0) {
            Ok(Entry { ip, weight }) => Ok(Slot { ip: ip.into(), weight }),
            Err(MapError::KeyNotFound) => Ok(Slot::MISSING),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn put_service(&mut self, vni: Vni, vip: Ipv4Addr, want: &Balance) -> Result<()> {
        let key = EndpointKey::new(vni.0, vip);
        let slots = u32::try_from(want.ring.len()).context("more slots than can be counted")?;
        let old = found(self.services.get(&key, 0))?;
        let mut new = Service::new(want.scheduler, slots, want.affinity, want.idle);
        if let Some(old) = &old {
            new.half = u32::from(old.half == 0);
        }
        let at = |half, slot| SlotKey::new(vni.0, vip.octets(), half, slot);
        for (number, slot) in (0..).zip(&want.ring) {
            let entry = Entry { ip: slot.ip.octets(), weight: slot.weight };
            self.ring.insert(at(new.half, number), entry, 0)?;
        }
        self.services.insert(key, new, 0)?;
        for number in 0..old.map_or(0, |old| old.slots) {
            gone(self.ring.remove(&at(1 - new.half, number)))?;
        }
        Ok(())
    }

    pub(super) fn delete_service(&mut self, vni: Vni, vip: Ipv4Addr) -> Result<()> {
        let key = EndpointKey::new(vni.0, vip);
        let Some(old) = found(self.services.get(&key, 0))? else { return Ok(()) };
        gone(self.services.remove(&key))?;
        for number in 0..old.slots {
            gone(self.ring.remove(&SlotKey::new(vni.0, vip.octets(), old.half, number)))?;
        }
        Ok(())
    }

    /// Removes a slot that was seen not to be in force, unless it has come to be since.
    pub(super) fn delete_slot(&mut self, key: SlotKey) -> Result<()> {
        let service = found(self.services.get(&EndpointKey::new(key.vni, key.vip()), 0))?;
        if service.is_some_and(|now| now.half == key.half && key.slot < now.slots) {
            return Ok(());
        }
        gone(self.ring.remove(&key))
    }

    pub(super) fn put_allowed(&mut self, list: u32, source: Ipv4Network) -> Result<()> {
        Ok(self.allowed.insert(&prefix(list, source), MEMBER, 0)?)
    }

    pub(super) fn delete_allowed(&mut self, list: u32, source: Ipv4Network) -> Result<()> {
        gone(self.allowed.remove(&prefix(list, source)))
    }

    pub(super) fn put_published(&mut self, socket: Socket, published: Published) -> Result<()> {
        Ok(self.published.insert(published_key(socket), published, 0)?)
    }

    pub(super) fn delete_published(&mut self, socket: Socket) -> Result<()> {
        gone(self.published.remove(&published_key(socket)))
    }

    pub(super) fn put_virtual(&mut self, socket: Socket) -> Result<()> {
        Ok(self.virtuals.insert(published_key(socket), MEMBER, 0)?)
    }

    pub(super) fn delete_virtual(&mut self, socket: Socket) -> Result<()> {
        gone(self.virtuals.remove(&published_key(socket)))
    }
}

fn socket(key: &PublishedKey) -> Socket {
    Socket { ip: key.ip(), protocol: key.protocol, port: key.port() }
}

fn published_key(socket: Socket) -> PublishedKey {
    PublishedKey::new(socket.ip, socket.protocol, socket.port)
}

fn prefix(list: u32, source: Ipv4Network) -> Prefix<AllowedKey> {
    let key = AllowedKey { list, ip: source.network().octets() };
    Prefix::new(ALLOWED_LIST_BITS + u32::from(source.prefix()), key)
}

/// An entry, if there is one.
fn found<T>(looked_up: Result<T, MapError>) -> Result<Option<T>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Of an entry that was removed: to have been gone is success.
pub(super) fn gone(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_list() {
        let key = prefix(7, "10.0.3.9/24".parse().unwrap());
        assert_eq!((key.prefix_len(), key.data().list), (56, 7));
        assert_eq!(key.data().ip, [10, 0, 3, 0]);
    }
}
