//! What this node tells of its endpoints that serve: health, weight and drain. It is
//! kept on disk until a manager has taken it, so that nothing is forgotten while none
//! answers, and shown in this node's own snapshot at once: a node does not send new
//! connections to a backend of its own of which it knows that it is ill, whoever else
//! knows. The same for endpoints that it has given up and the manager still has.
//!
//! The snapshot is changed in place: what the manager answers with is the same, and
//! whatever else it decides (the service is gone, the endpoint is) comes by the stream.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;

use super::disk::Dir;
use super::identity::UPDATES;
use super::kept::Kept;
use super::releases::Release;
use crate::api::types::UpdateEndpoint;
use crate::model::{EndpointId, Snapshot};

/// What has not been told yet, as one change for each endpoint.
pub(super) type Untold = BTreeMap<EndpointId, UpdateEndpoint>;

/// The queue, on disk.
pub(super) struct Updates(Kept<Untold>);

impl Updates {
    /// Reads the queue that an earlier run left behind.
    pub(super) fn open(path: &Path, dir: Arc<Dir>) -> Result<Self> {
        Ok(Self(Kept::open(path, UPDATES, dir)?))
    }

    /// Adds a change to what is to be told of `id`. Health alone is told even if it cannot be
    /// written: a full disk is no reason to send anybody to a backend that is ill, and an agent
    /// that starts anew finds it out again.
    pub(super) async fn add(&self, id: &EndpointId, update: &UpdateEndpoint) -> Result<()> {
        let add = |untold: &mut Untold| merge(untold.entry(id.clone()).or_default(), update);
        match update {
            UpdateEndpoint { health: Some(_), weight: None, draining: None } => {
                self.0.note(add).await;
                Ok(())
            }
            _ => self.0.edit(add).await,
        }
    }

    /// The manager has taken `told`, and of `id` nothing more is to be told unless
    /// something was added meanwhile. If that cannot be written, an agent that starts anew
    /// tells it once more.
    pub(super) async fn done(&self, id: &EndpointId, told: &UpdateEndpoint) {
        self.0
            .note(|untold| {
                if untold.get(id) == Some(told) {
                    untold.remove(id);
                }
            })
            .await;
    }

    /// Tells of every change.
    pub(super) fn untold(&self) -> watch::Receiver<Untold> {
        self.0.subscribe()
    }
}

fn merge(into: &mut UpdateEndpoint, newer: &UpdateEndpoint) {
    into.weight = newer.weight.or(into.weight);
    into.health = newer.health.or(into.health);
    into.draining = newer.draining.or(into.draining);
}

/// Shows in `snapshot` what this node knows and the manager does not yet. Returns
/// whether anything changed; if not, nothing is copied.
pub(super) fn overlay(snapshot: &mut Arc<Snapshot>, untold: &Untold, released: &[Release]) -> bool {
    let drain = UpdateEndpoint { draining: Some(true), ..UpdateEndpoint::default() };
    let released = released.iter().map(|r| (&r.id, &drain));
    let mut changed = false;
    for (id, update) in untold.iter().chain(released) {
        let Some(old) = snapshot.endpoints.get(id).and_then(|e| e.task.as_ref()) else { continue };
        let mut new = old.clone();
        update.apply(&mut new);
        if new != *old
            && let Some(endpoint) = Arc::make_mut(snapshot).endpoints.get_mut(id)
        {
            endpoint.task = Some(new);
            changed = true;
        }
    }
    changed
}
