//! Snapshots for tests, written as a cluster is described.

use std::net::Ipv4Addr;

use crate::model::{
    Datapath, Endpoint, EndpointId, EndpointMode, Health, Mac, Name, Network, NetworkId, Node,
    NodeId, NodeStatus, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId,
    ServiceNetwork, Snapshot, Task, Vni, WorkloadId,
};

/// A snapshot under construction.
pub(crate) struct Cluster {
    pub(crate) snapshot: Snapshot,
    node: NodeId,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let node = node(NodeStatus::Ready);
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert(node.id.clone(), node.clone().into());
        Self { snapshot, node: node.id }
    }

    pub(crate) fn network(mut self, name: &str, subnet: &str) -> Self {
        let subnet: ipnetwork::Ipv4Network = subnet.parse().unwrap();
        let network = Network {
            id: NetworkId::new(),
            name: name.parse().unwrap(),
            driver: "overlay".to_owned(),
            vni: Vni(Vni::FIRST.0 + u32::try_from(self.snapshot.networks.len()).unwrap()),
            subnet,
            gateway: Ipv4Addr::from_bits(subnet.network().to_bits() + 1),
            ip_range: None,
            aux_addresses: Default::default(),
            internal: false,
            encrypted: false,
            mtu: None,
            labels: Default::default(),
            created: "2026-11-20T00:00:00Z".to_owned(),
        };
        self.snapshot.networks.insert(network.id.clone(), network);
        self
    }

    pub(crate) fn internal(mut self, network: &str) -> Self {
        let id = self.ids(&[network]).remove(0);
        self.snapshot.networks.get_mut(&id).unwrap().internal = true;
        self
    }

    pub(crate) fn endpoint(
        mut self,
        name: &str,
        network: &str,
        address: &str,
        aliases: &[&str],
    ) -> Self {
        let address: Ipv4Addr = address.parse().unwrap();
        let endpoint = Endpoint {
            id: EndpointId::new(),
            network: self.ids(&[network]).remove(0),
            node: self.node.clone(),
            workload: WorkloadId::new(),
            name: name.parse().unwrap(),
            aliases: aliases.iter().map(|a| a.parse::<Name>().unwrap()).collect(),
            address,
            mac: Mac::of(address),
            task: None,
            created: "2026-11-20T00:00:00Z".to_owned(),
        };
        self.snapshot.endpoints.insert(endpoint.id.clone(), endpoint);
        self
    }

    /// A service with a virtual address on `network`, or none; `more` adds what else it has.
    pub(crate) fn service(
        mut self,
        name: &str,
        network: &str,
        vip: Option<&str>,
        more: impl FnOnce(&mut Service),
    ) -> Self {
        let mut service = Service {
            id: ServiceId::new(),
            name: name.parse().unwrap(),
            aliases: vec![],
            networks: vec![ServiceNetwork {
                network: self.ids(&[network]).remove(0),
                vip: vip.map(|vip| vip.parse().unwrap()),
            }],
            endpoint_mode: if vip.is_some() { EndpointMode::Vip } else { EndpointMode::Dnsrr },
            ports: vec![],
            scheduler: Default::default(),
            affinity: None,
            idle_timeout: Service::IDLE_TIMEOUT,
            prefer: Default::default(),
            labels: Default::default(),
            created: "2026-11-20T00:00:00Z".to_owned(),
        };
        more(&mut service);
        self.snapshot.services.insert(service.id.clone(), service);
        self
    }

    /// Makes the endpoint with this address a healthy backend; `change` may say else.
    pub(crate) fn serves(
        mut self,
        address: &str,
        service: &str,
        change: impl FnOnce(&mut Task),
    ) -> Self {
        let service = self.snapshot.service(service).unwrap().id.clone();
        let mut task = Task { service, weight: 1, health: Health::Healthy, draining: false };
        change(&mut task);
        self.at(address).task = Some(task);
        self
    }

    /// Moves the endpoint with this address to a node of its own with this status.
    pub(crate) fn on_a_node(mut self, address: &str, status: NodeStatus) -> Self {
        let node = node(status);
        self.at(address).node = node.id.clone();
        self.snapshot.nodes.insert(node.id.clone(), node.into());
        self
    }

    fn at(&mut self, address: &str) -> &mut Endpoint {
        let address: Ipv4Addr = address.parse().unwrap();
        self.snapshot.endpoints.values_mut().find(|e| e.address == address).unwrap()
    }

    /// Identifiers of networks by name.
    pub(crate) fn ids(&self, names: &[&str]) -> Vec<NetworkId> {
        names.iter().map(|name| self.snapshot.network(name).unwrap().id.clone()).collect()
    }
}

/// The labels of a name.
pub(crate) fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect()
}

/// A published port that leads to `target`.
pub(crate) fn published(target: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort {
        published: target + 8000,
        target,
        protocol,
        mode: PublishMode::Ingress,
        address: None,
        allow: vec![],
    }
}

fn node(status: NodeStatus) -> Node {
    Node {
        id: NodeId::new(),
        hostname: "node".to_owned(),
        role: Role::Worker,
        address: Ipv4Addr::new(192, 0, 2, 1),
        local_address: None,
        mtu: 1500,
        datapath: Datapath::Ebpf,
        version: "0".to_owned(),
        status,
        routes: vec![],
        certificate: None,
        ipsec: Default::default(),
        epoch: 0,
    }
}
