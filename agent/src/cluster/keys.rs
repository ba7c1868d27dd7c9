//! The keys of encrypted networks: when there are some, when they are renewed, and who is
//! known to have which. Pure.
//!
//! A renewal loses no packet, because each step is taken only when the one before has come
//! about:
//!
//! 1. A new key is in the keyring. Every node makes itself ready to receive by it.
//! 2. A node has applied that: its `epoch` says so, and the others send to it by the new key.
//! 3. All nodes are sent to by it, and all ready ones have applied that: older keys go.
//!
//! A node that does not answer is sent to by what it last had, and keeps older keys alive, but
//! not for ever: the two renewals after.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Error;
use super::decide::Decision;
use super::view::{self, Settings, View};
use crate::api::types::UpdateCluster;
use crate::model::{ClusterKey, Keyring, Network, Node, NodeId, NodeStatus, Secret, Snapshot};
use crate::plan;
use crate::store::Op;

/// Renewals that older keys outlast for nodes that do not answer.
const PATIENCE: u64 = 2;

/// When keys are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rotation {
    /// After so many seconds.
    pub(super) seconds: u64,
    /// After so many packets from one node to another.
    pub(super) packets: u64,
}

impl Default for Rotation {
    /// Twice a day as Swarm does, and long before 2^32 blocks under one key add up to anything
    /// that could be told from noise.
    fn default() -> Self {
        Self { seconds: 12 * 60 * 60, packets: 1 << 30 }
    }
}

/// The first key, if there is none.
pub(super) fn first(view: &View) -> Option<Op> {
    match &view.snapshot.keyring {
        None => renewed(&Keyring::default(), 0, rotation(view)),
        Some(_) => None,
    }
}

/// The end of the keyring if there is none but these of the encrypted networks.
pub(super) fn last(view: &View, removed: impl Fn(&Network) -> bool) -> Option<Op> {
    let mut encrypted = view.snapshot.networks.values().filter(|n| n.encrypted);
    let gone = encrypted.clone().next().is_some() && encrypted.all(removed);
    (gone && view.snapshot.keyring.is_some()).then(view::delete_keyring)
}

/// What replaces the keyring of a backup: all its keys may have been used since, and who began with
/// one anew would use its nonces again.
pub(super) fn restored(keyring: &Keyring) -> Option<Op> {
    let packets = keyring.newest()?.packets;
    renewed(keyring, u64::MAX, Rotation { packets, ..Rotation::default() })
}

/// A new key in the keyring, if there is one. All others stay: who is sent to by a newer one may
/// not know it yet. [`advance`] finds out.
pub(super) fn renew(view: &View, rotation: Rotation) -> Option<Op> {
    renewed(view.snapshot.keyring.as_ref()?, 0, rotation)
}

/// What an administrator asks for; returns the new epoch.
pub(super) fn rotate(view: &View) -> Decision<u64> {
    let Some(keyring) = &view.snapshot.keyring else {
        return Err(Error::Conflict(
            "no network is encrypted, so there are no keys to renew".to_owned(),
        ));
    };
    let epoch = newest(keyring) + 1;
    Ok((renew(view, rotation(view)).into_iter().collect(), epoch))
}

/// Other times for renewals, in `settings`; of packets with a new key, as each has its own limit.
pub(super) fn update(view: &View, settings: &mut Settings, request: &UpdateCluster) -> Option<Op> {
    let was = settings.rotation;
    let rotation = Rotation {
        seconds: request.key_rotation.unwrap_or(was.seconds),
        packets: request.key_packets.unwrap_or(was.packets),
    };
    settings.rotation = rotation;
    (rotation.packets != was.packets).then(|| renew(view, rotation)).flatten()
}

/// What time, wear and the nodes' progress bring; `applied` is the revision that a node's
/// kernel reflects.
pub(super) fn advance(view: &View, applied: impl Fn(&NodeId) -> u64) -> Decision<()> {
    let mut ops = vec![];
    let Some(keyring) = &view.snapshot.keyring else { return Ok((ops, ())) };
    let newest_epoch = newest(keyring);
    let nodes = || view.snapshot.nodes.values();
    for node in nodes().filter(|n| n.ipsec.missing.is_none() && n.epoch != newest_epoch) {
        if applied(&node.id) >= view.keyring {
            ops.push(view::put_node(&Node { epoch: newest_epoch, ..Node::clone(node) }));
        }
    }
    let knows = |node: &Node| applied(&node.id) >= view.epochs.max(view.keyring);
    let floor = floor(view, keyring, knows);
    let known = nodes().filter(|n| n.status == NodeStatus::Ready).all(|node| knows(node));
    if !ops.is_empty() || !known {
        return Ok((ops, ()));
    }
    let [.., last] = &keyring.keys[..] else { return Ok((ops, ())) };
    let worn = nodes().any(|n| n.ipsec.worn == Some(plan::low(last.epoch)));
    let rotation = rotation(view);
    if worn || is_old(last.made, now(), rotation.seconds) {
        ops.extend(renewed(keyring, floor, rotation));
    } else if keyring.keys.iter().any(|key| key.epoch < floor) {
        ops.push(view::put_keyring(&kept(keyring, floor)));
    }
    Ok((ops, ()))
}

/// Whether every ready node receives by keys of `epoch`, or there is nothing to encrypt.
pub(super) fn is_received(snapshot: &Snapshot, epoch: u64) -> bool {
    let mut able = snapshot
        .nodes
        .values()
        .filter(|n| n.status == NodeStatus::Ready && n.ipsec.missing.is_none());
    snapshot.keyring.is_none() || able.all(|n| n.epoch >= epoch)
}

/// Epoch of the oldest key that a node is sent to by, and sends by as far as is known: who is
/// down and does not know the newest may send by any.
fn floor(view: &View, keyring: &Keyring, knows: impl Fn(&Node) -> bool) -> u64 {
    let newest = newest(keyring);
    let able = view.snapshot.nodes.values().filter(|n| n.ipsec.missing.is_none());
    let patient = newest.saturating_sub(PATIENCE);
    let of = |node: &Node| match node.status {
        NodeStatus::Down if knows(node) => node.epoch.max(patient),
        NodeStatus::Down => patient,
        NodeStatus::Ready => node.epoch,
    };
    able.map(|node| of(node)).min().unwrap_or(newest).min(newest)
}

/// When keys are renewed, as was chosen.
pub(super) fn rotation(view: &View) -> Rotation {
    view.settings.as_ref().map(|s| s.rotation).unwrap_or_default()
}

fn newest(keyring: &Keyring) -> u64 {
    keyring.newest().map_or(0, |key| key.epoch)
}

fn kept(keyring: &Keyring, floor: u64) -> Keyring {
    Keyring { keys: keyring.keys.iter().filter(|key| key.epoch >= floor).cloned().collect() }
}

fn renewed(keyring: &Keyring, floor: u64, rotation: Rotation) -> Option<Op> {
    let mut new = kept(keyring, floor);
    new.keys.push(ClusterKey {
        epoch: newest(keyring) + 1,
        secret: Secret::new(),
        packets: rotation.packets,
        made: now(),
    });
    Some(view::put_keyring(&new))
}

/// Whether a key is to be renewed that was made then; times are in seconds since 1970. How old one
/// is that was made in a time to come, nobody knows: the clock was ahead, or is behind.
fn is_old(made: u64, now: u64, rotation: u64) -> bool {
    now.checked_sub(made).is_none_or(|age| age >= rotation)
}

/// In seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::model::ClusterInfo;
    use crate::plan::fixture;
    use crate::store::{Batch, Event, Kv};

    struct Bench {
        view: View,
        applied: BTreeMap<NodeId, u64>,
    }

    impl Bench {
        /// Three nodes, an encrypted network, and a key that all have.
        fn new() -> Self {
            let mut view = View::default();
            let info = ClusterInfo {
                id: "c".into(),
                data_path_port: 4789,
                created: String::new(),
                restored: None,
            };
            let pool =
                serde_json::from_value(serde_json::json!({"block": "10.0.0.0/8", "prefix": 24}));
            let pool = pool.unwrap();
            view.settings =
                Some(Settings { info, pool, cert_expiry: 3600, rotation: Rotation::default() });
            let snapshot = Arc::make_mut(&mut view.snapshot);
            for n in 1..=3 {
                let node = fixture::node(n);
                snapshot.nodes.insert(node.id.clone(), node.into());
            }
            let mut network = fixture::network("secret", 0);
            network.encrypted = true;
            snapshot.networks.insert(network.id.clone(), network);
            let mut bench = Self { view, applied: BTreeMap::new() };
            let first = first(&bench.view);
            bench.commit(first.into_iter().collect());
            bench.everybody();
            while bench.step() {}
            bench
        }

        fn commit(&mut self, ops: Vec<Op>) {
            let revision = self.view.snapshot.revision + 1;
            let event = |op| match op {
                Op::Put(key, value) => {
                    Event::Put(Kv { key, value, create_revision: revision, mod_revision: revision })
                }
                Op::Delete(key) => Event::Delete(key),
            };
            let events = ops.into_iter().map(event).collect();
            self.view.apply(Batch { revision, events }).unwrap();
        }

        /// All ready nodes apply what there is.
        fn everybody(&mut self) {
            let snapshot = &self.view.snapshot;
            for node in snapshot.nodes.values().filter(|n| n.status == NodeStatus::Ready) {
                self.applied.insert(node.id.clone(), snapshot.revision);
            }
        }

        /// Whether the manager had something to do; the nodes follow, and must always be able
        /// to receive what they are sent.
        fn step(&mut self) -> bool {
            let applied = |id: &NodeId| self.applied.get(id).copied().unwrap_or(0);
            let (ops, ()) = advance(&self.view, applied).unwrap();
            let more = !ops.is_empty();
            self.commit(ops);
            let keyring = self.view.snapshot.keyring.as_ref().unwrap();
            for node in self.view.snapshot.nodes.values() {
                let reached = keyring.up_to(node.epoch).map(|key| key.epoch);
                assert_eq!(reached, Some(node.epoch), "nobody sends by what another lacks");
            }
            self.everybody();
            more
        }

        fn keys(&self) -> Vec<u64> {
            self.view.snapshot.keyring.iter().flat_map(|k| &k.keys).map(|k| k.epoch).collect()
        }

        fn rotate(&mut self) {
            let (ops, _) = rotate(&self.view).unwrap();
            self.commit(ops);
        }

        fn node(&mut self, change: impl FnOnce(&mut Node)) -> NodeId {
            let mut node = Node::clone(self.view.snapshot.nodes.values().next().unwrap());
            change(&mut node);
            self.commit(vec![view::put_node(&node)]);
            node.id
        }
    }

    #[test]
    fn a_renewal_goes_step_by_step() {
        let mut bench = Bench::new();
        assert_eq!(bench.keys(), [1]);
        bench.rotate();
        assert_eq!(bench.keys(), [1, 2]);
        assert!(!bench.step(), "nobody has applied it yet");
        assert!(bench.step(), "all can receive");
        assert!(bench.view.snapshot.nodes.values().all(|n| n.epoch == 2));
        assert_eq!(bench.keys(), [1, 2]);
        assert!(bench.step(), "all send by it");
        assert_eq!(bench.keys(), [2]);
        assert!(!bench.step());
    }

    #[test]
    fn one_node_that_lags_is_sent_to_as_before() {
        let mut bench = Bench::new();
        bench.rotate();
        bench.everybody();
        let slow = bench.view.snapshot.nodes.keys().next().unwrap().clone();
        bench.applied.insert(slow.clone(), 1);
        let applied = bench.applied.clone();
        let (ops, ()) = advance(&bench.view, |id| applied[id]).unwrap();
        bench.commit(ops);
        assert_eq!(bench.view.snapshot.nodes[&slow].epoch, 1);
        let (ops, ()) = advance(&bench.view, |id| applied[id]).unwrap();
        assert_eq!(ops, [], "the old key stays");
    }

    #[test]
    fn a_node_that_is_down_keeps_old_keys_for_two_renewals() {
        let mut bench = Bench::new();
        let down = bench.node(|node| node.status = NodeStatus::Down);
        for expected in [&[1, 2][..], &[1, 2, 3], &[2, 3, 4]] {
            bench.rotate();
            bench.everybody();
            let applied = bench.applied.clone();
            for _ in 0..4 {
                let of = |id: &NodeId| if *id == down { 1 } else { bench.view.snapshot.revision };
                let (ops, ()) = advance(&bench.view, of).unwrap();
                bench.commit(ops);
            }
            bench.applied = applied;
            assert_eq!(bench.keys(), expected);
        }
        bench.node(|node| node.status = NodeStatus::Ready);
        bench.everybody();
        while bench.step() {}
        assert_eq!(bench.keys(), [4], "and then it is like the others");
    }

    #[test]
    fn a_renewal_amid_another_takes_no_key_away() {
        let mut bench = Bench::new();
        bench.rotate();
        bench.everybody();
        let applied = bench.applied.clone();
        let (ops, ()) = advance(&bench.view, |id| applied[id]).unwrap();
        bench.commit(ops);
        // All receive by the second; nobody knows that yet of the others.
        bench.rotate();
        assert_eq!(bench.keys(), [1, 2, 3]);
        bench.everybody();
        while bench.step() {}
        assert_eq!(bench.keys(), [3]);
    }

    #[test]
    fn a_node_that_went_down_before_it_knew_sends_as_before() {
        let mut bench = Bench::new();
        bench.rotate();
        bench.everybody();
        let before = bench.applied.clone();
        let (ops, ()) = advance(&bench.view, |id| before[id]).unwrap();
        bench.commit(ops);
        let down = bench.node(|node| node.status = NodeStatus::Down);
        bench.everybody();
        let applied = bench.applied.clone();
        let (ops, ()) = advance(&bench.view, |id| applied[id]).unwrap();
        assert_eq!((bench.applied[&down], ops), (before[&down], vec![]), "the first key stays");
        bench.node(|node| node.status = NodeStatus::Ready);
        bench.everybody();
        while bench.step() {}
        assert_eq!(bench.keys(), [2]);
    }

    #[test]
    fn wear_and_time_renew() {
        let mut bench = Bench::new();
        bench.node(|node| node.ipsec.worn = Some(1));
        bench.everybody();
        assert!(bench.step());
        assert_eq!(bench.keys(), [1, 2]);
        while bench.step() {}
        assert_eq!(bench.keys(), [2], "what is worn is not the newest any more");
        bench.view.settings.as_mut().unwrap().rotation.seconds = 0;
        assert!(bench.step());
        assert_eq!(bench.keys(), [2, 3]);
    }

    #[test]
    fn a_key_of_a_time_to_come_is_as_good_as_old() {
        let old = [(100, 159), (100, 160), (100, 99), (u64::MAX, 0)];
        assert_eq!(old.map(|(made, now)| is_old(made, now, 60)), [false, true, true, true]);
    }

    #[test]
    fn who_goes_takes_no_key_along_that_is_used_on() {
        let mut bench = Bench::new();
        let id = bench.node(|node| node.status = NodeStatus::Down);
        let (ops, _) = super::super::decide::remove_node(&bench.view, id.as_str(), true).unwrap();
        bench.commit(ops);
        assert_eq!(bench.keys(), [1, 2]);
        bench.everybody();
        while bench.step() {}
        assert_eq!(bench.keys(), [2]);
    }

    #[test]
    fn no_key_of_a_backup_is_used_again() {
        let mut bench = Bench::new();
        let keyring = bench.view.snapshot.keyring.clone().unwrap();
        bench.commit(restored(&keyring).into_iter().collect());
        assert_eq!(bench.keys(), [2]);
        assert_ne!(
            bench.view.snapshot.keyring.as_ref().unwrap().keys[0].secret,
            keyring.keys[0].secret
        );
        assert!(restored(&Keyring::default()).is_none());
        bench.everybody();
        assert!(bench.step(), "all are sent to again");
    }

    #[test]
    fn keys_end_with_the_last_encrypted_network() {
        let mut bench = Bench::new();
        let (ops, ()) = super::super::decide::remove_network(&bench.view, "secret").unwrap();
        bench.commit(ops);
        assert_eq!(bench.view.snapshot.keyring, None);
        assert!(rotate(&bench.view).is_err());
    }
}
