//! Entering and leaving a cluster while the agent runs. A change runs to its end
//! once begun, even if whoever asked for it does not wait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ca::{self, Authority, Subject};
use super::disk::Dir;
use super::follower::{Follower, Own};
use super::identity::{self, Identity, Record, STORE};
use super::keys::Rotation;
use super::manager::Manager;
use super::member::{self, Member, Part};
use super::releases::Releases;
use super::token::{self, Token};
use super::updates::Updates;
use super::view::{self, Settings};
use super::{Cluster, Error, PORT, decide, tls, validate};
use crate::api::client::{Client, ClientError};
use crate::api::types::{
    CertificateReply, CertificateRequest, InitRequest, JoinRequest, LeaveRequest, Membership,
    NodeFacts,
};
use crate::facts::{Addresses, source_address};
use crate::model::{ClusterInfo, NodeId, Role, Snapshot};
use crate::store::{Op, Sqlite, Store as _, StoreError};

/// Longest wait for a manager's reply to a request to join.
const JOIN: Duration = Duration::from_secs(10);
/// How long a node that has joined waits for its first snapshot.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(5);

impl Cluster {
    /// Makes a cluster with this node as its manager.
    ///
    /// # Errors
    /// If the node is in a cluster, or the request cannot be.
    pub async fn init(&self, request: InitRequest) -> Result<Membership, Error> {
        self.unhurried(|cluster| async move { cluster.do_init(request).await }).await
    }

    /// Enters the cluster that the token is for, as a worker.
    ///
    /// # Errors
    /// If the node is in a cluster, the manager cannot be reached or trusted, or it
    /// refuses.
    pub async fn join(&self, request: JoinRequest) -> Result<Membership, Error> {
        self.unhurried(|cluster| async move { cluster.do_join(request).await }).await
    }

    /// Leaves the cluster. Its files are gone when this returns.
    ///
    /// # Errors
    /// Unless forced: if endpoints of this node are left, naming them, if no
    /// manager answers, or if this is the manager.
    pub async fn leave(&self, request: LeaveRequest) -> Result<(), Error> {
        self.unhurried(|cluster| async move { cluster.do_leave(request).await }).await
    }

    async fn unhurried<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Self) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let done = tokio::spawn(work(self.clone())).await;
        done.map_err(|e| Error::Internal(format!("the change of membership failed: {e}")))?
    }

    async fn do_init(self, request: InitRequest) -> Result<Membership, Error> {
        let mut tasks = self.0.tasks.lock().await;
        let config = &self.0.config;
        self.must_be_outside()?;
        let (pool, data_path_port) = validate::init(&request)?;
        let host = config.host.read().await?;
        let addresses = host
            .choose_address(request.advertise, request.local, config.uplink.as_deref())
            .map_err(|e| Error::Invalid(format!("{e:#}")))?;
        let facts = self.facts(addresses).await?;
        validate::newcomer(&facts, &Snapshot::default())?;
        let listener = member::bind(config).await?;

        let node = NodeId::new();
        let info = ClusterInfo {
            // The same kind of identifier as the objects have.
            id: NodeId::new().to_string(),
            data_path_port,
            created: decide::now(),
            restored: None,
        };
        let authority = Authority::new(&info.id)?;
        let role = Role::Manager;
        let subject = Subject { node: node.clone(), role, cluster: info.id.clone() };
        let credentials = authority.issue(&subject)?;
        // A former attempt may have left a store without a membership.
        identity::erase(&config.data_dir)?;
        let store = Sqlite::create(&config.data_dir.join(STORE))?;
        let first = vec![
            view::put(
                view::CLUSTER,
                &Settings {
                    info: info.clone(),
                    pool,
                    cert_expiry: view::expiry(),
                    rotation: Rotation::default(),
                },
            ),
            view::put(view::CA, &authority),
            view::put(view::WORKER_TOKEN, &token::new_secret()),
            view::put_node(&decide::node(node.clone(), role, facts)),
            Op::Put(view::WRITER.to_owned(), vec![]),
        ];
        store.txn(vec![], first).await?;
        store.close().await;
        let record = Record {
            cluster: info,
            node,
            role,
            address: addresses.advertised,
            local_address: addresses.local,
            managers: vec![],
        };
        let identity = Identity { record, credentials };
        identity.save(&config.data_dir)?;
        self.enter(identity, Some(listener), &mut tasks).await
    }

    async fn do_join(self, request: JoinRequest) -> Result<Membership, Error> {
        let mut tasks = self.0.tasks.lock().await;
        let config = &self.0.config;
        self.must_be_outside()?;
        let token: Token = request.token.parse().map_err(|e| Error::Invalid(format!("{e}")))?;
        let manager = with_port(&request.manager)?;
        let peer = resolve(&manager).await?;
        let addresses = match (request.advertise, request.local) {
            (None, None) => source_address(peer).map(Addresses::direct),
            (advertise, local) => config.host.read().await?.choose_address(advertise, local, None),
        };
        let addresses = addresses.map_err(|e| Error::Invalid(format!("{e:#}")))?;
        let facts = self.facts(addresses).await?;
        let (key, csr) = ca::request()?;
        let reply = ask_to_join(&manager, &token, csr, facts).await?;
        let credentials =
            ca::Credentials { certificate: reply.certificate, key, ca: reply.ca.clone() };
        if !ca::certificates(&reply.ca)?.iter().any(|ca| ca::digest(ca) == token.ca) {
            return Err(Error::Conflict(format!(
                "the manager at {manager} sent a CA certificate that the token is not for"
            )));
        }
        let record = Record {
            cluster: reply.cluster,
            node: reply.node,
            role: reply.role,
            address: addresses.advertised,
            local_address: addresses.local,
            managers: vec![manager],
        };
        let identity = Identity { record, credentials };
        identity::erase(&config.data_dir)?;
        identity.save(&config.data_dir)?;
        let membership = self.enter(identity, None, &mut tasks).await?;
        if let Part::Worker(follower) = &self.member()?.part {
            let mut live = follower.live();
            let first = live.wait_for(|live| *live);
            if tokio::time::timeout(FIRST_SNAPSHOT, first).await.is_err() {
                tracing::warn!("joined, but the manager sends no snapshot yet");
            }
        }
        Ok(membership)
    }

    async fn do_leave(self, request: LeaveRequest) -> Result<(), Error> {
        let mut tasks = self.0.tasks.lock().await;
        let member = self.member()?;
        let snapshot = self.snapshot();
        if !request.force {
            let own: Vec<_> =
                snapshot.endpoints.values().filter(|e| e.node == *member.node()).collect();
            if !own.is_empty() {
                return Err(Error::Conflict(format!(
                    "workloads of this node are on networks: {}; end them, or leave with --force",
                    decide::list(&snapshot, &own)
                )));
            }
        }
        match &member.part {
            Part::Manager(_) if !request.force => {
                return Err(Error::Conflict(
                    "this node is the manager: the cluster ends when it leaves; do that with \
                     --force"
                        .to_owned(),
                ));
            }
            Part::Manager(_) => {}
            Part::Worker(follower) => {
                let told: Result<(), ClientError> =
                    follower.client().post("/v1/cluster/leave-notification", &()).await;
                match told {
                    // A node that was expelled has nothing to say.
                    Ok(()) => {}
                    Err(ClientError::Refused { status, .. }) if status.as_u16() == 403 => {}
                    Err(e) if request.force => {
                        tracing::warn!("left without telling a manager: {e}");
                    }
                    Err(e) => {
                        return Err(Error::Unavailable(format!(
                            "{e}; with --force this node leaves without telling a manager, where \
                             `netagent node rm {}` then removes it",
                            member.node()
                        )));
                    }
                }
            }
        }
        self.0.member.send_replace(None);
        tasks.shutdown().await;
        member.dir.seal();
        member.part.close().await;
        self.0.applied.send_replace(0);
        self.0.snapshot.send_replace(Arc::default());
        identity::erase(&self.0.config.data_dir)?;
        tracing::info!("left cluster {}", member.identity.record.cluster.id);
        Ok(())
    }

    /// Takes up a membership that is on disk.
    pub(super) async fn enter(
        &self,
        identity: Identity,
        listener: Option<TcpListener>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Membership, Error> {
        let config = &self.0.config;
        let record = identity.record.clone();
        let snapshot = self.0.snapshot.clone();
        let dir = Arc::new(Dir::new(&config.data_dir));
        let releases = Releases::open(&config.data_dir, dir.clone())?;
        let updates = Updates::open(&config.data_dir, dir.clone())?;
        let (part, first) = match record.role {
            Role::Manager => {
                let store = Arc::new(Sqlite::open(&config.data_dir.join(STORE)).map_err(remedy)?);
                let listener = match listener {
                    Some(listener) => listener,
                    None => member::bind(config).await?,
                };
                let manager = Manager::start(store, &identity, listener, snapshot.clone()).await?;
                let first = manager.snapshot();
                (Part::Manager(Arc::new(manager)), first)
            }
            Role::Worker => {
                let own = Own { untold: updates.untold(), released: releases.pending() };
                let follower = Follower::new(&identity, snapshot.clone(), own, dir.clone())?;
                let nothing =
                    || Snapshot { cluster: Some(record.cluster.clone()), ..Snapshot::default() };
                let first = Follower::cached(&config.data_dir).unwrap_or_else(nothing);
                let mut first = Arc::new(first);
                follower.overlay(&mut first);
                (Part::Worker(Arc::new(follower)), first)
            }
        };
        let credentials = watch::Sender::new(identity.credentials.clone());
        let member = Arc::new(Member { identity, credentials, releases, updates, part, dir });
        self.0.member.send_replace(Some(member.clone()));
        snapshot.send_replace(first);
        let (config, applied) = (config.clone(), self.0.applied.subscribe());
        tasks.spawn(async move { member.run(&config, applied).await });
        let Record { cluster, node, role, .. } = record;
        Ok(Membership { cluster: cluster.id, node, role })
    }

    fn must_be_outside(&self) -> Result<(), Error> {
        match self.identity() {
            None => Ok(()),
            Some(record) => Err(Error::Conflict(format!(
                "this node is in cluster {} already: `netagent cluster leave` first",
                record.cluster.id
            ))),
        }
    }
}

/// What to do about a store that cannot be used.
fn remedy(error: StoreError) -> Error {
    let remedy = match &error {
        StoreError::Damaged { .. } => {
            ". It holds the cluster that this node manages; nothing was changed, and what runs goes \
             on. Put a backup in its place: `netagent cluster restore --force FILE`"
        }
        _ => "",
    };
    Error::Internal(format!("{error}{remedy}"))
}

async fn ask_to_join(
    manager: &str,
    token: &Token,
    csr: String,
    facts: NodeFacts,
) -> Result<CertificateReply, Error> {
    let config = Arc::new(tls::joiner(token.ca)?);
    let client = Client::tls(manager.to_owned(), tls::manager_name(), config, JOIN);
    let request = CertificateRequest { token: token.secret.clone(), csr, facts };
    client.post("/v1/join", &request).await.map_err(|e| match e {
        ClientError::Untrusted { foreign: true, .. } => Error::Conflict(format!(
            "the manager at {manager} is not one of the cluster that the token is for, or the \
             cluster's CA was replaced since the token was printed; nothing was sent to it. \
             `netagent cluster join-token worker` on a manager prints the token that is valid"
        )),
        other => other.into(),
    })
}

fn with_port(manager: &str) -> Result<String, Error> {
    let manager = manager.trim();
    let bad =
        || Error::Invalid(format!("{manager:?} is not the address of a manager: HOST[:PORT]"));
    let (host, port) = match manager.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
        None => (manager, PORT),
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == ':') {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

async fn resolve(manager: &str) -> Result<SocketAddr, Error> {
    let unknown = |reason: &dyn std::fmt::Display| {
        Error::Invalid(format!("manager {manager} has no IPv4 address: {reason}"))
    };
    let mut found = tokio::net::lookup_host(manager).await.map_err(|e| unknown(&e))?;
    found.find(SocketAddr::is_ipv4).ok_or_else(|| unknown(&"only others"))
}
