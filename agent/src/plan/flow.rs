//! What is to become of the flows that the programs remember: which entries lead nowhere
//! or are over, who must be told that his backend is gone, and how much each backend has
//! to do. Pure: from what the maps hold to what is to be done.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use netagent_common::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Flow, FlowKey, Kind, Load, Published,
    PublishedKey, Service,
};

/// Seconds without a packet for which a connection that has begun to end is remembered: its
/// last packets, and the half of it that may go on (as IPVS, `IP_VS_TCP_S_FIN_WAIT`).
const ENDING: u32 = 120;
/// Seconds without a packet after which a flow of a protocol without connections is not
/// taken for a running one any more (as `nf_conntrack_udp_timeout`).
const SPEAKING: u32 = 30;
/// Seconds for which the fragments of a datagram are awaited (RFC 791 leaves it open; Linux,
/// `net.ipv4.ipfrag_time`).
const FRAGMENTS: u32 = 30;
/// Seconds without a packet after which a flow is forgotten that no service tells of.
const IDLE: u32 = 3600;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// For so long a node may be out of reach without its connections being given up: a link that
/// was cut for half a minute costs nobody a connection, and who waits for a node that is off
/// learns it before TCP would tell (15 minutes, `net.ipv4.tcp_retries2`).
pub const GIVEN_UP: Duration = Duration::from_secs(60);

/// What the flows lead to.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Map `ENDPOINTS`.
    pub endpoints: HashMap<EndpointKey, Endpoint>,
    /// Map `SERVICES`.
    pub services: HashMap<EndpointKey, Service>,
    /// Map `PUBLISHED`.
    pub published: HashMap<PublishedKey, Published>,
    /// Where nothing leads at present.
    pub lost: Lost,
}

/// Nodes that cannot be reached, by VTEP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// All of them. A flow without a connection goes to another backend at once.
    pub now: HashSet<[u8; 4]>,
    /// Those that could not be for [`GIVEN_UP`]. Connections end, too.
    pub for_good: HashSet<[u8; 4]>,
}

impl Lost {
    /// Whether flows of `protocol` to `backend` lead nowhere, while others may take them.
    fn has(&self, backend: &Endpoint, protocol: u8) -> bool {
        let connected = matches!(protocol, TCP | SCTP);
        let nodes = if connected { &self.for_good } else { &self.now };
        !backend.is_eligible() && nodes.contains(&backend.vtep)
    }
}

/// What there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Entries to be removed, as they were: see [`is_to_go`].
    pub remove: Vec<(FlowKey, Flow)>,
    /// Clients of TCP whose backend is gone.
    pub orphans: Vec<Orphan>,
    /// Running flows from this node, by backend; whose turn it is does not stand in here. One
    /// that is not in here has none.
    pub load: HashMap<EndpointKey, Load>,
}

/// A connection that has lost its backend, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Orphan {
    /// The client and its port.
    pub client: (Ipv4Addr, u16),
    /// Whom it called, and at which port.
    pub called: (Ipv4Addr, u16),
    /// Where the client is.
    pub place: Place,
}

/// Where a client of this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Where the host's routes say: outside, or the host itself.
    Routed,
    /// In a workload, behind this host interface.
    Port(u32),
}

/// Goes through all `flows`, `now` being a time of their clock in seconds.
#[must_use]
pub fn sweep(flows: &[(FlowKey, Flow)], tables: &Tables, now: u32) -> Sweep {
    let mut sweep = Sweep::default();
    // The way in and out of the mesh lives as long as what it leads to.
    let mut carried = HashSet::new();
    let mut exits = HashMap::new();
    for (key, flow) in flows {
        match key.kind() {
            Some(Kind::Choice | Kind::In) if !tables.is_over(key, flow, now) => {
                carried.insert(tuple(key));
            }
            Some(Kind::Exit) => drop(exits.insert(tuple(key), flow)),
            _ => {}
        }
    }
    for (key, flow) in flows {
        let keep = match key.kind() {
            Some(Kind::Choice) => {
                let orphan = tables.is_orphan(key, flow);
                if orphan && key.protocol == TCP && flow.state & Flow::CLOSING == 0 {
                    sweep.orphans.extend(tables.orphan(key, exits.get(&tuple(key)).copied()));
                }
                let keep = !orphan && !tables.is_over(key, flow, now);
                if keep && is_running(key, flow, now) {
                    let backend = EndpointKey::new(key.vni, flow.ip.into());
                    sweep.load.entry(backend).or_default().flows += 1;
                }
                keep
            }
            Some(Kind::In) => {
                tables.answers(key.vni, key.backend, key.called) && !tables.is_over(key, flow, now)
            }
            Some(Kind::Out) => {
                tables.answers(key.vni, key.called, flow.ip) && !tables.is_over(key, flow, now)
            }
            Some(Kind::Entry) => {
                let seen =
                    (flow.vni, key.protocol, flow.client, flow.port, flow.ip, flow.other_port);
                let to = (flow.vni, flow.ip, flow.other_port);
                tables.is_published(key.called, key.port, key.protocol, to)
                    && (carried.contains(&seen) || silence(flow, now) <= ENDING)
            }
            Some(Kind::Exit) => {
                let to = (key.vni, key.called, key.port);
                tables.is_published(flow.ip, flow.other_port, key.protocol, to)
                    && (carried.contains(&tuple(key)) || silence(flow, now) <= ENDING)
            }
            Some(Kind::Fragment) => silence(flow, now) <= FRAGMENTS,
            None => false,
        };
        if !keep {
            sweep.remove.push((*key, *flow));
        }
    }
    sweep
}

/// Whether an entry that a sweep of these `tables` would remove as it `was` is to be removed as
/// it `is` by now. One that was over has got a packet, so it is not; but however many
/// packets come, a choice that leads nowhere does.
#[must_use]
pub fn is_to_go(key: &FlowKey, was: &Flow, is: &Flow, tables: &Tables) -> bool {
    was == is || (key.kind() == Some(Kind::Choice) && tables.is_orphan(key, is))
}

/// How many flows to the backend with address `backend`, on this node, are running.
#[must_use]
pub fn running(flows: &[(FlowKey, Flow)], tables: &Tables, backend: Ipv4Addr, now: u32) -> usize {
    let to_it = |key: &FlowKey| key.kind() == Some(Kind::In) && key.backend == backend.octets();
    flows
        .iter()
        .filter(|(key, flow)| {
            to_it(key) && !tables.is_over(key, flow, now) && is_running(key, flow, now)
        })
        .count()
}

/// Whether a client's affinity means nothing any more.
#[must_use]
pub fn is_forgotten(key: &AffinityKey, affinity: &Affinity, tables: &Tables, now: u32) -> bool {
    let service = tables.services.get(&EndpointKey::new(key.vni, key.vip.into()));
    service.is_none_or(|service| now.wrapping_sub(affinity.seen) > service.affinity)
        || !tables.serves(key.vni, affinity.ip, key.vip)
}

/// A flow as the service sees it.
type Tuple = (u32, u8, [u8; 4], [u8; 2], [u8; 4], [u8; 2]);

fn tuple(key: &FlowKey) -> Tuple {
    (key.vni, key.protocol, key.client, key.client_port, key.called, key.port)
}

fn silence(flow: &Flow, now: u32) -> u32 {
    // Another CPU may have been a moment ahead of the one that told the time.
    let silence = now.wrapping_sub(flow.seen);
    if silence > u32::MAX / 2 { 0 } else { silence }
}

/// Whether the flow has not begun to end, and goes on.
fn is_running(key: &FlowKey, flow: &Flow, now: u32) -> bool {
    let connected = matches!(key.protocol, TCP | SCTP);
    flow.state & Flow::CLOSING == 0 && (connected || silence(flow, now) <= SPEAKING)
}

impl Tables {
    fn endpoint(&self, vni: u32, ip: [u8; 4]) -> Option<&Endpoint> {
        self.endpoints.get(&EndpointKey::new(vni, ip.into()))
    }

    /// Whether the endpoint is a backend behind `vip`.
    fn serves(&self, vni: u32, ip: [u8; 4], vip: [u8; 4]) -> bool {
        self.endpoint(vni, ip).is_some_and(|endpoint| endpoint.serves == vip)
    }

    /// Whether a choice leads to a backend that is gone, or where nothing leads at present.
    fn is_orphan(&self, key: &FlowKey, flow: &Flow) -> bool {
        !self.serves(key.vni, flow.ip, key.called) || self.is_lost(key.vni, flow.ip, key.protocol)
    }

    /// Whether flows of `protocol` to this backend lead nowhere, while others may take them.
    fn is_lost(&self, vni: u32, ip: [u8; 4], protocol: u8) -> bool {
        self.endpoint(vni, ip).is_some_and(|backend| self.lost.has(backend, protocol))
    }

    /// The backends that flows lead to, each with its network and what it serves.
    #[must_use]
    pub fn backends(&self) -> HashSet<(u32, Ipv4Addr, Ipv4Addr)> {
        let serves = |(_, e): &(&EndpointKey, &Endpoint)| e.is_backend() && !self.lost.has(e, UDP);
        let backends = self.endpoints.iter().filter(serves);
        backends.map(|(key, e)| (key.vni, key.ip(), e.serves.into())).collect()
    }

    /// Whether the endpoint is here and may be called by the address `called`: its own, or
    /// that of its service.
    fn answers(&self, vni: u32, ip: [u8; 4], called: [u8; 4]) -> bool {
        self.endpoint(vni, ip)
            .is_some_and(|here| here.ifindex != 0 && (called == ip || here.serves == called))
    }

    /// Seconds for which a choice, or what stands at a backend, is remembered without a
    /// packet.
    fn idle(&self, key: &FlowKey, flow: &Flow) -> u32 {
        let vip = match key.kind() {
            Some(Kind::Choice) => key.called,
            Some(Kind::In) => self.endpoint(key.vni, key.backend).map_or([0; 4], |e| e.serves),
            _ => self.endpoint(key.vni, key.called).map_or(flow.ip, |e| e.serves),
        };
        self.services.get(&EndpointKey::new(key.vni, vip.into())).map_or(IDLE, |s| s.idle)
    }

    fn is_over(&self, key: &FlowKey, flow: &Flow, now: u32) -> bool {
        let idle = self.idle(key, flow);
        let limit = if flow.state & Flow::CLOSING == 0 { idle } else { idle.min(ENDING) };
        silence(flow, now) > limit
    }

    /// Whether the published port `ip`:`port` still leads to this network, address and port.
    fn is_published(
        &self,
        ip: [u8; 4],
        port: [u8; 2],
        protocol: u8,
        to: (u32, [u8; 4], [u8; 2]),
    ) -> bool {
        let published = self.published.get(&PublishedKey::from_wire(ip, protocol, port));
        published.is_some_and(|leads| (leads.vni, leads.ip, leads.port_be()) == to)
    }

    /// The client of a choice, if this node can reach it. `exit` is the way out of the
    /// mesh, if the flow came in there.
    fn orphan(&self, key: &FlowKey, exit: Option<&Flow>) -> Option<Orphan> {
        if let Some(exit) = exit {
            // The loopback device has this number in every namespace.
            let place = if exit.link > 1 { Place::Port(exit.link) } else { Place::Routed };
            let at = |ip: [u8; 4], port| (Ipv4Addr::from(ip), u16::from_be_bytes(port));
            let (client, called) = (at(exit.client, exit.port), at(exit.ip, exit.other_port));
            return Some(Orphan { client, called, place });
        }
        let client = self.endpoint(key.vni, key.client).filter(|client| client.ifindex != 0)?;
        let place = Place::Port(client.ifindex);
        Some(Orphan { client: key.client(), called: key.called(), place })
    }
}

#[cfg(test)]
mod tests {
    use netagent_common::Scheduler;

    use super::*;

    const VNI: u32 = 4096;
    const VIP: [u8; 4] = [10, 0, 0, 200];
    const CLIENT: [u8; 4] = [10, 0, 0, 2];
    const BACKEND: [u8; 4] = [10, 0, 0, 3];
    const OUTSIDE: [u8; 4] = [198, 51, 100, 7];
    const NODE: [u8; 4] = [192, 168, 50, 11];
    /// The client's port, the service's, and the published one.
    const PORT: [u8; 2] = [200, 1];
    const WEB: [u8; 2] = [0, 80];
    const PUBLISHED: [u8; 2] = [31, 144];
    const ODD: [u8; 2] = [1, 1];
    const NOW: u32 = 100_000;
    const SERVICE_IDLE: u32 = 900;

    /// A client and a backend on this node, and the service, published.
    fn tables() -> Tables {
        let at = |ip: [u8; 4]| EndpointKey::new(VNI, ip.into());
        let here = |ip: [u8; 4], ifindex| {
            let [a, b, c, d] = ip;
            Endpoint::local([2, 0x6e, a, b, c, d], ifindex, NODE.into())
        };
        Tables {
            endpoints: HashMap::from([
                (at(CLIENT), here(CLIENT, 7)),
                (at(BACKEND), here(BACKEND, 8).serving(VIP.into(), true)),
                (at(VIP), Endpoint::vip([2; 6])),
            ]),
            services: [(at(VIP), Service::new(Scheduler::Turn, 1, 60, SERVICE_IDLE))].into(),
            published: [(
                PublishedKey::from_wire(NODE, TCP, PUBLISHED),
                Published::new(VNI, VIP.into(), 80, 0, 1450),
            )]
            .into(),
            lost: Lost::default(),
        }
    }

    fn choice(client: [u8; 4], protocol: u8) -> (FlowKey, Flow) {
        let mut key = FlowKey::new(Kind::Choice, VNI, protocol);
        key.client = client;
        key.called = VIP;
        key.client_port = PORT;
        key.port = WEB;
        (key, Flow { seen: NOW, ip: BACKEND, ..Flow::default() })
    }

    fn inwards(protocol: u8) -> (FlowKey, Flow) {
        let mut key = FlowKey::new(Kind::In, VNI, protocol);
        key.client = CLIENT;
        key.called = VIP;
        key.backend = BACKEND;
        key.client_port = PORT;
        key.port = WEB;
        (key, Flow { seen: NOW, ip: CLIENT, port: PORT, ..Flow::default() })
    }

    fn outwards() -> (FlowKey, Flow) {
        let mut key = FlowKey::new(Kind::Out, VNI, TCP);
        key.client = CLIENT;
        key.called = BACKEND;
        key.client_port = PORT;
        key.port = WEB;
        (key, Flow { seen: NOW, ip: VIP, client: CLIENT, port: PORT, ..Flow::default() })
    }

    /// Entry and exit of a client outside.
    fn mesh() -> [(FlowKey, Flow); 2] {
        let mut entry = FlowKey::new(Kind::Entry, 0, TCP);
        entry.client = OUTSIDE;
        entry.called = NODE;
        entry.client_port = ODD;
        entry.port = PUBLISHED;
        let mut exit = FlowKey::new(Kind::Exit, VNI, TCP);
        exit.client = OUTSIDE;
        exit.called = VIP;
        exit.client_port = PORT;
        exit.port = WEB;
        let there = Flow {
            seen: NOW,
            ip: VIP,
            other_port: WEB,
            vni: VNI,
            client: OUTSIDE,
            port: PORT,
            ..Flow::default()
        };
        let back = Flow { ip: NODE, other_port: PUBLISHED, client: OUTSIDE, port: ODD, ..there };
        [(entry, there), (exit, back)]
    }

    fn removed(flows: &[(FlowKey, Flow)], tables: &Tables) -> usize {
        sweep(flows, tables, NOW).remove.len()
    }

    fn aged(mut flow: (FlowKey, Flow), seconds: u32) -> (FlowKey, Flow) {
        flow.1.seen = NOW - seconds;
        flow
    }

    fn closing(mut flow: (FlowKey, Flow)) -> (FlowKey, Flow) {
        flow.1.state |= Flow::CLOSING;
        flow
    }

    #[test]
    fn what_is_in_use_stays() {
        let [entry, exit] = mesh();
        let flows =
            [choice(CLIENT, TCP), choice(OUTSIDE, TCP), inwards(TCP), outwards(), entry, exit];
        let swept = sweep(&flows, &tables(), NOW);
        assert_eq!((swept.remove, swept.orphans), (vec![], vec![]));
        assert_eq!(swept.load[&EndpointKey::new(VNI, BACKEND.into())].flows, 2);
    }

    #[test]
    fn packets_keep_what_was_over_but_not_what_leads_nowhere() {
        let (key, was) = choice(CLIENT, UDP);
        let is = Flow { seen: NOW + 1, ..was };
        assert!(is_to_go(&key, &was, &was, &tables()));
        assert!(!is_to_go(&key, &was, &is, &tables()));
        let mut gone = tables();
        gone.endpoints.retain(|_, endpoint| !endpoint.is_backend());
        assert!(is_to_go(&key, &was, &is, &gone));
        let (key, was) = inwards(UDP);
        assert!(!is_to_go(&key, &was, &Flow { seen: NOW + 1, ..was }, &gone));
    }

    #[test]
    fn idle_is_what_the_service_says() {
        for flow in [choice(CLIENT, TCP), choice(CLIENT, 17), inwards(TCP), outwards()] {
            assert_eq!(removed(&[aged(flow, SERVICE_IDLE)], &tables()), 0, "{flow:?}");
            assert_eq!(removed(&[aged(flow, SERVICE_IDLE + 1)], &tables()), 1, "{flow:?}");
        }
        // Another CPU was ahead of this one.
        let mut ahead = choice(CLIENT, TCP);
        ahead.1.seen = NOW + 1;
        assert_eq!(removed(&[ahead], &tables()), 0);
    }

    #[test]
    fn an_ended_connection_goes_soon_and_counts_no_more() {
        let ended = closing(choice(CLIENT, TCP));
        assert_eq!(sweep(&[ended], &tables(), NOW).load, [].into());
        assert_eq!(removed(&[aged(ended, ENDING)], &tables()), 0);
        assert_eq!(removed(&[aged(ended, ENDING + 1)], &tables()), 1);
    }

    #[test]
    fn who_said_nothing_for_long_counts_for_nothing_without_a_connection() {
        assert_eq!(sweep(&[aged(choice(CLIENT, 17), 31)], &tables(), NOW).load, [].into());
        assert_eq!(sweep(&[aged(choice(CLIENT, TCP), 31)], &tables(), NOW).load.len(), 1);
    }

    #[test]
    fn clients_of_a_backend_that_is_gone_are_told() {
        let mut tables = tables();
        tables.endpoints.remove(&EndpointKey::new(VNI, BACKEND.into()));
        let [entry, exit] = mesh();
        let remote = choice([10, 0, 0, 77], TCP);
        let mut ended = closing(choice(CLIENT, TCP));
        ended.0.client_port = [9, 9];
        let flows = [
            choice(CLIENT, TCP),
            choice(OUTSIDE, TCP),
            choice(CLIENT, 17),
            ended,
            remote,
            inwards(TCP),
            outwards(),
            entry,
            exit,
        ];
        let swept = sweep(&flows, &tables, NOW);
        let port = u16::from_be_bytes(PORT);
        let inside = Orphan {
            client: (CLIENT.into(), port),
            called: (VIP.into(), 80),
            place: Place::Port(7),
        };
        let outside = Orphan {
            client: (OUTSIDE.into(), 257),
            called: (NODE.into(), 8080),
            place: Place::Routed,
        };
        assert_eq!(swept.orphans, [inside, outside]);
        // The way out is needed for what they are told.
        assert_eq!(swept.remove.len(), 7);
        assert_eq!(swept.load, [].into());
    }

    #[test]
    fn a_backend_of_another_service_is_gone_too() {
        let mut tables = tables();
        let key = EndpointKey::new(VNI, BACKEND.into());
        let other = tables.endpoints[&key].serving([10, 0, 0, 201].into(), true);
        tables.endpoints.insert(key, other);
        assert_eq!(sweep(&[choice(CLIENT, TCP)], &tables, NOW).orphans.len(), 1);
        assert_eq!(removed(&[inwards(TCP), outwards()], &tables), 2);
    }

    #[test]
    fn flows_leave_a_node_that_cannot_be_reached_and_connections_when_that_lasts() {
        const THERE: [u8; 4] = [192, 168, 50, 12];
        let key = EndpointKey::new(VNI, BACKEND.into());
        let mut tables = tables();
        let there = Endpoint::remote([2; 6], THERE.into());
        tables.endpoints.insert(key, there.serving(VIP.into(), false));
        let flows = [choice(CLIENT, TCP), choice(CLIENT, SCTP), choice(CLIENT, UDP)];
        assert_eq!((removed(&flows, &tables), tables.backends().len()), (0, 1));
        tables.lost.now.insert(THERE);
        let swept = sweep(&flows, &tables, NOW);
        assert_eq!((swept.remove, swept.orphans), (vec![flows[2]], vec![]));
        assert_eq!(tables.backends().len(), 0);
        tables.lost.for_good.insert(THERE);
        let swept = sweep(&flows, &tables, NOW);
        assert_eq!((swept.remove.len(), swept.orphans.len()), (3, 1), "SCTP has no such word");
        // Where nobody else is left they stay: it may be reached again.
        tables.endpoints.insert(key, there.serving(VIP.into(), true));
        assert_eq!((removed(&flows, &tables), tables.backends().len()), (0, 1));
    }

    #[test]
    fn one_that_drains_or_is_ill_keeps_what_it_has() {
        let mut tables = tables();
        let key = EndpointKey::new(VNI, BACKEND.into());
        let ill = tables.endpoints[&key].serving(VIP.into(), false);
        tables.endpoints.insert(key, ill);
        let flows = [choice(CLIENT, TCP), inwards(TCP), outwards()];
        assert_eq!(removed(&flows, &tables), 0);
        assert_eq!(running(&flows, &tables, BACKEND.into(), NOW), 1);
    }

    #[test]
    fn the_way_through_the_mesh_lives_as_long_as_the_flow() {
        let [entry, exit] = mesh();
        let old = [aged(entry, 500), aged(exit, 500)];
        assert_eq!(removed(&old, &tables()), 2);
        let carried = [old[0], old[1], choice(OUTSIDE, TCP)];
        assert_eq!(removed(&carried, &tables()), 0);
        let mut tables = tables();
        tables.published.clear();
        assert_eq!(removed(&[mesh()[0]], &tables), 1, "not published any more");
    }

    #[test]
    fn the_flows_of_one_backend_are_counted() {
        let mut other = inwards(TCP);
        other.0.backend = CLIENT;
        let mut second = inwards(17);
        second.0.client_port = [5, 5];
        let flows = [inwards(TCP), closing(second), other, choice(CLIENT, TCP), outwards()];
        assert_eq!(running(&flows, &tables(), BACKEND.into(), NOW), 1);
        let silent = [aged(inwards(17), SPEAKING + 1), aged(inwards(TCP), SPEAKING + 1)];
        assert_eq!(running(&silent, &tables(), BACKEND.into(), NOW), 1, "UDP has no end");
    }

    #[test]
    fn affinity_is_forgotten_with_time_with_the_backend_and_with_the_service() {
        let key = AffinityKey { vni: VNI, vip: VIP, client: CLIENT };
        let kept = Affinity { ip: BACKEND, seen: NOW - 60 };
        let forgotten = |affinity, tables: &Tables| is_forgotten(&key, &affinity, tables, NOW);
        assert!(!forgotten(kept, &tables()));
        assert!(forgotten(Affinity { seen: NOW - 61, ..kept }, &tables()));
        assert!(forgotten(Affinity { ip: CLIENT, ..kept }, &tables()));
        assert!(forgotten(kept, &Tables { services: [].into(), ..tables() }));
    }
}
