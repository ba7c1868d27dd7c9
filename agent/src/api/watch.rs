//! `GET /v1/watch`: the snapshot, then what changes in it, one JSON object a line.
//! A slow reader gets several changes as one, and costs no memory.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures::stream;
use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval};

use super::identity::Identity;
use super::server::App;
use super::types::WatchEvent;
use crate::cluster::between;
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
) -> impl IntoResponse {
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = Watcher { identity, snapshots: app.cluster.subscribe(), last: None, over: false };
    let events = stream::unfold((watcher, alive), |(mut watcher, mut alive)| async move {
        if watcher.over {
            return None;
        }
        let event = match watcher.first() {
            Some(event) => event,
            None => tokio::select! {
                // A change goes before a sign of life.
                biased;
                changed = watcher.snapshots.changed() => {
                    changed.ok()?;
                    watcher.next()?
                }
                _ = alive.tick() => WatchEvent::Alive { revision: watcher.revision() },
            },
        };
        let mut line = serde_json::to_vec(&event).ok()?;
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(line), (watcher, alive)))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(events))
}

struct Watcher {
    identity: Identity,
    snapshots: Receiver<Arc<Snapshot>>,
    /// What the reader has.
    last: Option<Arc<Snapshot>>,
    /// The reader has been told that it is no member any more.
    over: bool,
}

impl Watcher {
    fn first(&mut self) -> Option<WatchEvent> {
        if self.last.is_some() {
            return None;
        }
        Some(self.whole())
    }

    /// What leads to the newest snapshot. None ends the stream of another node: this
    /// one has left the cluster that they were both in.
    fn next(&mut self) -> Option<WatchEvent> {
        let new = self.snapshots.borrow_and_update().clone();
        let same_cluster = self.last.as_ref().is_some_and(|old| old.cluster == new.cluster);
        if let Identity::Node { id, .. } = &self.identity {
            if !same_cluster {
                return None;
            }
            self.over = !new.nodes.contains_key(id);
        }
        match self.last.replace(new.clone()) {
            Some(old) if same_cluster => {
                Some(WatchEvent::Delta { revision: new.revision, changes: between(&old, &new) })
            }
            _ => Some(self.whole()),
        }
    }

    fn whole(&mut self) -> WatchEvent {
        let snapshot = self.snapshots.borrow_and_update().clone();
        self.last = Some(snapshot.clone());
        WatchEvent::Snapshot { snapshot: Snapshot::clone(&snapshot) }
    }

    fn revision(&self) -> u64 {
        self.last.as_ref().map_or(0, |snapshot| snapshot.revision)
    }
}
