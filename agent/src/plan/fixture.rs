//! A small cluster for tests: this node, another, one network, one workload here.

use std::net::Ipv4Addr;

use crate::model::{
    Attachment, ClusterInfo, Datapath, Endpoint, EndpointId, EndpointMode, Health, Hold, Ipsec,
    Mac, Network, NetworkId, Node, NodeId, NodeStatus, Prefer, Protocol, PublishMode,
    PublishedPort, Role, Scheduler, Service, ServiceId, ServiceNetwork, Snapshot, Task, Vni,
    Workload, WorkloadId,
};

use super::Me;

pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) me: Me,
}

pub(crate) fn node(last: u8) -> Node {
    Node {
        id: NodeId::new(),
        hostname: format!("n{last}"),
        role: Role::Worker,
        address: Ipv4Addr::new(192, 168, 50, 10 + last),
        local_address: None,
        mtu: 1500,
        datapath: Datapath::Ebpf,
        version: "0.1.0".into(),
        status: NodeStatus::Ready,
        routes: vec![],
        certificate: None,
        ipsec: Ipsec { missing: None, generation: 1, worn: None },
        epoch: 0,
    }
}

pub(crate) fn network(name: &str, third: u8) -> Network {
    Network {
        id: NetworkId::new(),
        name: name.parse().unwrap(),
        driver: "overlay".into(),
        vni: Vni(4096 + u32::from(third)),
        subnet: format!("10.0.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, third, 1),
        ip_range: None,
        aux_addresses: Default::default(),
        internal: false,
        encrypted: false,
        mtu: None,
        labels: Default::default(),
        created: "2026-01-01T00:00:00Z".into(),
    }
}

pub(crate) fn endpoint(network: &Network, node: &Node, last: u8) -> Endpoint {
    let [a, b, c, _] = network.subnet.ip().octets();
    let address = Ipv4Addr::new(a, b, c, last);
    Endpoint {
        id: EndpointId::new(),
        network: network.id.clone(),
        node: node.id.clone(),
        workload: WorkloadId::new(),
        name: format!("e{last}").parse().unwrap(),
        aliases: vec![],
        address,
        mac: Mac::of(address),
        task: None,
        created: "2026-01-01T00:00:00Z".into(),
    }
}

pub(crate) fn workload(pid: i32, endpoints: &[Endpoint]) -> Workload {
    Workload {
        id: endpoints[0].workload.clone(),
        name: endpoints[0].name.clone(),
        netns: format!("/proc/{pid}/ns/net").into(),
        hold: Hold::Process { pid, start: 1 },
        mounted: false,
        serving: None,
        attachments: endpoints
            .iter()
            .enumerate()
            .map(|(i, e)| Attachment { interface: format!("eth{i}"), endpoint: e.clone() })
            .collect(),
    }
}

pub(crate) fn two_nodes() -> World {
    let (here, there) = (node(1), node(2));
    let network = network("mydrupal", 0);
    let (mine, other) = (endpoint(&network, &here, 2), endpoint(&network, &there, 3));
    let me = Me {
        id: here.id.clone(),
        vtep: here.address,
        advertised: here.address,
        uplink: "eth0".into(),
        neighbour_bits: 24,
        addresses: [here.address].into(),
        datapath: Datapath::Ebpf,
        ipvs: false,
        ipsec: here.ipsec.clone(),
        object: "digest".into(),
    };
    let snapshot = Snapshot {
        trust: None,
        revision: 7,
        cluster: Some(ClusterInfo {
            id: "cluster".into(),
            data_path_port: 4789,
            created: "2026-01-01T00:00:00Z".into(),
            restored: None,
        }),
        nodes: [here, there].map(|n| (n.id.clone(), n.into())).into(),
        networks: [network].map(|n| (n.id.clone(), n)).into(),
        services: [].into(),
        endpoints: [mine.clone(), other].map(|e| (e.id.clone(), e)).into(),
        unreachable: [].into(),
        keyring: None,
    };
    World { snapshot, workloads: vec![workload(42, &[mine])], me }
}

/// Adds a service on the network, with the virtual address 10.0.0.`last`, and makes
/// everyone on the network a backend of it with weight 1.
pub(crate) fn add_service(snapshot: &mut Snapshot, last: u8) -> ServiceId {
    let network = snapshot.networks.values().next().unwrap();
    let [a, b, c, _] = network.subnet.ip().octets();
    let service = Service {
        id: ServiceId::new(),
        name: format!("s{last}").parse().unwrap(),
        aliases: vec![],
        networks: vec![ServiceNetwork {
            network: network.id.clone(),
            vip: Some(Ipv4Addr::new(a, b, c, last)),
        }],
        endpoint_mode: EndpointMode::Vip,
        ports: vec![],
        scheduler: Scheduler::Wrr,
        affinity: None,
        idle_timeout: 900,
        prefer: Prefer::Any,
        labels: Default::default(),
        created: "2026-01-01T00:00:00Z".into(),
    };
    let id = service.id.clone();
    let health = Health::Healthy;
    for endpoint in snapshot.endpoints.values_mut().filter(|e| e.network == network.id) {
        endpoint.task = Some(Task { service: id.clone(), weight: 1, health, draining: false });
    }
    snapshot.services.insert(id.clone(), service);
    id
}

/// A port of every node that leads to port 80.
pub(crate) fn port(published: u16) -> PublishedPort {
    PublishedPort {
        published,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        address: None,
        allow: vec![],
    }
}

/// Adds an endpoint on the other node and raises the revision.
pub(crate) fn add_remote(snapshot: &mut Snapshot, last: u8) {
    let network = snapshot.networks.values().next().unwrap().clone();
    let there = snapshot.nodes.values().find(|n| n.hostname == "n2").unwrap().clone();
    let endpoint = endpoint(&network, &there, last);
    snapshot.endpoints.insert(endpoint.id.clone(), endpoint);
    snapshot.revision += 1;
}
