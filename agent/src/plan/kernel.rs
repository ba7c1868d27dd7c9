//! The state of the kernel datapath: a bridge and a vxlan device per network with
//! permanent FDB and neighbour entries, all in one namespace of the node's own,
//! where no firewall of the host's sees bridged packets.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv4Network;

use crate::model::{Mac, Network, Snapshot, Workload};

use super::state::{Key, LINK_PREFIX, Link, Ns, State, Sysctl, Value};
use super::{Me, inside, names, ruleset};

/// Host side of the way out of the bridges' namespace.
const EGRESS_HOST: &str = "na-egress";
/// The other side.
const EGRESS: &str = "egress";
/// Addresses of the way out: link-local (RFC 3927), seen by nobody else.
const EGRESS_HOST_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 78, 1);
const EGRESS_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 78, 2);
const EGRESS_PREFIX: u8 = 30;

pub(super) fn desired(snapshot: &Snapshot, workloads: &[Workload], me: &Me) -> State {
    let mut state = State::new();
    let Some(cluster) = &snapshot.cluster else { return state };
    let namespace = names::bridges(&me.id);
    let bridges = Ns::At(Path::new("/run/netns").join(&namespace));
    let mut outward = Vec::new();
    for (workload, attachment, network) in inside::attachments(snapshot, workloads) {
        if network.encrypted {
            // Nothing here would keep it from leaving in clear; the manager gives this node
            // no endpoint on such a network.
            continue;
        }
        let bridge = names::bridge(network.vni);
        if !state.contains_key(&Key::Link(bridges.clone(), bridge.clone())) {
            add_network(&mut state, snapshot, me, &bridges, network, cluster.data_path_port);
            if !network.internal {
                outward.push(bridge.clone());
            }
        }
        state.insert(
            Key::Link(bridges.clone(), names::endpoint_link(&attachment.endpoint.id)),
            Value::Link(Link::Veth {
                mac: Mac(netagent_common::GATEWAY_MAC),
                mtu: snapshot.mtu(network),
                master: Some(bridge),
                peer_ns: Ns::At(workload.netns.clone()),
                peer: attachment.interface.clone(),
                peer_mac: attachment.endpoint.mac,
            }),
        );
        inside::configure(&mut state, workload, attachment, network);
    }
    if state.is_empty() {
        return state;
    }
    state.insert(Key::Namespace(namespace), Value::Present);
    outward.sort();
    egress(&mut state, me, &bridges, &outward, cluster.data_path_port);
    let masquerade = (!outward.is_empty())
        .then(|| format!("ip saddr {EGRESS_IP} oifname != \"{LINK_PREFIX}*\""));
    // The kernel's vxlan device takes packets from anybody.
    state.insert(
        Key::Nftables(Ns::Host),
        Value::Ruleset(ruleset::guarded(
            cluster.data_path_port,
            &snapshot.nodes.values().map(|n| n.address).collect(),
            &ruleset::only_replies(&format!("{LINK_PREFIX}*")),
            masquerade,
        )),
    );
    state
}

fn add_network(
    state: &mut State,
    snapshot: &Snapshot,
    me: &Me,
    bridges: &Ns,
    network: &Network,
    port: u16,
) {
    let mtu = snapshot.mtu(network);
    let bridge = names::bridge(network.vni);
    let vxlan = names::vxlan(network.vni);
    state.insert(
        Key::Link(bridges.clone(), bridge.clone()),
        Value::Link(Link::Bridge { mac: Mac(netagent_common::GATEWAY_MAC), mtu }),
    );
    state.insert(
        Key::Link(bridges.clone(), vxlan.clone()),
        Value::Link(Link::Vxlan {
            vni: network.vni,
            port,
            local: me.vtep,
            mtu,
            master: bridge.clone(),
        }),
    );
    let gateway = Ipv4Network::new(network.gateway, network.subnet.prefix())
        .expect("the prefix comes from a network");
    state.insert(Key::Address(bridges.clone(), bridge.clone(), gateway), Value::Present);
    if !network.internal {
        state.insert(Key::Sysctl(bridges.clone(), bridge, Sysctl::Forwarding), Value::Present);
    }
    for endpoint in snapshot.endpoints_on(&network.id).filter(|e| e.node != me.id) {
        let Some(node) = snapshot.nodes.get(&endpoint.node) else { continue };
        state.insert(
            Key::Neighbour(bridges.clone(), vxlan.clone(), endpoint.address),
            Value::Mac(endpoint.mac),
        );
        state.insert(
            Key::Fdb(bridges.clone(), vxlan.clone(), endpoint.mac),
            Value::Vtep(node.address),
        );
    }
}

/// The way out: a veth from the bridges' namespace to the host. What leaves is
/// masqueraded twice, so that the host needs no route to any overlay network.
fn egress(state: &mut State, me: &Me, bridges: &Ns, outward: &[String], port: u16) {
    if outward.is_empty() {
        return;
    }
    state.insert(
        Key::Link(Ns::Host, EGRESS_HOST.to_owned()),
        Value::Link(Link::Veth {
            mac: Mac::of(EGRESS_HOST_IP),
            mtu: 1500,
            master: None,
            peer_ns: bridges.clone(),
            peer: EGRESS.to_owned(),
            peer_mac: Mac::of(EGRESS_IP),
        }),
    );
    for (ns, link, ip) in
        [(Ns::Host, EGRESS_HOST, EGRESS_HOST_IP), (bridges.clone(), EGRESS, EGRESS_IP)]
    {
        let address = Ipv4Network::new(ip, EGRESS_PREFIX).expect("30 is a prefix length");
        state.insert(Key::Address(ns.clone(), link.to_owned(), address), Value::Present);
        state.insert(Key::Sysctl(ns, link.to_owned(), Sysctl::Forwarding), Value::Present);
    }
    state.insert(Key::Sysctl(Ns::Host, me.uplink.clone(), Sysctl::Forwarding), Value::Present);
    state.insert(
        Key::Route(bridges.clone(), inside::default_route()),
        Value::Route { link: EGRESS.to_owned(), gateway: Some(EGRESS_HOST_IP), source: None },
    );
    let mut isolation: Vec<_> = outward
        .iter()
        .map(|bridge| format!("iifname \"{bridge}\" oifname != \"{EGRESS}\" drop"))
        .collect();
    isolation.extend(ruleset::only_replies("br*"));
    // The host would send it on as its own, so another node would take it for a member's.
    isolation.push(format!("udp dport {port} drop"));
    state.insert(
        Key::Nftables(bridges.clone()),
        Value::Ruleset(ruleset::table(&isolation, [format!("oifname \"{EGRESS}\"")])),
    );
}
