//! The handle on one node, without a network between nodes; `api::server` has the
//! tests with several.

use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;

use super::*;
use crate::api::types::{CreateEndpoint, InitRequest, LeaveRequest};
use crate::facts::{Host, Link, Route};
use crate::model::{Ipsec, WorkloadId};

/// A host that has what the test says.
pub(crate) struct Fixed(pub(crate) Host);

#[async_trait]
impl HostReader for Fixed {
    async fn read(&self) -> anyhow::Result<Host> {
        Ok(self.0.clone())
    }
}

/// A node that advertises `address`, in a host that routes 172.16.0.0/12.
pub(crate) fn config(dir: &std::path::Path, name: &str, address: Ipv4Addr) -> ClusterConfig {
    let link = Link {
        name: "eth0".to_owned(),
        mtu: 1500,
        up: true,
        loopback: false,
        addresses: vec![address],
    };
    let route = Route {
        destination: "172.16.0.0/12".parse().unwrap(),
        link: Some("eth0".to_owned()),
        gateway: false,
        protocol: 2,
    };
    ClusterConfig {
        data_dir: dir.join(name),
        hostname: name.to_owned(),
        uplink: None,
        datapath: Datapath::Ebpf,
        version: "0.0.0".to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        host: Arc::new(Fixed(Host { links: vec![link], routes: vec![route] })),
        ipsec: tokio::sync::watch::channel(Ipsec::default()).1,
    }
}

pub(crate) fn network(json: serde_json::Value) -> CreateNetwork {
    serde_json::from_value(json).unwrap()
}

pub(crate) fn endpoint(network: &str, node: &NodeId, name: &str) -> CreateEndpoint {
    CreateEndpoint {
        serve: None,
        network: network.to_owned(),
        node: node.clone(),
        workload: WorkloadId::new(),
        name: name.parse().unwrap(),
        aliases: vec![],
        address: None,
        id: None,
    }
}

const N1: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);

#[tokio::test]
async fn the_uplink_must_be_there_and_its_mtu_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "n1", N1);
    let mut host = config.host.read().await.unwrap();
    let eth0 = host.links[0].clone();
    host.links.push(Link { name: "eth1".to_owned(), mtu: 1400, addresses: vec![], ..eth0 });
    config.host = Arc::new(Fixed(host));

    config.uplink = Some("eth7".to_owned());
    let cluster = Cluster::open(config.clone()).await.unwrap();
    let init = InitRequest { advertise: Some(N1), ..InitRequest::default() };
    let refused = cluster.init(init.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("no interface eth7"), "{refused}");
    cluster.close().await;

    config.uplink = Some("eth1".to_owned());
    let cluster = Cluster::open(config).await.unwrap();
    cluster.init(init).await.unwrap();
    assert_eq!(cluster.status().node.unwrap().mtu, 1400);
}

#[tokio::test]
async fn a_node_behind_nat_has_two_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "n1", N1);
    let public = Ipv4Addr::new(203, 0, 113, 7);
    let cluster = Cluster::open(config.clone()).await.unwrap();
    let init = InitRequest { advertise: Some(public), local: Some(N1), ..Default::default() };
    cluster.init(init).await.unwrap();
    cluster.close().await;

    let cluster = Cluster::open(config).await.unwrap();
    let record = cluster.identity().unwrap();
    assert_eq!((record.address, record.addresses().own()), (public, N1));
    assert_eq!(cluster.uplink().await.unwrap().as_deref(), Some("eth0"));
    let node = cluster.status().node.unwrap();
    assert_eq!((node.address, node.local_address), (public, Some(N1)));
    let token = cluster.join_token(Role::Worker, false).await.unwrap();
    assert!(token.manager.starts_with("203.0.113.7:"), "{}", token.manager);
    for subnet in ["203.0.113.0/24", "192.168.50.0/24"] {
        let network = network(serde_json::json!({"name": "db", "subnet": subnet}));
        let refused = cluster.create_network(&network).await.unwrap_err().to_string();
        assert!(refused.contains("the address of node n1"), "{refused}");
    }
}

#[tokio::test]
async fn what_one_has_another_cannot_advertise() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "n2", N1);
    let [one, two] = [7, 8].map(|last| Ipv4Addr::new(203, 0, 113, last));
    let facts = async |advertised, local| {
        member::facts(&config, Addresses { advertised, local }).await.unwrap()
    };
    for (member, newcomer, clash) in [
        ((one, Some(N1)), (two, Some(N1)), None),
        ((one, Some(N1)), (N1, None), Some("could not reach each other")),
        ((N1, None), (one, Some(N1)), Some("could not reach each other")),
        ((one, Some(N1)), (one, Some(N1)), Some("is that of node")),
    ] {
        let member = facts(member.0, member.1).await;
        let member = decide::node(NodeId::new(), Role::Worker, member);
        let nodes = [(member.id.clone(), member.into())].into();
        let snapshot = Snapshot { nodes, ..Snapshot::default() };
        let said = validate::newcomer(&facts(newcomer.0, newcomer.1).await, &snapshot);
        match clash {
            None => said.unwrap(),
            Some(clash) => assert!(said.unwrap_err().to_string().contains(clash)),
        }
    }
}

#[tokio::test]
async fn a_life() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(config(dir.path(), "n1", N1)).await.unwrap();
    assert_eq!(*cluster.snapshot(), Snapshot::default());
    let refused = cluster.create_network(&network(serde_json::json!({"name": "db"}))).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");

    let me = cluster.init(InitRequest::default()).await.unwrap();
    assert_eq!(me.role, Role::Manager);
    cluster.init(InitRequest::default()).await.unwrap_err();
    let db = cluster.create_network(&network(serde_json::json!({"name": "db"}))).await.unwrap();
    assert_eq!(db.subnet.to_string(), "10.0.0.0/24");
    assert_eq!(cluster.snapshot().networks[&db.id], db);
    cluster.report_applied(u64::MAX);
    let web = cluster.create_endpoint(&endpoint("db", &me.node, "web")).await.unwrap();
    assert_eq!(web.address.to_string(), "10.0.0.2");
    let refused = cluster.remove_network("db").await.unwrap_err().to_string();
    assert_eq!(refused, "network db is in use by web (10.0.0.2 on n1)");

    // A restart finds everything as it was.
    let before = cluster.snapshot();
    cluster.close().await;
    let cluster = Cluster::open(config(dir.path(), "n1", N1)).await.unwrap();
    assert_eq!(*cluster.snapshot(), *before);
    assert_eq!(cluster.status().node.unwrap().hostname, "n1");

    cluster.release_endpoint(&web.id).await.unwrap();
    assert_eq!(cluster.snapshot().endpoints.len(), 0);
    cluster.remove_network("db").await.unwrap();
    cluster.leave(LeaveRequest { force: false }).await.unwrap_err();
    cluster.leave(LeaveRequest { force: true }).await.unwrap();
    assert_eq!(*cluster.snapshot(), Snapshot::default());
    assert_eq!(std::fs::read_dir(dir.path().join("n1")).unwrap().count(), 0, "files are left");
    cluster.init(InitRequest::default()).await.unwrap();
}

/// What cannot be read is named, and never taken for an empty cluster: that would
/// tear down whatever runs.
#[tokio::test]
async fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let manager = || config(dir.path(), "n1", N1);
    let data = dir.path().join("n1");
    let cluster = Cluster::open(manager()).await.unwrap();
    cluster.init(InitRequest::default()).await.unwrap();
    cluster.close().await;
    for file in ["node.json", "node.crt", "node.key", "ca.crt", "store.db"] {
        let path = data.join(file);
        let good = std::fs::read(&path).unwrap();
        for bad in [Some(&b"{\"half"[..]), None] {
            match bad {
                Some(bad) => std::fs::write(&path, bad).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            if bad.is_none() && file == "node.json" {
                continue; // A host without it is in no cluster.
            }
            let error = Cluster::open(manager()).await.err().expect(file).to_string();
            assert!(error.contains(file), "{file}: {error}");
        }
        std::fs::write(&path, good).unwrap();
    }
    Cluster::open(manager()).await.unwrap().close().await;

    // The same for what a worker keeps.
    let record = std::fs::read_to_string(data.join("node.json")).unwrap();
    let worker = record.replace("\"manager\"", "\"worker\"").replace("[]", "[\"127.0.0.1:1\"]");
    std::fs::write(data.join("node.json"), worker).unwrap();
    for file in ["releases.json", "updates.json"] {
        std::fs::write(data.join(file), "[{").unwrap();
        let error = Cluster::open(manager()).await.err().expect(file).to_string();
        assert!(error.contains(file), "{file}: {error}");
        std::fs::remove_file(data.join(file)).unwrap();
    }
    // A copy of what the manager has is no reason not to start, but one to wait for it.
    std::fs::write(data.join("snapshot.json"), "[{").unwrap();
    let cluster = Cluster::open(manager()).await.unwrap();
    assert_eq!(cluster.snapshot().revision, 0);
    assert!(cluster.snapshot().cluster.is_some());
    let wait = cluster.caught_up(Duration::ZERO);
    tokio::pin!(wait);
    let soon = Duration::from_millis(200);
    assert!(tokio::time::timeout(soon, &mut wait).await.is_err(), "it acts on nothing");
    cluster.leave(LeaveRequest { force: true }).await.unwrap();
    wait.await;
}
