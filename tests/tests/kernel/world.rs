//! A cluster of two nodes, and what its first node should have.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use netagent::model::{
    Attachment, ClusterInfo, Datapath, Endpoint, EndpointId, EndpointMode, Health, Hold, Ipsec,
    Mac, Network, NetworkId, Node, NodeId, NodeStatus, Prefer, Protocol, PublishMode,
    PublishedPort, Role, Scheduler, Service, ServiceId, ServiceNetwork, Snapshot, Task, Vni,
    Workload, WorkloadId,
};
use netagent::plan::{self, Me, State};

use crate::bench::Bench;

/// Two nodes, two networks (the second internal), two workloads here, one there. The
/// second workload here and the one there are backends of a service on the first network,
/// with the weights 1 and 2.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) me: Me,
}

fn node(id: NodeId, last: u8) -> Node {
    Node {
        id,
        hostname: format!("n{last}"),
        role: Role::Manager,
        address: Ipv4Addr::new(192, 168, 50, 10 + last),
        local_address: None,
        mtu: 1500,
        datapath: Datapath::Ebpf,
        version: "0".into(),
        status: NodeStatus::Ready,
        routes: vec![],
        certificate: None,
        ipsec: Ipsec { missing: None, generation: 1, worn: None },
        epoch: 0,
    }
}

fn network(name: &str, third: u8, internal: bool) -> Network {
    Network {
        id: NetworkId::new(),
        name: name.parse().unwrap(),
        driver: "overlay".into(),
        vni: Vni(4096 + u32::from(third)),
        subnet: format!("10.0.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, third, 1),
        ip_range: None,
        aux_addresses: Default::default(),
        internal,
        encrypted: false,
        mtu: None,
        labels: Default::default(),
        created: String::new(),
    }
}

fn endpoint(network: &Network, node: &Node, last: u8) -> Endpoint {
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
        created: String::new(),
    }
}

/// A service with the virtual address 10.0.0.200; TCP port 8080 of every node leads to it
/// for some, UDP port 53 of nodes with a backend for all.
fn service(network: &Network) -> Service {
    let port = PublishedPort {
        published: 8080,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        address: None,
        allow: vec!["10.9.0.0/16".parse().unwrap()],
    };
    let host = PublishedPort {
        published: 53,
        target: 53,
        protocol: Protocol::Udp,
        mode: PublishMode::Host,
        allow: vec![],
        ..port
    };
    Service {
        id: ServiceId::new(),
        name: "web".parse().unwrap(),
        aliases: vec![],
        networks: vec![ServiceNetwork {
            network: network.id.clone(),
            vip: Some(Ipv4Addr::new(10, 0, 0, 200)),
        }],
        endpoint_mode: EndpointMode::Vip,
        ports: vec![port, host],
        scheduler: Scheduler::Wrr,
        affinity: Some(60),
        idle_timeout: 900,
        prefer: Prefer::Any,
        labels: Default::default(),
        created: String::new(),
    }
}

impl World {
    pub(crate) fn new(datapath: Datapath, bench: &Bench) -> Self {
        let here = node(bench.node.clone(), 1);
        let there = node(NodeId::new(), 2);
        let networks = [network("front", 0, false), network("back", 1, true)];
        let attach = |numbers: &[(usize, u8)]| -> Vec<Attachment> {
            let endpoints = numbers.iter().map(|(n, last)| endpoint(&networks[*n], &here, *last));
            endpoints
                .enumerate()
                .map(|(i, endpoint)| Attachment { interface: format!("eth{i}"), endpoint })
                .collect()
        };
        let workload = |netns: &PathBuf, attachments: Vec<Attachment>| Workload {
            id: WorkloadId::new(),
            name: attachments[0].endpoint.name.clone(),
            netns: netns.clone(),
            hold: Hold::Path { inode: 0 },
            mounted: false,
            serving: None,
            attachments,
        };
        let workloads = vec![
            workload(&bench.workloads[0], attach(&[(0, 2), (1, 2)])),
            workload(&bench.workloads[1], attach(&[(0, 3)])),
        ];
        let remote = [endpoint(&networks[0], &there, 4), endpoint(&networks[1], &there, 4)];
        let local = workloads.iter().flat_map(|w| &w.attachments).map(|a| a.endpoint.clone());
        let service = service(&networks[0]);
        let mut endpoints: Vec<_> = local.chain(remote).collect();
        for (endpoint, weight) in endpoints.iter_mut().filter_map(|e| match e.address.octets() {
            [_, _, 0, 3] => Some((e, 1)),
            [_, _, 0, 4] => Some((e, 2)),
            _ => None,
        }) {
            let (service, health) = (service.id.clone(), Health::Healthy);
            endpoint.task = Some(Task { service, weight, health, draining: false });
        }
        let snapshot = Snapshot {
            revision: 1,
            trust: None,
            cluster: Some(ClusterInfo {
                id: "c".into(),
                data_path_port: 4789,
                created: String::new(),
                restored: None,
            }),
            endpoints: endpoints.into_iter().map(|e| (e.id.clone(), e)).collect(),
            nodes: [here.clone(), there].map(|n| (n.id.clone(), n.into())).into(),
            networks: networks.map(|n| (n.id.clone(), n)).into(),
            services: [(service.id.clone(), service)].into(),
            unreachable: [].into(),
            keyring: None,
        };
        let me = Me {
            id: here.id,
            vtep: here.address,
            advertised: here.address,
            uplink: "eth0".into(),
            neighbour_bits: 24,
            addresses: [here.address].into(),
            datapath,
            ipvs: false,
            ipsec: here.ipsec,
            object: netagent::kernel::object_digest(),
        };
        Self { snapshot, workloads, me }
    }

    /// What the first node should have.
    pub(crate) fn desired(&self) -> State {
        plan::desired(&self.snapshot, &self.workloads, &self.me)
    }

    /// Makes the backend on the other node one that takes no more flows.
    pub(crate) fn drain(&mut self) {
        let endpoints = self.snapshot.endpoints.values_mut();
        for task in endpoints.filter(|e| e.node != self.me.id).filter_map(|e| e.task.as_mut()) {
            task.draining = true;
        }
    }

    /// The host side of the first workload's first interface.
    pub(crate) fn link(&self) -> String {
        format!("na-{}", &self.workloads[0].attachments[0].endpoint.id.as_str()[..11])
    }
}
