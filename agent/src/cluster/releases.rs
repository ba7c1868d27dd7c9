//! Endpoints that this node has given up, until the manager has removed them: a
//! queue on disk, so that neither a manager that is away nor a restart of the
//! agent leaks an address.
//!
//! As long as a release has not been sent, its endpoint is still this node's and
//! can be taken back: a workload restarts with its addresses while no manager
//! answers. One that has been sent cannot: the manager may have given the address
//! to somebody else, even if no answer came.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::disk::Dir;
use super::identity::RELEASES;
use super::kept::Kept;
use super::validate;
use crate::api::types::{Attach, Serve};
use crate::model::{Endpoint, EndpointId, Name, Snapshot};

/// An endpoint on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Release {
    pub(super) id: EndpointId,
    /// None if this node had not seen it yet.
    endpoint: Option<Endpoint>,
    /// Whether the manager may know already.
    sent: bool,
}

/// The queue. What its methods return has been written to disk.
pub(super) struct Releases(Kept<Vec<Release>>);

impl Releases {
    /// Reads the queue that an earlier run left behind.
    pub(super) fn open(path: &Path, dir: Arc<Dir>) -> Result<Self> {
        Ok(Self(Kept::open(path, RELEASES, dir)?))
    }

    /// Appends an endpoint; one that is there stays as it is.
    pub(super) async fn add(&self, id: &EndpointId, known: &Snapshot) -> Result<()> {
        let append = |queue: &mut Vec<Release>| {
            if !queue.iter().any(|r| r.id == *id) {
                let endpoint = known.endpoints.get(id).cloned();
                queue.push(Release { id: id.clone(), endpoint, sent: false });
            }
        };
        self.0.edit(append).await
    }

    /// Notes that `id` is about to be sent. False if it was taken back meanwhile.
    pub(super) async fn sending(&self, id: &EndpointId) -> Result<bool> {
        let note = |queue: &mut Vec<Release>| {
            let release = queue.iter_mut().find(|r| r.id == *id);
            release.map(|release| release.sent = true).is_some()
        };
        self.0.edit(note).await
    }

    /// Notes that sending failed before the manager could have heard of it.
    pub(super) async fn unsent(&self, id: &EndpointId) -> Result<()> {
        let note = |queue: &mut Vec<Release>| {
            queue.iter_mut().filter(|r| r.id == *id).for_each(|r| r.sent = false);
        };
        self.0.edit(note).await
    }

    /// The manager has removed it.
    pub(super) async fn done(&self, id: &EndpointId) -> Result<()> {
        self.0.edit(|queue| queue.retain(|r| r.id != *id)).await
    }

    /// Takes back the endpoints of a former workload `name` that was on exactly
    /// these networks and served what this one is to serve, all or none, in the order
    /// of the networks.
    pub(super) async fn take_back(
        &self,
        name: &Name,
        networks: &[Attach],
        serve: Option<&Serve>,
        snapshot: &Snapshot,
    ) -> Result<Option<Vec<Endpoint>>> {
        let take = |queue: &mut Vec<Release>| {
            let taken = find(queue, name, networks, serve, snapshot);
            let ids = taken.iter().flatten().map(|e| &e.id).collect::<Vec<_>>();
            queue.retain(|r| !ids.contains(&&r.id));
            taken
        };
        self.0.edit(take).await
    }

    /// Tells of every change.
    pub(super) fn pending(&self) -> watch::Receiver<Vec<Release>> {
        self.0.subscribe()
    }
}

fn find(
    queue: &[Release],
    name: &Name,
    networks: &[Attach],
    serve: Option<&Serve>,
    snapshot: &Snapshot,
) -> Option<Vec<Endpoint>> {
    let service = match serve {
        Some(serve) => Some(snapshot.service(&serve.service)?),
        None => None,
    };
    let ours = |r: &&Release| !r.sent && r.endpoint.as_ref().is_some_and(|e| e.name == *name);
    let ready: Vec<&Endpoint> =
        queue.iter().filter(ours).filter_map(|r| r.endpoint.as_ref()).collect();
    ready.iter().find_map(|first| {
        let of_workload: Vec<_> = ready.iter().filter(|e| e.workload == first.workload).collect();
        if of_workload.len() != networks.len() {
            return None;
        }
        let fitting = |attach: &Attach| {
            let network = &snapshot.network(&attach.network)?.id;
            let aliases = validate::aliases(&attach.aliases).ok()?;
            let service = service.filter(|s| s.is_on(network)).map(|s| &s.id);
            let fits = |e: &&&&Endpoint| {
                e.network == *network
                    && e.aliases == aliases
                    && e.task.as_ref().map(|t| &t.service) == service
                    && attach.address.is_none_or(|address| address == e.address)
            };
            of_workload.iter().find(fits).map(|e| Endpoint::clone(e))
        };
        networks.iter().map(fitting).collect()
    })
}
