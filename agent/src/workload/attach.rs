//! Attaching: a namespace becomes a workload. Whatever fails on the way is undone
//! before the error is told.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::netns::Netns;
use super::place::Place;
use super::serving;
use super::{Making, Workloads, hold, lock};
use crate::api::types::{Attach, CreateEndpoint, CreateWorkload, Serve, WorkloadReady};
use crate::cluster::Error;
use crate::model::{Attachment, Endpoint, Hold, Name, Snapshot, Workload, WorkloadId};

/// Keeps a reservation; it ends when dropped.
pub(super) struct Reservation<'a> {
    pub(super) workloads: &'a Workloads,
    pub(super) made: Making,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut making = lock(&self.workloads.0.making);
        if let Some(at) = making.iter().position(|m| *m == self.made) {
            making.remove(at);
        }
    }
}

impl Workloads {
    /// Attaches a namespace. The kernel is set up and names resolve when it returns.
    ///
    /// # Errors
    /// If the request cannot be, the cluster has no endpoint for it, or the kernel
    /// refuses. Nothing of it is left then.
    pub async fn create(&self, request: CreateWorkload) -> Result<WorkloadReady, Error> {
        let this = self.clone();
        // A caller that hangs up does not stop it half-way; the workload is then
        // released because its process is gone.
        let made = tokio::spawn(async move { this.make(request).await });
        made.await.map_err(anyhow::Error::from)?
    }

    async fn make(&self, mut request: CreateWorkload) -> Result<WorkloadReady, Error> {
        let place = Place::of(&request)?;
        let serving = {
            let snapshot = self.0.cluster.snapshot();
            let serving = serving::prepare(&mut request, &snapshot)?;
            check_networks(&request.networks, &snapshot)?;
            serving
        };
        let new = WorkloadId::new();
        let name = request.name.clone().unwrap_or_else(|| default_name(&new));
        // A program that is started again may be faster than the news of its end.
        self.release_gone(|w| w.name == name).await;
        self.released(&name).await;
        let made = Making { id: new, name, inode: place.netns.inode };
        let mut reservation = self.reserve(made)?;
        let endpoints = self.endpoints(&mut reservation, &request).await?;

        let taken = place.netns.interfaces().await.map_err(anyhow::Error::from);
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.give_up(endpoints.iter().map(|e| &e.id)).await;
                return Err(error.into());
            }
        };
        let attachments = free_interfaces(&taken)
            .zip(endpoints)
            .map(|(interface, endpoint)| Attachment { interface, endpoint })
            .collect();
        let Making { id, name, .. } = reservation.made.clone();
        let Place { path: netns, hold, .. } = place;
        let workload =
            Workload { id, name, netns, hold, mounted: request.mount, serving, attachments };
        match self.establish(&workload, &place.netns).await {
            Ok(warnings) => {
                let files = self.files(&workload.id);
                let (resolv_conf, hosts) = (files.resolv_conf(), files.hosts());
                Ok(WorkloadReady { workload, resolv_conf, hosts, warnings })
            }
            Err(error) => {
                self.undo(&workload).await;
                Err(error)
            }
        }
    }

    /// Takes name and namespace for a workload that is not in the list yet.
    fn reserve(&self, made: Making) -> Result<Reservation<'_>, Error> {
        let list = self.list();
        let mut making = lock(&self.0.making);
        check_free(&made, &list, &making)?;
        making.push(made.clone());
        Ok(Reservation { workloads: self, made })
    }

    /// The endpoints of a new workload, in the order of its networks. Without a
    /// manager, those of a workload of the same name that ended a while ago: its
    /// identifier is taken over as well.
    async fn endpoints(
        &self,
        reservation: &mut Reservation<'_>,
        request: &CreateWorkload,
    ) -> Result<Vec<Endpoint>, Error> {
        if !self.0.cluster.status().manager_reachable
            && let Some(endpoints) = self.reclaim(reservation, request).await?
        {
            return Ok(endpoints);
        }
        let Making { id, name, .. } = &reservation.made;
        match self.allocate(id, name, &request.networks, request.serve.as_ref()).await {
            Err(Error::Unavailable(reason)) => {
                self.reclaim(reservation, request).await?.ok_or(Error::Unavailable(reason))
            }
            result => result,
        }
    }

    async fn reclaim(
        &self,
        reservation: &mut Reservation<'_>,
        request: &CreateWorkload,
    ) -> Result<Option<Vec<Endpoint>>, Error> {
        let CreateWorkload { networks, serve, .. } = request;
        // What is taken back must not be taken for strays before it is in the list.
        let _strays = self.0.strays.lock().await;
        let Some(endpoints) =
            self.0.cluster.reclaim(&reservation.made.name, networks, serve.as_ref()).await?
        else {
            return Ok(None);
        };
        if let Some(first) = endpoints.first() {
            let mut making = lock(&self.0.making);
            for made in making.iter_mut().filter(|m| **m == reservation.made) {
                made.id.clone_from(&first.workload);
            }
            reservation.made.id.clone_from(&first.workload);
        }
        Ok(Some(endpoints))
    }

    /// All endpoints or none.
    pub(super) async fn allocate(
        &self,
        workload: &WorkloadId,
        name: &Name,
        networks: &[Attach],
        serve: Option<&Serve>,
    ) -> Result<Vec<Endpoint>, Error> {
        let (node, snapshot) = (self.node()?, self.0.cluster.snapshot());
        let results = join_all(networks.iter().map(|attach| {
            let serve = serve.filter(|s| serving::is_on(&s.service, &attach.network, &snapshot));
            let request = CreateEndpoint {
                serve: serve.cloned(),
                network: attach.network.clone(),
                node: node.clone(),
                workload: workload.clone(),
                name: name.clone(),
                aliases: attach.aliases.clone(),
                address: attach.address,
                id: None,
            };
            async move { self.0.cluster.create_endpoint(&request).await }
        }))
        .await;
        let (mut made, mut failed) = (Vec::new(), None);
        for result in results {
            match result {
                Ok(endpoint) => made.push(endpoint),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let Some(error) = failed else { return Ok(made) };
        self.give_up(made.iter().map(|e| &e.id)).await;
        Err(error)
    }

    /// Records a workload that has its endpoints and brings it up. Gives warnings.
    async fn establish(&self, workload: &Workload, netns: &Netns) -> Result<Vec<String>, Error> {
        let refused = self.refused();
        self.0
            .records
            .edit(|list| {
                list.push(workload.clone());
                Ok(())
            })
            .await?;
        let mut warnings = Vec::new();
        if let Err(warning) = self.serve_names(workload, netns).await {
            tracing::warn!(workload = %workload.name, "{warning}");
            warnings.push(warning);
        }
        self.write_files(workload)?;
        if let Some(mounts) = self.mounts(workload) {
            mounts.apply().await?;
        }
        self.watch(workload);
        self.follow_backend(workload, netns);
        self.settle(&refused).await?;
        tracing::info!(workload = %workload.name, id = %workload.id, "attached");
        Ok(warnings)
    }

    /// What the kernel refuses now, to whomever.
    pub(super) fn refused(&self) -> Vec<String> {
        self.0.reconcile.outcome().borrow().errors.clone()
    }

    /// Waits for the kernel. A pass is one for all workloads, so what it fails at need
    /// not concern us: a workload that ended a moment ago is released and the pass tried
    /// again; what was refused `before` we began is somebody else's trouble.
    pub(super) async fn settle(&self, before: &[String]) -> Result<(), Error> {
        if self.0.reconcile.settle().await.is_ok() {
            return Ok(());
        }
        self.release_gone(|_| true).await;
        let passes = self.0.reconcile.outcome().borrow().passes;
        let Err(error) = self.0.reconcile.settle().await else { return Ok(()) };
        let outcome = self.0.reconcile.outcome().borrow().clone();
        // One that could not even look at the kernel tells nothing new.
        if outcome.passes > passes && outcome.errors.iter().all(|e| before.contains(e)) {
            return Ok(());
        }
        Err(error.into())
    }

    async fn undo(&self, workload: &Workload) {
        match self.release(&workload.id).await {
            // It may have failed before it was recorded.
            Ok(()) => self.give_up(workload.attachments.iter().map(|a| &a.endpoint.id)).await,
            Err(error) => tracing::warn!(workload = %workload.name, "undoing: {error}"),
        }
    }

    pub(super) fn write_files(&self, workload: &Workload) -> Result<(), Error> {
        let written = self.files(&workload.id).write(workload, &self.0.names.search());
        written.map_err(|error| {
            let dir = self.0.run_dir.display();
            Error::Internal(format!("writing files of {} under {dir}: {error}", workload.name))
        })
    }
}

/// At least one network, and none twice.
fn check_networks(wanted: &[Attach], snapshot: &Snapshot) -> Result<(), Error> {
    if wanted.is_empty() {
        return Err(Error::Invalid("a workload needs at least one network".to_owned()));
    }
    let mut seen = BTreeSet::new();
    for attach in wanted {
        // One that is not known here yet is for the manager to judge.
        let key = snapshot.network(&attach.network).map_or(&*attach.network, |n| n.name.as_str());
        if !seen.insert(key) {
            return Err(Error::Invalid(format!("network {} is named twice", attach.network)));
        }
    }
    Ok(())
}

/// Whether name and namespace are free on this node.
fn check_free(made: &Making, list: &[Workload], making: &[Making]) -> Result<(), Error> {
    let name_taken = list.iter().map(|w| &w.name).chain(making.iter().map(|m| &m.name));
    if name_taken.into_iter().any(|name| *name == made.name) {
        return Err(Error::Conflict(format!(
            "this node has a workload {} already: choose another name, or release it with \
             `netagent endpoint rm {0}`",
            made.name
        )));
    }
    let inode = |w: &Workload| match w.hold {
        Hold::Path { inode } => Some(inode),
        Hold::Process { .. } => hold::inode_of(&w.netns),
    };
    let places = list.iter().map(|w| (inode(w), &w.name));
    let places = places.chain(making.iter().map(|m| (Some(m.inode), &m.name)));
    match places.into_iter().find(|(inode, _)| *inode == Some(made.inode)) {
        Some((_, name)) => Err(Error::Conflict(format!(
            "the namespace is attached already, as workload {name}: `netagent network connect \
             NETWORK {name}` puts it on further networks"
        ))),
        None => Ok(()),
    }
}

fn default_name(id: &WorkloadId) -> Name {
    format!("w-{}", &id.as_str()[..8]).parse().expect("an identifier is made of letters and digits")
}

/// Names for interfaces that are not `taken`: `eth0` and up.
pub(super) fn free_interfaces(taken: &[String]) -> impl Iterator<Item = String> {
    (0..).map(|n| format!("eth{n}")).filter(|name| !taken.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::workload;

    fn making(name: &str, inode: u64) -> Making {
        Making { id: WorkloadId::new(), name: name.parse().unwrap(), inode }
    }

    #[test]
    fn a_name_and_a_namespace_are_taken_once() {
        let mut running = workload("psql", &["10.0.0.2"]);
        running.hold = Hold::Path { inode: 7 };
        let list = [running];
        let coming = [making("web", 8)];
        let refusal = |made: Making| check_free(&made, &list, &coming).unwrap_err().to_string();
        assert!(refusal(making("psql", 1)).contains("workload psql already"));
        assert!(refusal(making("web", 1)).contains("workload web already"));
        assert!(refusal(making("other", 7)).contains("as workload psql"));
        assert!(refusal(making("other", 8)).contains("as workload web"));
        check_free(&making("other", 1), &list, &coming).unwrap();
    }

    #[test]
    fn networks_are_named_once() {
        let cluster = crate::dns::fixture::Cluster::new().network("shop", "10.0.0.0/24");
        let id = cluster.ids(&["shop"]).remove(0);
        let check = |names: &[&str]| {
            let attach =
                |n: &&str| Attach { network: (*n).to_owned(), aliases: Vec::new(), address: None };
            let wanted: Vec<_> = names.iter().map(attach).collect();
            check_networks(&wanted, &cluster.snapshot).map_err(|e| e.to_string())
        };
        assert!(check(&[]).unwrap_err().contains("at least one"));
        assert!(check(&["shop", id.as_str()]).unwrap_err().contains("twice"));
        assert!(check(&["new", "new"]).unwrap_err().contains("twice"));
        check(&["shop", "new"]).unwrap();
    }

    #[test]
    fn interfaces_fill_the_gaps() {
        let taken = ["lo", "eth0", "eth2"].map(str::to_owned);
        let free: Vec<_> = free_interfaces(&taken).take(3).collect();
        assert_eq!(free, ["eth1", "eth3", "eth4"]);
        assert_eq!(default_name(&WorkloadId::new()).as_str().len(), 10);
    }
}
