//! Whatever is asked for in whatever order, what is decided fits together.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use serde_json::json;

use super::super::tests::endpoint;
use super::super::validate::{self, Pool};
use super::super::view::Settings;
use super::*;
use crate::api::types::{NodeFacts, PortRef, Publish, Serve, UpdateEndpoint};
use crate::model::{
    ClusterInfo, Datapath, Health, Ipsec, Name, NodeId, NodeStatus, Protocol, PublishMode,
    PublishedPort, Role, Snapshot, WorkloadId,
};
use crate::store::{Batch, Event, Kv};

/// A cluster of an eBPF node and one with the kernel's datapath.
fn cluster() -> (View, [NodeId; 2]) {
    let mut view = View::default();
    let block = "10.0.0.0/8".parse().unwrap();
    view.settings = Some(Settings {
        info: ClusterInfo {
            id: "c".to_owned(),
            data_path_port: 4789,
            created: String::new(),
            restored: None,
        },
        // Six addresses each: they do run out.
        pool: Pool { block, prefix: 29 },
        cert_expiry: 3600,
        rotation: Default::default(),
    });
    let info = view.settings.as_ref().map(|s| s.info.clone());
    std::sync::Arc::make_mut(&mut view.snapshot).cluster = info;
    let nodes = [Datapath::Ebpf, Datapath::Kernel].map(|datapath| {
        let id = NodeId::new();
        let facts = NodeFacts {
            hostname: format!("n-{datapath}"),
            address: Ipv4Addr::new(192, 168, 50, 1 + datapath as u8),
            local_address: None,
            mtu: 1500,
            datapath,
            version: "0".to_owned(),
            routes: vec![],
            certificate: None,
            ipsec: Ipsec::default(),
        };
        let ops = decide::admit(&view, &id, Role::Worker, &facts).unwrap().0;
        commit(&mut view, ops);
        id
    });
    (view, nodes)
}

fn commit(view: &mut View, ops: Vec<Op>) {
    let revision = view.snapshot.revision + 1;
    let mut keys = BTreeSet::new();
    let events = ops.into_iter().map(|op| {
        let key = match &op {
            Op::Put(key, _) | Op::Delete(key) => key.clone(),
        };
        assert!(keys.insert(key.clone()), "{key} is written twice in one transaction");
        match op {
            Op::Put(key, value) => {
                Event::Put(Kv { key, value, create_revision: revision, mod_revision: revision })
            }
            Op::Delete(key) => Event::Delete(key),
        }
    });
    let events = events.collect();
    view.apply(Batch { revision, events }).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Network(&'static str),
    RemoveNetwork(&'static str),
    Create(CreateService),
    Update(&'static str, UpdateService),
    Remove(&'static str, bool),
    Start {
        network: &'static str,
        name: Name,
        node: bool,
        ip: Option<u8>,
        serve: Option<&'static str>,
    },
    Drain(usize),
    End(usize),
}

const NETWORKS: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 4] = ["w", "x", "y", "z"];

fn any_of(list: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    prop::sample::select(list)
}

fn name() -> impl Strategy<Value = Name> + Clone {
    any_of(&NAMES).prop_map(|n| n.parse().unwrap())
}

fn mode() -> impl Strategy<Value = EndpointMode> + Clone {
    prop_oneof![3 => Just(EndpointMode::Vip), 1 => Just(EndpointMode::Dnsrr)]
}

/// Few ports, the cluster's own among them.
fn publish() -> impl Strategy<Value = Publish> + Clone {
    let published = prop::option::of(prop::sample::select(vec![80, 81, 2377, 4789, 30000, 30001]));
    let address = prop::option::of((1u8..4).prop_map(|n| Ipv4Addr::new(192, 168, 50, n)));
    (published, 80u16..83, any::<bool>(), any::<bool>(), address).prop_map(
        |(published, target, udp, host, address)| Publish {
            published,
            target,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            mode: if host { PublishMode::Host } else { PublishMode::Ingress },
            address,
            allow: vec![],
        },
    )
}

/// An address of one of the first three networks, some of which nobody may have.
fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn create_service() -> impl Strategy<Value = CreateService> {
    let networks = prop::sample::subsequence(&NETWORKS[..], 1..=2);
    (
        name(),
        prop::collection::vec(name(), 0..2),
        networks,
        mode(),
        prop::option::weighted(0.2, 0u8..24),
        prop::collection::vec(publish(), 0..3),
    )
        .prop_map(|(name, aliases, networks, mode, vip, ports)| {
            let mut request: CreateService =
                serde_json::from_value(json!({"name": name, "networks": networks})).unwrap();
            request.aliases = aliases;
            request.endpoint_mode = mode;
            request.vip = vip.map(address);
            request.ports = ports;
            request
        })
}

fn update_service() -> impl Strategy<Value = UpdateService> {
    let gone = (80u16..83, any::<bool>()).prop_map(|(target, udp)| PortRef {
        target,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
    });
    (
        prop::option::of(mode()),
        prop::collection::vec(publish(), 0..3),
        prop::collection::vec(gone, 0..2),
        prop::option::weighted(0.2, 0u8..24),
        prop::collection::vec(name(), 0..2),
        prop::collection::vec(name(), 0..2),
    )
        .prop_map(|(endpoint_mode, publish_add, publish_rm, vip, alias_add, alias_rm)| {
            UpdateService {
                endpoint_mode,
                vip: vip.map(address),
                alias_add,
                alias_rm,
                publish_add,
                publish_rm,
                ..UpdateService::default()
            }
        })
}

fn step() -> impl Strategy<Value = Step> {
    let start = (
        any_of(&NETWORKS),
        prop_oneof![1 => name(), 3 => "[a-d]".prop_map(|n| n.parse().unwrap())],
        any::<bool>(),
        prop::option::weighted(0.2, 0u8..24),
        prop::option::of(any_of(&NAMES)),
    )
        .prop_map(|(network, name, node, ip, serve)| Step::Start {
            network,
            name,
            node,
            ip,
            serve,
        });
    prop_oneof![
        3 => any_of(&NETWORKS).prop_map(Step::Network),
        1 => any_of(&NETWORKS).prop_map(Step::RemoveNetwork),
        5 => create_service().prop_map(Step::Create),
        4 => (any_of(&NAMES), update_service()).prop_map(|(n, u)| Step::Update(n, u)),
        2 => (any_of(&NAMES), any::<bool>()).prop_map(|(n, f)| Step::Remove(n, f)),
        8 => start,
        2 => any::<usize>().prop_map(Step::Drain),
        2 => any::<usize>().prop_map(Step::End),
    ]
}

/// What is decided, or nothing if it is refused.
fn decided(view: &View, nodes: &[NodeId; 2], step: &Step) -> Result<Vec<Op>, Error> {
    let chosen = |n: &usize| {
        let all: Vec<_> = view.snapshot.endpoints.keys().cloned().collect();
        all.get(n % all.len().max(1)).cloned().unwrap_or_else(crate::model::EndpointId::new)
    };
    let ops = match step {
        Step::Network(name) => {
            let request = serde_json::from_value(json!({"name": name})).unwrap();
            decide::create_network(view, &request)?.0
        }
        Step::RemoveNetwork(name) => decide::remove_network(view, name)?.0,
        Step::Create(request) => create(view, request)?.0,
        Step::Update(name, request) => update(view, name, request)?.0,
        Step::Remove(name, force) => remove(view, name, *force)?.0,
        Step::Start { network, name, node, ip, serve } => {
            let mut request = endpoint(network, &nodes[usize::from(*node)], name.as_str());
            request.address = ip.map(address);
            request.serve = serve.map(|service| Serve {
                service: service.to_owned(),
                weight: 1,
                health: Health::Healthy,
            });
            decide::create_endpoint(view, &request)?.0
        }
        Step::Drain(n) => {
            let drain = UpdateEndpoint { draining: Some(true), ..UpdateEndpoint::default() };
            task::update(view, &chosen(n), &drain)?.0
        }
        Step::End(n) => decide::remove_endpoint(view, &chosen(n))?.0,
    };
    Ok(ops)
}

fn fits_together(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let mut addresses: BTreeMap<Ipv4Addr, &Name> = BTreeMap::new();
    let services = snapshot.services.values();
    let vips = services.clone().flat_map(|s| s.networks.iter().map(move |n| (&s.name, n)));
    let endpoints = snapshot.endpoints.values().map(|e| (&e.name, &e.network, Some(e.address)));
    for (name, network, address) in vips.map(|(name, n)| (name, &n.network, n.vip)).chain(endpoints)
    {
        let network = snapshot.networks.get(network);
        prop_assert!(network.is_some(), "{} is on a network that is gone", name);
        let (Some(network), Some(address)) = (network, address) else { continue };
        prop_assert!(network.subnet.contains(address) && address != network.gateway);
        prop_assert!(address != network.subnet.network() && address != network.subnet.broadcast());
        let other = addresses.insert(address, name);
        prop_assert!(other.is_none(), "{} and {:?} have {}", name, other, address);
    }

    let ports: Vec<(&Name, &PublishedPort)> =
        services.clone().flat_map(|s| s.ports.iter().map(move |p| (&s.name, p))).collect();
    for (n, (name, a)) in ports.iter().enumerate() {
        prop_assert!((a.published, a.protocol) != (2377, Protocol::Tcp));
        prop_assert!((a.published, a.protocol) != (4789, Protocol::Udp));
        for (other, b) in &ports[..n] {
            let apart = a.address.is_some() && b.address.is_some() && a.address != b.address;
            let same = (a.published, a.protocol) == (b.published, b.protocol) && !apart;
            prop_assert!(!same, "{} and {} publish {:?} and {:?}", name, other, a, b);
        }
    }

    for service in services {
        let namesakes = snapshot.services.values().filter(|s| s.name == service.name).count();
        prop_assert_eq!(namesakes, 1);
        let is_vip = service.endpoint_mode == EndpointMode::Vip;
        prop_assert!(service.networks.iter().all(|n| n.vip.is_some() == is_vip));
        let ingress = service.ports.iter().any(|p| p.mode == PublishMode::Ingress);
        prop_assert!(is_vip || !ingress);
        for name in service.names() {
            let means = |e: &&crate::model::Endpoint| {
                service.is_on(&e.network) && (e.name == *name || e.aliases.contains(name))
            };
            let workload = snapshot.endpoints.values().find(means);
            prop_assert!(workload.is_none(), "{} also means {:?}", name, workload);
            let other = snapshot.services.values().find(|other| {
                let shared = other.networks.iter().any(|n| service.is_on(&n.network));
                other.id != service.id && shared && other.names().any(|n| n == name)
            });
            prop_assert!(other.is_none(), "{} also means {:?}", name, other);
        }
        let host = service.ports.iter().any(|p| p.mode == PublishMode::Host);
        let mut on: BTreeMap<&NodeId, &WorkloadId> = BTreeMap::new();
        for task in snapshot.tasks_of(&service.id) {
            let other = on.insert(&task.node, &task.workload);
            prop_assert!(!host || other.is_none_or(|other| *other == task.workload));
            let kernel = snapshot.nodes[&task.node].datapath == Datapath::Kernel;
            prop_assert!(!(is_vip && kernel), "a virtual address on the kernel's datapath");
        }
    }
    for endpoint in snapshot.endpoints.values() {
        if let Some(task) = &endpoint.task {
            let service = snapshot.services.get(&task.service);
            prop_assert!(service.is_some_and(|s| s.is_on(&endpoint.network)));
        }
    }

    // Every backend is told of once, and nobody is ruled out but for a reason.
    let backends: Vec<_> = snapshot.backends().into_values().flatten().collect();
    let tasks = snapshot.endpoints.values().filter(|e| e.task.is_some()).count();
    prop_assert_eq!(backends.len(), tasks);
    for backend in &backends {
        let able = backend.endpoint.task.as_ref().is_some_and(|t| t.is_eligible());
        let ready = snapshot.nodes[&backend.endpoint.node].status == NodeStatus::Ready;
        prop_assert!(able || !backend.eligible);
        prop_assert!(backend.eligible || !(able && ready));
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_is_given_twice(
        steps in prop::collection::vec(step(), 1..60),
        down in any::<bool>(),
    ) {
        let (mut view, nodes) = cluster();
        let mut done = 0;
        for step in &steps {
            match decided(&view, &nodes, step) {
                Ok(ops) => {
                    commit(&mut view, ops);
                    done += 1;
                }
                Err(Error::Internal(bug)) => prop_assert!(false, "{:?}: {}", step, bug),
                Err(_) => {}
            }
            if down && done == 10 {
                let silent = BTreeSet::from([nodes[0].clone()]);
                let ops = decide::mark_down(&view, &silent).unwrap().0;
                commit(&mut view, ops);
            }
            fits_together(&view.snapshot)?;
        }
    }
}

#[test]
fn free_ports_are_reused_late_and_run_out() {
    let (mut view, _) = cluster();
    let network = serde_json::from_value(json!({"name": "a"})).unwrap();
    let ops = decide::create_network(&view, &network).unwrap().0;
    commit(&mut view, ops);
    let request = json!({"name": "w", "networks": ["a"], "ports": [{"target": 80}]});
    let request: CreateService = serde_json::from_value(request).unwrap();
    let mut seen = vec![];
    for _ in 0..3 {
        let (ops, service) = create(&view, &request).unwrap();
        commit(&mut view, ops);
        seen.push(service.ports[0].published);
        let ops = remove(&view, "w", false).unwrap().0;
        commit(&mut view, ops);
    }
    assert_eq!(seen, [30000, 30001, 30002]);
    view.last_port = Some(32766);
    let mut two = request.clone();
    two.ports = vec![two.ports[0].clone(); 2];
    let service = create(&view, &two).unwrap().1;
    assert_eq!(service.ports.iter().map(|p| p.published).collect::<Vec<_>>(), [32767, 30000]);

    // All of them taken, but for one at one address.
    let mut full = create(&view, &request).unwrap().1;
    let port = full.ports[0].clone();
    let taken = (30000..=32767).map(|published| {
        let address = (published == 31000).then_some(Ipv4Addr::new(192, 168, 50, 1));
        PublishedPort { published, address, ..port.clone() }
    });
    full.ports = taken.collect();
    full.name = "full".parse().unwrap();
    commit(&mut view, vec![view::put_service(&full)]);
    let refused = create(&view, &request).unwrap_err().to_string();
    assert_eq!(refused, "no tcp port from 30000 to 32767 is free: name one");
    let mut at = request;
    at.ports[0].address = Some(Ipv4Addr::new(192, 168, 50, 2));
    assert_eq!(create(&view, &at).unwrap().1.ports[0].published, 31000);
    at.ports[0].protocol = Protocol::Udp;
    create(&view, &at).unwrap();
}

#[test]
fn limits() {
    let (mut view, _) = cluster();
    let network = serde_json::from_value(json!({"name": "a"})).unwrap();
    let ops = decide::create_network(&view, &network).unwrap().0;
    commit(&mut view, ops);
    let request = json!({"name": "w", "networks": ["a"]});
    let request: CreateService = serde_json::from_value(request).unwrap();
    let port = |n: u16| Publish {
        published: Some(n),
        target: 80,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        address: None,
        allow: vec![],
    };
    let mut most = request.clone();
    let ports = u16::try_from(validate::MOST_PORTS).unwrap();
    most.ports = (1..=ports).map(port).collect();
    assert_eq!(create(&view, &most).unwrap().1.ports.len(), validate::MOST_PORTS);
    most.ports.push(port(9000));
    let refused = create(&view, &most).unwrap_err().to_string();
    assert_eq!(refused, "a service has at most 256 published ports");
    let mut sources = request;
    sources.ports = vec![port(80)];
    sources.ports[0].allow = (0..=255).map(|n| Ipv4Addr::new(10, 9, n, 0).into()).collect();
    create(&view, &sources).unwrap();
    sources.ports[0].allow.push(Ipv4Addr::new(10, 8, 0, 0).into());
    let refused = create(&view, &sources).unwrap_err().to_string();
    assert_eq!(refused, "port 80/tcp: a port has at most 256 allowed sources");
}

#[test]
fn a_node_with_the_kernels_datapath_runs_no_task_of_a_virtual_address() {
    let (mut view, nodes) = cluster();
    let network = serde_json::from_value(json!({"name": "a"})).unwrap();
    let ops = decide::create_network(&view, &network).unwrap().0;
    commit(&mut view, ops);
    let request = json!({"name": "w", "networks": ["a"], "endpoint_mode": "dnsrr"});
    let ops = create(&view, &serde_json::from_value(request).unwrap()).unwrap().0;
    commit(&mut view, ops);
    let serve = Serve { service: "w".to_owned(), weight: 1, health: Health::Healthy };
    let start = |name: &str| {
        let mut request = endpoint("a", &nodes[1], name);
        request.serve = Some(serve.clone());
        request
    };
    let (ops, task) = decide::create_endpoint(&view, &start("one")).unwrap();
    commit(&mut view, ops);
    assert!(is_eligible(&view, &task.id));
    let vip = UpdateService { endpoint_mode: Some(EndpointMode::Vip), ..UpdateService::default() };
    let refused = update(&view, "w", &vip).unwrap_err().to_string();
    assert!(refused.contains("node n-kernel runs with --datapath kernel"), "{refused}");
    let ops = decide::remove_endpoint(&view, &task.id).unwrap().0;
    commit(&mut view, ops);
    let (ops, service) = update(&view, "w", &vip).unwrap();
    commit(&mut view, ops);
    assert_eq!(service.networks[0].vip, Some(Ipv4Addr::new(10, 0, 0, 3)));
    let refused = decide::create_endpoint(&view, &start("two")).unwrap_err().to_string();
    assert!(refused.contains("--endpoint-mode dnsrr"), "{refused}");
}

#[test]
fn names_and_address_of_a_service_change() {
    let (mut view, _) = cluster();
    for name in ["a", "b"] {
        let network = serde_json::from_value(json!({"name": name})).unwrap();
        let ops = decide::create_network(&view, &network).unwrap().0;
        commit(&mut view, ops);
    }
    for (name, networks) in [("w", json!(["a"])), ("x", json!(["a", "b"]))] {
        let request = json!({"name": name, "networks": networks});
        let ops = create(&view, &serde_json::from_value(request).unwrap()).unwrap().0;
        commit(&mut view, ops);
    }
    let ask = |view: &View, service: &str, request: serde_json::Value| {
        update(view, service, &serde_json::from_value(request).unwrap())
    };
    let own = view.snapshot.services.values().find(|s| s.name.as_str() == "w").unwrap();
    let same = ask(&view, "w", json!({"vip": own.networks[0].vip, "alias_add": ["w"]})).unwrap();
    assert_eq!((same.0.len(), &same.1), (0, own), "nothing changes");
    let wanted = json!({"vip": "10.0.0.5", "alias_add": ["www", "web"]});
    let (ops, changed) = ask(&view, "w", wanted).unwrap();
    commit(&mut view, ops);
    assert_eq!(changed.networks[0].vip, Some(Ipv4Addr::new(10, 0, 0, 5)));
    let (_, changed) = ask(&view, "w", json!({"alias_rm": ["www"]})).unwrap();
    assert_eq!(changed.aliases, ["web".parse().unwrap()]);
    for (service, request, wanted) in [
        ("w", json!({"alias_rm": ["x"]}), "service w has no alias x"),
        ("w", json!({"alias_add": ["x"]}), "name x means service x on network a"),
        ("x", json!({"alias_add": ["web"]}), "name web means service w on network a"),
        ("w", json!({"alias_add": ["tasks"]}), "cannot be called tasks"),
        ("x", json!({"vip": "10.0.0.6"}), "this one is on 2"),
        ("w", json!({"vip": "10.0.0.1"}), "10.0.0.1"),
        ("w", json!({"vip": "10.0.0.6", "endpoint_mode": "dnsrr"}), "dnsrr has none"),
    ] {
        let refused = ask(&view, service, request).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

fn is_eligible(view: &View, id: &crate::model::EndpointId) -> bool {
    let mut backends = view.snapshot.backends().into_values().flatten();
    backends.any(|b| b.endpoint.id == *id && b.eligible)
}

/// A service is never emptied because nodes are silent, only because of what is known.
#[test]
fn silence_alone_empties_nothing() {
    let (mut view, [node, _]) = cluster();
    let facts = NodeFacts {
        hostname: "n3".to_owned(),
        address: Ipv4Addr::new(192, 168, 50, 3),
        local_address: None,
        mtu: 1500,
        datapath: Datapath::Ebpf,
        version: "0".to_owned(),
        routes: vec![],
        certificate: None,
        ipsec: Ipsec::default(),
    };
    let other = NodeId::new();
    let ops = decide::admit(&view, &other, Role::Worker, &facts).unwrap().0;
    commit(&mut view, ops);
    let network = serde_json::from_value(json!({"name": "a"})).unwrap();
    let ops = decide::create_network(&view, &network).unwrap().0;
    commit(&mut view, ops);
    let request = json!({"name": "w", "networks": ["a"]});
    let ops = create(&view, &serde_json::from_value(request).unwrap()).unwrap().0;
    commit(&mut view, ops);
    let mut tasks = vec![];
    for (name, node) in [("one", &node), ("two", &other)] {
        let mut request = endpoint("a", node, name);
        let (weight, health) = (1, Health::Healthy);
        request.serve = Some(Serve { service: "w".to_owned(), weight, health });
        let (ops, task) = decide::create_endpoint(&view, &request).unwrap();
        commit(&mut view, ops);
        tasks.push(task.id);
    }
    let eligible = |view: &View| (is_eligible(view, &tasks[0]), is_eligible(view, &tasks[1]));
    assert_eq!(eligible(&view), (true, true));
    let down = |view: &mut View, node: &NodeId| {
        let ops = decide::mark_down(view, &BTreeSet::from([node.clone()])).unwrap().0;
        commit(view, ops);
    };
    down(&mut view, &node);
    assert_eq!(eligible(&view), (false, true));
    let drain = UpdateEndpoint { draining: Some(true), ..UpdateEndpoint::default() };
    let ops = task::update(&view, &tasks[1], &drain).unwrap().0;
    let mut drained = view.clone();
    commit(&mut drained, ops);
    assert_eq!(eligible(&drained), (true, false), "the silent one is all that is left");
    down(&mut view, &other);
    assert_eq!(eligible(&view), (true, true));
}
