//! The workloads of this node: attaches network namespaces to networks, keeps their
//! records, their DNS servers and their files, and releases everything when what
//! holds them is gone.
//!
//! It asks the cluster for endpoints and the reconcile loop to make the kernel
//! follow; it never makes a link or an address itself.

mod adopt;
mod attach;
mod connect;
mod files;
mod health;
mod hold;
mod inside;
mod mounts;
mod netns;
mod place;
mod probe;
mod records;
mod release;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::OptionFuture;
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::cluster::{Cluster, Error};
use crate::dns::{Forwarder, Names, Server};
use crate::model::{Hold, Name, NetworkId, NodeId, Snapshot, Workload, WorkloadId};
use crate::reconcile;
use files::Files;
use mounts::Mounts;
use netns::Netns;
use serving::Backend;

pub use records::Records;

/// The host's resolvers, as the C library finds them.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The workloads of this node. Cloning shares them.
#[derive(Clone)]
pub struct Workloads(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    reconcile: reconcile::Handle,
    records: Records,
    run_dir: PathBuf,
    names: Arc<Names>,
    servers: Mutex<BTreeMap<WorkloadId, Server>>,
    /// Of the workloads that serve.
    backends: Mutex<BTreeMap<WorkloadId, Backend>>,
    /// Workloads that are just getting endpoints.
    making: Mutex<Vec<Making>>,
    /// Names of workloads that are being released.
    releasing: watch::Sender<Vec<Name>>,
    /// Held while endpoints that belong to no workload are looked for or taken.
    strays: tokio::sync::Mutex<()>,
    /// A process ended.
    ended: Notify,
}

/// A workload on its way into the list, or one of the list on its way to another
/// network.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Making {
    id: WorkloadId,
    name: Name,
    /// Of its namespace.
    inode: u64,
}

impl Workloads {
    /// Takes up the workloads of `records`: their DNS servers, which answer from the
    /// cluster as this node has `seen` it, and the watch over what holds them.
    pub async fn open(
        records: Records,
        run_dir: PathBuf,
        cluster: Cluster,
        seen: watch::Receiver<Arc<Snapshot>>,
        reconcile: reconcile::Handle,
    ) -> Self {
        let forwarder = Forwarder::new(RESOLV_CONF.into());
        let names = Names::new(seen, cluster.datapath(), forwarder);
        let workloads = Self(Arc::new(Inner {
            cluster,
            reconcile,
            records,
            run_dir,
            names,
            servers: Mutex::default(),
            backends: Mutex::default(),
            making: Mutex::default(),
            releasing: watch::Sender::default(),
            strays: tokio::sync::Mutex::default(),
            ended: Notify::new(),
        }));
        let list = workloads.list();
        if let Err(error) = Files::sweep(&workloads.0.run_dir, &list) {
            warn!("removing files of workloads that ended: {error}");
        }
        for workload in list.iter() {
            workloads.watch(workload);
            let served = match Netns::open(&workload.netns) {
                Ok(netns) => {
                    workloads.follow_backend(workload, &netns);
                    workloads.serve_names(workload, &netns).await
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(warning) = served {
                warn!(workload = %workload.name, "{warning}");
            }
        }
        tokio::spawn(workloads.clone().watch_holds());
        tokio::spawn(workloads.clone().collect_strays());
        tokio::spawn(workloads.clone().adopt_forgotten());
        workloads
    }

    /// The workloads now.
    #[must_use]
    pub fn list(&self) -> Arc<Vec<Workload>> {
        self.0.records.list()
    }

    /// Follows the workloads.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<Workload>>> {
        self.0.records.subscribe()
    }

    /// The workload with this name or identifier.
    ///
    /// # Errors
    /// If there is none on this node.
    pub fn find(&self, name_or_id: &str) -> Result<Workload, Error> {
        let by_name = name_or_id.parse::<Name>().ok();
        self.list()
            .iter()
            .find(|w| Some(&w.name) == by_name.as_ref() || w.id.is_meant_by(name_or_id))
            .cloned()
            .ok_or_else(|| {
                Error::NotFound(format!(
                    "there is no workload {name_or_id} on this node; `netagent endpoint ls` shows \
                     which node has it"
                ))
            })
    }

    /// Starts the DNS server of a workload. The error is a warning for people: a
    /// workload runs without, if it must.
    async fn serve_names(&self, workload: &Workload, netns: &Netns) -> Result<(), String> {
        let explain = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "something else serves port 53 of 127.0.0.11 in the namespace of {}: names of the \
                 cluster do not resolve there",
                workload.name
            ),
            _ => format!("no DNS server in the namespace of {}: {error}", workload.name),
        };
        let sockets = netns.dns_sockets().await.map_err(explain)?;
        let server = Server::start(self.0.names.clone(), sockets, networks(workload));
        let server = server.map_err(explain)?;
        lock(&self.0.servers).insert(workload.id.clone(), server);
        Ok(())
    }

    /// Watches over the workload's process: has its end noticed at once, and keeps its
    /// files mounted until then.
    fn watch(&self, workload: &Workload) {
        let Hold::Process { pid, start } = workload.hold else { return };
        let (this, name) = (self.clone(), workload.name.clone());
        let mounts = self.mounts(workload);
        tokio::spawn(async move {
            let keep = async {
                if let Some(Err(error)) =
                    OptionFuture::from(mounts.as_ref().map(Mounts::keep)).await
                {
                    warn!(workload = %name, "its files do not stay mounted: {error:#}");
                }
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! {
                ended = hold::ended(pid, start) => ended,
                () = keep => Ok(()),
            };
            match ended {
                Ok(()) => this.0.ended.notify_one(),
                Err(error) => warn!(workload = %name, "its end will be noticed late: {error}"),
            }
        });
    }

    /// The mounts that the workload's process is to see, if any.
    fn mounts(&self, workload: &Workload) -> Option<Mounts> {
        match workload.hold {
            Hold::Process { pid, start } if workload.mounted => {
                Some(Mounts::new(pid, start, &self.files(&workload.id)))
            }
            _ => None,
        }
    }

    fn files(&self, id: &WorkloadId) -> Files {
        Files::of(&self.0.run_dir, id)
    }

    /// This node.
    fn node(&self) -> Result<NodeId, Error> {
        self.0.cluster.identity().map(|record| record.node).ok_or_else(|| {
            Error::Conflict(
                "this node is in no cluster: `netagent cluster init` makes one, `netagent cluster \
                 join` enters one"
                    .to_owned(),
            )
        })
    }
}

/// The networks that a workload is on, in the order of its interfaces.
fn networks(workload: &Workload) -> Vec<NetworkId> {
    workload.attachments.iter().map(|a| a.endpoint.network.clone()).collect()
}

/// What is locked is never left half-changed, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
