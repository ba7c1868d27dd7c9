//! Giving up what nothing holds any more: workloads whose process ended or whose
//! namespace is gone, and endpoints of this node that belong to no workload.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::{Making, Workloads, hold, lock};
use crate::cluster::Error;
use crate::model::{Endpoint, EndpointId, Name, NodeId, Snapshot, Workload, WorkloadId};

/// How often holds are looked at; the end of a process is noticed at once.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps others from using what a workload had until it is released; it ends when dropped.
struct Releasing<'a> {
    names: &'a watch::Sender<Vec<Name>>,
    name: Name,
}

impl<'a> Releasing<'a> {
    fn begin(names: &'a watch::Sender<Vec<Name>>, name: &Name) -> Self {
        names.send_modify(|names| names.push(name.clone()));
        Self { names, name: name.clone() }
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.names.send_modify(|names| {
            if let Some(at) = names.iter().position(|name| *name == self.name) {
                names.swap_remove(at);
            }
        });
    }
}

impl Workloads {
    /// Waits until no workload of this name is being released: one that takes back its identifier
    /// and its endpoints before would lose them, and its files, to the end of that.
    pub(super) async fn released(&self, name: &Name) {
        let mut releasing = self.0.releasing.subscribe();
        // The sender lives as long as self.
        let _ = releasing.wait_for(|names| !names.contains(name)).await;
    }

    /// Releases a workload, whether or not something still runs in it.
    ///
    /// # Errors
    /// If there is no such workload, or its record cannot be written.
    pub async fn remove(&self, name_or_id: &str) -> Result<(), Error> {
        let id = self.find(name_or_id)?.id;
        let this = self.clone();
        // A caller that hangs up does not stop it half-way.
        let released = tokio::spawn(async move { this.release(&id).await });
        released.await.map_err(anyhow::Error::from)?
    }

    /// Releases a workload: record, interfaces, names and addresses. One that is
    /// being released already is left to whoever does that. A crash on the way leaves
    /// strays, which are collected later.
    pub(super) async fn release(&self, id: &WorkloadId) -> Result<(), Error> {
        let Some(name) = self.list().iter().find(|w| w.id == *id).map(|w| w.name.clone()) else {
            return Ok(());
        };
        let _releasing = Releasing::begin(&self.0.releasing, &name);
        let take = |list: &mut Vec<Workload>| {
            Ok(list.iter().position(|w| w.id == *id).map(|at| list.remove(at)))
        };
        let Some(workload) = self.0.records.edit(take).await? else { return Ok(()) };
        drop(lock(&self.0.backends).remove(id));
        let server = lock(&self.0.servers).remove(id);
        if let Some(server) = server {
            server.stop().await;
        }
        // Nobody may get the addresses while the interfaces are there.
        if let Err(error) = self.0.reconcile.settle().await {
            warn!(workload = %workload.name, "removing its interfaces: {error:#}");
        }
        self.give_up(workload.attachments.iter().map(|a| &a.endpoint.id)).await;
        if let Err(error) = self.files(id).remove() {
            warn!(workload = %workload.name, "removing its files: {error}");
        }
        // What still runs in it sees the host's files again.
        if hold::is_held(&workload)
            && let Some(mounts) = self.mounts(&workload)
            && let Err(error) = mounts.remove().await
        {
            debug!(workload = %workload.name, "its mounts: {error:#}");
        }
        info!(workload = %workload.name, "released");
        Ok(())
    }

    /// Gives endpoints back to the cluster.
    pub(super) async fn give_up(&self, endpoints: impl Iterator<Item = &EndpointId>) {
        join_all(endpoints.map(|id| async move {
            if let Err(error) = self.0.cluster.release_endpoint(id).await {
                warn!(endpoint = %id, "{error}");
            }
        }))
        .await;
    }

    /// Releases those of the `suspect` workloads that nothing holds any more.
    pub(super) async fn release_gone(&self, suspect: impl Fn(&Workload) -> bool) {
        let me = self.node().ok();
        let list = self.list();
        let is_gone = |w: &&Workload| !hold::is_held(w) || is_foreign(w, me.as_ref());
        let gone = list.iter().filter(|w| suspect(w)).filter(is_gone);
        join_all(gone.map(|workload| async move {
            if let Err(error) = self.release(&workload.id).await {
                warn!(workload = %workload.name, "{error}; it is tried again");
                self.tell_ended(workload).await;
            }
        }))
        .await;
    }

    pub(super) async fn watch_holds(self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.ended.notified() => {}
            }
            self.release_gone(|_| true).await;
        }
    }

    /// Gives strays up whenever the snapshot shows some: an agent that was killed
    /// between two steps, or a request whose answer was lost, leaves them behind.
    pub(super) async fn collect_strays(self) {
        let mut snapshots = self.0.cluster.subscribe();
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = BTreeSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = snapshots.changed() => if changed.is_err() { return },
            }
            let Ok(node) = self.node() else { continue };
            let snapshot = snapshots.borrow_and_update().clone();
            let _strays = self.0.strays.lock().await;
            let found = strays(&snapshot, &node, &self.list(), &lock(&self.0.making));
            for id in found.difference(&known) {
                debug!(endpoint = %id, "belongs to no workload");
            }
            self.give_up(found.iter()).await;
            known = found;
        }
    }
}

/// Whether the workload was attached under another membership of this host: its
/// endpoints are nothing any more.
fn is_foreign(workload: &Workload, me: Option<&NodeId>) -> bool {
    me.is_some_and(|me| workload.attachments.iter().any(|a| a.endpoint.node != *me))
}

/// Endpoints of `node` that no workload has or is about to have.
fn strays(
    snapshot: &Snapshot,
    node: &NodeId,
    workloads: &[Workload],
    making: &[Making],
) -> BTreeSet<EndpointId> {
    let attached: BTreeSet<&EndpointId> =
        workloads.iter().flat_map(|w| &w.attachments).map(|a| &a.endpoint.id).collect();
    let is_stray = |e: &&Endpoint| {
        e.node == *node && !attached.contains(&e.id) && !making.iter().any(|m| m.id == e.workload)
    };
    snapshot.endpoints.values().filter(is_stray).map(|e| e.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::workload;

    #[test]
    fn strays_are_this_nodes_endpoints_without_a_workload() {
        let node = NodeId::new();
        let [mut mine, mut theirs, mut coming, mut left] =
            ["mine", "theirs", "coming", "left"].map(|name| workload(name, &["10.0.0.2"]));
        for workload in [&mut mine, &mut coming, &mut left] {
            workload.attachments[0].endpoint.node = node.clone();
        }
        theirs.attachments[0].endpoint.node = NodeId::new();
        let mut snapshot = Snapshot::default();
        for workload in [&mine, &theirs, &coming, &left] {
            let endpoint = workload.attachments[0].endpoint.clone();
            snapshot.endpoints.insert(endpoint.id.clone(), endpoint);
        }
        let making = [Making { id: coming.id.clone(), name: coming.name, inode: 1 }];
        let found = strays(&snapshot, &node, &[mine.clone()], &making);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [left.attachments[0].endpoint.id.clone()]
        );

        assert!(!is_foreign(&mine, Some(&node)));
        assert!(is_foreign(&mine, Some(&NodeId::new())));
        assert!(!is_foreign(&mine, None), "leaving for good is for the cluster to say");
    }
}
