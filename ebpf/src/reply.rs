//! What a backend sends, where it answers a flow that was translated for it: its source
//! becomes the address that the client called, and it goes to the client, or to the node
//! where the client came into the mesh.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Flow, FlowKey, GATEWAY_MAC, Kind, Port};

use crate::encap::{self, Hop};
use crate::flow::Event;
use crate::headers::{ETHERNET, Ethernet, ICMP, Ipv4};
use crate::packet::Packet;
use crate::rewrite::{self, Tuple};
use crate::service::Caller;
use crate::verdict::{Outcome, Verdict};
use crate::{apart, exit, fragments, icmp_error, maps, mtu};

/// Whether the packet of the backend behind `port`, which has header `ip`, answers a
/// translated flow; then that is in `flow`.
///
/// # Errors
/// `DropMalformed` if it is too short to tell.
#[inline(always)]
pub(crate) fn is_answer(
    packet: &mut Packet,
    port: &Port,
    ip: &Ipv4,
    flow: &mut Flow,
) -> Result<bool, Counter> {
    match netagent_find_reply(packet.context(), port, ip, flow) {
        NONE => Ok(false),
        FOUND => Ok(true),
        _ => Err(Counter::DropMalformed),
    }
}

const NONE: u32 = 0;
const FOUND: u32 = 1;
const MALFORMED: u32 = 2;

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_find_reply(
    skb: *mut __sk_buff,
    port: *const Port,
    ip: *const Ipv4,
    flow: *mut Flow,
) -> u32 {
    let run = || {
        let (port, ip) = (apart::get(port)?, apart::get(ip)?);
        find(&mut Packet::of(skb), port, ip, apart::get_mut(flow)?)
    };
    match run() {
        Ok(false) => NONE,
        Ok(true) => FOUND,
        Err(_) => MALFORMED,
    }
}

/// Finds the way back, into `flow`. False if it is the way that the packet goes anyway.
#[inline(always)]
fn find(packet: &mut Packet, port: &Port, ip: &Ipv4, flow: &mut Flow) -> Result<bool, Counter> {
    if ip.protocol == ICMP {
        let Some(quoted) = icmp_error::quoted(packet, ETHERNET, ip) else { return Ok(false) };
        let tuple = quoted.tuple.reversed();
        let Some(found) = maps::flow(&key(port, quoted.ip.protocol, &tuple)) else {
            return Ok(false);
        };
        *flow = found.get();
        return Ok(is_translated(port, &tuple, flow));
    }
    if !Caller::may_send(ip.protocol) {
        return Ok(false);
    }
    if ip.is_later_fragment() {
        let Some(found) = fragments::recall(port.vni, ip) else { return Ok(false) };
        *flow = found.get();
        return Ok(true);
    }
    let tuple = Tuple::of(packet, ETHERNET, ip)?;
    let Some(found) = maps::flow(&key(port, ip.protocol, &tuple)) else { return Ok(false) };
    *flow = found.get();
    let event = Event::of(packet, ETHERNET, ip)?;
    if (found.silent(event.now) != 0 || event.ends)
        && let Some(inwards) = maps::flow(&in_key(port, ip.protocol, &tuple, flow))
    {
        inwards.touch(&event);
    }
    found.touch(&event);
    if !is_translated(port, &tuple, flow) {
        return Ok(false);
    }
    fragments::remember(port.vni, ip, found);
    Ok(true)
}

/// `tuple` is what the backend sends.
#[inline(always)]
fn key(port: &Port, protocol: u8, tuple: &Tuple) -> FlowKey {
    FlowKey {
        client: tuple.dst,
        called: tuple.src,
        client_port: tuple.dport,
        port: tuple.sport,
        ..FlowKey::new(Kind::Out, port.vni, protocol)
    }
}

/// The other entry of the same flow.
#[inline(always)]
fn in_key(port: &Port, protocol: u8, tuple: &Tuple, flow: &Flow) -> FlowKey {
    FlowKey {
        via: flow.via,
        client: flow.client,
        called: flow.ip,
        backend: port.ip,
        client_port: flow.port,
        port: tuple.sport,
        ..FlowKey::new(Kind::In, port.vni, protocol)
    }
}

#[inline(always)]
fn is_translated(port: &Port, tuple: &Tuple, flow: &Flow) -> bool {
    flow.via != [0; 4] || flow.ip != port.ip || flow.client != tuple.dst || flow.port != tuple.dport
}

/// Sends it on as an answer of this flow.
#[inline(always)]
pub(crate) fn send(packet: &mut Packet, port: &Port, ip: &Ipv4, flow: &Flow) -> Outcome {
    if !mtu::fits(packet, ip, port.mtu)? {
        return mtu::fragmentation_needed(packet, port);
    }
    translate(packet, ip, flow)?;
    if flow.via != [0; 4] {
        let config = maps::config().ok_or(Counter::DropRefused)?;
        if flow.via == config.advertised {
            let call = maps::call().ok_or(Counter::DropRefused)?;
            call.ip = ip.readdressed([flow.ip, flow.client]);
            call.caller = Caller::endpoint(port);
            return exit::leave(packet, call);
        }
        let hop = Hop { vni: port.vni, src: port.mac, dst: GATEWAY_MAC, vtep: flow.via };
        return encap::carry(packet, &hop, ip.tos);
    }
    let to = maps::endpoint(port.vni, flow.client).ok_or(Counter::DropUnknownDestination)?;
    if to.ifindex == 0 {
        let hop = Hop { vni: port.vni, src: port.mac, dst: to.mac, vtep: to.vtep };
        return encap::carry(packet, &hop, ip.tos);
    }
    // To a workload, the service is at one place.
    let src = maps::endpoint(port.vni, flow.ip).map_or(port.mac, |called| called.mac);
    packet.store(0, &Ethernet::ipv4(to.mac, src))?;
    Ok(Verdict::Deliver { ifindex: to.ifindex, counter: Counter::DeliveredLocally })
}

#[inline(always)]
fn translate(packet: &mut Packet, ip: &Ipv4, flow: &Flow) -> Result<(), Counter> {
    apart::decode(netagent_translate_reply(packet.context(), ip, flow))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_translate_reply(
    skb: *mut __sk_buff,
    ip: *const Ipv4,
    flow: *const Flow,
) -> u32 {
    let run = || outwards(&mut Packet::of(skb), apart::get(ip)?, apart::get(flow)?);
    apart::encode(run())
}

#[inline(always)]
fn outwards(packet: &mut Packet, ip: &Ipv4, flow: &Flow) -> Result<(), Counter> {
    if let Some(quoted) = icmp_error::quoted(packet, ETHERNET, ip) {
        let new =
            Tuple { src: flow.client, dst: flow.ip, sport: flow.port, dport: quoted.tuple.dport };
        let outside = [flow.ip, flow.client];
        return icmp_error::rewrite(packet, ETHERNET, ip, outside, &quoted, &new);
    }
    let old = if ip.is_later_fragment() {
        Tuple { src: ip.src, dst: ip.dst, sport: flow.port, dport: flow.port }
    } else {
        Tuple::of(packet, ETHERNET, ip)?
    };
    let new = Tuple { src: flow.ip, dst: flow.client, sport: old.sport, dport: flow.port };
    rewrite::rewrite(packet, ETHERNET, ip, &old, &new)
}
