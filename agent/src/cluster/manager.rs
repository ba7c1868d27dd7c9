//! A manager: commits decisions to the store, mirrors the store into the view that
//! they are made on, keeps the leases, and admits new nodes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio_rustls::TlsAcceptor;

use super::ca::{self, Authority, Credentials, Subject};
use super::identity::Identity;
use super::leases::{LEASE, LOOK, Leases};
use super::view::{self, View};
use super::{Error, decide, keys, rotation, service, task, tls, token};
use crate::api::types::{
    CertificateReply, CertificateRequest, CreateEndpoint, CreateNetwork, CreateService, NodeFacts,
    RenewalReply, RenewalRequest, StatusReport, UpdateCluster, UpdateEndpoint, UpdateService,
};
use crate::model::{
    CaRotation, ClusterInfo, Endpoint, EndpointId, Name, Network, Node, NodeId, NodeStatus, Role,
    Service, Snapshot, Trust,
};
use crate::store::{Compare, Op, Outcome, Store};

/// How long a change waits for the nodes to know of it.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a commit may take to come back through the mirror.
const MIRROR: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken, for want of descriptors.
const ACCEPT: Duration = Duration::from_millis(100);
/// Pause after the mirror failed.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Manager {
    store: Arc<dyn Store>,
    me: NodeId,
    info: ClusterInfo,
    view: watch::Sender<Arc<View>>,
    /// Where snapshots are published.
    snapshot: watch::Sender<Arc<Snapshot>>,
    leases: Leases,
    /// Held from decision to commit. Conflicts are then only with other managers.
    turn: Mutex<()>,
    /// Where other nodes connect to; None once this is no manager any more.
    listener: std::sync::Mutex<Option<Arc<TcpListener>>>,
    port: u16,
    /// What this node shows to others.
    own: std::sync::Mutex<Credentials>,
    /// Replaced when that is, or when other CAs are trusted.
    acceptor: watch::Sender<TlsAcceptor>,
}

impl Manager {
    /// Reads the store.
    pub(super) async fn start(
        store: Arc<dyn Store>,
        identity: &Identity,
        listener: TcpListener,
        snapshot: watch::Sender<Arc<Snapshot>>,
    ) -> Result<Self, Error> {
        let view = View::read(store.range("").await?)?;
        let info = view.settings.as_ref().map(|s| s.info.clone());
        let info = info.ok_or_else(|| Error::Internal("the store holds no cluster".to_owned()))?;
        let me = identity.record.node.clone();
        let leases = Leases::new(me.clone(), &view.snapshot);
        let own = identity.credentials.clone();
        let acceptor = watch::Sender::new(acceptor(&own, view.snapshot.trust.as_ref())?);
        let view = watch::Sender::new(Arc::new(view));
        let port = listener.local_addr().context("the listener has no address")?.port();
        Ok(Self {
            store,
            me,
            info,
            view,
            snapshot,
            leases,
            turn: Mutex::default(),
            listener: std::sync::Mutex::new(Some(Arc::new(listener))),
            port,
            own: std::sync::Mutex::new(own),
            acceptor,
        })
    }

    /// Publishes and mirrors the store, watches the leases; never returns.
    pub(super) async fn run(&self) {
        self.snapshot.send_replace(self.view().snapshot.clone());
        tokio::join!(self.mirror(), self.watch_leases(), self.end_rotations(), self.keep_keys());
    }

    async fn mirror(&self) {
        loop {
            if let Err(e) = self.follow_store().await {
                tracing::error!("the store cannot be followed: {e}");
            }
            tokio::time::sleep(RETRY).await;
            match self.store.range("").await.map_err(Error::from).and_then(View::read) {
                Ok(view) => self.publish(view),
                Err(e) => tracing::error!("the store cannot be read: {e}"),
            }
        }
    }

    async fn follow_store(&self) -> Result<(), Error> {
        let mut view = View::clone(&self.view.borrow());
        let mut batches = self.store.watch("", view.snapshot.revision).await?;
        while let Some(batch) = batches.next().await {
            view.apply(batch?)?;
            self.publish(view.clone());
        }
        Ok(())
    }

    fn publish(&self, view: View) {
        let trust = view.snapshot.trust.as_ref();
        // Before any node is told: the first of those that renew may come at once.
        if self.view.borrow().snapshot.trust.as_ref() != trust
            && let Err(e) = self.accept_with(trust)
        {
            tracing::error!("connections are still taken by the former CA: {e}");
        }
        self.snapshot.send_replace(view.snapshot.clone());
        self.view.send_replace(Arc::new(view));
    }

    /// Trusts a former CA no more, once nobody needs it.
    async fn end_rotations(&self) {
        let mut views = self.view.subscribe();
        while views.wait_for(|view| view.snapshot.is_former_ca_done()).await.is_ok() {
            match self.commit(rotation::advance).await {
                Ok(_) => tracing::info!("the former CA is trusted no more"),
                Err(e) => {
                    tracing::error!("the former CA is still trusted: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn watch_leases(&self) {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let silent = self.leases.silent(&self.view().snapshot);
            if silent.is_empty() {
                continue;
            }
            match self.commit(|view| decide::mark_down(view, &silent)).await {
                Ok((nodes, _)) => {
                    for node in nodes {
                        tracing::warn!("node {} is down: silent for {LEASE:?}", node.hostname);
                    }
                }
                Err(e) => tracing::error!("cannot mark silent nodes as down: {e}"),
            }
        }
    }

    /// Renews the keys of encrypted networks when it is time, step by step.
    async fn keep_keys(&self) {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if self.view().snapshot.keyring.is_none() {
                continue;
            }
            let advance = |view: &View| keys::advance(view, |node| self.leases.applied(node));
            if let Err(e) = self.commit(advance).await {
                tracing::error!("cannot renew the keys of encrypted networks: {e}");
            }
        }
    }

    /// Renews the keys of encrypted networks; returns their epoch. Answers when every ready
    /// node has them, or after [`SETTLE`].
    pub(super) async fn rotate_keys(&self) -> Result<u64, Error> {
        let (epoch, _) = self.commit(keys::rotate).await?;
        tracing::info!("keys of epoch {epoch} made");
        let mut views = self.view.subscribe();
        let received = |view: &Arc<View>| keys::is_received(&view.snapshot, epoch);
        if tokio::time::timeout(SETTLE, views.wait_for(received)).await.is_err() {
            tracing::debug!("not every node has keys of epoch {epoch} within {SETTLE:?}");
        }
        Ok(epoch)
    }

    /// What is known of the keys of encrypted networks.
    pub(super) fn rotation(&self) -> keys::Rotation {
        keys::rotation(&self.view())
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.view().snapshot.clone()
    }

    /// What is published.
    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Decides on the newest state and commits on exactly that state. Returns the
    /// answer and a revision at which it holds; the snapshot has reached it.
    async fn commit<T>(
        &self,
        decide: impl Fn(&View) -> Result<(Vec<Op>, T), Error>,
    ) -> Result<(T, u64), Error> {
        let _turn = self.turn.lock().await;
        loop {
            let view = self.view();
            let (mut ops, answer) = decide(&view)?;
            if ops.is_empty() {
                return Ok((answer, view.snapshot.revision));
            }
            let unchanged = match view.writer {
                0 => Compare::Absent(view::WRITER.to_owned()),
                revision => Compare::ModRevision(view::WRITER.to_owned(), revision),
            };
            ops.push(Op::Put(view::WRITER.to_owned(), vec![]));
            match self.store.txn(vec![unchanged], ops).await? {
                Outcome::Committed(revision) => {
                    self.reached(revision).await?;
                    return Ok((answer, revision));
                }
                Outcome::Conflict => self.reached(view.snapshot.revision + 1).await?,
            }
        }
    }

    async fn reached(&self, revision: u64) -> Result<(), Error> {
        let mut views = self.view.subscribe();
        let reached = views.wait_for(|view| view.snapshot.revision >= revision);
        match tokio::time::timeout(MIRROR, reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Unavailable(format!(
                "revision {revision} of the store was not seen within {MIRROR:?}"
            ))),
        }
    }

    pub(super) async fn create_network(&self, request: &CreateNetwork) -> Result<Network, Error> {
        let (network, revision) = self.commit(|view| decide::create_network(view, request)).await?;
        if network.encrypted {
            self.settle(revision).await;
        }
        tracing::info!("network {} created: {}, VNI {}", network.name, network.subnet, network.vni);
        Ok(network)
    }

    pub(super) async fn remove_network(&self, name_or_id: &str) -> Result<(), Error> {
        self.commit(|view| decide::remove_network(view, name_or_id)).await?;
        tracing::info!("network {name_or_id} removed");
        Ok(())
    }

    pub(super) async fn prune(&self) -> Result<Vec<Name>, Error> {
        Ok(self.commit(decide::prune).await?.0)
    }

    /// Answers when every ready node has applied it, or after [`SETTLE`].
    pub(super) async fn create_endpoint(
        &self,
        request: &CreateEndpoint,
    ) -> Result<Endpoint, Error> {
        self.settled(|view| decide::create_endpoint(view, request)).await
    }

    /// As [`create_endpoint`](Self::create_endpoint); so for the services.
    pub(super) async fn update_endpoint(
        &self,
        id: &EndpointId,
        update: &UpdateEndpoint,
    ) -> Result<Endpoint, Error> {
        self.settled(|view| task::update(view, id, update)).await
    }

    pub(super) async fn create_service(&self, request: &CreateService) -> Result<Service, Error> {
        let service = self.settled(|view| service::create(view, request)).await?;
        tracing::info!("service {} created", service.name);
        Ok(service)
    }

    pub(super) async fn update_service(
        &self,
        name_or_id: &str,
        request: &UpdateService,
    ) -> Result<Service, Error> {
        let service = self.settled(|view| service::update(view, name_or_id, request)).await?;
        tracing::info!("service {} updated", service.name);
        Ok(service)
    }

    pub(super) async fn remove_service(&self, name_or_id: &str, force: bool) -> Result<(), Error> {
        let service = self.settled(|view| service::remove(view, name_or_id, force)).await?;
        tracing::info!("service {} removed", service.name);
        Ok(())
    }

    /// Commits, and answers when every ready node has applied it, or after [`SETTLE`].
    async fn settled<T>(
        &self,
        decide: impl Fn(&View) -> Result<(Vec<Op>, T), Error>,
    ) -> Result<T, Error> {
        let (answer, revision) = self.commit(decide).await?;
        self.settle(revision).await;
        Ok(answer)
    }

    /// Waits until every ready node has applied it, or for [`SETTLE`].
    async fn settle(&self, revision: u64) {
        if tokio::time::timeout(SETTLE, self.applied(revision)).await.is_err() {
            tracing::debug!("not every node has applied revision {revision} within {SETTLE:?}");
        }
    }

    async fn applied(&self, revision: u64) {
        let (mut reports, mut views) = (self.leases.changes(), self.view.subscribe());
        let done = || {
            let view = self.view();
            // Nodes that have no keys yet cannot be sent to.
            keys::is_received(&view.snapshot, 1)
                && self.leases.all_applied(&view.snapshot, revision.max(view.epochs))
        };
        while !done() {
            // Neither sender goes away before self does.
            tokio::select! {
                _ = reports.changed() => {}
                _ = views.changed() => {}
            }
        }
    }

    pub(super) async fn remove_endpoint(&self, id: &EndpointId) -> Result<(), Error> {
        self.commit(|view| decide::remove_endpoint(view, id)).await.map(|_| ())
    }

    pub(super) async fn remove_node(&self, name_or_id: &str, force: bool) -> Result<Node, Error> {
        let (node, _) = self.commit(|view| decide::remove_node(view, name_or_id, force)).await?;
        tracing::info!("node {} ({}) removed", node.hostname, node.id);
        Ok(node)
    }

    /// A node's report; renews its lease. As long as nothing changes, it waits for
    /// no transaction.
    pub(super) async fn report(&self, node: &NodeId, report: &StatusReport) -> Result<(), Error> {
        let known = self.view().snapshot.nodes.get(node).map(|n| n.status);
        if known.is_some() {
            self.leases.renew(node, report.applied);
        }
        match (known, &report.facts) {
            (Some(NodeStatus::Ready), None) => Ok(()),
            (_, facts) => self.take_facts(node, facts.as_ref()).await,
        }
    }

    /// A node has spoken, and its facts, if it gives some, are these.
    pub(super) async fn take_facts(
        &self,
        node: &NodeId,
        facts: Option<&NodeFacts>,
    ) -> Result<(), Error> {
        self.commit(|view| decide::report(view, node, facts)).await.map(|_| ())
    }

    /// This node's own kernel reflects `revision`.
    pub(super) fn applied_here(&self, revision: u64) {
        self.leases.renew(&self.me, revision);
    }

    /// The next connection to this manager; None, after a pause, if none could be
    /// taken.
    pub(super) async fn accept(&self) -> Option<(TcpStream, SocketAddr, TlsAcceptor)> {
        let listener = self.lock_listener().clone();
        let accepted = match listener {
            Some(listener) => listener.accept().await,
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        match accepted {
            Ok((stream, peer)) => Some((stream, peer, self.acceptor.borrow().clone())),
            Err(e) => {
                tracing::warn!("cannot take a connection: {e}");
                tokio::time::sleep(ACCEPT).await;
                None
            }
        }
    }

    /// TCP port on which other nodes connect.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Copies the store, as it is at one revision, into an empty file.
    pub(super) async fn copy_store(&self, file: &Path) -> Result<(), Error> {
        Ok(self.store.copy_to(file).await?)
    }

    /// Gives up port and store, whoever still holds this.
    pub(super) async fn close(&self) {
        self.lock_listener().take();
        self.store.close().await;
    }

    fn lock_listener(&self) -> std::sync::MutexGuard<'_, Option<Arc<TcpListener>>> {
        self.listener.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Checks the token and makes the asking node a member.
    pub(super) async fn admit(
        &self,
        request: &CertificateRequest,
    ) -> Result<CertificateReply, Error> {
        let secret: String = secret(&*self.store, view::WORKER_TOKEN).await?;
        if !token::same_secret(&request.token, &secret) {
            return Err(Error::Unauthorized(
                "the join token is not valid (any more): `netagent cluster join-token worker` on \
                 a manager prints the one that is"
                    .to_owned(),
            ));
        }
        let (node, role) = (NodeId::new(), Role::Worker);
        let subject = Subject { node: node.clone(), role, cluster: self.info.id.clone() };
        let RenewalReply { certificate, ca } = self.sign(&request.csr, &subject).await?;
        let shown = ca::shown(&certificate, &ca)?;
        let facts = NodeFacts { certificate: Some(shown), ..request.facts.clone() };
        self.commit(|view| decide::admit(view, &node, role, &facts)).await?;
        self.leases.renew(&node, 0);
        tracing::info!("node {} ({node}) joined as {role}", request.facts.hostname);
        Ok(CertificateReply { cluster: self.info.clone(), node, role, certificate, ca })
    }

    /// Signs a new key of a member.
    pub(super) async fn renew(
        &self,
        id: &NodeId,
        request: &RenewalRequest,
    ) -> Result<RenewalReply, Error> {
        let view = self.view();
        let node = view.snapshot.nodes.get(id);
        let node = node.ok_or_else(|| Error::NotFound(format!("no node {id}")))?;
        let subject = Subject { node: id.clone(), role: node.role, cluster: self.info.id.clone() };
        self.sign(&request.csr, &subject).await
    }

    async fn sign(&self, csr: &str, subject: &Subject) -> Result<RenewalReply, Error> {
        // The CA that signs and those that are trusted are of one moment.
        let _turn = self.turn.lock().await;
        let authority: Authority = secret(&*self.store, view::CA).await?;
        let certificate = authority.sign(csr, subject, self.cert_expiry());
        let certificate = certificate.map_err(|e| Error::Invalid(format!("{e:#}")))?;
        let trust = self.view().snapshot.trust.as_ref().map(Trust::pem);
        Ok(RenewalReply { certificate, ca: trust.unwrap_or(authority.certificate) })
    }

    /// Shows this certificate from the next connection on.
    pub(super) fn show(&self, own: &Credentials) -> Result<(), Error> {
        self.lock_own().clone_from(own);
        self.accept_with(self.view().snapshot.trust.as_ref())
    }

    fn accept_with(&self, trust: Option<&Trust>) -> Result<(), Error> {
        let acceptor = acceptor(&self.lock_own(), trust)?;
        self.acceptor.send_replace(acceptor);
        Ok(())
    }

    fn lock_own(&self) -> std::sync::MutexGuard<'_, Credentials> {
        self.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins to replace the CA, or with `force` ends that.
    pub(super) async fn rotate_ca(&self, force: bool) -> Result<CaRotation, Error> {
        if force {
            self.commit(rotation::force).await?;
            tracing::warn!("nodes that have not renewed their certificates are not waited for");
        } else {
            let current: Authority = secret(&*self.store, view::CA).await?;
            let next = Authority::new(&self.info.id)?;
            self.commit(|view| rotation::begin(view, &current.certificate, &next)).await?;
            tracing::info!("the CA is being replaced");
        }
        Ok(rotation::progress(&self.view()))
    }

    /// How long certificates are valid that are signed now.
    fn cert_expiry(&self) -> Duration {
        let chosen = self.view().settings.as_ref().map(|s| s.cert_expiry);
        Duration::from_secs(chosen.unwrap_or_else(view::expiry).into())
    }

    /// Changes what holds for the whole cluster.
    pub(super) async fn update(&self, request: &UpdateCluster) -> Result<(), Error> {
        self.commit(|view| decide::update_cluster(view, request)).await.map(|_| ())
    }

    /// The token that admits workers; with `rotate`, a new one replaces it.
    pub(super) async fn worker_token(&self, rotate: bool) -> Result<token::Token, Error> {
        if rotate {
            let ops = || Ok((vec![view::put(view::WORKER_TOKEN, &token::new_secret())], ()));
            self.commit(|_| ops()).await?;
        }
        // The CA that a joining node can tell this manager by.
        let own = self.lock_own().clone();
        let ca = ca::digest(&ca::signer(&ca::certificate(&own.certificate)?, &own.ca)?);
        Ok(token::Token { ca, secret: secret(&*self.store, view::WORKER_TOKEN).await? })
    }
}

/// Takes those who have a certificate of a trusted CA.
fn acceptor(own: &Credentials, trust: Option<&Trust>) -> anyhow::Result<TlsAcceptor> {
    let ca = trust.map_or_else(|| own.ca.clone(), Trust::pem);
    Ok(TlsAcceptor::from(Arc::new(tls::server(&Credentials { ca, ..own.clone() })?)))
}

/// A value that no view holds.
async fn secret<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Result<T, Error> {
    let range = store.range(key).await?;
    let value = range.kvs.iter().find(|kv| kv.key == key).map(|kv| kv.value.as_slice());
    view::decode(key, value)?
        .ok_or_else(|| Error::Internal(format!("the store's {key:?} is missing")))
}
