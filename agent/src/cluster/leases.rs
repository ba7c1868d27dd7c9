//! When each node was heard last and what it has applied: known only to the
//! manager that the nodes report to, in memory, never in the store. The store
//! learns of the moments at which a node's status changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::{NodeId, NodeStatus, Snapshot};

/// A node that was silent for so long is down. Nodes report every second.
pub(super) const LEASE: Duration = Duration::from_secs(3);
/// How long nodes have to find a manager that has just started.
const GRACE: Duration = Duration::from_secs(10);
/// How often silence is looked for.
pub(super) const LOOK: Duration = Duration::from_millis(500);

struct Lease {
    /// Silence counts from here; in the future while a grace lasts.
    heard: Instant,
    applied: u64,
}

/// The leases of all members.
pub(super) struct Leases {
    /// This manager, which needs no lease.
    me: NodeId,
    leases: Mutex<BTreeMap<NodeId, Lease>>,
    looked: Mutex<Instant>,
    changed: watch::Sender<()>,
}

impl Leases {
    pub(super) fn new(me: NodeId, members: &Snapshot) -> Self {
        let now = Instant::now();
        let leases = members
            .nodes
            .keys()
            .map(|id| (id.clone(), Lease { heard: now + (GRACE - LEASE), applied: 0 }));
        Self {
            me,
            leases: Mutex::new(leases.collect()),
            looked: Mutex::new(now),
            changed: watch::Sender::new(()),
        }
    }

    /// Notes that `node` is alive and its kernel reflects revision `applied`.
    pub(super) fn renew(&self, node: &NodeId, applied: u64) {
        let lease = Lease { heard: Instant::now(), applied };
        let known = self.lock().insert(node.clone(), lease);
        if known.is_none_or(|known| known.applied != applied) {
            self.changed.send_replace(());
        }
    }

    /// Nodes that the snapshot calls ready and that have been silent too long. If
    /// this was itself called late, the process had stopped and could hear nobody:
    /// then everybody gets the grace that a restart gives.
    pub(super) fn silent(&self, snapshot: &Snapshot) -> BTreeSet<NodeId> {
        let now = Instant::now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let away = now.duration_since(*looked);
        *looked = now;
        let mut leases = self.lock();
        leases.retain(|id, _| snapshot.nodes.contains_key(id));
        if away > LOOK * 2 {
            let grace = now + (GRACE - LEASE);
            leases.values_mut().for_each(|lease| lease.heard = lease.heard.max(grace));
        }
        let late = |id: &NodeId| {
            leases.get(id).is_none_or(|lease| now.saturating_duration_since(lease.heard) > LEASE)
        };
        let ready = snapshot.nodes.values().filter(|n| n.status == NodeStatus::Ready);
        ready.map(|n| &n.id).filter(|id| **id != self.me && late(id)).cloned().collect()
    }

    /// Revision that the node's kernel reflects, as far as is known.
    pub(super) fn applied(&self, node: &NodeId) -> u64 {
        self.lock().get(node).map_or(0, |lease| lease.applied)
    }

    /// Whether every ready node has applied `revision`.
    pub(super) fn all_applied(&self, snapshot: &Snapshot, revision: u64) -> bool {
        let leases = self.lock();
        let mut ready = snapshot.nodes.values().filter(|n| n.status == NodeStatus::Ready);
        ready.all(|n| leases.get(&n.id).is_some_and(|lease| lease.applied >= revision))
    }

    /// Tells when a node has applied something else than before.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Lease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::NodeFacts;
    use crate::cluster::decide;
    use crate::model::{Datapath, Ipsec, Role};

    fn members(count: u8) -> (Vec<NodeId>, Snapshot) {
        let mut snapshot = Snapshot::default();
        for n in 0..count {
            let facts = NodeFacts {
                hostname: format!("n{n}"),
                address: [192, 168, 50, n].into(),
                local_address: None,
                mtu: 1500,
                datapath: Datapath::Ebpf,
                version: "0".to_owned(),
                routes: vec![],
                certificate: None,
                ipsec: Ipsec::default(),
            };
            let node = decide::node(NodeId::new(), Role::Worker, facts);
            snapshot.nodes.insert(node.id.clone(), node.into());
        }
        (snapshot.nodes.keys().cloned().collect(), snapshot)
    }

    /// Lets time pass as a running manager sees it.
    async fn pass(leases: &Leases, snapshot: &Snapshot, time: Duration) -> BTreeSet<NodeId> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::advance(LOOK).await;
            leases.silent(snapshot);
        }
        leases.silent(snapshot)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_lease() {
        let (ids, snapshot) = members(3);
        let leases = Leases::new(ids[0].clone(), &snapshot);
        let none = BTreeSet::new();
        assert_eq!(pass(&leases, &snapshot, GRACE - LOOK).await, none, "grace after a start");
        leases.renew(&ids[1], 0);
        let silent = pass(&leases, &snapshot, LOOK * 2).await;
        assert_eq!(silent, BTreeSet::from([ids[2].clone()]), "not me, not who spoke");
        leases.renew(&ids[2], 0);
        assert_eq!(pass(&leases, &snapshot, LEASE - LOOK * 2).await, none);
        let silent = pass(&leases, &snapshot, LOOK * 4).await;
        assert_eq!(silent, BTreeSet::from([ids[1].clone(), ids[2].clone()]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_that_was_stopped_blames_nobody() {
        let (ids, snapshot) = members(2);
        let leases = Leases::new(ids[0].clone(), &snapshot);
        leases.renew(&ids[1], 0);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(leases.silent(&snapshot), BTreeSet::new());
        let silent = pass(&leases, &snapshot, GRACE + LOOK).await;
        assert_eq!(silent.len(), 1, "but not for as long as it was stopped");
    }

    #[tokio::test(start_paused = true)]
    async fn applied_means_by_all_that_are_ready() {
        let (ids, mut snapshot) = members(3);
        let leases = Leases::new(ids[0].clone(), &snapshot);
        leases.renew(&ids[0], 7);
        leases.renew(&ids[1], 8);
        assert!(!leases.all_applied(&snapshot, 7), "one has not reported at all");
        snapshot.node_mut(&ids[2]).status = NodeStatus::Down;
        assert!(leases.all_applied(&snapshot, 7));
        assert!(!leases.all_applied(&snapshot, 8));
    }
}
