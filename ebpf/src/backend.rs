//! At the node of a backend, on the way in: a packet to a virtual address becomes one to
//! the backend itself. The backend sees the client's own address, and its port too unless
//! another flow has that already: one that called the backend by another address, or that
//! came into the mesh at another node. To know of these, packets that call a backend by
//! its own address are remembered in the same way.
//!
//! What was decided stands in two entries of `FLOWS`: `In`, found by what the client
//! sends, and `Out`, found by what the backend answers (`reply.rs`).

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use netagent_common::{Counter, Flow, FlowKey, Kind};

use crate::flow::{Entry, Event, now};
use crate::headers::{ETHERNET, ICMP, Ipv4, TCP};
use crate::packet::Packet;
use crate::rewrite::{self, Tuple};
use crate::service::Caller;
use crate::{apart, choose, icmp_error, maps};

/// Ports that are tried for a flow whose own one is taken.
const TRIED: u32 = 16;

/// Of these ports: above those that mean something.
const FIRST: u16 = 0x8000;

/// Seconds for which a flow that has ended keeps its port: its last packets.
const LINGER: u32 = 10;

/// Seconds for which a flow keeps its port without a packet, if its service does not say.
const IDLE: u32 = 3600;

/// Turns the packet, whose frame begins at byte 0 and which has header `ip`, into one to the
/// local endpoint with address `backend`.
///
/// # Errors
/// `DropNoPort` if no port is free, `DropUnknownFlow` for an ICMP error that belongs to no
/// known flow, `DropServiceProtocol` for what no service serves, `DropMalformed` if a header
/// is cut off, `DropRefused` if the packet cannot be written.
#[inline(always)]
pub(crate) fn translate(
    packet: &mut Packet,
    caller: &Caller,
    ip: &Ipv4,
    backend: [u8; 4],
) -> Result<(), Counter> {
    let number = u32::from_ne_bytes(backend);
    if ip.protocol == ICMP {
        return apart::decode(netagent_translate_error(packet.context(), caller, ip, number));
    }
    if !Caller::may_send(ip.protocol) {
        return if ip.dst == backend { Ok(()) } else { Err(Counter::DropServiceProtocol) };
    }
    let done = apart::decode(netagent_translate(packet.context(), caller, ip, number));
    if done != Err(Counter::DropUnknownFlow) {
        return done;
    }
    apart::decode(netagent_admit(packet.context(), caller, ip, number))?;
    apart::decode(netagent_translate(packet.context(), caller, ip, number))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_translate(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    backend: u32,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        known(&mut Packet::of(skb), caller, ip, backend.to_ne_bytes())
    };
    apart::encode(run())
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_admit(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    backend: u32,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        admit(&Packet::of(skb), caller, ip, backend.to_ne_bytes())
    };
    apart::encode(run())
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_translate_error(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    backend: u32,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        error(&mut Packet::of(skb), caller, ip, backend.to_ne_bytes())
    };
    apart::encode(run())
}

/// Translates a packet of a known flow; `DropUnknownFlow` if it is not known.
#[inline(always)]
fn known(packet: &mut Packet, caller: &Caller, ip: &Ipv4, backend: [u8; 4]) -> Result<(), Counter> {
    let source = source(caller, ip, backend)?;
    if ip.is_later_fragment() {
        let old = Tuple { src: ip.src, dst: ip.dst, sport: [0; 2], dport: [0; 2] };
        let new = Tuple { src: source, dst: backend, ..old };
        return rewrite::rewrite(packet, ETHERNET, ip, &old, &new);
    }
    let old = Tuple::of(packet, ETHERNET, ip)?;
    let event = Event::of(packet, ETHERNET, ip)?;
    let mut key = key(caller, ip.protocol, &old, backend);
    let Some(flow) = maps::flow(&key) else {
        // A connection that began before it could be remembered stays as it is.
        let stays = ip.dst == backend && ip.protocol == TCP && !event.begins;
        return if stays { Ok(()) } else { Err(Counter::DropUnknownFlow) };
    };
    let silent = flow.silent(event.now);
    flow.touch(&event);
    let sport = flow.port();
    if silent != 0 || event.begins || event.ends {
        key = out_key(&key, source, sport);
        if let Some(out) = maps::flow(&key) {
            out.touch(&event);
        }
    }
    let new = Tuple { src: source, dst: backend, sport, dport: old.dport };
    rewrite::rewrite(packet, ETHERNET, ip, &old, &new)
}

/// Remembers the new flow that the packet is of, both ways.
#[inline(always)]
fn admit(packet: &Packet, caller: &Caller, ip: &Ipv4, backend: [u8; 4]) -> Result<(), Counter> {
    let source = source(caller, ip, backend)?;
    let tuple = Tuple::of(packet, ETHERNET, ip)?;
    let key = key(caller, ip.protocol, &tuple, backend);
    let port = reserve(&key, source).ok_or(Counter::DropNoPort)?;
    let flow = Flow { seen: now(), ip: source, port, ..Flow::default() };
    maps::remember(&key, &flow);
    Ok(())
}

/// As whom the backend sees the client: a backend that calls its own service must not see
/// itself, or its answer would not leave it. It sees the gateway.
#[inline(always)]
fn source(caller: &Caller, ip: &Ipv4, backend: [u8; 4]) -> Result<[u8; 4], Counter> {
    if ip.src != backend {
        return Ok(ip.src);
    }
    Ok(maps::network(caller.vni).ok_or(Counter::DropUnknownVni)?.gateway)
}

#[inline(always)]
fn key(caller: &Caller, protocol: u8, tuple: &Tuple, backend: [u8; 4]) -> FlowKey {
    FlowKey {
        via: caller.via,
        client: tuple.src,
        called: tuple.dst,
        backend,
        client_port: tuple.sport,
        port: tuple.dport,
        ..FlowKey::new(Kind::In, caller.vni, protocol)
    }
}

/// The way back of the flow `key`, as whose client the backend sees `source`:`port`.
#[inline(always)]
fn out_key(key: &FlowKey, source: [u8; 4], port: [u8; 2]) -> FlowKey {
    FlowKey {
        client: source,
        called: key.backend,
        client_port: port,
        port: key.port,
        ..FlowKey::new(Kind::Out, key.vni, key.protocol)
    }
}

/// Finds a port for a new flow, first of all its own, and remembers the way back.
#[inline(always)]
fn reserve(key: &FlowKey, source: [u8; 4]) -> Option<[u8; 2]> {
    let now = now();
    let out = Flow {
        seen: now,
        ip: key.called,
        client: key.client,
        via: key.via,
        vni: key.vni,
        port: key.client_port,
        ..Flow::default()
    };
    for step in 0..=TRIED {
        let port = if step == 0 { key.client_port } else { another(key, step) };
        let way = out_key(key, source, port);
        if maps::try_remember(&way, &out, u64::from(BPF_NOEXIST)) {
            return Some(port);
        }
        let Some(taken) = maps::flow(&way) else { continue };
        if (taken.leads_as(&out) || is_free(key, taken, now))
            && maps::try_remember(&way, &out, u64::from(BPF_ANY))
        {
            return Some(port);
        }
    }
    None
}

/// Whether the port of the flow `taken` to the same backend may be given to another.
#[inline(always)]
fn is_free(key: &FlowKey, taken: Entry, now: u32) -> bool {
    let silent = taken.silent(now);
    if taken.state() & Flow::CLOSING != 0 {
        return silent > LINGER;
    }
    let serves = maps::endpoint(key.vni, key.backend).map_or([0; 4], |backend| backend.serves);
    silent > maps::service(key.vni, serves).map_or(IDLE, |service| service.idle)
}

/// A number of its own for each step, which differs from flow to flow.
#[inline(always)]
fn another(key: &FlowKey, step: u32) -> [u8; 2] {
    let [a, b] = key.client_port;
    let [c, d] = key.port;
    let mut hash = u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes(key.called);
    hash = (hash ^ u32::from_be_bytes(key.via)).wrapping_add(step);
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    (FIRST | (hash >> 16) as u16).to_be_bytes()
}

/// An ICMP error about what the backend sent.
#[inline(always)]
fn error(packet: &mut Packet, caller: &Caller, ip: &Ipv4, backend: [u8; 4]) -> Result<(), Counter> {
    let direct = ip.dst == backend;
    let unknown = || if direct { Ok(()) } else { Err(Counter::DropUnknownFlow) };
    let Some(quoted) = icmp_error::quoted(packet, ETHERNET, ip) else { return unknown() };
    let called = quoted.tuple.reversed();
    let Some(flow) = maps::flow(&key(caller, quoted.ip.protocol, &called, backend)) else {
        return unknown();
    };
    let flow = flow.get();
    let source = source(caller, ip, backend)?;
    let new = Tuple { src: backend, dst: flow.ip, sport: quoted.tuple.sport, dport: flow.port };
    icmp_error::rewrite(packet, ETHERNET, ip, [source, backend], &quoted, &new)
}

/// The address of the endpoint whose MAC this is, if it is one's: the agent makes the one of the
/// other.
#[inline(always)]
pub(crate) fn address([_, _, a, b, c, d]: [u8; 6]) -> [u8; 4] {
    [a, b, c, d]
}

/// The backend that is named by its MAC, if it serves `vip`.
#[inline(always)]
pub(crate) fn named(
    vni: u32,
    mac: [u8; 6],
    vip: [u8; 4],
) -> Option<([u8; 4], &'static netagent_common::Endpoint)> {
    let ip = address(mac);
    let backend = choose::serving(vni, ip, vip)?;
    (backend.mac == mac).then_some((ip, backend))
}
