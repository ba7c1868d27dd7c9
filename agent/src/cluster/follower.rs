//! A worker's tie to its manager: follows the watch stream into the snapshot,
//! keeps a copy of it on disk, reports status. When the manager is away it tries
//! again, and the last snapshot holds.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::copy::{self, Copy};
use super::disk::Dir;
use super::identity::Identity;
use super::releases::Release;
use super::updates::{self, Untold};
use super::{changes, tls};
use crate::api::client::{Client, ClientError};
use crate::api::types::{NodeFacts, StatusReport, WatchEvent};
use crate::model::{NodeId, Snapshot};

/// Pause before the first new attempt; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Pause after the manager said that this node is no member, or its agent too old or too new,
/// or did not prove to be the manager.
const EXPELLED: Duration = Duration::from_secs(30);
/// A stream that was silent for so long is dead; managers send something every second.
const SILENCE: Duration = Duration::from_secs(3);
/// Events that are taken as one change at most.
const AT_ONCE: usize = 256;
/// How often status is reported.
const REPORT: Duration = Duration::from_secs(1);
/// So many times as long as it took to write a copy, no other is written ...
const REST: u32 = 9;
/// ... but no longer than this: new endpoints wait for it.
const LONGEST_REST: Duration = Duration::from_millis(200);
/// Pause after the copy could not be written.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for the manager's reply to a request.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Follower {
    node: NodeId,
    managers: Vec<Client>,
    current: AtomicUsize,
    /// Whether the stream is up.
    live: watch::Sender<bool>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    own: Own,
    /// Revision of the copy on disk.
    written: watch::Sender<u64>,
    copy: Arc<Mutex<Copy>>,
}

/// What this node knows of its own endpoints and the manager does not yet.
pub(super) struct Own {
    pub(super) untold: watch::Receiver<Untold>,
    pub(super) released: watch::Receiver<Vec<Release>>,
}

/// What ended a stream.
struct End {
    reason: String,
    /// This node is no member any more.
    expelled: bool,
    /// This agent and the manager's do not get along, or do not trust each other.
    strange: bool,
}

impl End {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), expelled: false, strange: false }
    }
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        let refused = |with: u16| matches!(&error, ClientError::Refused { status, .. } if status.as_u16() == with);
        let untrusted = matches!(&error, ClientError::Untrusted { .. });
        let (expelled, strange) = (refused(403), refused(426) || untrusted);
        Self { reason: error.to_string(), expelled, strange }
    }
}

impl Follower {
    pub(super) fn new(
        identity: &Identity,
        snapshot: watch::Sender<Arc<Snapshot>>,
        own: Own,
        dir: Arc<Dir>,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(tls::member(&identity.credentials)?);
        let client = |address: &String| {
            Client::tls(address.clone(), tls::manager_name(), config.clone(), PATIENCE)
        };
        Ok(Self {
            node: identity.record.node.clone(),
            managers: identity.record.managers.iter().map(client).collect(),
            current: AtomicUsize::new(0),
            live: watch::Sender::new(false),
            snapshot,
            own,
            written: watch::Sender::new(0),
            copy: Arc::new(Mutex::new(Copy::new(dir))),
        })
    }

    /// The snapshot that an earlier run left behind. It is a copy of what the manager has,
    /// so a damaged one is as good as none.
    pub(super) fn cached(dir: &Path) -> Option<Snapshot> {
        copy::read(dir).unwrap_or_else(|e| {
            tracing::error!("{e:#}: the kernel stays as it is until a manager sends another");
            None
        })
    }

    /// A client of the manager that is being followed.
    pub(super) fn client(&self) -> &Client {
        &self.managers[self.current.load(Ordering::Relaxed) % self.managers.len()]
    }

    /// Shows another certificate from the next connection on.
    pub(super) fn show(&self, config: Arc<rustls::ClientConfig>) {
        self.managers.iter().for_each(|manager| manager.renew(config.clone()));
    }

    /// What is published.
    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Whether a manager answers.
    pub(super) fn live(&self) -> watch::Receiver<bool> {
        self.live.subscribe()
    }

    /// Follows and reports; never returns.
    pub(super) async fn run(
        &self,
        applied: watch::Receiver<u64>,
        facts: watch::Receiver<Option<NodeFacts>>,
    ) {
        tokio::join!(self.follow(), self.report(applied, facts), self.keep());
    }

    async fn follow(&self) {
        let mut pause = PAUSE;
        loop {
            let End { reason, expelled, strange } = self.follow_once(&mut pause).await;
            let lost = self.live.send_replace(false);
            if expelled {
                tracing::error!("{reason}: `netagent cluster leave`, then join again");
                self.expelled();
                pause = EXPELLED;
            } else if strange {
                tracing::error!("{reason}");
                pause = EXPELLED;
            } else if lost {
                tracing::warn!("lost the manager: {reason}; what runs goes on");
            } else {
                tracing::debug!("no manager: {reason}");
            }
            self.current.fetch_add(1, Ordering::Relaxed);
            // Nodes that lost one manager do not all come back at the same moment.
            let part = rand::random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(part)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows one stream to its end, and tells what ended it.
    async fn follow_once(&self, pause: &mut Duration) -> End {
        let mut events = match self.client().lines::<WatchEvent>("/v1/watch").await {
            // Who is behind takes what has come meanwhile as one change.
            Ok(events) => Box::pin(events.ready_chunks(AT_ONCE)),
            Err(e) => return e.into(),
        };
        loop {
            match timeout(SILENCE, events.next()).await {
                Err(_) => return End::because(format!("silent for {SILENCE:?}")),
                Ok(None) => return End::because("it ended the stream"),
                Ok(Some(events)) => {
                    if let Err(end) = self.take(events) {
                        return end;
                    }
                    *pause = PAUSE;
                }
            }
        }
    }

    /// Publishes what these events come to, even if the last of them ends the stream.
    fn take(&self, events: Vec<Result<WatchEvent, ClientError>>) -> Result<(), End> {
        let (mut snapshot, mut live) = (self.snapshot.borrow().clone(), *self.live.borrow());
        let mut take = |event| {
            match event? {
                WatchEvent::Snapshot { snapshot: whole } => {
                    (snapshot, live) = (Arc::from(whole), true);
                }
                WatchEvent::Delta { revision, changes } if live => {
                    changes::apply(Arc::make_mut(&mut snapshot), revision, changes);
                }
                WatchEvent::Delta { .. } => return Err(End::because("it began with a delta")),
                WatchEvent::Alive { .. } | WatchEvent::Unknown => {}
            }
            Ok(())
        };
        let taken = events.into_iter().try_for_each(&mut take);
        self.snapshot.send_if_modified(|current| {
            self.overlay(&mut snapshot);
            let new = *current != snapshot;
            *current = snapshot;
            new
        });
        if live && !self.live.send_replace(true) {
            tracing::info!("following the manager");
        }
        taken
    }

    /// Shows in `snapshot` what this node knows of its own endpoints. Returns whether
    /// anything changed.
    pub(super) fn overlay(&self, snapshot: &mut Arc<Snapshot>) -> bool {
        updates::overlay(snapshot, &self.own.untold.borrow(), &self.own.released.borrow())
    }

    /// Publishes what this node has just learnt of its own endpoints.
    pub(super) fn show_own(&self) {
        self.snapshot.send_if_modified(|current| self.overlay(current));
    }

    /// The manager knows this node no more: neither do we, nor its endpoints, whose
    /// addresses may be somebody else's already.
    fn expelled(&self) {
        self.snapshot.send_if_modified(|current| {
            let member = current.nodes.contains_key(&self.node);
            if member {
                let snapshot = Arc::make_mut(current);
                snapshot.nodes.remove(&self.node);
                snapshot.endpoints.retain(|_, e| e.node != self.node);
            }
            member
        });
    }

    /// Reports every second, and at once when this node has applied a revision or
    /// its facts have changed. Facts are repeated until a manager has taken them.
    /// What is not on disk yet is not applied: an agent that is killed and comes back
    /// without a manager knows at least what it has told.
    async fn report(
        &self,
        mut applied: watch::Receiver<u64>,
        mut facts: watch::Receiver<Option<NodeFacts>>,
    ) {
        let path = format!("/v1/nodes/{}/status", self.node);
        let mut live = self.live();
        let mut written = self.written.subscribe();
        let mut told: Option<NodeFacts> = None;
        loop {
            if !*live.borrow_and_update() {
                told = None;
                if live.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let current = facts.borrow_and_update().clone();
            let done = (*applied.borrow_and_update()).min(*written.borrow_and_update());
            let report =
                StatusReport { facts: current.clone().filter(|_| current != told), applied: done };
            match self.client().post::<_, ()>(&path, &report).await {
                Ok(()) => told = current,
                Err(ClientError::Refused { status, message }) if status.is_client_error() => {
                    // Said once; the manager keeps what it knew.
                    tracing::error!("the manager refuses this node's report: {message}");
                    told = current;
                }
                Err(e) => tracing::warn!("cannot report status: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(REPORT) => {}
                () = beyond(done, [&mut applied, &mut written]) => {}
                _ = facts.changed() => {}
                _ = live.changed() => {}
            }
        }
    }

    /// Keeps the copy on disk close behind the snapshot. What changes while one is being
    /// written, or in the rest after it, goes into the next. Where the health of some changes
    /// all the time, the disk would do nothing else; so it does that for a tenth of the time,
    /// and a change on a quiet cluster is still written at once.
    async fn keep(&self) {
        let mut snapshots = self.snapshot.subscribe();
        snapshots.mark_changed();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            let began = Instant::now();
            if self.write(snapshot, Copy::write).await {
                tokio::time::sleep((began.elapsed() * REST).min(LONGEST_REST)).await;
            } else {
                // The disk may be full: as soon as it is not, what is there is written.
                tokio::time::sleep(AGAIN).await;
                snapshots.mark_changed();
            }
        }
    }

    /// Whether it is on disk now.
    async fn write(
        &self,
        snapshot: Arc<Snapshot>,
        how: fn(&mut Copy, &Arc<Snapshot>) -> anyhow::Result<()>,
    ) -> bool {
        let (copy, revision) = (self.copy.clone(), snapshot.revision);
        let write =
            move || how(&mut copy.lock().unwrap_or_else(PoisonError::into_inner), &snapshot);
        let written = tokio::task::spawn_blocking(write).await.map_err(anyhow::Error::from);
        match written.and_then(|written| written) {
            Ok(()) => drop(self.written.send_replace(revision)),
            Err(e) => {
                tracing::error!("the snapshot is not on disk: {e:#}");
                return false;
            }
        }
        true
    }

    /// Writes what [`keep`](Self::keep) may not have written yet.
    pub(super) async fn close(&self) {
        let snapshot = self.snapshot.borrow().clone();
        self.write(snapshot, Copy::write_whole).await;
    }
}

/// Returns once both are: one of the two alone is nothing to report.
async fn beyond(done: u64, both: [&mut watch::Receiver<u64>; 2]) {
    for one in both {
        // The senders live as long as the follower.
        let _ = one.wait_for(|now| *now > done).await;
    }
}
