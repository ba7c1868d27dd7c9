//! tc ingress of the host side of an endpoint's veth: what a workload sends. It is taken
//! for nobody but itself, and only its network is open to it; beyond that, what the
//! host's own rules allow.

use netagent_common::{Counter, Flow, GATEWAY_MAC, Port};

use crate::encap::{self, Hop};
use crate::entry::{self, Outside};
use crate::headers::{ETHERNET, Ethernet, IPV4, Ipv4, TYPE_ARP, TYPE_IPV4, UDP};
use crate::packet::Packet;
use crate::service::Caller;
use crate::verdict::{Outcome, Verdict};
use crate::{arp, backend, gateway, maps, mtu, reply, service};

#[inline(always)]
pub(crate) fn handle(packet: &mut Packet) -> Outcome {
    let port = maps::port(packet.ifindex()).ok_or(Counter::DropUnknownPort)?;
    packet.linear(ETHERNET)?;
    if packet.at::<Ethernet>(0)?.src != port.mac {
        return Err(Counter::DropSpoofedMac);
    }
    match packet.ethertype() {
        Some(TYPE_IPV4) => ipv4(packet, port),
        Some(TYPE_ARP) => arp::from_endpoint(packet, port),
        _ => Err(Counter::DropOtherProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, port: &Port) -> Outcome {
    packet.linear(ETHERNET + IPV4)?;
    let ip = packet.ipv4(ETHERNET)?;
    if ip.src != port.ip {
        return Err(Counter::DropSpoofedAddress);
    }
    match ip.dst[0] {
        // "This" network and loopback never stand in a packet (RFC 1122, 3.2.1.3).
        0 | 127 => return Err(Counter::DropMalformed),
        224.. => return Err(Counter::DropMulticast),
        _ => {}
    }
    if port.flags & Port::BACKEND != 0 {
        let mut flow = Flow::default();
        if reply::is_answer(packet, port, &ip, &mut flow)? {
            return reply::send(packet, port, &ip, &flow);
        }
    }
    if ip.dst == port.gateway {
        return gateway::echo(packet, port, GATEWAY_MAC);
    }
    let Some(to) = maps::endpoint(port.vni, ip.dst) else {
        return leave(packet, port, &ip);
    };
    if !mtu::fits(packet, &ip, port.mtu)? {
        return mtu::fragmentation_needed(packet, port);
    }
    if to.is_vip() {
        return service::call(packet, port, &ip, to);
    }
    if to.ifindex == 0 {
        let hop = Hop { vni: port.vni, src: port.mac, dst: to.mac, vtep: to.vtep };
        return encap::push(packet, &hop, ip.tos);
    }
    if to.is_backend() {
        backend::translate(packet, &Caller::endpoint(port), &ip, ip.dst)?;
    }
    let ethernet = Ethernet::ipv4(to.mac, port.mac);
    packet.store(0, &ethernet)?;
    Ok(Verdict::Deliver { ifindex: to.ifindex, counter: Counter::DeliveredLocally })
}

/// Out of the network, through the gateway and the host's stack.
#[inline(always)]
fn leave(packet: &mut Packet, port: &Port, ip: &Ipv4) -> Outcome {
    match maps::network_of(ip.dst) {
        Some(vni) if vni == port.vni => return Err(Counter::DropUnknownDestination),
        Some(_) => return Err(Counter::DropOtherNetwork),
        None => {}
    }
    if port.flags & Port::INTERNAL != 0 {
        return Err(Counter::DropInternal);
    }
    if packet.at::<Ethernet>(0)?.dst != GATEWAY_MAC {
        return Err(Counter::DropUnknownDestination);
    }
    // The host would send it on as its own, so another node would take it for a
    // member's. Fragments after the first carry no port, and are nothing without it.
    let config = maps::config();
    if ip.protocol == UDP && !ip.is_later_fragment() {
        let config = config.ok_or(Counter::DropRefused)?;
        let dst = packet.load::<[u8; 2]>(ETHERNET + ip.header_len() + 2)?;
        if dst == config.port_be() || config.is_encrypted(dst) {
            return Err(Counter::DropForgedTunnel);
        }
    }
    let pass = Ok(Verdict::Pass(Counter::PassedToHost));
    let Some(config) = config else { return pass };
    let from = Outside { link: packet.ifindex(), vtep: config.advertised };
    entry::enter(packet, from).unwrap_or(pass)
}
