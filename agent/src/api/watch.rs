//! `GET /v1/watch`: the snapshot, then what changes in it, one JSON object a line.
//! A slow reader gets several changes as one, and costs no memory.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures::stream;
use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval};

use super::identity::Identity;
use super::lines::{Lines, encode};
use super::server::App;
use super::types::WatchEvent;
use crate::model::Snapshot;

/// How often a sign of life is sent when nothing changes.
const ALIVE: Duration = Duration::from_secs(1);

/// Follow the cluster's objects
///
/// A stream of JSON objects, one a line: a snapshot, then deltas, and a sign of
/// life every second.
#[utoipa::path(get, path = "/v1/watch", tag = "cluster",
    responses((status = 200, content_type = "application/x-ndjson", body = WatchEvent)))]
pub(super) async fn watch(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Extension(lines): Extension<Lines>,
) -> impl IntoResponse {
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = Watcher { identity, lines, snapshots: app.cluster.subscribe(), last: None };
    let events = stream::unfold((watcher, alive), |(mut watcher, mut alive)| async move {
        let line = match watcher.last {
            None => watcher.next()?,
            Some(_) => tokio::select! {
                // A change goes before a sign of life.
                biased;
                changed = watcher.snapshots.changed() => {
                    changed.ok()?;
                    watcher.next()?
                }
                _ = alive.tick() => encode(&WatchEvent::Alive { revision: watcher.revision() }).ok()?,
            },
        };
        Some((Ok::<_, std::convert::Infallible>(line), (watcher, alive)))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(events))
}

struct Watcher {
    identity: Identity,
    lines: Lines,
    snapshots: Receiver<Arc<Snapshot>>,
    /// What the reader has.
    last: Option<Arc<Snapshot>>,
}

impl Watcher {
    /// What leads to the newest snapshot. None ends the stream of another node: this one
    /// has left the cluster that they were both in, or that one is no member any more, and
    /// is told nothing of what came after, however late it reads.
    fn next(&mut self) -> Option<Bytes> {
        let new = self.newest();
        let old = self.last.replace(new.clone());
        let same_cluster = old.as_ref().is_none_or(|old| old.cluster == new.cluster);
        if let Identity::Node { id, .. } = &self.identity
            && !(same_cluster && new.nodes.contains_key(id))
        {
            return None;
        }
        self.lines.between(old.filter(|_| same_cluster).as_ref(), &new).ok()
    }

    /// What there is for this reader: keys are for nodes, which need them, and not for whoever
    /// looks on.
    fn newest(&mut self) -> Arc<Snapshot> {
        let mut snapshot = self.snapshots.borrow_and_update().clone();
        if !matches!(self.identity, Identity::Node { .. }) && snapshot.keyring.is_some() {
            Arc::make_mut(&mut snapshot).keyring = None;
        }
        snapshot
    }

    fn revision(&self) -> u64 {
        self.last.as_ref().map_or(0, |snapshot| snapshot.revision)
    }
}
