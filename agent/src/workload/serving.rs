//! What a workload is to a service: made of the request to run it, changed by its
//! administrators, and its health told to the cluster whenever that has another. How to
//! tell a manager that is away is the cluster's affair.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use super::health::{self, Probe};
use super::netns::Netns;
use super::{Workloads, lock};
use crate::api::types::{Attach, CreateWorkload, UpdateEndpoint, UpdateWorkload};
use crate::cluster::Error;
use crate::model::{
    Endpoint, EndpointId, Health, HealthCheck, Service, Serving, Snapshot, Task, Workload,
    WorkloadId,
};

/// Pause after a report that nobody took.
const AGAIN: Duration = Duration::from_secs(1);

/// A workload that serves, as long as it is attached; dropping it ends its checks.
pub(super) struct Backend {
    _tasks: JoinSet<()>,
}

/// Completes a request to run a workload that is to serve: without networks it is on
/// those of its service, and with a health check it takes no connections yet.
///
/// # Errors
/// If there is no such service, or it cannot be served so.
pub(super) fn prepare(
    request: &mut CreateWorkload,
    snapshot: &Snapshot,
) -> Result<Option<Serving>, Error> {
    let Some(serve) = &mut request.serve else {
        if request.health_check.is_some() {
            return Err(Error::Invalid(
                "a health check decides whether a service's connections come: name the service"
                    .to_owned(),
            ));
        }
        return Ok(None);
    };
    if let Some(check) = &request.health_check {
        Probe::of(check).map_err(|reason| Error::Invalid(format!("the health check: {reason}")))?;
    }
    let service = service(snapshot, &serve.service)?;
    serve.service = service.id.to_string();
    serve.health = first_health(request.health_check.as_ref());
    let names = service.networks.iter().filter_map(|n| snapshot.networks.get(&n.network));
    let names: Vec<String> = names.map(|n| n.name.to_string()).collect();
    if request.networks.is_empty() {
        let attach = |network| Attach { network, aliases: Vec::new(), address: None };
        request.networks = names.into_iter().map(attach).collect();
    } else if !request.networks.iter().any(|a| is_on(&serve.service, &a.network, snapshot)) {
        return Err(Error::Conflict(format!(
            "service {} is on {}: the workload must be on one of its networks, and is on all of \
             them if it names none",
            service.name,
            names.join(", ")
        )));
    }
    Ok(Some(Serving { service: service.id.clone(), health_check: request.health_check.clone() }))
}

fn service<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Service, Error> {
    snapshot.service(name).ok_or_else(|| {
        Error::NotFound(format!(
            "there is no service {name}: `netagent service ls` lists them, `netagent service \
             create` makes one"
        ))
    })
}

/// Whether a service is on a network.
pub(super) fn is_on(service: &str, network: &str, snapshot: &Snapshot) -> bool {
    let (service, network) = (snapshot.service(service), snapshot.network(network));
    service.zip(network).is_some_and(|(service, network)| service.is_on(&network.id))
}

/// Health before the first check.
fn first_health(check: Option<&HealthCheck>) -> Health {
    if check.is_some() { Health::Starting } else { Health::Healthy }
}

/// The endpoints of a workload that serve.
fn tasks<'a>(
    workload: &'a Workload,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = (&'a Endpoint, &'a Task)> {
    let service = workload.serving.as_ref().map(|s| &s.service);
    let endpoints = workload.attachments.iter().map(|a| {
        // One that is so new that nobody has told of it is as it was made.
        snapshot.endpoints.get(&a.endpoint.id).unwrap_or(&a.endpoint)
    });
    let tasks = endpoints.filter_map(|e| Some((e, e.task.as_ref()?)));
    tasks.filter(move |(_, task)| Some(&task.service) == service)
}

impl Workloads {
    /// Changes what a workload is to its service. Returns when all ready nodes have
    /// applied it, or after two seconds, or at once if no manager answers: they hear of
    /// it as soon as one does.
    ///
    /// # Errors
    /// If there is no such workload, or if it serves nothing.
    pub async fn update(&self, name: &str, update: &UpdateWorkload) -> Result<Workload, Error> {
        let workload = self.find(name)?;
        let ids = self.tasks_of(&workload);
        if ids.is_empty() {
            return Err(Error::Conflict(format!(
                "workload {} serves no service: it has no weight and no connections to drain",
                workload.name
            )));
        }
        let UpdateWorkload { weight, draining } = *update;
        self.tell(&ids, UpdateEndpoint { weight, draining, health: None }).await?;
        Ok(workload)
    }

    /// Lets a workload that serves be checked and reported as long as it is attached.
    pub(super) fn follow_backend(&self, workload: &Workload, netns: &Netns) {
        let Some(serving) = &workload.serving else { return };
        let Some(check) = serving.health_check.clone() else {
            // Its tasks are healthy from the beginning.
            return;
        };
        let was = self.task(workload).map_or(Health::Starting, |task| task.health);
        let (sender, health) = watch::channel(was);
        let (this, id) = (self.clone(), workload.id.clone());
        let addresses = move || this.serves_at(&id);
        let mut tasks = JoinSet::new();
        tasks.spawn(health::check(check, workload.clone(), netns.clone(), addresses, sender));
        tasks.spawn(self.clone().report(workload.clone(), health));
        lock(&self.0.backends).insert(workload.id.clone(), Backend { _tasks: tasks });
    }

    /// What a workload is to its service now.
    pub(super) fn task(&self, workload: &Workload) -> Option<Task> {
        tasks(workload, &self.0.cluster.snapshot()).next().map(|(_, task)| task.clone())
    }

    /// Addresses at which connections of its service reach a workload.
    fn serves_at(&self, id: &WorkloadId) -> Vec<Ipv4Addr> {
        let (list, snapshot) = (self.list(), self.0.cluster.snapshot());
        let workload = list.iter().find(|w| w.id == *id);
        workload.into_iter().flat_map(|w| tasks(w, &snapshot)).map(|(e, _)| e.address).collect()
    }

    fn tasks_of(&self, workload: &Workload) -> Vec<EndpointId> {
        tasks(workload, &self.0.cluster.snapshot()).map(|(e, _)| e.id.clone()).collect()
    }

    /// Tells the cluster of a workload's health whenever that is not what it has.
    async fn report(self, workload: Workload, mut health: watch::Receiver<Health>) {
        let mut snapshots = self.0.cluster.subscribe();
        loop {
            let now = *health.borrow_and_update();
            let due: Vec<EndpointId> = {
                let list = self.list();
                let snapshot = snapshots.borrow_and_update();
                let workload = list.iter().find(|w| w.id == workload.id);
                let tasks = workload.into_iter().flat_map(|w| tasks(w, &snapshot));
                let known = |e: &Endpoint| snapshot.endpoints.contains_key(&e.id);
                tasks
                    .filter(|(e, t)| known(e) && t.health != now)
                    .map(|(e, _)| e.id.clone())
                    .collect()
            };
            let update = UpdateEndpoint { health: Some(now), ..UpdateEndpoint::default() };
            let told = self.tell(&due, update).await;
            if let Err(error) = &told {
                warn!(workload = %workload.name, "telling that it is {now}: {error}");
            }
            tokio::select! {
                () = sleep(AGAIN), if told.is_err() => {}
                changed = snapshots.changed(), if told.is_ok() => if changed.is_err() { return },
                changed = health.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says of a workload that has ended, and cannot be released yet, that it takes no
    /// connections.
    pub(super) async fn tell_ended(&self, workload: &Workload) {
        drop(lock(&self.0.backends).remove(&workload.id));
        let due: Vec<EndpointId> = {
            let snapshot = self.0.cluster.snapshot();
            let due = tasks(workload, &snapshot).filter(|(_, t)| t.health != Health::Unhealthy);
            due.map(|(endpoint, _)| endpoint.id.clone()).collect()
        };
        let ill = UpdateEndpoint { health: Some(Health::Unhealthy), ..UpdateEndpoint::default() };
        if let Err(error) = self.tell(&due, ill).await {
            warn!(workload = %workload.name, "telling that it has ended: {error}");
        }
    }

    async fn tell(&self, endpoints: &[EndpointId], update: UpdateEndpoint) -> Result<(), Error> {
        let tell = async |id| self.0.cluster.update_endpoint(id, update.clone()).await.map(drop);
        join_all(endpoints.iter().map(tell)).await.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::fixture::Cluster;

    fn cluster() -> Cluster {
        Cluster::new().network("front", "10.0.0.0/24").network("back", "10.0.1.0/24").service(
            "web",
            "front",
            Some("10.0.0.9"),
            |_| {},
        )
    }

    fn request(networks: &[&str], service: &str, check: Option<u16>) -> CreateWorkload {
        serde_json::from_value(serde_json::json!({
            "networks": networks.iter().map(|n| serde_json::json!({"network": n}))
                .collect::<Vec<_>>(),
            "serve": {"service": service, "weight": 7, "health": "healthy"},
            "health_check": check.map(|port| serde_json::json!({
                "tcp": port, "interval_ms": 1, "timeout_ms": 1, "retries": 1,
                "start_period_ms": 0,
            })),
        }))
        .unwrap()
    }

    fn prepared(mut request: CreateWorkload) -> Result<CreateWorkload, String> {
        prepare(&mut request, &cluster().snapshot).map_err(|e| e.to_string())?;
        Ok(request)
    }

    #[test]
    fn a_backend_is_on_its_services_networks_unless_it_says() {
        let names =
            |r: &CreateWorkload| r.networks.iter().map(|a| a.network.clone()).collect::<Vec<_>>();
        assert_eq!(names(&prepared(request(&[], "web", None)).unwrap()), ["front"]);
        let both = prepared(request(&["back", "front"], "web", None)).unwrap();
        assert_eq!(names(&both), ["back", "front"]);
        assert_eq!(both.serve.unwrap().weight, 7);
        assert!(prepared(request(&["back"], "web", None)).unwrap_err().contains("is on front"));
        assert!(prepared(request(&[], "psql", None)).unwrap_err().contains("no service psql"));
    }

    #[test]
    fn a_checked_backend_begins_without_connections() {
        let health = |check| prepared(request(&[], "web", check)).unwrap().serve.unwrap().health;
        assert_eq!((health(None), health(Some(80))), (Health::Healthy, Health::Starting));
        assert!(prepared(request(&[], "web", Some(0))).unwrap_err().contains("port 0"));
        let alone = CreateWorkload { serve: None, ..request(&["front"], "web", Some(80)) };
        assert!(prepared(alone).unwrap_err().contains("name the service"));
    }
}
