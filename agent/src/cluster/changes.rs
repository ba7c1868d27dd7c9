//! What lies between two snapshots, and one snapshot put on the other. Pure.

use std::collections::BTreeMap;

use crate::api::types::Change;
use crate::model::Snapshot;

/// The changes that lead from `old` to `new`. Networks come before services, and
/// these before endpoints; removals go the other way, so that what an object names is
/// always known.
#[must_use]
pub fn between(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    removed(&old.endpoints, &new.endpoints, Change::EndpointRemoved, &mut changes);
    removed(&old.services, &new.services, Change::ServiceRemoved, &mut changes);
    removed(&old.networks, &new.networks, Change::NetworkRemoved, &mut changes);
    removed(&old.nodes, &new.nodes, Change::NodeRemoved, &mut changes);
    if let Some(trust) = new.trust.as_ref().filter(|_| new.trust != old.trust) {
        changes.push(Change::Trust(trust.clone()));
    }
    put(&old.nodes, &new.nodes, Change::Node, &mut changes);
    put(&old.networks, &new.networks, Change::Network, &mut changes);
    put(&old.services, &new.services, Change::Service, &mut changes);
    put(&old.endpoints, &new.endpoints, Change::Endpoint, &mut changes);
    if old.keyring != new.keyring {
        changes.push(Change::Keyring(new.keyring.clone()));
    }
    changes
}

/// Applies changes, which leave `snapshot` at `revision`.
pub(crate) fn apply(snapshot: &mut Snapshot, revision: u64, changes: Vec<Change>) {
    snapshot.revision = revision;
    for change in changes {
        match change {
            Change::Node(node) => {
                snapshot.nodes.insert(node.id.clone(), node);
            }
            Change::Trust(trust) => snapshot.trust = Some(trust),
            Change::NodeRemoved(id) => {
                snapshot.nodes.remove(&id);
            }
            Change::Network(network) => {
                snapshot.networks.insert(network.id.clone(), network);
            }
            Change::NetworkRemoved(id) => {
                snapshot.networks.remove(&id);
            }
            Change::Service(service) => {
                snapshot.services.insert(service.id.clone(), service);
            }
            Change::ServiceRemoved(id) => {
                snapshot.services.remove(&id);
            }
            Change::Endpoint(endpoint) => {
                snapshot.endpoints.insert(endpoint.id.clone(), endpoint);
            }
            Change::EndpointRemoved(id) => {
                snapshot.endpoints.remove(&id);
            }
            Change::Keyring(keyring) => snapshot.keyring = keyring,
        }
    }
}

fn removed<K: Ord + Clone, V>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    change: fn(K) -> Change,
    changes: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|id| !new.contains_key(id));
    changes.extend(gone.cloned().map(change));
}

fn put<K: Ord, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    change: fn(V) -> Change,
    changes: &mut Vec<Change>,
) {
    let other = new.iter().filter(|(id, value)| old.get(id) != Some(value));
    changes.extend(other.map(|(_, value)| change(value.clone())));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::api::types::WatchEvent;
    use crate::model::{
        Endpoint, EndpointMode, Keyring, Mac, Name, NetworkId, Prefer, Scheduler, Service, Trust,
    };

    /// Few identifiers with few values, so that two snapshots share some.
    fn snapshot() -> impl Strategy<Value = Snapshot> {
        let id = |n: u8| format!("{}", char::from(b'a' + n)).repeat(16);
        let endpoint = (0u8..8, 0u8..3).prop_map(move |(n, value)| {
            let address = Ipv4Addr::new(10, 0, value, n);
            Endpoint {
                id: id(n).parse().unwrap(),
                network: NetworkId::try_from(id(0)).unwrap(),
                node: id(1).parse().unwrap(),
                workload: id(2).parse().unwrap(),
                name: Name::try_from(format!("w{n}")).unwrap(),
                aliases: vec![],
                address,
                mac: Mac::of(address),
                task: None,
                created: String::new(),
            }
        });
        let service = (0u8..4, 0u8..3).prop_map(move |(n, value)| Service {
            id: id(n).parse().unwrap(),
            name: Name::try_from(format!("s{n}")).unwrap(),
            aliases: vec![],
            networks: vec![],
            endpoint_mode: EndpointMode::Vip,
            ports: vec![],
            scheduler: Scheduler::Rr,
            affinity: Some(value.into()),
            idle_timeout: 1,
            prefer: Prefer::Any,
            labels: BTreeMap::new(),
            created: String::new(),
        });
        let services = prop::collection::vec(service, 0..4);
        let endpoints = prop::collection::vec(endpoint, 0..8);
        let trust = (0u8..3).prop_map(|value| {
            let (ca, digest) = (format!("CA {value}"), String::new());
            Some(Trust { ca, digest, former: None, forced: false })
        });
        let keyring = prop::option::of(Just(Keyring::default()));
        let all = (any::<u64>(), endpoints, services, trust, keyring);
        all.prop_map(|(revision, endpoints, services, trust, keyring)| Snapshot {
            revision,
            trust,
            keyring,
            services: services.into_iter().map(|s| (s.id.clone(), s)).collect(),
            endpoints: endpoints.into_iter().map(|e| (e.id.clone(), e)).collect(),
            ..Snapshot::default()
        })
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_to_the_other(old in snapshot(), new in snapshot()) {
            // As a worker is told.
            let event = WatchEvent::Delta { revision: new.revision, changes: between(&old, &new) };
            let line = serde_json::to_string(&event).unwrap();
            let WatchEvent::Delta { revision, changes } = serde_json::from_str(&line).unwrap() else {
                panic!("{line}")
            };
            let mut reached = old;
            apply(&mut reached, revision, changes);
            prop_assert_eq!(&reached, &new);
            prop_assert_eq!(between(&new, &new), vec![]);
        }
    }
}
