//! Services: made and changed on the manager, seen by all, served by the nodes.

use super::*;
use crate::api::types::{NetworkDetail, Serve, ServiceDetail, UpdateEndpoint};
use crate::cluster::tests::endpoint;
use crate::model::{Health, PublishMode, Service};

impl Agent {
    async fn service(&self, body: serde_json::Value) -> Service {
        self.client.post("/v1/services", &body).await.unwrap()
    }

    /// An endpoint of this node that serves.
    async fn task(&self, network: &str, name: &str, service: &str) -> Endpoint {
        self.try_task(network, name, service).await.unwrap()
    }

    async fn try_task(
        &self,
        network: &str,
        name: &str,
        service: &str,
    ) -> Result<Endpoint, crate::cluster::Error> {
        let node = self.cluster.identity().unwrap().node;
        let mut request = endpoint(network, &node, name);
        let (weight, health) = (1, Health::Healthy);
        request.serve = Some(Serve { service: service.to_owned(), weight, health });
        self.cluster.create_endpoint(&request).await
    }
}

#[tokio::test]
async fn a_life() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    n1.network("front").await;
    n1.network("back").await;
    let web = n1
        .service(json!({
            "name": "web", "networks": ["front", "back"], "aliases": ["www", "web"],
            "ports": [{"published": 8080, "target": 80}, {"target": 443}],
        }))
        .await;
    let vips: Vec<_> = web.networks.iter().map(|n| n.vip.unwrap().to_string()).collect();
    assert_eq!(vips, ["10.0.0.2", "10.0.1.2"]);
    assert_eq!(web.ports.iter().map(|p| p.published).collect::<Vec<_>>(), [8080, 30000]);
    assert_eq!(web.aliases.iter().map(|a| a.as_str()).collect::<Vec<_>>(), ["www"]);
    // Creation returned when every node had it: no waiting here, nor below.
    let a = n2.task("front", "web-a", "web").await;
    let b = n3.task("front", "web-b", &web.id.as_str()[..12]).await;
    assert_eq!(a.address.to_string(), "10.0.0.3", "not the virtual one");
    for node in [&n1, &n2, &n3] {
        let detail: ServiceDetail = node.client.get("/v1/services/web").await.unwrap();
        assert_eq!(detail.service, web);
        assert_eq!(detail.tasks, [a.clone(), b.clone()], "{}", node.name);
    }

    let front: NetworkDetail = n3.client.get("/v1/networks/front").await.unwrap();
    let [service] = &front.services[..] else { panic!("{front:?}") };
    assert_eq!((&service.service, service.vip), (&web.id, web.networks[0].vip));
    assert_eq!(front.addresses.used, 3);

    let ill = UpdateEndpoint { health: Some(Health::Unhealthy), ..UpdateEndpoint::default() };
    let a = n2.cluster.update_endpoint(&a.id, ill).await.unwrap();
    assert_eq!(a.task.as_ref().unwrap().health, Health::Unhealthy);
    for node in [&n1, &n2, &n3] {
        let snapshot = node.cluster.snapshot();
        assert_eq!(snapshot.endpoints[&a.id], a, "{}", node.name);
        let backends = snapshot.backends().into_values().flatten();
        let eligible: Vec<_> = backends.filter(|b| b.eligible).map(|b| &b.endpoint.id).collect();
        assert_eq!(eligible, [&b.id]);
    }

    let update = json!({
        "publish_add": [{"published": 8080, "target": 81, "allow": ["10.0.0.0/8"]}],
        "publish_rm": [{"target": 443}], "scheduler": "lc", "affinity": 60,
        "label_add": {"k": "v"},
    });
    let web: Service = n1.client.patch("/v1/services/web", &update).await.unwrap();
    let [port] = &web.ports[..] else { panic!("{web:?}") };
    assert_eq!((port.published, port.target, port.mode), (8080, 81, PublishMode::Ingress));
    assert_eq!(n3.cluster.snapshot().services[&web.id], web);
    let update = json!({"affinity": 0, "label_rm": ["k"]});
    let web: Service = n1.client.patch("/v1/services/web", &update).await.unwrap();
    assert_eq!((web.affinity, web.labels.len()), (None, 0));

    let (status, text) = refusal(n1.client.delete("/v1/networks/back").await);
    assert_eq!((status, text.as_str()), (409, "network back is in use by service web"));
    let (status, text) = refusal(n1.client.delete("/v1/services/web").await);
    assert_eq!(status, 409);
    assert!(text.contains("web-a (10.0.0.3 on n2), web-b (10.0.0.4 on n3)"), "{text}");
    n1.client.delete("/v1/services/web?force=true").await.unwrap();
    for node in [&n1, &n2, &n3] {
        let snapshot = node.cluster.snapshot();
        assert!(snapshot.services.is_empty(), "{}", node.name);
        assert!(snapshot.endpoints.values().all(|e| e.task.is_none()));
        assert_eq!(snapshot.endpoints.len(), 2);
    }
    n1.client.delete("/v1/networks/back").await.unwrap();
}

#[tokio::test]
async fn what_a_node_knows_of_its_tasks_holds_without_a_manager() {
    let dir = tempfile::tempdir().unwrap();
    let (mut n1, n2, n3) = three(dir.path()).await;
    n1.network("db").await;
    n1.service(json!({"name": "psql", "networks": ["db"]})).await;
    let [ill, gone, back] = ["ill", "gone", "back"].map(|name| n2.task("db", name, "psql"));
    let (ill, gone, back) = (ill.await, gone.await, back.await);
    n2.until("complete", |s| s.endpoints.len() == 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await; // the copy on disk lags a little
    n1.kill().await;
    while n2.cluster.status().manager_reachable {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unhealthy = UpdateEndpoint { health: Some(Health::Unhealthy), ..UpdateEndpoint::default() };
    let told = n2.cluster.update_endpoint(&ill.id, unhealthy).await.unwrap();
    assert_eq!(told.task.as_ref().unwrap().health, Health::Unhealthy);
    let weight = UpdateEndpoint { weight: Some(7), ..UpdateEndpoint::default() };
    let told = n2.cluster.update_endpoint(&ill.id, weight).await.unwrap();
    for id in [&gone.id, &back.id] {
        n2.cluster.release_endpoint(id).await.unwrap();
    }
    let known = |s: &Snapshot| {
        s.endpoints[&ill.id] == told
            && s.endpoints[&gone.id].task.as_ref().unwrap().draining
            && s.endpoints[&back.id].task.as_ref().unwrap().draining
    };
    assert!(known(&n2.cluster.snapshot()));
    let n2 = n2.restart().await;
    assert!(known(&n2.cluster.snapshot()), "forgotten by a restart");

    // A workload of that name starts again, as a task like any new one.
    let name = "back".parse().unwrap();
    let networks =
        [crate::api::types::Attach { network: "db".to_owned(), aliases: vec![], address: None }];
    assert_eq!(n2.cluster.reclaim(&name, &networks, None).await.unwrap(), None, "no longer serves");
    let (weight, health) = (3, Health::Starting);
    let serve = Serve { service: "psql".to_owned(), weight, health };
    let again = n2.cluster.reclaim(&name, &networks, Some(&serve)).await.unwrap().unwrap();
    let task = again[0].task.as_ref().unwrap();
    assert_eq!((task.weight, task.health, task.draining), (3, Health::Starting, false));
    assert_eq!(n2.cluster.snapshot().endpoints[&back.id], again[0]);

    // All of it reaches the others when the manager is back, by itself.
    let n1 = n1.restart().await;
    for node in [&n1, &n3, &n2] {
        let told = |s: &Snapshot| {
            s.endpoints.len() == 2
                && s.endpoints[&ill.id] == told
                && s.endpoints.get(&back.id) == Some(&again[0])
        };
        node.until("as n2 says", told).await;
    }
}

/// Many changes of few endpoints at once: the last word of each is what holds.
#[tokio::test]
async fn the_last_word_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    n1.network("db").await;
    n1.service(json!({"name": "psql", "networks": ["db"]})).await;
    let mut tasks = vec![];
    for name in ["a", "b", "c"] {
        tasks.push(n2.task("db", name, "psql").await);
    }
    let mut calls = vec![];
    for weight in 1..=20 {
        for task in &tasks {
            let update = UpdateEndpoint { weight: Some(weight), ..UpdateEndpoint::default() };
            calls.push(n2.cluster.update_endpoint(&task.id, update));
        }
    }
    for told in futures::future::join_all(calls).await {
        told.unwrap();
    }
    for node in [&n1, &n2, &n3] {
        let weights = |s: &Snapshot| {
            s.endpoints.values().all(|e| e.task.as_ref().is_some_and(|t| t.weight == 20))
        };
        node.until("as said last", weights).await;
    }
}

/// Many ask at once for what only one can have, or for one of a few.
#[tokio::test]
async fn nothing_is_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    // 13 addresses.
    let body = json!({"name": "db", "subnet": "10.7.0.0/28"});
    post(&n1.client, "/v1/networks", &body).await.unwrap();
    let node = n1.cluster.identity().unwrap().node;
    let services = (0..10).map(|n| {
        let ports = json!([{"target": 80}, {"published": 9000 + n % 5, "target": 81}]);
        let body = json!({"name": format!("s{}", n % 7), "networks": ["db"], "ports": ports});
        let client = n1.client.clone();
        async move { client.post::<_, Service>("/v1/services", &body).await }
    });
    let endpoints = (0..12).map(|n| {
        let request = endpoint("db", &node, &format!("s{n}"));
        let client = n1.client.clone();
        async move { client.post::<_, Endpoint>("/v1/endpoints", &request).await }
    });
    let (services, endpoints) =
        tokio::join!(futures::future::join_all(services), futures::future::join_all(endpoints));
    let services: Vec<_> = services.into_iter().filter_map(Result::ok).collect();
    let endpoints: Vec<_> = endpoints.into_iter().filter_map(Result::ok).collect();
    let vips = services.iter().filter_map(|s| s.networks[0].vip);
    let addresses: Vec<_> = vips.chain(endpoints.iter().map(|e| e.address)).collect();
    let names = services.iter().map(|s| &s.name).chain(endpoints.iter().map(|e| &e.name));
    let ports = services.iter().flat_map(|s| s.ports.iter().map(|p| p.published));
    assert_eq!(all_different(addresses.iter()), addresses.len());
    assert_eq!(all_different(names), addresses.len());
    assert_eq!(all_different(ports), services.len() * 2);
    assert!(!services.is_empty() && !endpoints.is_empty(), "{services:?} {endpoints:?}");
    let snapshot = n1.cluster.snapshot();
    assert_eq!(snapshot.services.len() + snapshot.endpoints.len(), addresses.len());
}

fn all_different<T: Ord>(values: impl Iterator<Item = T>) -> usize {
    values.collect::<std::collections::BTreeSet<_>>().len()
}

/// A store and a copy of before there were services.
#[tokio::test]
async fn what_an_older_agent_left_behind_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let mut n2 = Agent::start(dir.path(), 2).await;
    n2.join(&n1).await;
    let plain = n2.endpoint("db", "plain").await;
    let before = n2.until("complete", |s| s.endpoints.contains_key(&plain.id)).await;
    n1.kill().await;
    n2.kill().await;
    let copy = dir.path().join("n2/snapshot.json");
    let text = std::fs::read_to_string(&copy).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(old.as_object_mut().unwrap().remove("services").is_some());
    let endpoint = &old["endpoints"][plain.id.as_str()];
    assert!(endpoint.is_object() && endpoint.get("task").is_none(), "{endpoint}");
    std::fs::write(&copy, old.to_string()).unwrap();
    let n2 = n2.restart().await;
    assert_eq!(n2.cluster.snapshot(), before);
}
