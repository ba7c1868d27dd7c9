//! The state of the eBPF datapath: a veth per endpoint, one vxlan device, maps
//! and programs. No bridge, no namespace, no device per network.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::model::{Endpoint, Mac, NetworkId, Snapshot, Workload};

use super::service::{self, Backends};
use super::state::{Hook, Key, LINK_PREFIX, Link, MapKey, Ns, State, Sysctl, VXLAN_LINK, Value};
use super::{Me, encryption, inside, ipvs, names, ruleset};

pub(super) fn desired(snapshot: &Snapshot, workloads: &[Workload], me: &Me) -> State {
    let mut state = State::new();
    let Some(cluster) = &snapshot.cluster else { return state };
    node(&mut state, snapshot, me, cluster.data_path_port);
    encryption::encrypt(&mut state, snapshot, me, cluster);

    let backends = Backends::new(snapshot, workloads, me);
    let mut present = BTreeSet::<&NetworkId>::new();
    let mut outward = BTreeSet::new();
    for (workload, attachment, network) in inside::attachments(snapshot, workloads) {
        // The newest of it: health and weight change.
        let endpoint =
            snapshot.endpoints.get(&attachment.endpoint.id).unwrap_or(&attachment.endpoint);
        let mtu = snapshot.mtu(network);
        let link = names::endpoint_link(&endpoint.id);
        present.insert(&network.id);
        state.insert(
            Key::Link(Ns::Host, link.clone()),
            Value::Link(Link::Veth {
                mac: Mac(netagent_common::GATEWAY_MAC),
                mtu,
                master: None,
                peer_ns: Ns::At(workload.netns.clone()),
                peer: attachment.interface.clone(),
                peer_mac: endpoint.mac,
            }),
        );
        inside::configure(&mut state, workload, attachment, network);
        state.insert(
            Key::Map(MapKey::Port(link.clone())),
            Value::Port {
                vni: network.vni,
                ip: endpoint.address,
                mac: endpoint.mac,
                mtu,
                internal: network.internal,
                backend: backends.contains(endpoint),
                gateway: network.gateway,
            },
        );
        state.insert(
            Key::Map(MapKey::Endpoint(network.vni, endpoint.address)),
            place(snapshot, &backends, endpoint, Some(link.clone()), me.vtep),
        );
        state
            .insert(Key::Hook(link.clone(), Hook::FromEndpoint), Value::Program(me.object.clone()));
        if !network.internal {
            outward.insert(network.subnet);
            let host = Ipv4Network::from(endpoint.address);
            state.insert(Key::Sysctl(Ns::Host, link.clone(), Sysctl::Forwarding), Value::Present);
            state.insert(
                Key::Neighbour(Ns::Host, link.clone(), endpoint.address),
                Value::Mac(endpoint.mac),
            );
            state.insert(
                Key::Route(Ns::Host, host),
                Value::Route { link, gateway: None, source: None },
            );
        }
    }
    networks(&mut state, snapshot, &present);
    for endpoint in snapshot.endpoints.values() {
        if endpoint.node != me.id && present.contains(&endpoint.network) {
            remote(&mut state, snapshot, &backends, endpoint);
        }
    }
    for (published, network) in service::published(snapshot) {
        for endpoint in backends.of(&published.id, &network.id).iter().filter(|e| e.node != me.id) {
            remote(&mut state, snapshot, &backends, endpoint);
        }
    }
    service::balance(&mut state, snapshot, &backends, me, &present);
    service::publish(&mut state, snapshot, &backends, me);
    if me.ipvs {
        ipvs::schedule(&mut state, snapshot, &backends, me);
    }
    egress(&mut state, me, &outward);
    state
}

/// What every node has, whatever runs on it.
fn node(state: &mut State, snapshot: &Snapshot, me: &Me, port: u16) {
    let uplink_mtu = snapshot.nodes.get(&me.id).map_or(1500, |n| n.mtu);
    let program = || Value::Program(me.object.clone());
    state.insert(
        Key::Link(Ns::Host, VXLAN_LINK.to_owned()),
        Value::Link(Link::VxlanExternal {
            port,
            mtu: uplink_mtu.saturating_sub(netagent_common::VXLAN_OVERHEAD),
        }),
    );
    state.insert(
        Key::Map(MapKey::Config),
        Value::Config {
            uplink: me.uplink.clone(),
            vxlan: VXLAN_LINK.to_owned(),
            vtep: me.vtep,
            advertised: me.advertised,
            port,
            neighbour_bits: me.neighbour_bits,
            lb: None,
            encrypted: None,
        },
    );
    state.insert(Key::Hook(VXLAN_LINK.to_owned(), Hook::FromOverlay), program());
    state.insert(Key::Hook(me.uplink.clone(), Hook::FromUplink), program());
    let here = snapshot.nodes.get(&me.id);
    for peer in snapshot.nodes.values().filter(|n| n.id != me.id) {
        let in_udp = here.is_some_and(|here| encryption::is_in_udp(here, peer));
        state.insert(Key::Map(MapKey::Peer(peer.address)), Value::Peer { in_udp });
    }
    for network in snapshot.networks.values() {
        state.insert(Key::Map(MapKey::Subnet(network.subnet)), Value::Vni(network.vni));
    }
}

/// Networks that packets of this node are on: those with an endpoint here, and those that
/// the host's published ports lead to.
fn networks(state: &mut State, snapshot: &Snapshot, present: &BTreeSet<&NetworkId>) {
    let here = present.iter().filter_map(|id| snapshot.networks.get(id));
    for network in here.chain(service::published(snapshot).map(|(_, network)| network)) {
        state.insert(
            Key::Map(MapKey::Network(network.vni)),
            Value::Network { gateway: network.gateway, mtu: snapshot.mtu(network) },
        );
    }
}

/// An endpoint on another node; nothing if the snapshot does not tell of network or node.
fn remote(state: &mut State, snapshot: &Snapshot, backends: &Backends<'_>, endpoint: &Endpoint) {
    let network = snapshot.networks.get(&endpoint.network);
    let (Some(network), Some(node)) = (network, snapshot.nodes.get(&endpoint.node)) else {
        return;
    };
    state
        .entry(Key::Map(MapKey::Endpoint(network.vni, endpoint.address)))
        .or_insert_with(|| place(snapshot, backends, endpoint, None, node.address));
}

/// Where an endpoint is and what it serves, as an entry of `ENDPOINTS`.
fn place(
    snapshot: &Snapshot,
    backends: &Backends<'_>,
    endpoint: &Endpoint,
    link: Option<String>,
    vtep: Ipv4Addr,
) -> Value {
    let serves = if backends.contains(endpoint) {
        service::serves(snapshot, endpoint)
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    let eligible = backends.is_eligible(endpoint);
    Value::Endpoint { mac: endpoint.mac, link, vtep, serves, eligible }
}

/// The way out for networks that are not internal: routed by the host and
/// masqueraded; nothing is let in but replies.
fn egress(state: &mut State, me: &Me, outward: &BTreeSet<Ipv4Network>) {
    if outward.is_empty() {
        return;
    }
    state.insert(Key::Sysctl(Ns::Host, me.uplink.clone(), Sysctl::Forwarding), Value::Present);
    let masquerade =
        outward.iter().map(|subnet| format!("ip saddr {subnet} oifname != \"{LINK_PREFIX}*\""));
    state.insert(
        Key::Nftables(Ns::Host),
        Value::Ruleset(ruleset::table(
            &ruleset::only_replies(&format!("{LINK_PREFIX}*")),
            masquerade,
        )),
    );
}
