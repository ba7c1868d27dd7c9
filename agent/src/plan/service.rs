//! Services on an eBPF node: virtual addresses, the rings behind them, and the ports at
//! which the host answers. A service concerns a node that has an endpoint on its network,
//! and every node if it publishes a port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::model::{
    Backend, Datapath, Endpoint, EndpointId, Mac, Network, NetworkId, Prefer, PublishMode,
    PublishedPort, Service, ServiceId, Snapshot, Workload,
};

use super::state::{Balance, Hook, Key, MapKey, Ns, Slot, Socket, State, Sysctl, Value};
use super::{Me, ring};

/// The loopback device, where the host's own clients are heard.
const LOOPBACK: &str = "lo";

/// Who stands behind the services, on the nodes that can carry them.
pub(super) struct Backends<'a> {
    by_service: BTreeMap<(&'a ServiceId, &'a NetworkId), Vec<&'a Endpoint>>,
    /// All of them; whether each may take new flows.
    eligible: BTreeMap<&'a EndpointId, bool>,
}

impl<'a> Backends<'a> {
    /// Those that the snapshot tells of; of this node's, those that are attached.
    pub(super) fn new(snapshot: &'a Snapshot, workloads: &[Workload], me: &Me) -> Self {
        let attached: BTreeSet<_> =
            workloads.iter().flat_map(|w| &w.attachments).map(|a| &a.endpoint.id).collect();
        let is_carried = |endpoint: &Endpoint| match endpoint.node == me.id {
            true => attached.contains(&endpoint.id),
            false => {
                let node = snapshot.nodes.get(&endpoint.node);
                node.is_some_and(|node| node.datapath == Datapath::Ebpf)
            }
        };
        let mut all = snapshot.backends();
        all.values_mut().for_each(|backends| backends.retain(|b| is_carried(b.endpoint)));
        let eligible = all.values().flatten().map(|b| (&b.endpoint.id, b.eligible)).collect();
        let endpoints = |backends: Vec<Backend<'a>>| backends.iter().map(|b| b.endpoint).collect();
        let by_service = all.into_iter().map(|(key, backends)| (key, endpoints(backends)));
        Self { by_service: by_service.collect(), eligible }
    }

    /// All of a service on a network, in order of address.
    pub(super) fn of<'s>(
        &'s self,
        service: &'s ServiceId,
        network: &'s NetworkId,
    ) -> &'s [&'a Endpoint] {
        self.by_service.get(&(service, network)).map_or(&[], Vec::as_slice)
    }

    /// Whether it may take new flows of its service.
    pub(super) fn is_eligible(&self, endpoint: &Endpoint) -> bool {
        self.eligible.get(&endpoint.id) == Some(&true)
    }

    /// Whether it is one.
    pub(super) fn contains(&self, endpoint: &Endpoint) -> bool {
        self.eligible.contains_key(&endpoint.id)
    }
}

/// The virtual address that a backend serves on its network; 0.0.0.0 for none.
pub(super) fn serves(snapshot: &Snapshot, endpoint: &Endpoint) -> Ipv4Addr {
    let service = endpoint.task.as_ref().and_then(|task| snapshot.services.get(&task.service));
    service.and_then(|s| s.vip_on(&endpoint.network)).unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// The services that are published, each with the network on which it is reached from
/// outside.
pub(super) fn published(snapshot: &Snapshot) -> impl Iterator<Item = (&Service, &Network)> {
    snapshot.services.values().filter(|service| !service.ports.is_empty()).filter_map(|service| {
        let first = service.networks.first()?;
        Some((service, snapshot.networks.get(&first.network)?))
    })
}

/// Adds virtual addresses and rings of the services on the networks that are `present`,
/// and of those that are published.
pub(super) fn balance(
    state: &mut State,
    snapshot: &Snapshot,
    backends: &Backends<'_>,
    me: &Me,
    present: &BTreeSet<&NetworkId>,
) {
    for service in snapshot.services.values() {
        for (i, on) in service.networks.iter().enumerate() {
            let concerns = present.contains(&on.network) || (i == 0 && !service.ports.is_empty());
            let (Some(network), Some(vip), true) =
                (snapshot.networks.get(&on.network), on.vip, concerns)
            else {
                continue;
            };
            let all = backends.of(&service.id, &network.id);
            let mut chosen: Vec<_> = all.iter().filter(|e| backends.is_eligible(e)).collect();
            let is_here = |endpoint: &Endpoint| endpoint.node == me.id;
            if service.prefer == Prefer::Local && chosen.iter().any(|e| is_here(e)) {
                chosen.retain(|e| is_here(e));
            }
            let slots: Vec<_> = chosen
                .iter()
                .filter_map(|e| {
                    Some(Slot { ip: e.address, weight: e.task.as_ref()?.weight.into() })
                })
                .collect();
            let (scheduler, ring) = ring::ring(service.scheduler, &slots);
            let (affinity, idle) = (service.affinity.unwrap_or(0), service.idle_timeout);
            state.insert(Key::Map(MapKey::Endpoint(network.vni, vip)), Value::Vip(Mac::of(vip)));
            state.insert(
                Key::Map(MapKey::Service(network.vni, vip)),
                Value::Service(Balance { scheduler, affinity, idle, ring }),
            );
        }
    }
}

/// Adds the ports of this host that lead to services, with who may use them. While there
/// is one, the loopback device is a way in.
pub(super) fn publish(state: &mut State, snapshot: &Snapshot, backends: &Backends<'_>, me: &Me) {
    let lists: BTreeSet<_> =
        snapshot.services.values().flat_map(|s| &s.ports).map(sources).collect();
    let numbers = numbers(lists);
    let mut any = false;
    for (service, network) in published(snapshot) {
        for port in &service.ports {
            // Of whom a virtual address gives a flow to, the ring decides.
            let target = match port.mode {
                PublishMode::Ingress => service.vip_on(&network.id).map(|vip| (vip, false)),
                PublishMode::Host => backend_here(service, network, backends, me),
            };
            let Some((ip, draining)) = target else { continue };
            let allowed = numbers[&sources(port)];
            for source in sources(port) {
                state.insert(Key::Map(MapKey::Allowed(allowed, source)), Value::Present);
            }
            let published = Value::Published {
                vni: network.vni,
                ip,
                port: port.target,
                allowed,
                draining,
                mtu: snapshot.mtu(network),
            };
            for ip in addresses(me).filter(|ip| port.address.is_none_or(|only| only == *ip)) {
                let (protocol, port) = (port.protocol.number(), port.published);
                let socket = Socket { ip, protocol, port };
                state.insert(Key::Map(MapKey::Published(socket)), published.clone());
                any = true;
            }
        }
    }
    if any {
        for switch in [Sysctl::RouteLocalnet, Sysctl::AcceptLocal] {
            state.insert(Key::Sysctl(Ns::Host, LOOPBACK.to_owned(), switch), Value::Present);
        }
        state.insert(
            Key::Hook(LOOPBACK.to_owned(), Hook::FromHost),
            Value::Program(me.object.clone()),
        );
    }
}

/// The backend on this node that a port in host mode leads to: one that may take new
/// flows, or else one that may not but has old ones; and whether it is such a one.
fn backend_here(
    service: &Service,
    network: &Network,
    backends: &Backends<'_>,
    me: &Me,
) -> Option<(Ipv4Addr, bool)> {
    let here = backends.of(&service.id, &network.id).iter().filter(|e| e.node == me.id);
    let first = here.min_by_key(|e| (!backends.is_eligible(e), e.address))?;
    Some((first.address, !backends.is_eligible(first)))
}

/// Where published ports answer.
fn addresses(me: &Me) -> impl Iterator<Item = Ipv4Addr> {
    let all: BTreeSet<_> =
        me.addresses.iter().copied().chain([me.vtep, Ipv4Addr::LOCALHOST]).collect();
    all.into_iter()
}

/// Who may use a port: each once, in order, without the bits beyond the prefix. Empty for
/// everybody.
fn sources(port: &PublishedPort) -> Vec<Ipv4Network> {
    let bare = |source: &Ipv4Network| {
        Ipv4Network::new(source.network(), source.prefix()).expect("the prefix is a network's")
    };
    let all: BTreeSet<_> = port.allow.iter().map(bare).collect();
    all.into_iter().collect()
}

/// A number for each list; 0 for the one that is empty. A list has the same number for
/// ever, whatever other lists come and go (but for one in four milliards, which has it
/// already): so it is whole before a port asks it, and while one does.
fn numbers(lists: BTreeSet<Vec<Ipv4Network>>) -> BTreeMap<Vec<Ipv4Network>, u32> {
    let mut numbers = BTreeMap::<_, u32>::new();
    let mut taken = BTreeSet::from([0]);
    for list in lists {
        let bytes: Vec<u8> = list
            .iter()
            .flat_map(|source| [&source.ip().octets()[..], &[source.prefix()]].concat())
            .collect();
        let mut number = if list.is_empty() { 0 } else { ring::hash(&bytes) };
        while !list.is_empty() && !taken.insert(number) {
            number = number.wrapping_add(1);
        }
        numbers.insert(list, number);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::{Op, desired, diff, fixture};
    use super::*;
    use crate::model::{Health, NodeStatus, Protocol, Scheduler, Vni};
    use fixture::World;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
    /// The backend on this node, and the one on the other.
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
    const VNI: Vni = Vni(4096);

    /// Two nodes with a backend each.
    fn world() -> (World, ServiceId) {
        let mut world = fixture::two_nodes();
        let service = fixture::add_service(&mut world.snapshot, 200);
        (world, service)
    }

    fn state(world: &World) -> State {
        desired(&world.snapshot, &world.workloads, &world.me)
    }

    /// Whom new flows go to on this node.
    fn ring_of(state: &State) -> Option<Vec<Ipv4Addr>> {
        match state.get(&Key::Map(MapKey::Service(VNI, VIP))) {
            Some(Value::Service(balance)) => Some(balance.ring.iter().map(|s| s.ip).collect()),
            _ => None,
        }
    }

    /// What an address serves, and whether it is eligible.
    fn role(state: &State, ip: Ipv4Addr) -> (Ipv4Addr, bool) {
        match state.get(&Key::Map(MapKey::Endpoint(VNI, ip))) {
            Some(Value::Endpoint { serves, eligible, .. }) => (*serves, *eligible),
            other => panic!("{other:?}"),
        }
    }

    fn edit(world: &mut World, ip: Ipv4Addr, change: impl Fn(&mut crate::model::Task)) {
        let endpoint = world.snapshot.endpoints.values_mut().find(|e| e.address == ip).unwrap();
        change(endpoint.task.as_mut().unwrap());
    }

    fn published(state: &State) -> Vec<(Socket, Ipv4Addr, u32)> {
        let of = |(key, value): (&Key, &Value)| match (key, value) {
            (Key::Map(MapKey::Published(socket)), Value::Published { ip, allowed, .. }) => {
                Some((*socket, *ip, *allowed))
            }
            _ => None,
        };
        state.iter().filter_map(of).collect()
    }

    #[test]
    fn a_service_is_an_address_a_ring_and_its_backends() {
        let (world, _) = world();
        let state = state(&world);
        let vip = state.get(&Key::Map(MapKey::Endpoint(VNI, VIP)));
        assert_eq!(vip, Some(&Value::Vip(Mac::of(VIP))));
        assert_eq!(ring_of(&state), Some(vec![HERE, THERE]));
        assert_eq!(role(&state, HERE), (VIP, true));
        assert_eq!(role(&state, THERE), (VIP, true));
        let ports: Vec<_> = state
            .values()
            .filter_map(|v| if let Value::Port { backend, .. } = v { Some(*backend) } else { None })
            .collect();
        assert_eq!(ports, [true]);
        assert!(!state.keys().any(|k| matches!(k, Key::Hook(_, Hook::FromHost))));
    }

    #[test]
    fn who_drains_or_is_ill_keeps_its_flows_only() {
        for change in [
            |task: &mut crate::model::Task| task.draining = true,
            |task: &mut crate::model::Task| task.health = Health::Unhealthy,
            |task: &mut crate::model::Task| task.weight = 0,
        ] {
            let (mut world, _) = world();
            edit(&mut world, THERE, change);
            let state = state(&world);
            assert_eq!(ring_of(&state), Some(vec![HERE]));
            assert_eq!(role(&state, THERE), (VIP, false));
        }
    }

    /// The snapshot is newer than what the workload's record says.
    #[test]
    fn the_health_of_a_backend_here_is_followed_too() {
        let (mut world, _) = world();
        edit(&mut world, HERE, |task| task.health = Health::Starting);
        assert_eq!(role(&state(&world), HERE), (VIP, false));
    }

    #[test]
    fn without_anyone_the_address_stays() {
        let (mut world, _) = world();
        edit(&mut world, HERE, |task| task.draining = true);
        edit(&mut world, THERE, |task| task.draining = true);
        assert_eq!(ring_of(&state(&world)), Some(vec![]));
    }

    #[test]
    fn a_backend_that_ended_here_is_gone_at_once() {
        let (mut world, service) = world();
        world.snapshot.services.get_mut(&service).unwrap().ports = vec![fixture::port(8080)];
        world.workloads.clear();
        assert_eq!(ring_of(&state(&world)), Some(vec![THERE]));
    }

    #[test]
    fn nodes_that_do_not_answer_are_the_last_resort() {
        let (mut world, _) = world();
        let there = world.snapshot.nodes_mut().find(|n| n.id != world.me.id).unwrap();
        there.status = NodeStatus::Down;
        assert_eq!(ring_of(&state(&world)), Some(vec![HERE]));
        assert_eq!(role(&state(&world), THERE), (VIP, false));
        edit(&mut world, HERE, |task| task.draining = true);
        assert_eq!(ring_of(&state(&world)), Some(vec![THERE]));
    }

    #[test]
    fn nodes_that_cannot_be_reached_are_avoided_before_those_that_do_not_answer() {
        let (mut world, _) = world();
        let third = fixture::node(3);
        let endpoint = {
            let here = world.snapshot.endpoints.values().find(|e| e.address == HERE).unwrap();
            let (network, task) = (&world.snapshot.networks[&here.network], here.task.clone());
            crate::model::Endpoint { task, ..fixture::endpoint(network, &third, 4) }
        };
        let last = endpoint.address;
        world.snapshot.endpoints.insert(endpoint.id.clone(), endpoint);
        world.snapshot.nodes.insert(third.id.clone(), third.clone().into());
        let second = world.snapshot.endpoints.values().find(|e| e.address == THERE).unwrap();
        let second = second.node.clone();
        assert_eq!(ring_of(&state(&world)), Some(vec![HERE, THERE, last]));
        world.snapshot.unreachable.insert(second.clone());
        assert_eq!(ring_of(&state(&world)), Some(vec![HERE, last]));
        assert_eq!(role(&state(&world), THERE), (VIP, false));
        edit(&mut world, HERE, |task| task.draining = true);
        // What this node sees itself counts for more than what the manager does not hear.
        world.snapshot.node_mut(&third.id).status = NodeStatus::Down;
        assert_eq!(ring_of(&state(&world)), Some(vec![last]));
        world.snapshot.unreachable.insert(third.id.clone());
        assert_eq!(ring_of(&state(&world)), Some(vec![THERE]), "none is reached: the ready one");
        world.snapshot.node_mut(&second).status = NodeStatus::Down;
        assert_eq!(ring_of(&state(&world)), Some(vec![THERE, last]));
    }

    #[test]
    fn a_node_that_cannot_translate_has_no_backends() {
        let (mut world, _) = world();
        let there = world.snapshot.nodes_mut().find(|n| n.id != world.me.id).unwrap();
        there.datapath = Datapath::Kernel;
        assert_eq!(ring_of(&state(&world)), Some(vec![HERE]));
        assert_eq!(role(&state(&world), THERE), (Ipv4Addr::UNSPECIFIED, false));
    }

    #[test]
    fn local_backends_are_preferred_while_there_is_one() {
        let (mut world, service) = world();
        world.snapshot.services.get_mut(&service).unwrap().prefer = Prefer::Local;
        assert_eq!(ring_of(&state(&world)), Some(vec![HERE]));
        edit(&mut world, HERE, |task| task.draining = true);
        assert_eq!(ring_of(&state(&world)), Some(vec![THERE]));
    }

    #[test]
    fn a_service_elsewhere_is_known_only_if_it_is_published() {
        let (mut world, service) = world();
        world.workloads.clear();
        assert_eq!(ring_of(&state(&world)), None);
        assert!(!state(&world).contains_key(&Key::Map(MapKey::Network(VNI))));
        world.snapshot.services.get_mut(&service).unwrap().ports = vec![fixture::port(8080)];
        let state = state(&world);
        assert_eq!(ring_of(&state), Some(vec![THERE]));
        assert!(state.contains_key(&Key::Map(MapKey::Network(VNI))));
        assert_eq!(role(&state, THERE), (VIP, true));
    }

    #[test]
    fn a_published_port_is_open_at_every_address_of_the_host() {
        let (mut world, service) = world();
        let second = Ipv4Addr::new(203, 0, 113, 1);
        world.me.addresses.insert(second);
        world.snapshot.services.get_mut(&service).unwrap().ports = vec![fixture::port(8080)];
        let state = state(&world);
        let open: Vec<_> =
            published(&state).iter().map(|(socket, ip, _)| (socket.ip, *ip)).collect();
        let all = [Ipv4Addr::LOCALHOST, world.me.vtep, second];
        assert_eq!(open, all.map(|ip| (ip, VIP)));
        let lo = |switch| Key::Sysctl(Ns::Host, "lo".into(), switch);
        assert!(state.contains_key(&lo(Sysctl::RouteLocalnet)));
        assert!(state.contains_key(&lo(Sysctl::AcceptLocal)));
        assert!(state.contains_key(&Key::Hook("lo".into(), Hook::FromHost)));

        let ports = &mut world.snapshot.services.get_mut(&service).unwrap().ports;
        ports[0].address = Some(second);
        let state = self::state(&world);
        assert_eq!(published(&state).len(), 1);
        assert_eq!(published(&state)[0].0, Socket { ip: second, protocol: 6, port: 8080 });
        let ports = &mut world.snapshot.services.get_mut(&service).unwrap().ports;
        ports[0].address = Some(Ipv4Addr::new(203, 0, 113, 2));
        assert_eq!(published(&self::state(&world)), [], "another node's address");
    }

    #[test]
    fn host_mode_leads_to_the_backend_here_and_to_no_other() {
        let (mut world, service) = world();
        let host = PublishedPort { mode: PublishMode::Host, ..fixture::port(8080) };
        world.snapshot.services.get_mut(&service).unwrap().ports = vec![host];
        let targets = |world: &World| -> BTreeSet<_> {
            let state = state(world);
            let target = |value: &Value| match value {
                Value::Published { ip, draining, .. } => Some((*ip, *draining)),
                _ => None,
            };
            state.values().filter_map(target).collect()
        };
        assert_eq!(targets(&world), [(HERE, false)].into());
        edit(&mut world, HERE, |task| task.draining = true);
        assert_eq!(targets(&world), [(HERE, true)].into(), "its flows go on, no others begin");
        world.workloads.clear();
        assert_eq!(targets(&world), [].into());
        assert!(!state(&world).keys().any(|k| matches!(k, Key::Hook(_, Hook::FromHost))));
    }

    #[test]
    fn a_list_is_whole_before_a_port_asks_it_and_while_one_does() {
        let (mut world, service) = world();
        let allow = |world: &mut World, sources: &[&str]| {
            let port = PublishedPort {
                allow: sources.iter().map(|s| s.parse().unwrap()).collect(),
                ..fixture::port(8080)
            };
            let udp = PublishedPort { protocol: Protocol::Udp, allow: vec![], ..port };
            world.snapshot.services.get_mut(&service).unwrap().ports = vec![port, udp];
            state(world)
        };
        let before = allow(&mut world, &["10.0.0.7/8", "192.168.0.0/16"]);
        let same = allow(&mut world, &["192.168.0.0/16", "10.0.0.0/8", "10.0.0.0/8"]);
        assert_eq!(before, same);
        let lists: BTreeSet<_> = published(&before).into_iter().map(|(_, _, list)| list).collect();
        assert_eq!(lists.len(), 2);
        assert!(lists.contains(&0), "UDP is for everybody");
        let after = allow(&mut world, &["10.0.0.0/8"]);
        let ops = diff(&after, &before);
        // The new list, then the ports, then the old list.
        let kinds: Vec<_> = ops
            .iter()
            .map(|op| match op {
                Op::Put(Key::Map(MapKey::Allowed(..)), _) => "list",
                Op::Put(Key::Map(MapKey::Published(_)), _) => "port",
                Op::Delete(Key::Map(MapKey::Allowed(..))) => "old",
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(kinds, ["list", "port", "port", "old", "old"]);
    }

    #[test]
    fn a_change_of_one_backend_writes_itself_and_the_ring() {
        let (mut world, _) = world();
        let second = fixture::add_service(&mut world.snapshot, 201);
        // Theirs are the backends of the first.
        for endpoint in world.snapshot.endpoints.values_mut() {
            let other = world.snapshot.services.keys().find(|id| **id != second).unwrap();
            endpoint.task.as_mut().unwrap().service = other.clone();
        }
        let before = state(&world);
        edit(&mut world, THERE, |task| task.draining = true);
        let ops = diff(&state(&world), &before);
        let keys: Vec<_> = ops
            .iter()
            .map(|op| match op {
                Op::Put(key, _) => key.clone(),
                Op::Delete(key) => panic!("removes {key}"),
            })
            .collect();
        let wanted = [MapKey::Endpoint(VNI, THERE), MapKey::Service(VNI, VIP)].map(Key::Map);
        assert_eq!(keys, wanted);
        // A weight is in the ring alone.
        let before = state(&world);
        edit(&mut world, HERE, |task| task.weight = 3);
        world.snapshot.services.values_mut().for_each(|s| s.scheduler = Scheduler::Wlc);
        let ops = diff(&state(&world), &before);
        assert!(ops.iter().all(|op| matches!(op, Op::Put(Key::Map(MapKey::Service(..)), _))));
    }

    #[test]
    fn lists_of_the_same_number_are_told_apart() {
        let list = |text: &str| vec![text.parse::<Ipv4Network>().unwrap()];
        let many: BTreeSet<_> = (0..200_u8).map(|i| list(&format!("10.0.{i}.0/24"))).collect();
        let numbers = numbers(many.iter().cloned().chain([vec![]]).collect());
        assert_eq!(numbers[&vec![]], 0);
        let distinct: BTreeSet<_> = numbers.values().collect();
        assert_eq!(distinct.len(), 201);
        // Others do not matter.
        let one = super::numbers([list("10.0.7.0/24")].into());
        assert_eq!(one[&list("10.0.7.0/24")], numbers[&list("10.0.7.0/24")]);
    }
}
