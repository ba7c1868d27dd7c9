//! Getting workloads that run on further networks, and off again.

use super::attach::{Reservation, free_interfaces};
use super::netns::Netns;
use super::{Making, Workloads, lock, networks};
use crate::api::types::{Attach, Connect, Serve, UpdateEndpoint};
use crate::cluster::Error;
use crate::model::{Attachment, Endpoint, Snapshot, Workload, WorkloadId};

impl Workloads {
    /// Puts a workload on one more network and gives the attachment.
    ///
    /// # Errors
    /// See [`Workloads::create`].
    pub async fn connect(&self, network: String, request: Connect) -> Result<Attachment, Error> {
        let this = self.clone();
        let made = tokio::spawn(async move { this.join(network, request).await });
        made.await.map_err(anyhow::Error::from)?
    }

    /// Takes a workload off a network.
    ///
    /// # Errors
    /// If it is not on it, or the record cannot be written.
    pub async fn disconnect(&self, network: &str, workload: &str) -> Result<(), Error> {
        let (this, workload) = (self.clone(), self.find(workload)?);
        let off = {
            let snapshot = self.0.cluster.snapshot();
            let id = snapshot.network(network).map(|n| n.id.clone());
            workload.attachments.iter().find(|a| Some(&a.endpoint.network) == id.as_ref()).cloned()
        };
        let off = off.ok_or_else(|| {
            Error::NotFound(format!("{} is on no network {network}", workload.name))
        })?;
        let done = tokio::spawn(async move { this.detach(&workload.id, &off.endpoint).await });
        done.await.map_err(anyhow::Error::from)?
    }

    async fn join(&self, network: String, request: Connect) -> Result<Attachment, Error> {
        let workload = self.find(&request.workload)?;
        let netns = Netns::open(&workload.netns)?;
        let made =
            Making { id: workload.id.clone(), name: workload.name.clone(), inode: netns.inode };
        lock(&self.0.making).push(made.clone());
        let _reservation = Reservation { workloads: self, made };
        let here = |w: &Workload, snapshot: &Snapshot| {
            let id = snapshot.network(&network).map(|n| n.id.clone());
            networks(w).iter().any(|n| Some(n) == id.as_ref())
        };
        let already =
            || Error::Conflict(format!("{} is on network {network} already", workload.name));
        if here(&workload, &self.0.cluster.snapshot()) {
            return Err(already());
        }
        let attach =
            Attach { network: network.clone(), aliases: request.aliases, address: request.address };
        let task = self.task(&workload);
        let serve = task.as_ref().map(|task| Serve {
            service: task.service.to_string(),
            weight: task.weight,
            health: task.health,
        });
        let mut endpoint =
            self.allocate(&workload.id, &workload.name, &[attach], serve.as_ref()).await?.remove(0);
        if task.is_some_and(|task| task.draining) && endpoint.task.is_some() {
            let drain = UpdateEndpoint { draining: Some(true), ..UpdateEndpoint::default() };
            endpoint = self.0.cluster.update_endpoint(&endpoint.id, drain).await?;
        }
        match self.plug(&workload.id, &netns, &endpoint).await {
            Ok(Some(attachment)) => Ok(attachment),
            // Somebody else connected it meanwhile: the endpoint is theirs.
            Ok(None) => Err(already()),
            Err(error) => {
                if let Err(failed) = self.detach(&workload.id, &endpoint).await {
                    tracing::warn!(workload = %workload.name, "undoing: {failed}");
                }
                Err(error)
            }
        }
    }

    /// Gives the workload an interface for `endpoint`; none if it has one.
    async fn plug(
        &self,
        id: &WorkloadId,
        netns: &Netns,
        endpoint: &Endpoint,
    ) -> Result<Option<Attachment>, Error> {
        let refused = self.refused();
        let mut taken = netns.interfaces().await.map_err(anyhow::Error::from)?;
        let plugged = self
            .0
            .records
            .edit(|list| {
                let workload = list
                    .iter_mut()
                    .find(|w| w.id == *id)
                    .ok_or_else(|| Error::Conflict("the workload has ended".to_owned()))?;
                if networks(workload).contains(&endpoint.network) {
                    return Ok(None);
                }
                taken.extend(workload.attachments.iter().map(|a| a.interface.clone()));
                let interface = free_interfaces(&taken).next().expect("there is no last name");
                let attachment = Attachment { interface, endpoint: endpoint.clone() };
                workload.attachments.push(attachment.clone());
                Ok(Some((workload.clone(), attachment)))
            })
            .await?;
        let Some((workload, attachment)) = plugged else { return Ok(None) };
        self.networks_changed(&workload)?;
        self.settle(&refused).await?;
        Ok(Some(attachment))
    }

    /// Takes the interface of `endpoint` away, and gives the endpoint up.
    async fn detach(&self, id: &WorkloadId, endpoint: &Endpoint) -> Result<(), Error> {
        let refused = self.refused();
        let changed = self
            .0
            .records
            .edit(|list| {
                let workload = list.iter_mut().find(|w| w.id == *id);
                Ok(workload.map(|workload| {
                    workload.attachments.retain(|a| a.endpoint.id != endpoint.id);
                    workload.clone()
                }))
            })
            .await?;
        if let Some(workload) = changed {
            self.networks_changed(&workload)?;
        }
        let settled = self.settle(&refused).await;
        self.give_up(std::iter::once(&endpoint.id)).await;
        settled
    }

    /// Lets the workload's DNS server and files follow.
    fn networks_changed(&self, workload: &Workload) -> Result<(), Error> {
        if let Some(server) = lock(&self.0.servers).get(&workload.id) {
            server.set_networks(networks(workload));
        }
        self.write_files(workload)
    }
}
