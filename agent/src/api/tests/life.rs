//! Nodes come and go, managers restart, nothing is lost.

use super::*;
use crate::api::types::{Attach, ClusterStatus, NetworkDetail, WatchEvent};
use crate::model::{Name, Node};
use futures::StreamExt as _;

fn attach(network: &str) -> Attach {
    Attach { network: network.to_owned(), aliases: vec![], address: None }
}

#[tokio::test]
async fn three_nodes_see_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    let db = n1.network("db").await;
    assert_eq!((db.subnet.to_string().as_str(), db.vni.0), ("10.0.0.0/24", 4096));
    let web = n2.endpoint("db", "web").await;
    let psql = n3.endpoint("db", "psql").await;
    assert_ne!(web.address, psql.address);
    // create_endpoint returned when every node had it: no waiting here.
    for node in [&n1, &n2, &n3] {
        assert!(node.cluster.snapshot().endpoints.contains_key(&psql.id), "{}", node.name);
    }
    let all = n1.cluster.snapshot();
    for node in [&n2, &n3] {
        node.until("the same as on n1", |s| *s == *all).await;
        let status: ClusterStatus = node.client.get("/v1/cluster").await.unwrap();
        assert!(status.manager_reachable);
        assert_eq!(status.node.unwrap().hostname, node.name);
        let nodes: Vec<Node> = node.client.get("/v1/nodes").await.unwrap();
        assert_eq!(nodes.len(), 3);
        let detail: NetworkDetail = node.client.get("/v1/networks/db").await.unwrap();
        assert_eq!(detail.peers.len(), 2);
        assert_eq!((detail.addresses.total, detail.addresses.used), (253, 2));
        assert_eq!(detail.effective_mtu, 1450);
    }
    // What only a manager can do.
    let (status, message) = refusal(post(&n2.client, "/v1/networks", &json!({"name": "x"})).await);
    assert_eq!(status, 409);
    assert_eq!(message, "this node is a worker; run this on a manager: n1 (192.168.50.11)");

    n2.cluster.release_endpoint(&web.id).await.unwrap();
    n3.until("without web", |s| !s.endpoints.contains_key(&web.id)).await;
    let (_, message) = refusal(n1.client.delete("/v1/networks/db").await);
    assert_eq!(message, format!("network db is in use by psql ({} on n3)", psql.address));
}

#[tokio::test]
async fn many_workloads_start_at_once_on_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, _n3) = three(dir.path()).await;
    n1.network("db").await;
    let names: Vec<_> = (0..150).map(|n| format!("web{n}")).collect();
    let made = futures::future::join_all(names.iter().map(|name| n2.endpoint("db", name))).await;
    let addresses: std::collections::BTreeSet<_> = made.iter().map(|e| e.address).collect();
    assert_eq!(addresses.len(), names.len());
}

#[tokio::test]
async fn workloads_start_while_the_manager_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, _n3) = three(dir.path()).await;
    n1.network("db").await;
    let names: Vec<_> = (0..60).map(|n| format!("web{n}")).collect();
    let all = futures::future::join_all(names.iter().map(|name| n2.endpoint("db", name)));
    let (n1, made) = tokio::join!(
        async {
            n1.until("busy", |s| !s.endpoints.is_empty()).await;
            n1.restart().await
        },
        all
    );
    let made: std::collections::BTreeSet<_> = made.iter().map(|e| &e.id).collect();
    assert_eq!(made.len(), names.len());
    assert!(made.into_iter().eq(n1.cluster.snapshot().endpoints.keys()));
}

#[tokio::test]
async fn a_watcher_sees_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    let events = n1.client.lines::<WatchEvent>("/v1/watch").await.unwrap();
    let mut events = Box::pin(events.filter_map(|event| async move {
        Some(event.unwrap()).filter(|e| !matches!(e, WatchEvent::Alive { .. }))
    }));
    let Some(WatchEvent::Snapshot { mut snapshot }) = events.next().await else { panic!() };
    // What else is there, the manager may tell of at any moment: its certificate.
    assert_eq!((snapshot.nodes.len(), snapshot.networks.len()), (1, 0));
    n1.network("db").await;
    let web = n1.endpoint("db", "web").await;
    n1.cluster.release_endpoint(&web.id).await.unwrap();
    let (_, pruned) = (n1.network("other").await, "/v1/networks/prune");
    n1.client.post::<_, serde_json::Value>(pruned, &()).await.unwrap();
    let end = n1.cluster.snapshot();
    assert!(end.networks.is_empty());
    while *snapshot != *end {
        match events.next().await {
            Some(WatchEvent::Delta { revision, changes }) => {
                crate::cluster::apply(&mut snapshot, revision, changes);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_manager_restarts_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    n1.network("db").await;
    n2.endpoint("db", "web").await;
    let before = n1.cluster.snapshot();
    n3.until("the same as on n1", |s| *s == *before).await;
    let mut seen = n3.cluster.subscribe();
    seen.mark_unchanged();

    let n1 = n1.restart().await;
    assert_eq!(*n1.cluster.snapshot(), *before);
    for node in [&n2, &n3] {
        let mut down_first = tokio::time::interval(Duration::from_millis(20));
        while !node.cluster.status().manager_reachable {
            down_first.tick().await;
        }
    }
    // The next change arrives, and it is the first one since.
    n1.network("later").await;
    let after = n3.until("later", |s| s.network("later").is_some()).await;
    assert_eq!(after.revision, before.revision + 1, "the restart itself wrote something");
    assert!(seen.has_changed().unwrap());
    n2.endpoint("later", "web2").await;
}

#[tokio::test]
async fn silent_nodes_are_down_until_they_speak() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, mut n2, n3) = three(dir.path()).await;
    n2.kill().await;
    n1.until_status("n2", NodeStatus::Down).await;
    n3.until_status("n2", NodeStatus::Down).await;
    // Nobody waits for a node that is down.
    n1.network("db").await;
    n3.endpoint("db", "web").await;
    let n2 = n2.restart().await;
    n1.until_status("n2", NodeStatus::Ready).await;
    n2.until_status("n2", NodeStatus::Ready).await;
    n2.until("with web", |s| s.endpoints.len() == 1).await;
}

#[tokio::test]
async fn without_a_manager_the_last_snapshot_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (mut n1, n2, _n3) = three(dir.path()).await;
    n1.network("db").await;
    let web = n2.endpoint("db", "web").await;
    let gone = n2.endpoint("db", "gone").await;
    let before = n2.until("complete", |s| s.endpoints.len() == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await; // the copy on disk lags a little
    n1.kill().await;
    while n2.cluster.status().manager_reachable {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in [&web.id, &gone.id] {
        n2.cluster.release_endpoint(id).await.unwrap();
    }
    let n2 = n2.restart().await;
    assert_eq!(n2.cluster.snapshot().endpoints, before.endpoints);
    assert_eq!(n2.cluster.snapshot().networks, before.networks);

    // A workload of that name starts again and has its address; only once.
    let name: Name = "web".parse().unwrap();
    let other = n2.cluster.reclaim(&"psql".parse().unwrap(), &[attach("db")], None).await.unwrap();
    assert_eq!(other, None);
    let more = n2.cluster.reclaim(&name, &[attach("db"), attach("db")], None).await.unwrap();
    assert_eq!(more, None);
    let back = n2.cluster.reclaim(&name, &[attach("db")], None).await.unwrap();
    assert_eq!(back, Some(vec![web.clone()]));
    assert_eq!(n2.cluster.reclaim(&name, &[attach("db")], None).await.unwrap(), None);
    let request = crate::cluster::tests::endpoint("db", &web.node, "new");
    let error = n2.cluster.create_endpoint(&request).await.unwrap_err().to_string();
    assert!(error.starts_with("no manager answers"), "{error}");

    // The other release is delivered when the manager is back, by itself.
    let n1 = n1.restart().await;
    n1.until("without gone", |s| !s.endpoints.contains_key(&gone.id)).await;
    assert!(n1.cluster.snapshot().endpoints.contains_key(&web.id));
    n2.until("without gone", |s| !s.endpoints.contains_key(&gone.id)).await;
}

#[tokio::test]
async fn nodes_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (mut n1, n2, mut n3) = three(dir.path()).await;
    n1.network("db").await;
    let web = n2.endpoint("db", "web").await;
    let leave = |force| json!({ "force": force });
    let (status, message) = refusal(post(&n2.client, "/v1/cluster/leave", &leave(false)).await);
    assert_eq!(status, 409);
    assert!(message.contains(&format!("web ({} on n2)", web.address)), "{message}");
    n2.cluster.release_endpoint(&web.id).await.unwrap();
    n2.until("without web", |s| s.endpoints.is_empty()).await;
    post(&n2.client, "/v1/cluster/leave", &leave(false)).await.unwrap();
    assert_eq!(*n2.cluster.snapshot(), Snapshot::default());
    n1.until("without n2", |s| s.node("n2").is_none()).await;
    let files = std::fs::read_dir(dir.path().join("n2")).unwrap().count();
    assert_eq!(files, 0, "files are left");
    // And back in, as somebody new.
    n2.join(&n1).await;
    n3.until("with n2", |s| s.node("n2").is_some()).await;

    // A node that is ready is not removed by mistake; one that is gone is.
    let (status, message) = refusal(n1.client.delete("/v1/nodes/n3").await);
    assert_eq!(status, 409);
    assert!(message.contains("--force"), "{message}");
    n3.endpoint("db", "psql").await;
    n3.kill().await;
    n1.until_status("n3", NodeStatus::Down).await;
    n1.client.delete("/v1/nodes/n3").await.unwrap();
    assert!(n1.cluster.snapshot().endpoints.is_empty());
    n2.until("without n3", |s| s.node("n3").is_none()).await;

    // The manager ends the cluster; a worker can leave what is no more.
    let (status, _) = refusal(post(&n1.client, "/v1/cluster/leave", &leave(false)).await);
    assert_eq!(status, 409);
    post(&n1.client, "/v1/cluster/leave", &leave(true)).await.unwrap();
    n1.kill().await;
    let refused = refusal(post(&n2.client, "/v1/cluster/leave", &leave(false)).await);
    assert!(refused.0 == 503 && refused.1.contains("--force"), "{refused:?}");
    post(&n2.client, "/v1/cluster/leave", &leave(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_allocated_at_once_is_distinct() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    let networks = futures::future::join_all((0..12).map(|n| {
        let client = n1.client.clone();
        async move {
            let body = json!({ "name": format!("net{n}") });
            client.post::<_, crate::model::Network>("/v1/networks", &body).await.unwrap()
        }
    }))
    .await;
    let distinct = |values: Vec<String>| {
        let all = values.len();
        assert_eq!(values.into_iter().collect::<std::collections::BTreeSet<_>>().len(), all);
    };
    distinct(networks.iter().map(|n| n.vni.to_string()).collect());
    distinct(networks.iter().map(|n| n.subnet.to_string()).collect());
    // One name, asked for at once: one of them gets it.
    let same = futures::future::join_all((0..5).map(|_| {
        let client = n1.client.clone();
        async move { post(&client, "/v1/networks", &json!({"name": "same"})).await.is_ok() }
    }))
    .await;
    assert_eq!(same.iter().filter(|ok| **ok).count(), 1);

    let endpoints = futures::future::join_all((0..30).map(|n| {
        let node = [&n1, &n2, &n3][n % 3];
        async move { node.endpoint("net0", &format!("w{n}")).await }
    }))
    .await;
    distinct(endpoints.iter().map(|e| e.address.to_string()).collect());
    assert!(endpoints.iter().all(|e| e.address != networks[0].gateway));
    // One address, asked for at once.
    let ask = |node: &Agent| {
        let id = node.cluster.identity().unwrap().node;
        let mut request = crate::cluster::tests::endpoint("net1", &id, "w");
        request.address = Some(networks[1].subnet.nth(77).unwrap());
        let cluster = node.cluster.clone();
        async move { cluster.create_endpoint(&request).await.is_ok() }
    };
    let (a, b, c) = tokio::join!(ask(&n1), ask(&n2), ask(&n3));
    assert_eq!([a, b, c].iter().filter(|ok| **ok).count(), 1);
}
