//! IPVS as a scheduler: what its namespace has, so that a frame put in for a service's
//! port comes out addressed to the backend that IPVS chose, and is otherwise unchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use ipnetwork::Ipv4Network;

use crate::model::{Mac, Scheduler, Service, Snapshot};

use super::service::Backends;
use super::state::{Hook, Key, Link, MapKey, Ns, Socket, State, Value};
use super::{Me, inside, names};

/// Host side of the veth to the namespace.
const LB_HOST: &str = "na-lb";
/// The other side.
const LB: &str = "lb";
/// MTU of the veth, bytes. What is too big for a network the programs have answered
/// already; IPVS is not to have an opinion of its own.
const LB_MTU: u16 = u16::MAX;
/// Seconds for which a connection whose client closed it is remembered, as the kernel has
/// it.
const TCP_FIN: u32 = 120;
/// Seconds after which a UDP flow counts no more, at most. The programs remember it longer
/// if they are to, within a table of limited size; that of IPVS has no limit. They tell IPVS
/// of a flow that goes on more often than this.
const UDP_MOST: u32 = 300;
/// No timeout may be longer: `INT_MAX / HZ` with the largest `HZ`.
const LONGEST: u32 = 2_147_483;

/// Adds what makes IPVS schedule the published ports of services: as long as one of the
/// services that `state` balances has any.
pub(super) fn schedule(state: &mut State, snapshot: &Snapshot, backends: &Backends<'_>, me: &Me) {
    let name = names::balancer(&me.id);
    let ns = Ns::At(Path::new("/run/netns").join(&name));
    let mut idle = None;
    for service in snapshot.services.values().filter(|service| !service.ports.is_empty()) {
        for on in &service.networks {
            let (Some(network), Some(vip)) = (snapshot.networks.get(&on.network), on.vip) else {
                continue;
            };
            let key = Key::Map(MapKey::Service(network.vni, vip));
            let Some(Value::Service(balance)) = state.get(&key) else { continue };
            // What takes new flows is in the ring; the others have weight 0. To IPVS, those
            // that cannot be reached are gone, or it would keep giving them what it knows:
            // the flows without connections, which are to go elsewhere. Connections are
            // carried by the programs, without it.
            let takes: BTreeSet<_> = balance.ring.iter().map(|slot| slot.ip).collect();
            let real: Vec<_> = backends
                .of(&service.id, &network.id)
                .iter()
                .filter(|e| takes.contains(&e.address) || snapshot.is_reachable(e))
                .filter_map(|e| {
                    let weight =
                        if takes.contains(&e.address) { e.task.as_ref()?.weight } else { 0 };
                    Some((e.address, e.mac, u32::from(weight)))
                })
                .collect();
            add_service(state, &ns, service, vip, &real);
            idle = idle.max(Some(service.idle_timeout));
        }
    }
    if let Some(idle) = idle {
        add_namespace(state, me, name, &ns, idle);
    }
}

/// The servers of one service on one network, and how packets get to and from them.
fn add_service(
    state: &mut State,
    ns: &Ns,
    service: &Service,
    vip: Ipv4Addr,
    real: &[(Ipv4Addr, Mac, u32)],
) {
    state.insert(Key::Route(ns.clone(), Ipv4Network::from(vip)), Value::Local);
    for (ip, mac, _) in real {
        state.insert(Key::Neighbour(ns.clone(), LB.to_owned(), *ip), Value::Mac(*mac));
    }
    for port in &service.ports {
        let socket = Socket { ip: vip, protocol: port.protocol.number(), port: port.target };
        state.insert(
            Key::VirtualServer(ns.clone(), socket),
            Value::VirtualServer(VirtualServer::of(service)),
        );
        for (ip, _, weight) in real {
            let server =
                RealServer { weight: *weight, method: RealServer::DIRECT, upper: 0, lower: 0 };
            let address = SocketAddrV4::new(*ip, port.target);
            state.insert(Key::RealServer(ns.clone(), socket, address), Value::RealServer(server));
        }
        state.insert(Key::Map(MapKey::Virtual(socket)), Value::Present);
    }
}

/// The namespace, its way in, which is its way out, and how IPVS works there. `idle` is the
/// longest that a flow may be without a packet, seconds.
fn add_namespace(state: &mut State, me: &Me, name: String, ns: &Ns, idle: u32) {
    state.insert(Key::Namespace(name), Value::Present);
    state.insert(
        Key::Link(Ns::Host, LB_HOST.to_owned()),
        Value::Link(Link::Veth {
            mac: Mac(netagent_common::GATEWAY_MAC),
            mtu: LB_MTU,
            master: None,
            peer_ns: ns.clone(),
            peer: LB.to_owned(),
            peer_mac: Mac(netagent_common::LB_MAC),
        }),
    );
    state.insert(
        Key::Route(ns.clone(), inside::default_route()),
        Value::Route { link: LB.to_owned(), gateway: None, source: None },
    );
    let timeouts =
        Timeouts { tcp: idle.clamp(1, LONGEST), tcp_fin: TCP_FIN, udp: idle.clamp(1, UDP_MOST) };
    let settings = IPVS_SETTINGS.iter().map(|s| (s.name, s.wanted)).collect();
    state.insert(Key::Ipvs(ns.clone()), Value::Ipvs(Ipvs { timeouts, settings }));
    if let Some(Value::Config { lb, .. }) = state.get_mut(&Key::Map(MapKey::Config)) {
        *lb = Some(LB_HOST.to_owned());
    }
    state.insert(Key::Hook(LB_HOST.to_owned(), Hook::FromLb), Value::Program(me.object.clone()));
}

/// Whether this is the namespace of a node's IPVS.
#[must_use]
pub fn is_balancer(ns: &Ns) -> bool {
    match ns {
        Ns::Host => false,
        Ns::At(path) => path.file_name().is_some_and(names::is_balancer),
    }
}

/// How IPVS works in a namespace; the default is that of a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvs {
    /// When it forgets connections.
    pub timeouts: Timeouts,
    /// Of [`IPVS_SETTINGS`], those that the kernel has, by name.
    pub settings: BTreeMap<&'static str, u32>,
}

/// Seconds without a packet after which IPVS forgets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp: u32,
    /// TCP, after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// A sysctl of IPVS, `net.ipv4.vs.NAME` (Documentation/networking/ipvs-sysctl.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name.
    pub name: &'static str,
    /// What it is in a new namespace.
    default: u32,
    /// What it is in ours.
    wanted: u32,
}

const fn setting(name: &'static str, default: u32, wanted: u32) -> Setting {
    Setting { name, default, wanted }
}

/// The sysctls that matter.
pub const IPVS_SETTINGS: &[Setting] = &[
    // A client that takes a port again within the two minutes after a FIN opens another
    // connection (1); IPVS sees one direction only, so a FIN is all it will see (2).
    setting("conn_reuse_mode", 1, 3),
    setting("conntrack", 0, 0),
    // Under memory pressure what is not established goes first.
    setting("drop_entry", 0, 1),
    // A connection whose backend is gone goes to another, which refuses it.
    setting("expire_nodest_conn", 0, 1),
    // A client of a backend that drains is sent to another with its next connection,
    // whatever its affinity.
    setting("expire_quiescent_template", 0, 1),
    setting("schedule_icmp", 0, 0),
    // Connections go on that began before this IPVS did.
    setting("sloppy_sctp", 0, 1),
    setting("sloppy_tcp", 0, 1),
];

impl Timeouts {
    /// As the kernel has it (`tcp_timeouts`, net/netfilter/ipvs).
    const DEFAULT: Self = Self { tcp: 900, tcp_fin: 120, udp: 300 };
}

impl Default for Ipvs {
    fn default() -> Self {
        let settings = IPVS_SETTINGS.iter().map(|s| (s.name, s.default)).collect();
        Self { timeouts: Timeouts::DEFAULT, settings }
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// Name of its scheduler.
    pub scheduler: String,
    /// [`VirtualServer::PERSISTENT`] and [`VirtualServer::FALLBACK`].
    pub flags: u32,
    /// Seconds that a client keeps its real server, if it is persistent.
    pub timeout: u32,
    /// Clients within one such network are one, if it is persistent.
    pub netmask: Ipv4Addr,
}

impl VirtualServer {
    /// A client keeps its real server (`IP_VS_SVC_F_PERSISTENT`, linux/ip_vs.h).
    pub const PERSISTENT: u32 = 0x1;
    /// If the real server that a client hashes to takes no connections, another does
    /// (`IP_VS_SVC_F_SCHED1`: `sh-fallback`, `mh-fallback`).
    pub const FALLBACK: u32 = 0x8;

    fn of(service: &Service) -> Self {
        let fallback = match service.scheduler {
            Scheduler::Sh | Scheduler::Mh => Self::FALLBACK,
            Scheduler::Rr | Scheduler::Wrr | Scheduler::Lc | Scheduler::Wlc => 0,
        };
        let persistent = if service.affinity.is_some() { Self::PERSISTENT } else { 0 };
        Self {
            scheduler: service.scheduler.to_string(),
            flags: fallback | persistent,
            timeout: service.affinity.unwrap_or(0).min(LONGEST),
            netmask: Ipv4Addr::BROADCAST,
        }
    }
}

/// A real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Share of new connections; 0 for none.
    pub weight: u32,
    /// How packets get to it: [`RealServer::DIRECT`].
    pub method: u32,
    /// Connections from which it gets no more; 0 for no limit.
    pub upper: u32,
    /// Connections below which it gets some again.
    pub lower: u32,
}

impl RealServer {
    /// Unchanged, to its MAC address (`IP_VS_CONN_F_DROUTE`, linux/ip_vs.h).
    pub const DIRECT: u32 = 3;
}

#[cfg(test)]
mod tests {
    use super::super::{Op, desired, diff, fixture};
    use super::*;
    use crate::model::{Health, Prefer, Protocol, PublishMode, PublishedPort, ServiceNetwork};
    use fixture::World;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
    /// The backend on this node, and the one on the other.
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    /// Two nodes with a backend each; TCP port 8080 of every node leads to port 80.
    fn world() -> World {
        let mut world = fixture::two_nodes();
        fixture::add_service(&mut world.snapshot, 200);
        world.me.ipvs = true;
        service(&mut world).ports.push(fixture::port(8080));
        world
    }

    fn service(world: &mut World) -> &mut Service {
        world.snapshot.services.values_mut().next().unwrap()
    }

    fn state(world: &World) -> State {
        desired(&world.snapshot, &world.workloads, &world.me)
    }

    fn ns(world: &World) -> Ns {
        Ns::At(Path::new("/run/netns").join(names::balancer(&world.me.id)))
    }

    fn socket(protocol: u8, port: u16) -> Socket {
        Socket { ip: VIP, protocol, port }
    }

    /// Weights of the real servers of TCP port 80: here, there.
    fn weights(world: &World) -> [Option<u32>; 2] {
        let state = state(world);
        [HERE, THERE].map(|ip| {
            let key = Key::RealServer(ns(world), socket(6, 80), SocketAddrV4::new(ip, 80));
            match state.get(&key) {
                Some(Value::RealServer(server)) => Some(server.weight),
                _ => None,
            }
        })
    }

    fn edit(world: &mut World, ip: Ipv4Addr, change: impl Fn(&mut crate::model::Task)) {
        let endpoint = world.snapshot.endpoints.values_mut().find(|e| e.address == ip).unwrap();
        change(endpoint.task.as_mut().unwrap());
    }

    fn virtual_server(world: &World) -> VirtualServer {
        match &state(world)[&Key::VirtualServer(ns(world), socket(6, 80))] {
            Value::VirtualServer(server) => server.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn timeouts(world: &World) -> Timeouts {
        match &state(world)[&Key::Ipvs(ns(world))] {
            Value::Ipvs(ipvs) => ipvs.timeouts,
            other => panic!("{other:?}"),
        }
    }

    fn mentions_ipvs(state: &State) -> bool {
        state.iter().any(|(key, value)| match key {
            Key::Map(MapKey::Virtual(_)) | Key::Namespace(_) | Key::Ipvs(_) => true,
            Key::VirtualServer(..) | Key::RealServer(..) => true,
            Key::Hook(_, hook) => *hook == Hook::FromLb,
            Key::Link(_, name) => name == LB_HOST,
            _ => matches!(value, Value::Config { lb: Some(_), .. } | Value::Local),
        })
    }

    #[test]
    fn there_is_nothing_of_it_without_a_published_port_or_without_ipvs() {
        let mut without = world();
        without.me.ipvs = false;
        assert!(!mentions_ipvs(&state(&without)));
        let mut world = world();
        assert!(mentions_ipvs(&state(&world)));
        service(&mut world).ports.clear();
        assert!(!mentions_ipvs(&state(&world)));
    }

    #[test]
    fn it_comes_and_goes_as_one() {
        let with = world();
        let mut without = world();
        without.me = super::super::Me { ipvs: false, ..with.me.clone() };
        without.snapshot = with.snapshot.clone();
        without.workloads = with.workloads.clone();
        let (with, without) = (state(&with), state(&without));
        let ops = diff(&with, &without);
        // Nobody is sent to IPVS before it knows what to do.
        let at = |found: fn(&Key) -> bool| {
            let key = |op: &Op| match op {
                Op::Put(key, _) | Op::Delete(key) => found(key),
            };
            ops.iter().position(key).unwrap()
        };
        let namespace = at(|k| matches!(k, Key::Namespace(_)));
        let link = at(|k| matches!(k, Key::Link(..)));
        let server = at(|k| matches!(k, Key::VirtualServer(..)));
        let real = at(|k| matches!(k, Key::RealServer(..)));
        let map = at(|k| matches!(k, Key::Map(MapKey::Virtual(_))));
        assert!(namespace < link && link < server && server < real && real < map, "{ops:?}");
        // And everybody has left before it goes.
        let ops = diff(&without, &with);
        let at = |found: fn(&Key) -> bool| {
            ops.iter().position(|op| matches!(op, Op::Delete(key) if found(key))).unwrap()
        };
        let map = at(|k| matches!(k, Key::Map(MapKey::Virtual(_))));
        let server = at(|k| matches!(k, Key::VirtualServer(..)));
        let namespace = at(|k| matches!(k, Key::Namespace(_)));
        assert!(map < server && server < namespace, "{ops:?}");
    }

    #[test]
    fn a_virtual_server_for_every_target_port_of_every_network() {
        let mut world = world();
        let second = fixture::network("second", 9);
        let vip = Ipv4Addr::new(10, 0, 9, 200);
        let udp = PublishedPort {
            target: 53,
            protocol: Protocol::Udp,
            mode: PublishMode::Host,
            ..fixture::port(5353)
        };
        let on = ServiceNetwork { network: second.id.clone(), vip: Some(vip) };
        let service = service(&mut world);
        // Two published ports may lead to one.
        service.ports.extend([udp, fixture::port(8081)]);
        service.networks.push(on);
        world.snapshot.networks.insert(second.id.clone(), second);
        let sockets = |world: &World| -> Vec<Socket> {
            let state = state(world);
            let virtuals: Vec<_> = state
                .keys()
                .filter_map(|key| match key {
                    Key::VirtualServer(_, socket) => Some(*socket),
                    _ => None,
                })
                .collect();
            for socket in &virtuals {
                assert!(state.contains_key(&Key::Map(MapKey::Virtual(*socket))));
                let local = Key::Route(ns(world), socket.ip.into());
                assert_eq!(state.get(&local), Some(&Value::Local));
            }
            virtuals
        };
        // Nobody here is on the second network.
        assert_eq!(sockets(&world), [socket(6, 80), socket(17, 53)]);
    }

    #[test]
    fn backends_are_real_servers_at_their_own_mac() {
        let mut world = world();
        edit(&mut world, THERE, |task| task.weight = 7);
        assert_eq!(weights(&world), [Some(1), Some(7)]);
        let state = state(&world);
        for ip in [HERE, THERE] {
            let neighbour = Key::Neighbour(ns(&world), LB.into(), ip);
            assert_eq!(state.get(&neighbour), Some(&Value::Mac(Mac::of(ip))));
        }
        let method = |value: &Value| match value {
            Value::RealServer(server) => server.method == RealServer::DIRECT,
            _ => true,
        };
        assert!(state.values().all(method));
    }

    #[test]
    fn who_takes_no_new_flows_stays_with_weight_0_and_who_is_gone_goes() {
        let changes: [fn(&mut crate::model::Task); 4] = [
            |task| task.draining = true,
            |task| task.health = Health::Unhealthy,
            |task| task.health = Health::Starting,
            |task| task.weight = 0,
        ];
        for change in changes {
            let mut world = world();
            edit(&mut world, THERE, change);
            assert_eq!(weights(&world), [Some(1), Some(0)]);
        }
        let mut world = world();
        world.snapshot.endpoints.retain(|_, e| e.address != THERE);
        assert_eq!(weights(&world), [Some(1), None]);
        world.workloads.clear();
        world.snapshot.endpoints.clear();
        // A virtual server without a real one is ready for the first.
        assert_eq!(weights(&world), [None, None]);
        assert_eq!(virtual_server(&world).scheduler, "wrr");
    }

    #[test]
    fn who_cannot_be_reached_is_gone_while_another_is_left() {
        let mut world = world();
        let there = world.snapshot.nodes.keys().find(|id| **id != world.me.id).cloned();
        world.snapshot.unreachable.extend(there);
        assert_eq!(weights(&world), [Some(1), None]);
        edit(&mut world, HERE, |task| task.draining = true);
        assert_eq!(weights(&world), [Some(0), Some(1)]);
    }

    #[test]
    fn a_node_that_prefers_its_own_gives_the_others_weight_0() {
        let mut world = world();
        service(&mut world).prefer = Prefer::Local;
        assert_eq!(weights(&world), [Some(1), Some(0)]);
        edit(&mut world, HERE, |task| task.draining = true);
        assert_eq!(weights(&world), [Some(0), Some(1)]);
    }

    #[test]
    fn affinity_is_persistence_of_single_clients() {
        let mut world = world();
        assert_eq!((virtual_server(&world).flags, virtual_server(&world).timeout), (0, 0));
        service(&mut world).affinity = Some(90);
        let server = virtual_server(&world);
        assert_eq!((server.flags, server.timeout), (VirtualServer::PERSISTENT, 90));
        assert_eq!(server.netmask, Ipv4Addr::BROADCAST);
    }

    #[test]
    fn schedulers_that_hash_have_a_way_around_backends_that_drain() {
        for (scheduler, flags) in [
            (Scheduler::Rr, 0),
            (Scheduler::Wlc, 0),
            (Scheduler::Sh, VirtualServer::FALLBACK),
            (Scheduler::Mh, VirtualServer::FALLBACK),
        ] {
            let mut world = world();
            service(&mut world).scheduler = scheduler;
            let server = virtual_server(&world);
            assert_eq!((server.scheduler, server.flags), (scheduler.to_string(), flags));
        }
    }

    #[test]
    fn tcp_is_remembered_as_long_as_the_most_patient_service_wants() {
        let mut world = world();
        assert_eq!(timeouts(&world), Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
        service(&mut world).idle_timeout = Service::IDLE_TIMEOUT;
        assert_eq!(timeouts(&world).tcp, 432_000);
        let patient = fixture::add_service(&mut world.snapshot, 201);
        let patient = world.snapshot.services.get_mut(&patient).unwrap();
        patient.idle_timeout = u32::MAX;
        assert_eq!(timeouts(&world).tcp, 432_000, "it publishes no port");
        world.snapshot.services.values_mut().for_each(|s| s.ports = vec![fixture::port(8081)]);
        assert_eq!(timeouts(&world).tcp, LONGEST);
        world.snapshot.services.values_mut().for_each(|s| s.idle_timeout = 10);
        assert_eq!(timeouts(&world), Timeouts { tcp: 10, tcp_fin: 120, udp: 10 });
    }

    #[test]
    fn only_its_own_namespace_is_looked_into() {
        let world = world();
        assert!(is_balancer(&ns(&world)));
        for path in ["/run/netns/na-0123456789a", "/run/netns/web-lb", "/proc/1/ns/net"] {
            assert!(!is_balancer(&Ns::At(path.into())));
        }
        assert!(!is_balancer(&Ns::Host));
    }
}
