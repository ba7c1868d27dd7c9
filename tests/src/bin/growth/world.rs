//! A node with one workload, and as much of one kind around it as is asked for.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use netagent::kernel::object_digest;
use netagent::model::{
    Attachment, ClusterInfo, Datapath, Endpoint, EndpointId, EndpointMode, Health, Hold, Ipsec,
    Mac, Network, NetworkId, Node, NodeId, NodeStatus, Prefer, Role, Scheduler, Service, ServiceId,
    ServiceNetwork, Snapshot, Task, Vni, Workload, WorkloadId,
};
use netagent::plan::{Key, MapKey, Me, State, desired};

pub(crate) const VNI: Vni = Vni(4096);
/// The workload.
pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// The first endpoint elsewhere; the others follow.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 1, 0);
/// The first virtual address; the others follow.
const FIRST_VIP: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 0);

/// What there is much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Endpoints elsewhere.
    Endpoints,
    /// Services with a backend each.
    Services,
    /// Backends of one service, in turn, by their load, by the client.
    Backends(Scheduler),
    /// Flows to one service of ten backends.
    Flows,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Endpoints,
        Self::Services,
        Self::Backends(Scheduler::Wrr),
        Self::Backends(Scheduler::Wlc),
        Self::Backends(Scheduler::Mh),
        Self::Flows,
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Endpoints => "endpoints".to_owned(),
            Self::Services => "services".to_owned(),
            Self::Backends(scheduler) => format!("backends-{scheduler}"),
            Self::Flows => "flows".to_owned(),
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => bail!("nothing is called {name}; there are {:?}", Self::ALL.map(Self::name)),
        }
    }
}

/// All that the plan is made of.
pub(crate) struct World {
    pub(crate) snapshot: Arc<Snapshot>,
    workloads: Vec<Workload>,
    me: Me,
    network: NetworkId,
    there: NodeId,
}

impl World {
    pub(crate) fn new(kind: Kind, count: usize, netns: &Path) -> Self {
        // The same each time, so that what is there already stays.
        let [here, there] = [node('a', 11), node('b', 12)];
        let network = network();
        let mine = endpoint("a", &network, &here, HERE, None);
        let me = Me {
            id: here.id.clone(),
            vtep: here.address,
            advertised: here.address,
            uplink: "eth0".to_owned(),
            neighbour_bits: 24,
            addresses: [here.address].into(),
            datapath: Datapath::Ebpf,
            ipvs: false,
            ipsec: Ipsec::default(),
            object: object_digest(),
        };
        let workload = Workload {
            id: mine.workload.clone(),
            name: mine.name.clone(),
            netns: netns.to_owned(),
            hold: Hold::Path { inode: 0 },
            mounted: false,
            serving: None,
            attachments: vec![Attachment { interface: "eth0".to_owned(), endpoint: mine.clone() }],
        };
        let (services, scheduler, endpoints) = match kind {
            Kind::Endpoints => (0, Scheduler::Wrr, count),
            Kind::Services => (count, Scheduler::Wrr, count),
            Kind::Backends(scheduler) => (1, scheduler, count),
            Kind::Flows => (1, Scheduler::Wrr, 10),
        };
        let services: Vec<_> = (0..services).map(|n| service(n, &network, scheduler)).collect();
        let elsewhere = (0..endpoints).map(|n| {
            let task = services.get(n % services.len().max(1)).map(|service| Task {
                service: service.id.clone(),
                weight: 1,
                health: Health::Healthy,
                draining: false,
            });
            endpoint("e", &network, &there, nth(FIRST, n), task)
        });
        let endpoints: Vec<_> = elsewhere.chain([mine]).collect();
        let (id, there_id) = (network.id.clone(), there.id.clone());
        let snapshot = Snapshot {
            revision: 1,
            trust: None,
            cluster: Some(ClusterInfo {
                id: "growth".to_owned(),
                data_path_port: 4789,
                created: String::new(),
                restored: None,
            }),
            nodes: [here, there].map(|n| (n.id.clone(), n.into())).into(),
            networks: [network].map(|n| (n.id.clone(), n)).into(),
            services: services.into_iter().map(|s| (s.id.clone(), s)).collect(),
            endpoints: endpoints.into_iter().map(|e| (e.id.clone(), e)).collect(),
            keyring: None,
            unreachable: [].into(),
        };
        let snapshot = Arc::new(snapshot);
        Self { snapshot, workloads: vec![workload], me, network: id, there: there_id }
    }

    pub(crate) fn desired(&self) -> State {
        desired(&self.snapshot, &self.workloads, &self.me)
    }

    /// The host side of the workload's veth.
    pub(crate) fn link(&self) -> String {
        let mut links = self.desired().into_keys().filter_map(|key| match key {
            Key::Map(MapKey::Port(link)) => Some(link),
            _ => None,
        });
        links.next().expect("there is a workload")
    }

    /// One endpoint more; where there are services, of the first.
    pub(crate) fn change(&mut self, number: usize) {
        let network = self.snapshot.networks[&self.network].clone();
        let there = self.snapshot.nodes[&self.there].clone();
        let task = self.snapshot.services.keys().next().map(|service| Task {
            service: service.clone(),
            weight: 1,
            health: Health::Healthy,
            draining: false,
        });
        let more =
            endpoint("m", &network, &there, nth(Ipv4Addr::new(10, 65, 200, 0), number), task);
        let snapshot = Arc::make_mut(&mut self.snapshot);
        snapshot.revision += 1;
        snapshot.endpoints.insert(more.id.clone(), more);
    }
}

/// Address of an endpoint elsewhere.
pub(crate) fn elsewhere(number: usize) -> Ipv4Addr {
    nth(FIRST, number)
}

/// A virtual address.
pub(crate) fn vip(number: usize) -> Ipv4Addr {
    nth(FIRST_VIP, number)
}

fn nth(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + u32::try_from(number).expect("few enough"))
}

fn node(letter: char, last: u8) -> Node {
    Node {
        id: letter.to_string().repeat(16).parse().expect("letters are an identifier"),
        hostname: format!("n{last}"),
        role: Role::Worker,
        address: Ipv4Addr::new(192, 168, 50, last),
        local_address: None,
        mtu: 1500,
        datapath: Datapath::Ebpf,
        version: "0.1.0".to_owned(),
        status: NodeStatus::Ready,
        routes: vec![],
        certificate: None,
        ipsec: Ipsec::default(),
        epoch: 0,
    }
}

fn network() -> Network {
    Network {
        id: "n".repeat(16).parse().expect("letters are an identifier"),
        name: "growth".parse().expect("it is a name"),
        driver: "overlay".to_owned(),
        vni: VNI,
        subnet: "10.64.0.0/10".parse().expect("it is a subnet"),
        gateway: Ipv4Addr::new(10, 64, 0, 1),
        ip_range: None,
        aux_addresses: [].into(),
        internal: true,
        encrypted: false,
        mtu: None,
        labels: [].into(),
        created: String::new(),
    }
}

fn service(number: usize, network: &Network, scheduler: Scheduler) -> Service {
    Service {
        id: ServiceId::new(),
        name: format!("s{number}").parse().expect("it is a name"),
        aliases: vec![],
        networks: vec![ServiceNetwork { network: network.id.clone(), vip: Some(vip(number)) }],
        endpoint_mode: EndpointMode::Vip,
        ports: vec![],
        scheduler,
        affinity: None,
        idle_timeout: Service::IDLE_TIMEOUT,
        prefer: Prefer::Any,
        labels: [].into(),
        created: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn endpoint(
    name: &str,
    network: &Network,
    node: &Node,
    address: Ipv4Addr,
    task: Option<Task>,
) -> Endpoint {
    // The workload's veth is named after it.
    let id = if address == HERE { "h".repeat(16).parse().ok() } else { None };
    Endpoint {
        id: id.unwrap_or_else(EndpointId::new),
        network: network.id.clone(),
        node: node.id.clone(),
        workload: WorkloadId::new(),
        name: format!("{name}{}", u32::from(address)).parse().expect("it is a name"),
        aliases: vec![],
        address,
        mac: Mac::of(address),
        task,
        created: "2026-01-01T00:00:00Z".to_owned(),
    }
}
