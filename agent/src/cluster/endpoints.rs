//! What concerns the endpoints of this node: asking for them, telling of them, giving
//! them up. A manager does it in its own store, a worker at its manager, and where none
//! answers, by what it has noted on disk.

use std::time::{Duration, Instant};

use super::follower::Follower;
use super::member::Part;
use super::{Cluster, Error, Record, task};
use crate::api::types::{Attach, CreateEndpoint, Serve, UpdateEndpoint};
use crate::model::{Endpoint, EndpointId, Name};

/// How long a request that needs the manager waits for one to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time in which the loss of a manager is noticed by all who speak to it.
const NOTICED: Duration = Duration::from_millis(100);
/// What is said to one who asks a node that the cluster has removed.
const EXPELLED: &str = "this node is no member of its cluster any more: `netagent cluster leave`, \
                        then join again";
/// How long a release is waited for before it is left to the queue.
const RELEASE: Duration = Duration::from_secs(2);
/// The same for what is told of an endpoint: the manager itself waits two seconds for the
/// other nodes, and may still be busy with what was told before.
const TELL: Duration = Duration::from_secs(5);

impl Cluster {
    /// Allocates an endpoint, on a worker by asking the manager. Returns when all
    /// ready nodes have applied it, or after two seconds. Asking again for the
    /// same workload and network gives the same endpoint.
    ///
    /// # Errors
    /// If it cannot be, or no manager answers.
    pub async fn create_endpoint(&self, request: &CreateEndpoint) -> Result<Endpoint, Error> {
        match &self.member()?.part {
            Part::Manager(manager) => manager.create_endpoint(request).await,
            Part::Worker(follower) => {
                let end = Instant::now() + PATIENCE;
                loop {
                    self.manager_answers(follower).await?;
                    let reply = follower.client().post("/v1/endpoints", request).await;
                    match reply.map_err(Error::from) {
                        // A manager that restarts. It may have made the endpoint: the same
                        // request again gets the same one.
                        Err(Error::Unavailable(_)) if Instant::now() < end => {
                            tokio::time::sleep(NOTICED).await;
                        }
                        reply => return reply,
                    }
                }
            }
        }
    }

    /// Changes what an endpoint is to the service that it serves; on a worker, one of
    /// its own. This node's snapshot shows it when this returns. So do those of all ready
    /// nodes, unless one of them, or the manager, is slow or away: then it is noted on
    /// disk, and told as soon as a manager answers.
    ///
    /// # Errors
    /// If there is none, if it serves nothing, or if it is another node's, on a worker.
    pub async fn update_endpoint(
        &self,
        id: &EndpointId,
        update: UpdateEndpoint,
    ) -> Result<Endpoint, Error> {
        let member = self.member()?;
        match &member.part {
            Part::Manager(manager) => manager.update_endpoint(id, &update).await,
            Part::Worker(follower) => {
                let (endpoint, _) = task::updated(&self.snapshot(), id, &update)?;
                if endpoint.node != *member.node() {
                    self.manager()?;
                }
                member.updates.add(id, &update).await?;
                follower.show_own();
                if *follower.live().borrow() {
                    let mut untold = member.updates.untold();
                    let told = untold.wait_for(|untold| !untold.contains_key(id));
                    let _ = tokio::time::timeout(TELL, told).await;
                }
                Ok(self.snapshot().endpoints.get(id).cloned().unwrap_or(endpoint))
            }
        }
    }

    /// Gives an endpoint of this node up. It is noted on disk when this returns
    /// and then removed as soon as a manager answers; usually it is already.
    ///
    /// # Errors
    /// If it cannot be noted.
    pub async fn release_endpoint(&self, id: &EndpointId) -> Result<(), Error> {
        let member = self.member()?;
        member.releases.add(id, &self.snapshot()).await?;
        if let Part::Worker(follower) = &member.part {
            follower.show_own();
        }
        if self.status().manager_reachable {
            let mut pending = member.releases.pending();
            let removed = pending.wait_for(|queue| !queue.iter().any(|r| r.id == *id));
            let _ = tokio::time::timeout(RELEASE, removed).await;
        }
        Ok(())
    }

    /// Takes back the endpoints of a workload `name` that was on exactly these
    /// networks, served the same service, and was released while no manager answered.
    /// All carry the former workload's identifier; they come in the order of `networks`,
    /// as tasks that have just begun.
    ///
    /// # Errors
    /// If the queue cannot be written.
    pub async fn reclaim(
        &self,
        name: &Name,
        networks: &[Attach],
        serve: Option<&Serve>,
    ) -> Result<Option<Vec<Endpoint>>, Error> {
        let member = self.member()?;
        let taken = member.releases.take_back(name, networks, serve, &self.snapshot()).await?;
        let (Some(mut endpoints), Some(serve)) = (taken.clone(), serve) else { return Ok(taken) };
        let (weight, health) = (Some(serve.weight), Some(serve.health));
        let anew = UpdateEndpoint { weight, health, draining: Some(false) };
        for endpoint in &mut endpoints {
            if let Some(task) = &mut endpoint.task {
                anew.apply(task);
                member.updates.add(&endpoint.id, &anew).await?;
            }
        }
        if let Part::Worker(follower) = &member.part {
            follower.show_own();
        }
        Ok(Some(endpoints))
    }

    /// Removes an endpoint; on a worker, one of its own, as if it released it.
    ///
    /// # Errors
    /// If there is none, or if it is another node's, on a worker.
    pub async fn remove_endpoint(&self, id: &EndpointId) -> Result<(), Error> {
        let member = self.member()?;
        match (&member.part, self.snapshot().endpoints.get(id)) {
            (Part::Worker(_), Some(endpoint)) if endpoint.node == *member.node() => {
                self.release_endpoint(id).await
            }
            _ => self.manager()?.remove_endpoint(id).await,
        }
    }

    /// Waits a little for the stream: an agent that has just started has none yet.
    async fn manager_answers(&self, follower: &Follower) -> Result<(), Error> {
        let mut live = follower.live();
        let up = live.wait_for(|live| *live);
        match tokio::time::timeout(PATIENCE, up).await {
            Ok(Ok(_)) => Ok(()),
            _ if self.is_expelled() => Err(Error::Conflict(EXPELLED.to_owned())),
            _ => {
                let managers = self.identity().map(|r| r.managers.join(", ")).unwrap_or_default();
                Err(Error::Unavailable(format!("no manager answers ({managers})")))
            }
        }
    }

    /// Whether the cluster has removed this node, as far as it has heard.
    fn is_expelled(&self) -> bool {
        let snapshot = self.snapshot();
        let gone = |record: Record| !snapshot.nodes.contains_key(&record.node);
        snapshot.revision > 0 && self.identity().is_some_and(gone)
    }
}
