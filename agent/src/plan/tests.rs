//! What the plan wants, for small clusters, on both datapaths.

use std::net::Ipv4Addr;
use std::path::Path;

use super::*;
use crate::model::{Endpoint, Network, Vni};
use fixture::{endpoint, network, two_nodes};

/// A second network with a second endpoint for the workload of [`two_nodes`].
fn add_network(world: &mut fixture::World, mut second: Network) -> (Network, Endpoint) {
    let here = world.snapshot.nodes[&world.me.id].clone();
    second.vni = Vni(5000);
    let mine = endpoint(&second, &here, 9);
    world.snapshot.networks.insert(second.id.clone(), second.clone());
    world.workloads[0]
        .attachments
        .push(crate::model::Attachment { interface: "eth1".into(), endpoint: mine.clone() });
    (second, mine)
}

fn default_route(state: &State) -> Option<&Value> {
    state
        .get(&Key::Route(Ns::At("/proc/42/ns/net".into()), "0.0.0.0/0".parse().expect("a network")))
}

#[test]
fn outside_a_cluster_nothing_is_wanted() {
    let world = two_nodes();
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        let me = Me { datapath, ..world.me.clone() };
        assert!(desired(&Snapshot::default(), &world.workloads, &me).is_empty());
    }
}

#[test]
fn endpoints_here_are_local_and_elsewhere_behind_their_vtep() {
    let world = two_nodes();
    let state = desired(&world.snapshot, &world.workloads, &world.me);
    let at = |last| {
        let key = Key::Map(MapKey::Endpoint(Vni(4096), Ipv4Addr::new(10, 0, 0, last)));
        let Some(Value::Endpoint { link, vtep, .. }) = state.get(&key) else { panic!("{key:?}") };
        (link.clone(), *vtep)
    };
    let link = format!("na-{}", &world.workloads[0].attachments[0].endpoint.id.as_str()[..11]);
    assert_eq!(at(2), (Some(link), Ipv4Addr::new(192, 168, 50, 11)));
    assert_eq!(at(3), (None, Ipv4Addr::new(192, 168, 50, 12)));
}

#[test]
fn only_networks_with_an_endpoint_here_are_known_but_all_subnets_are() {
    let mut world = two_nodes();
    let mut stranger = network("other", 5);
    stranger.vni = Vni(5000);
    let there = world.snapshot.nodes.values().find(|n| n.hostname == "n2").unwrap().clone();
    let theirs = endpoint(&stranger, &there, 2);
    world.snapshot.networks.insert(stranger.id.clone(), stranger.clone());
    world.snapshot.endpoints.insert(theirs.id.clone(), theirs.clone());
    let state = desired(&world.snapshot, &world.workloads, &world.me);
    assert!(state.contains_key(&Key::Map(MapKey::Subnet(stranger.subnet))));
    assert!(!state.contains_key(&Key::Map(MapKey::Network(stranger.vni))));
    assert!(!state.contains_key(&Key::Map(MapKey::Endpoint(stranger.vni, theirs.address))));
}

#[test]
fn an_internal_network_has_no_way_out() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        let mut world = two_nodes();
        world.me.datapath = datapath;
        world.snapshot.networks.values_mut().for_each(|n| n.internal = true);
        let state = desired(&world.snapshot, &world.workloads, &world.me);
        assert_eq!(default_route(&state), None);
        assert!(!state.keys().any(|k| matches!(k, Key::Sysctl(..))));
        assert!(
            !state.values().any(|v| matches!(v, Value::Ruleset(r) if r.contains("masquerade")))
        );
    }
}

#[test]
fn the_default_route_goes_by_the_first_network_that_is_not_internal() {
    let mut world = two_nodes();
    world.snapshot.networks.values_mut().for_each(|n| n.internal = true);
    let (second, _) = add_network(&mut world, network("web", 7));
    let state = desired(&world.snapshot, &world.workloads, &world.me);
    let Some(Value::Route { link, gateway, .. }) = default_route(&state) else { panic!() };
    assert_eq!((link.as_str(), *gateway), ("eth1", Some(second.gateway)));
}

#[test]
fn mtu_is_the_smallest_uplink_less_the_header_and_never_more() {
    let mut world = two_nodes();
    let network = world.snapshot.networks.values().next().unwrap().clone();
    assert_eq!(world.snapshot.mtu(&network), 1450);
    world.snapshot.nodes_mut().next().unwrap().mtu = 1400;
    assert_eq!(world.snapshot.mtu(&network), 1350);
    assert_eq!(world.snapshot.mtu(&Network { mtu: Some(1300), ..network.clone() }), 1300);
    assert_eq!(world.snapshot.mtu(&Network { mtu: Some(9000), ..network }), 1350);
}

#[test]
fn the_kernel_datapath_has_fdb_and_neighbours_for_what_is_remote_only() {
    let mut world = two_nodes();
    world.me.datapath = Datapath::Kernel;
    let state = desired(&world.snapshot, &world.workloads, &world.me);
    let namespace = format!("na-{}", &world.me.id.as_str()[..11]);
    let ns = Ns::At(Path::new("/run/netns").join(&namespace));
    let remote = Ipv4Addr::new(10, 0, 0, 3);
    assert_eq!(
        state.get(&Key::Fdb(ns.clone(), "vx4096".into(), crate::model::Mac::of(remote))),
        Some(&Value::Vtep(Ipv4Addr::new(192, 168, 50, 12)))
    );
    assert!(state.contains_key(&Key::Neighbour(ns, "vx4096".into(), remote)));
    assert_eq!(state.keys().filter(|k| matches!(k, Key::Fdb(..))).count(), 1);
    assert_eq!(state.get(&Key::Namespace(namespace)), Some(&Value::Present));
    assert!(!state.keys().any(|k| matches!(k, Key::Map(_) | Key::Hook(..))));
}

#[test]
fn the_kernel_datapath_takes_vxlan_from_members_only() {
    let mut world = two_nodes();
    world.me.datapath = Datapath::Kernel;
    let rule = |world: &fixture::World| {
        let state = desired(&world.snapshot, &world.workloads, &world.me);
        let Some(Value::Ruleset(rules)) = state.get(&Key::Nftables(Ns::Host)) else {
            panic!("{state:?}")
        };
        let found = rules.lines().find(|line| line.contains("udp dport 4789 ip saddr"));
        found.expect("a rule").trim().to_owned()
    };
    let two = "udp dport 4789 ip saddr != { 192.168.50.11, 192.168.50.12 } counter drop";
    assert_eq!(rule(&world), two);
    world.snapshot.nodes.retain(|id, _| *id == world.me.id);
    assert_eq!(rule(&world), "udp dport 4789 ip saddr != 192.168.50.11 counter drop");
}

#[test]
fn an_idle_node_of_the_kernel_datapath_has_nothing() {
    let mut world = two_nodes();
    world.me.datapath = Datapath::Kernel;
    assert!(desired(&world.snapshot, &[], &world.me).is_empty());
}

#[test]
fn a_thousand_endpoints_and_one_change() {
    let mut world = two_nodes();
    let template =
        world.snapshot.endpoints.values().find(|e| e.node != world.me.id).unwrap().clone();
    let net = world.snapshot.networks.values_mut().next().unwrap();
    net.subnet = "10.0.0.0/16".parse().unwrap();
    for i in 0..1000_u32 {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + i);
        let id = crate::model::EndpointId::new();
        world.snapshot.endpoints.insert(id.clone(), Endpoint { id, address, ..template.clone() });
    }
    let before = desired(&world.snapshot, &world.workloads, &world.me);
    fixture::add_remote(&mut world.snapshot, 200);
    let after = desired(&world.snapshot, &world.workloads, &world.me);
    assert_eq!(diff(&after, &before).len(), 1);
    // What points to a link comes after the link.
    let ops = diff(&after, &State::new());
    let link = ops.iter().position(|op| matches!(op, Op::Put(Key::Link(..), _))).unwrap();
    let map = ops.iter().position(|op| matches!(op, Op::Put(Key::Map(_), _))).unwrap();
    assert!(link < map);
}
