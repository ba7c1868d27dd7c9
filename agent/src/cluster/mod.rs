//! The control plane of one node: its membership, the snapshot of the cluster's
//! objects, and every change to them. A manager owns the store and decides; a
//! worker follows a manager. It never touches the kernel: what a snapshot means
//! for this host is for `plan` and `reconcile` to say.
//!
//! There is one manager in this version; the store behind it is a trait so that
//! several can share one later.

mod allocate;
pub mod backup;
pub mod ca;
mod changes;
mod copy;
mod decide;
mod detail;
pub(crate) mod disk;
mod endpoints;
mod error;
mod follower;
mod identity;
mod kept;
mod keys;
mod leases;
mod manager;
mod member;
mod membership;
mod names;
mod ports;
mod releases;
mod renewal;
mod rotation;
mod service;
mod task;
#[cfg(test)]
pub(crate) mod tests;
pub mod tls;
pub mod token;
mod updates;
mod validate;
mod view;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api::types::{
    CertificateReply, CertificateRequest, ClusterStatus, CreateNetwork, CreateService, JoinToken,
    KeyStatus, NodeFacts, RenewalReply, RenewalRequest, StatusReport, UpdateCluster, UpdateService,
};
use crate::facts::{Addresses, HostReader};
use crate::model::{
    CaRotation, Datapath, Ipsec, Name, Network, Node, NodeId, Role, Service, Snapshot, Trust,
};
use manager::Manager;
use member::{Member, Part};

#[cfg(test)]
pub(crate) use changes::apply;
pub use changes::between;
pub use decide::{find_endpoint, find_node};
pub use detail::{network_detail, service_detail};
pub use error::Error;
pub use identity::Record;

/// TCP port on which managers listen.
pub const PORT: u16 = 2377;
/// What a node's control plane has to know.
#[derive(Clone)]
pub struct ClusterConfig {
    /// Where membership, store and snapshot are kept; made if it does not exist.
    pub data_dir: PathBuf,
    /// Host name, as it appears in `node ls`.
    pub hostname: String,
    /// Interface whose address is advertised, if several could be.
    pub uplink: Option<String>,
    /// Datapath that this agent runs.
    pub datapath: Datapath,
    /// Version of this agent.
    pub version: String,
    /// Where a manager listens: port [`PORT`] on all addresses, but in tests.
    pub listen: SocketAddr,
    /// Where the host's addresses and routes are read from.
    pub host: Arc<dyn HostReader>,
    /// What the kernel does for encrypted networks.
    pub ipsec: watch::Receiver<Ipsec>,
}

struct Inner {
    config: ClusterConfig,
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// Revision that this node's kernel reflects.
    applied: watch::Sender<u64>,
    member: watch::Sender<Option<Arc<Member>>>,
    /// Closed: that it is no member says nothing then.
    closed: AtomicBool,
    /// What runs while this node is a member; held while that changes.
    tasks: Mutex<JoinSet<()>>,
}

/// A node's control plane. Cloning shares it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

impl Cluster {
    /// Takes up the membership that the data directory holds, if any. The last
    /// snapshot is there when this returns, whether or not a manager answers.
    ///
    /// # Errors
    /// If a file in the data directory is damaged, naming it, or if this is a
    /// manager and cannot listen.
    pub async fn open(config: ClusterConfig) -> Result<Self, Error> {
        member::prepare(&config)?;
        let cluster = Self(Arc::new(Inner {
            config,
            snapshot: watch::Sender::new(Arc::default()),
            applied: watch::Sender::new(0),
            member: watch::Sender::new(None),
            closed: AtomicBool::new(false),
            tasks: Mutex::default(),
        }));
        if let Some(identity) = identity::Identity::load(&cluster.0.config.data_dir)? {
            let mut tasks = cluster.0.tasks.lock().await;
            cluster.enter(identity, None, &mut tasks).await?;
        }
        Ok(cluster)
    }

    /// Stops everything that runs in the background, and brings to disk what is not
    /// there yet; the membership stays.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
        let mut tasks = self.0.tasks.lock().await;
        let member = self.0.member.send_replace(None);
        tasks.shutdown().await;
        if let Some(member) = member {
            member.part.close().await;
        }
    }

    /// The datapath that this node was started with.
    #[must_use]
    pub fn datapath(&self) -> Datapath {
        self.0.config.datapath
    }

    /// The cluster's objects as this node knows them.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.borrow().clone()
    }

    /// Tells of every new snapshot, and with it of init, join and leave.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshot.subscribe()
    }

    /// Waits, at most for `patience`, until the snapshot is a manager's and not just
    /// what the disk had: that may lack what was new when the agent was killed. If the
    /// disk had none, waits for as long as this node is a member: nothing is known of what
    /// the kernel should have, and what it has is not to be thrown away for that.
    pub async fn caught_up(&self, patience: Duration) {
        let Ok(member) = self.member() else { return };
        if let Part::Worker(follower) = &member.part {
            let mut live = follower.live();
            // In time or not, what there is must do.
            let _ = tokio::time::timeout(patience, live.wait_for(|live| *live)).await;
        }
        let mut snapshots = self.subscribe();
        while snapshots.borrow_and_update().revision == 0 && self.identity().is_some() {
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    /// This node's membership; None if it is in no cluster.
    #[must_use]
    pub fn identity(&self) -> Option<Record> {
        self.0.member.borrow().as_ref().map(|m| m.identity.record.clone())
    }

    /// The interface that carries the tunnel: the one that has this node's own
    /// address. None if this node is in no cluster.
    ///
    /// # Errors
    /// If no interface has that address.
    pub async fn uplink(&self) -> Result<Option<String>, Error> {
        let Some(record) = self.identity() else { return Ok(None) };
        let host = self.0.config.host.read().await?;
        Ok(Some(host.own_link(record.addresses())?.name.clone()))
    }

    /// What `GET /v1/cluster` tells.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let (member, snapshot) = (self.member(), self.snapshot());
        let manager_reachable = match member.as_ref().map(|m| &m.part) {
            Ok(Part::Manager(_)) => true,
            Ok(Part::Worker(follower)) => *follower.live().borrow(),
            Err(_) => false,
        };
        let certificate = member.as_ref().ok().and_then(|member| member.certificate());
        ClusterStatus {
            certificate_expires: certificate.map(|certificate| certificate.expires),
            ca_rotation: snapshot.ca_rotation(),
            version: self.0.config.version.clone(),
            node: member
                .ok()
                .and_then(|m| snapshot.nodes.get(m.node()).map(|node| Node::clone(node))),
            cluster: snapshot.cluster.clone(),
            manager_reachable,
            applied: *self.0.applied.borrow(),
            keys: self.keys(&snapshot),
        }
    }

    fn keys(&self, snapshot: &Snapshot) -> Option<KeyStatus> {
        let newest = snapshot.keyring.as_ref()?.newest()?;
        let rotation = self.manager().ok().map(|manager| manager.rotation().seconds);
        Some(KeyStatus {
            epoch: newest.epoch,
            made: newest.made,
            packets: newest.packets,
            rotation,
        })
    }

    /// Notes that this node's kernel reflects `revision`, and tells the manager.
    pub fn report_applied(&self, revision: u64) {
        self.0.applied.send_if_modified(|applied| {
            let new = *applied != revision;
            *applied = revision;
            new
        });
        if let Ok(manager) = self.manager() {
            manager.applied_here(revision);
        }
    }

    /// The token that admits to `role`; with `rotate`, a new one replaces it.
    ///
    /// # Errors
    /// On a worker, and for managers: this version has one.
    pub async fn join_token(&self, role: Role, rotate: bool) -> Result<JoinToken, Error> {
        let (member, manager) = (self.member()?, self.manager()?);
        if role == Role::Manager {
            return Err(Error::Conflict(
                "a cluster has one manager in this version: nodes join as workers \
                 (`netagent cluster join-token worker`)"
                    .to_owned(),
            ));
        }
        let token = manager.worker_token(rotate).await?.to_string();
        let manager = format!("{}:{}", member.identity.record.address, manager.port());
        Ok(JoinToken { role, token, manager })
    }

    /// Renews the keys of encrypted networks; returns their epoch. Answers when every ready
    /// node has them, or after two seconds.
    ///
    /// # Errors
    /// If no network is encrypted, or on a worker.
    pub async fn rotate_keys(&self) -> Result<u64, Error> {
        self.manager()?.rotate_keys().await
    }

    /// Changes what holds for the whole cluster.
    ///
    /// # Errors
    /// If a value cannot be, or on a worker.
    pub async fn update(&self, request: &UpdateCluster) -> Result<(), Error> {
        validate::update(request)?;
        self.manager()?.update(request).await
    }

    /// Signs a new key of a member.
    ///
    /// # Errors
    /// If the node is none, or its request is malformed; on a worker.
    pub async fn renew_certificate(
        &self,
        node: &NodeId,
        request: &RenewalRequest,
    ) -> Result<RenewalReply, Error> {
        self.manager()?.renew(node, request).await
    }

    /// Begins to replace the CA, or with `force` ends that; returns how far it has come.
    ///
    /// # Errors
    /// If there is nothing to end; on a worker.
    pub async fn rotate_ca(&self, force: bool) -> Result<CaRotation, Error> {
        self.manager()?.rotate_ca(force).await
    }

    /// Creates a network.
    ///
    /// # Errors
    /// If the request cannot be, or on a worker.
    pub async fn create_network(&self, request: &CreateNetwork) -> Result<Network, Error> {
        self.manager()?.create_network(request).await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// If endpoints or services are on it, naming them, or on a worker.
    pub async fn remove_network(&self, name_or_id: &str) -> Result<(), Error> {
        self.manager()?.remove_network(name_or_id).await
    }

    /// Removes all networks without endpoints and services, and names them.
    ///
    /// # Errors
    /// On a worker.
    pub async fn prune(&self) -> Result<Vec<Name>, Error> {
        self.manager()?.prune().await
    }

    /// Creates a service. Returns when all ready nodes have applied it, or after two
    /// seconds; so for changes and removals.
    ///
    /// # Errors
    /// If the request cannot be, or on a worker.
    pub async fn create_service(&self, request: &CreateService) -> Result<Service, Error> {
        self.manager()?.create_service(request).await
    }

    /// Changes a service.
    ///
    /// # Errors
    /// If there is none, if the request cannot be, or on a worker.
    pub async fn update_service(
        &self,
        name_or_id: &str,
        request: &UpdateService,
    ) -> Result<Service, Error> {
        self.manager()?.update_service(name_or_id, request).await
    }

    /// Removes a service; with `force` even if endpoints serve it, which then serve
    /// nothing.
    ///
    /// # Errors
    /// If there is none, if endpoints serve it, naming them, or on a worker.
    pub async fn remove_service(&self, name_or_id: &str, force: bool) -> Result<(), Error> {
        self.manager()?.remove_service(name_or_id, force).await
    }

    /// Expels a node and removes its endpoints.
    ///
    /// # Errors
    /// If it is ready, unless `force`; if it is the manager; on a worker.
    pub async fn remove_node(&self, name_or_id: &str, force: bool) -> Result<(), Error> {
        self.manager()?.remove_node(name_or_id, force).await.map(|_| ())
    }

    /// Takes a node's report.
    ///
    /// # Errors
    /// If it is no member or its facts cannot be; on a worker.
    pub async fn node_report(&self, node: &NodeId, report: &StatusReport) -> Result<(), Error> {
        self.manager()?.report(node, report).await
    }

    /// Takes a node's word that it leaves.
    ///
    /// # Errors
    /// If it is no member; on a worker.
    pub async fn node_leaves(&self, node: &NodeId) -> Result<(), Error> {
        self.manager()?.remove_node(node.as_str(), true).await.map(|_| ())
    }

    /// The next connection of another node, once this node is a manager.
    pub async fn accept(&self) -> (TcpStream, SocketAddr, TlsAcceptor) {
        let mut members = self.0.member.subscribe();
        loop {
            let manager = match members.borrow_and_update().as_ref().map(|m| &m.part) {
                Some(Part::Manager(manager)) => Some(manager.clone()),
                _ => None,
            };
            tokio::select! {
                // The sender lives as long as self.
                _ = members.changed() => {}
                taken = async { manager.as_ref()?.accept().await } , if manager.is_some() => {
                    if let Some(taken) = taken {
                        return taken;
                    }
                }
            }
        }
    }

    /// Returns once the CA that signed this certificate is trusted no more.
    pub async fn distrusts(&self, certificate: &CertificateDer<'_>) {
        let mut snapshots = self.subscribe();
        let mut known = None;
        loop {
            let trust = snapshots.borrow_and_update().trust.clone();
            if trust != known {
                let signed = |trust: &Trust| ca::signer(certificate, &trust.pem()).is_ok();
                if !trust.as_ref().is_none_or(signed) {
                    return;
                }
                known = trust;
            }
            // The sender lives as long as self.
            let _ = snapshots.changed().await;
        }
    }

    /// Makes a node with a valid token a member.
    ///
    /// # Errors
    /// If the token is wrong or the node clashes with something; on a worker.
    pub async fn admit(&self, request: &CertificateRequest) -> Result<CertificateReply, Error> {
        self.manager()?.admit(request).await
    }

    fn member(&self) -> Result<Arc<Member>, Error> {
        self.0.member.borrow().clone().ok_or_else(|| {
            if self.0.closed.load(Ordering::Relaxed) {
                return Error::Unavailable("this agent is stopping".to_owned());
            }
            Error::Conflict(
                "this node is in no cluster: `netagent cluster init` makes one, `netagent \
                 cluster join` enters one"
                    .to_owned(),
            )
        })
    }

    fn manager(&self) -> Result<Arc<Manager>, Error> {
        match &self.member()?.part {
            Part::Manager(manager) => Ok(manager.clone()),
            Part::Worker(_) => {
                let snapshot = self.snapshot();
                let managers = snapshot.nodes.values().filter(|n| n.role == Role::Manager);
                let names: Vec<_> =
                    managers.map(|n| format!("{} ({})", n.hostname, n.address)).collect();
                Err(Error::Conflict(format!(
                    "this node is a worker; run this on a manager: {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// This node's facts now, seen from its address.
    async fn facts(&self, addresses: Addresses) -> anyhow::Result<NodeFacts> {
        member::facts(&self.0.config, addresses).await
    }
}
