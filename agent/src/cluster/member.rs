//! What a node is and runs while it is a member of a cluster.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ca::{self, Credentials};
use super::disk::Dir;
use super::follower::Follower;
use super::identity::Identity;
use super::manager::Manager;
use super::releases::Releases;
use super::updates::Updates;
use super::{ClusterConfig, Error};
use crate::api::client::ClientError;
use crate::api::types::NodeFacts;
use crate::facts::Addresses;
use crate::model::{Certificate, Endpoint, EndpointId, NodeId, Snapshot};

/// Endpoints of which a manager is told at the same time.
const AT_ONCE: usize = 64;
/// How often the host's links and routes are read.
const REFRESH: Duration = Duration::from_secs(10);
/// Pause after a release could not be delivered.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the address of a listener that was just closed may stay in use.
const BIND: Duration = Duration::from_secs(2);

/// A membership at work.
pub(super) struct Member {
    pub(super) identity: Identity,
    /// Those of `identity`, or what they were renewed to since.
    pub(super) credentials: watch::Sender<Credentials>,
    pub(super) releases: Releases,
    pub(super) updates: Updates,
    pub(super) part: Part,
    pub(super) dir: Arc<Dir>,
}

/// What the node does in the cluster.
pub(super) enum Part {
    Manager(Arc<Manager>),
    Worker(Arc<Follower>),
}

impl Part {
    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        match self {
            Self::Manager(manager) => manager.snapshots(),
            Self::Worker(follower) => follower.snapshots(),
        }
    }

    /// Ends its use of the disk and the network.
    pub(super) async fn close(&self) {
        match self {
            Self::Manager(manager) => manager.close().await,
            Self::Worker(follower) => follower.close().await,
        }
    }
}

impl Member {
    pub(super) fn node(&self) -> &NodeId {
        &self.identity.record.node
    }

    /// Does all that a member does in the background; never returns.
    pub(super) async fn run(&self, config: &ClusterConfig, applied: watch::Receiver<u64>) {
        let facts = watch::Sender::new(None);
        let seen = facts.subscribe();
        let part = async {
            match &self.part {
                Part::Manager(manager) => {
                    tokio::join!(manager.run(), self.own_facts(manager, seen));
                }
                Part::Worker(follower) => follower.run(applied, seen).await,
            }
        };
        let host = self.refresh(config, &facts);
        tokio::join!(part, host, self.deliver(), self.tell(), self.keep_certificate());
    }

    async fn refresh(&self, config: &ClusterConfig, facts: &watch::Sender<Option<NodeFacts>>) {
        let mut credentials = self.credentials.subscribe();
        let mut ipsec = config.ipsec.clone();
        loop {
            ipsec.mark_unchanged();
            match self::facts(config, self.identity.record.addresses()).await {
                Ok(mut new) => {
                    new.certificate = self.certificate();
                    facts.send_if_modified(|old| old.replace(new.clone()).as_ref() != Some(&new));
                }
                Err(e) => tracing::warn!("{e:#}; the cluster keeps what it knew of this host"),
            }
            // No sender goes away before self does.
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                _ = credentials.changed() => {}
                Ok(()) = ipsec.changed() => {}
            }
        }
    }

    /// What is told of this node's certificate.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        let own = self.credentials.borrow();
        ca::shown(&own.certificate, &own.ca).ok()
    }

    async fn own_facts(&self, manager: &Manager, mut facts: watch::Receiver<Option<NodeFacts>>) {
        while facts.changed().await.is_ok() {
            let new = facts.borrow_and_update().clone();
            if let Err(e) = manager.take_facts(self.node(), new.as_ref()).await {
                tracing::error!("cannot store the facts of this host: {e}");
            }
        }
    }

    /// Removes released endpoints, one after the other, whenever a manager answers.
    async fn deliver(&self) {
        let mut pending = self.releases.pending();
        loop {
            let Some(id) = pending.borrow_and_update().first().map(|r| r.id.clone()) else {
                if pending.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if let Err(e) = self.deliver_one(&id).await {
                tracing::warn!("endpoint {id} is released and not yet removed: {e}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn deliver_one(&self, id: &EndpointId) -> Result<(), Error> {
        if let Part::Worker(follower) = &self.part {
            // Fails only if the follower is gone, and then this task is too.
            let _ = follower.live().wait_for(|live| *live).await;
        }
        if !self.releases.sending(id).await? {
            return Ok(());
        }
        let outcome = match &self.part {
            Part::Manager(manager) => manager.remove_endpoint(id).await,
            Part::Worker(follower) => {
                match follower.client().delete(&format!("/v1/endpoints/{id}")).await {
                    Err(e @ (ClientError::Unreachable { .. } | ClientError::Untrusted { .. })) => {
                        self.releases.unsent(id).await?;
                        return Err(e.into());
                    }
                    other => other.map_err(Error::from),
                }
            }
        };
        match outcome {
            Ok(()) | Err(Error::NotFound(_)) => Ok(self.releases.done(id).await?),
            // It is not ours, or we are no member: no repetition makes it so.
            Err(Error::Forbidden(reason)) => {
                tracing::error!("endpoint {id} is not this node's to release: {reason}");
                Ok(self.releases.done(id).await?)
            }
            Err(e) => Err(e),
        }
    }

    /// Tells a manager of this node's endpoints whenever one answers: of many at once,
    /// of each one thing after the other.
    async fn tell(&self) {
        let mut untold = self.updates.untold();
        let (mut busy, mut telling) = (BTreeSet::new(), FuturesUnordered::new());
        loop {
            let due: Vec<_> = {
                let untold = untold.borrow_and_update();
                let idle = untold.keys().filter(|id| !busy.contains(*id));
                idle.take(AT_ONCE - busy.len()).cloned().collect()
            };
            for id in due {
                busy.insert(id.clone());
                telling.push(async move {
                    if let Err(e) = self.tell_one(&id).await {
                        tracing::warn!("the manager does not know of endpoint {id} yet: {e}");
                        tokio::time::sleep(AGAIN).await;
                    }
                    id
                });
            }
            tokio::select! {
                changed = untold.changed() => if changed.is_err() { return },
                Some(id) = telling.next() => drop(busy.remove(&id)),
            }
        }
    }

    async fn tell_one(&self, id: &EndpointId) -> Result<(), Error> {
        if let Part::Worker(follower) = &self.part {
            // Fails only if the follower is gone, and then this task is too.
            let _ = follower.live().wait_for(|live| *live).await;
        }
        // As it is now, not as it was when the wait began.
        let Some(update) = self.updates.untold().borrow().get(id).cloned() else { return Ok(()) };
        let outcome = match &self.part {
            Part::Manager(manager) => manager.update_endpoint(id, &update).await.map(drop),
            Part::Worker(follower) => {
                let told = follower.client().patch(&format!("/v1/endpoints/{id}"), &update).await;
                told.map(|_: Endpoint| ()).map_err(Error::from)
            }
        };
        match outcome {
            // It is gone, or serves nothing any more.
            Ok(()) | Err(Error::NotFound(_) | Error::Conflict(_)) => {}
            Err(e @ (Error::Forbidden(_) | Error::Invalid(_))) => {
                tracing::error!("the manager takes nothing of endpoint {id}: {e}");
            }
            Err(e) => return Err(e),
        }
        self.updates.done(id, &update).await;
        Ok(())
    }
}

/// Makes the data directory if there is none.
pub(super) fn prepare(config: &ClusterConfig) -> Result<()> {
    let dir = &config.data_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// A manager's listener.
pub(super) async fn bind(config: &ClusterConfig) -> Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + BIND;
    loop {
        match TcpListener::bind(config.listen).await {
            Ok(listener) => return Ok(listener),
            Err(e)
                if e.kind() == std::io::ErrorKind::AddrInUse
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(BIND / 20).await;
            }
            Err(e) => {
                return Err(e).with_context(|| format!("cannot listen on {}", config.listen));
            }
        }
    }
}

/// What this host is, seen from its address.
pub(super) async fn facts(config: &ClusterConfig, addresses: Addresses) -> Result<NodeFacts> {
    let host = config.host.read().await?;
    let own = host.own_link(addresses)?;
    let link = match &config.uplink {
        None => own,
        Some(name) => host.links.iter().find(|l| l.name == *name).with_context(|| {
            format!("this host has no interface {name}: start the agent with another --uplink")
        })?,
    };
    Ok(NodeFacts {
        hostname: config.hostname.clone(),
        address: addresses.advertised,
        local_address: addresses.local,
        mtu: link.mtu,
        datapath: config.datapath,
        version: config.version.clone(),
        routes: host.own_routes(),
        certificate: None,
        ipsec: config.ipsec.borrow().clone(),
    })
}
