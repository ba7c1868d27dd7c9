//! Control planes of several nodes in one process, over real TCP and TLS on the
//! loopback, each on a runtime of its own so that it can be killed:
//!
//! ```text
//!   client ── unix ── n1 manager 192.168.50.11 ─┬─ TLS ── n2 worker .12 ── unix ── client
//!                     127.0.0.1:PORT            └─ TLS ── n3 worker .13 ── unix ── client
//! ```

mod access;
mod life;
mod refusals;
mod service_refusals;
mod services;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use super::client::{Client, ClientError};
use super::listen;
use super::server::{App, router};
use super::types::{JoinToken, Membership};
use crate::cluster::ca::Credentials;
use crate::cluster::tests::config;
use crate::cluster::{Cluster, tls};
use crate::model::{Endpoint, NodeStatus, Snapshot};

/// Longest wait for what should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// One agent's control plane with its API.
struct Agent {
    dir: PathBuf,
    name: String,
    address: Ipv4Addr,
    listen: SocketAddr,
    runtime: Option<Runtime>,
    cluster: Cluster,
    /// Over its unix socket.
    client: Client,
}

impl Agent {
    /// Agent `nN` with address 192.168.50.(10 + N).
    async fn start(dir: &Path, n: u8) -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = Ipv4Addr::new(192, 168, 50, 10 + n);
        Self::run(dir.to_owned(), format!("n{n}"), address, listen).await
    }

    async fn run(dir: PathBuf, name: String, address: Ipv4Addr, listen: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = config(&dir, &name, address);
        config.listen = listen;
        let socket = dir.join(format!("{name}.sock"));
        let client = Client::unix(&socket);
        let started = runtime.spawn(async move {
            let cluster = Cluster::open(config).await.unwrap();
            let routes = router(App { cluster: cluster.clone(), node: None });
            let unix = listen::bind_unix(&socket).await.unwrap();
            tokio::spawn(listen::serve_unix(unix, routes.clone()));
            tokio::spawn(listen::serve_tls(cluster.clone(), routes));
            tokio::spawn(apply(cluster.clone()));
            cluster
        });
        let cluster = started.await.unwrap();
        Self { dir, name, address, listen, runtime: Some(runtime), cluster, client }
    }

    /// Ends it as `kill -9` does: nothing of it runs on.
    async fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // What the dead process would have closed, this handle still holds.
        self.cluster.close().await;
    }

    /// Starts it again from its files.
    async fn restart(mut self) -> Self {
        self.kill().await;
        Self::run(self.dir.clone(), self.name.clone(), self.address, self.listen).await
    }

    async fn init(&mut self) -> Membership {
        let member = self.client.post("/v1/cluster/init", &json!({})).await.unwrap();
        // A restarted manager is found where it was.
        let port = self.port().await;
        self.listen.set_port(port);
        member
    }

    async fn port(&self) -> u16 {
        let token = self.token().await;
        token.manager.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    async fn token(&self) -> JoinToken {
        self.client.get("/v1/cluster/join-token/worker").await.unwrap()
    }

    async fn join(&self, manager: &Self) -> Membership {
        let token = manager.token().await.token;
        self.try_join(manager, &token).await.unwrap()
    }

    async fn try_join(&self, manager: &Self, token: &str) -> Result<Membership, ClientError> {
        let request = json!({
            "token": token, "manager": manager.listen.to_string(), "advertise": self.address,
        });
        self.client.post("/v1/cluster/join", &request).await
    }

    /// What this node's own certificate gives access to.
    fn as_node(&self, manager: &Self) -> Client {
        let file = |name| std::fs::read_to_string(self.dir.join(&self.name).join(name)).unwrap();
        let own = Credentials {
            certificate: file("node.crt"),
            key: file("node.key"),
            ca: file("ca.crt"),
        };
        manager.tls(tls::member(&own).unwrap())
    }

    /// A client of this manager with any TLS configuration.
    fn tls(&self, config: rustls::ClientConfig) -> Client {
        Client::tls(self.listen.to_string(), tls::manager_name(), Arc::new(config), SOON)
    }

    async fn network(&self, name: &str) -> crate::model::Network {
        self.client.post("/v1/networks", &json!({"name": name})).await.unwrap()
    }

    async fn endpoint(&self, network: &str, name: &str) -> Endpoint {
        let node = self.cluster.identity().unwrap().node;
        let request = crate::cluster::tests::endpoint(network, &node, name);
        self.cluster.create_endpoint(&request).await.unwrap()
    }

    /// Waits until this node's snapshot is as it should be.
    async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.cluster.subscribe();
        let found = tokio::time::timeout(SOON, snapshots.wait_for(|s| holds(s))).await;
        match found {
            Ok(snapshot) => snapshot.unwrap().clone(),
            Err(_) => panic!("{}: not {what}: {:#?}", self.name, self.cluster.snapshot()),
        }
    }

    async fn until_status(&self, name: &str, status: NodeStatus) {
        let holds = |s: &Snapshot| s.node(name).is_some_and(|n| n.status == status);
        self.until(&format!("{name} {status}"), holds).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// In the place of the reconciler: whatever is known is applied.
async fn apply(cluster: Cluster) {
    let mut snapshots = cluster.subscribe();
    loop {
        let revision = snapshots.borrow_and_update().revision;
        cluster.report_applied(revision);
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// A manager and two workers.
async fn three(dir: &Path) -> (Agent, Agent, Agent) {
    let mut n1 = Agent::start(dir, 1).await;
    n1.init().await;
    let (n2, n3) = (Agent::start(dir, 2).await, Agent::start(dir, 3).await);
    n2.join(&n1).await;
    n3.join(&n1).await;
    (n1, n2, n3)
}

/// The status and text of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status.as_u16(), message),
        other => panic!("not refused: {other:?}"),
    }
}

async fn post(
    client: &Client,
    path: &str,
    body: &impl Serialize,
) -> Result<serde_json::Value, ClientError> {
    client.post(path, body).await
}
