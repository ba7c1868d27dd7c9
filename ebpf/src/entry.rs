//! The routing mesh, inwards: what somebody outside of all networks sends to a published
//! port becomes a packet to the service, and is carried as any client's is. The client
//! keeps its address; its port changes only if the service would see two clients as one.
//!
//! The host's own clients and the workloads of this node come in here too, as this node:
//! their own addresses say nothing, or something wrong, elsewhere.
//!
//! What `exit.rs` needs for the way back is written here.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use netagent_common::{Counter, Flow, FlowKey, GATEWAY_MAC, Kind};

use crate::apart::{self, OTHER};
use crate::choose::{self, Choice};
use crate::flow::now;
use crate::headers::{ETHERNET, ICMP, Ipv4};
use crate::icmp_error::{self, quoted};
use crate::packet::Packet;
use crate::rewrite::{Tuple, rewrite};
use crate::service::{self, Caller};
use crate::unreachable::Unreachable;
use crate::verdict::{Outcome, Verdict};
use crate::{exit, fragments, maps, mtu};

/// Other ports that are tried if a client's own is taken.
const TRIES: u32 = 16;

/// The ports that they are taken from.
const PORTS: core::ops::RangeInclusive<u16> = 1024..=u16::MAX;

/// A flow that nobody has spoken in for so many seconds gives up its port to one that
/// finds no other.
const IDLE: u32 = 900;

/// Where a client outside of all networks is.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Outside {
    /// The interface behind which it is; 0 for the uplink.
    pub(crate) link: u32,
    /// Tunnel address of this node, as the others know it.
    pub(crate) vtep: [u8; 4],
}

/// What is known of a packet on its way in or out. It lies in a map of its own, one for each
/// processor: the stack is too small for what happens below.
#[repr(C)]
pub(crate) struct Call {
    from: Outside,
    /// Its header; on the way in first as it came, then as the service sees it.
    pub(crate) ip: Ipv4,
    /// Whom it is from and for, as it came.
    pub(crate) tuple: Tuple,
    /// The flow that it is of.
    pub(crate) flow: Flow,
    /// Who calls, on the way in.
    pub(crate) caller: Caller,
    choice: Choice,
}

/// What becomes of an IPv4 packet that is for this host, or seems to be; `None` if it is not
/// of the mesh.
#[inline(always)]
pub(crate) fn enter(packet: &mut Packet, from: Outside) -> Option<Outcome> {
    let call = maps::call()?;
    call.from = from;
    call.ip = packet.at::<Ipv4>(ETHERNET).ok()?;
    let code = if call.ip.protocol == ICMP {
        netagent_enter_error(packet.context(), call)
    } else {
        netagent_enter(packet.context(), call)
    };
    if code == OTHER { None } else { Some(go_on(packet, call, code)) }
}

/// As far as [`netagent_enter`] got.
#[inline(always)]
fn go_on(packet: &mut Packet, call: &mut Call, code: u32) -> Outcome {
    match code {
        TOO_BIG => return too_big(packet, call),
        NEW => {
            apart::decode(netagent_entry_flow(call))?;
            apart::decode(netagent_enter_packet(packet.context(), call))?;
        }
        code => apart::decode(code)?,
    }
    carry(packet, call)
}

/// Carries on what is a packet to the service by now.
#[inline(always)]
fn carry(packet: &mut Packet, call: &mut Call) -> Outcome {
    call.caller = Caller::new(call.flow.vni, call.from.vtep, GATEWAY_MAC);
    call.choice = Choice::NONE;
    if call.from.link == exit::LOOPBACK {
        packet.forget_route()?;
    }
    let to = maps::endpoint(call.flow.vni, call.flow.ip).ok_or(Counter::DropNoBackend)?;
    if to.is_vip() {
        choose::choose(packet, &call.caller, &call.ip, &mut call.choice)?;
    } else {
        // Published by this very backend, for its own node alone.
        call.choice.backend = call.flow.ip;
    }
    let counter = Counter::EnteredMesh;
    match service::carry_on(packet, &call.caller, &call.ip, &call.choice)? {
        Verdict::Send { uplink, neighbour, .. } => Ok(Verdict::Send { uplink, neighbour, counter }),
        Verdict::Deliver { ifindex, .. } => Ok(Verdict::Deliver { ifindex, counter }),
        verdict => Ok(verdict),
    }
}

/// Tells the client about the packet as it has sent it.
#[inline(always)]
fn too_big(packet: &mut Packet, call: &Call) -> Outcome {
    let Tuple { src, dst, dport, .. } = call.tuple;
    let published = maps::published(dst, call.ip.protocol, dport).ok_or(Counter::DropTooBig)?;
    let answer = Unreachable {
        code: Unreachable::FRAGMENTATION_NEEDED,
        from: dst,
        to: src,
        mtu: published.mtu,
    };
    answer.send(packet)?;
    exit::hand_over(packet, call.from.link, src, Counter::FragNeeded)
}

/// What [`netagent_enter`] returns, beside [`OTHER`] for what is not of the mesh, for what its
/// sender is to send in smaller pieces.
const TOO_BIG: u32 = OTHER - 1;
/// For what belongs to a flow that is yet to be found.
const NEW: u32 = OTHER - 2;

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_enter(skb: *mut __sk_buff, call: *mut Call) -> u32 {
    let Ok(call) = apart::get_mut(call) else { return OTHER };
    look(&mut Packet::of(skb), call).unwrap_or_else(|reason| apart::encode(Err(reason)))
}

/// Whether a packet is of the mesh, as [`netagent_enter`] returns it. A fragment after the
/// first says nothing of ports, and is made one to the service here.
#[inline(always)]
fn look(packet: &mut Packet, call: &mut Call) -> Result<u32, Counter> {
    let ip = call.ip;
    if !Caller::may_send(ip.protocol) {
        return Ok(OTHER);
    }
    if ip.is_later_fragment() {
        let Some(flow) = fragments::recall(0, &ip) else { return Ok(OTHER) };
        call.flow = flow.get();
        let new = seen(&call.flow);
        call.tuple = Tuple { src: ip.src, dst: ip.dst, ..new };
        return Ok(netagent_enter_packet(packet.context(), call));
    }
    // One that is too short to say what it is for is the stack's to count.
    let Ok(tuple) = Tuple::of(packet, ETHERNET, &ip) else { return Ok(OTHER) };
    let Some(published) = maps::published(tuple.dst, ip.protocol, tuple.dport) else {
        return Ok(OTHER);
    };
    // The flows that it has go on; what begins another finds no port.
    if published.is_draining() && maps::flow(&entry_key(ip.protocol, &tuple)).is_none() {
        return Ok(OTHER);
    }
    call.tuple = tuple;
    if !maps::is_allowed(published.allowed, ip.src) {
        return Err(Counter::DropNotAllowed);
    }
    Ok(if mtu::fits(packet, &ip, published.mtu)? { NEW } else { TOO_BIG })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_enter_packet(skb: *mut __sk_buff, call: *mut Call) -> u32 {
    let run = || translate(&mut Packet::of(skb), apart::get_mut(call)?);
    apart::encode(run())
}

/// Makes the packet one of its flow to the service.
#[inline(always)]
fn translate(packet: &mut Packet, call: &mut Call) -> Result<(), Counter> {
    let new = seen(&call.flow);
    rewrite(packet, ETHERNET, &call.ip, &call.tuple, &new)?;
    call.ip = call.ip.readdressed(new.addresses());
    Ok(())
}

/// What the service sees of a flow.
#[inline(always)]
fn seen(flow: &Flow) -> Tuple {
    Tuple { src: flow.client, dst: flow.ip, sport: flow.port, dport: flow.other_port }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_enter_error(skb: *mut __sk_buff, call: *mut Call) -> u32 {
    let Ok(call) = apart::get_mut(call) else { return OTHER };
    error(&mut Packet::of(skb), call).unwrap_or_else(|reason| apart::encode(Err(reason)))
}

/// An error about what a published port has sent: from the client, or from a router.
#[inline(always)]
fn error(packet: &mut Packet, call: &mut Call) -> Result<u32, Counter> {
    let Some(quoted) = quoted(packet, ETHERNET, &call.ip) else { return Ok(OTHER) };
    let key = entry_key(quoted.ip.protocol, &quoted.tuple.reversed());
    let Some(flow) = maps::flow(&key) else { return Ok(OTHER) };
    call.flow = flow.get();
    let from_client = call.ip.src == quoted.tuple.dst;
    let src = if from_client { call.flow.client } else { call.ip.src };
    let new = seen(&call.flow).reversed();
    icmp_error::rewrite(packet, ETHERNET, &call.ip, [src, call.flow.ip], &quoted, &new)?;
    call.ip = call.ip.readdressed([src, call.flow.ip]);
    Ok(apart::encode(Ok(())))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_entry_flow(call: *mut Call) -> u32 {
    let run = || find(apart::get_mut(call)?);
    apart::encode(run())
}

/// Finds the flow that a packet is of, which may begin with it.
///
/// # Errors
/// `DropNoPort` if no port is free under which the service could tell it from others.
#[inline(always)]
fn find(call: &mut Call) -> Result<(), Counter> {
    let Call { from, ip, tuple, flow, .. } = call;
    let published =
        maps::published(tuple.dst, ip.protocol, tuple.dport).ok_or(Counter::DropNoBackend)?;
    let key = entry_key(ip.protocol, tuple);
    let now = now();
    let mut port = tuple.sport;
    if let Some(entry) = maps::flow(&key) {
        *flow = entry.get();
        let leads_there = flow.vni == published.vni
            && flow.ip == published.ip
            && flow.other_port == published.port_be()
            && flow.link == from.link;
        if leads_there {
            if flow.seen == now {
                fragments::remember(0, ip, entry);
                return Ok(());
            }
            // Once a second is often enough to see that the way back is still known.
            port = flow.port;
        }
    }
    *flow = Flow {
        seen: now,
        ip: published.ip,
        other_port: published.port_be(),
        client: if from.link == 0 { tuple.src } else { from.vtep },
        port,
        vni: published.vni,
        link: from.link,
        ..Flow::default()
    };
    let port = netagent_claim(tuple, ip.protocol.into(), flow);
    flow.port = u16::try_from(port).map_err(|_| Counter::DropNoPort)?.to_be_bytes();
    maps::remember(&key, &apart::own(flow));
    if let Some(entry) = maps::flow(&key) {
        fragments::remember(0, ip, entry);
    }
    Ok(())
}

/// Writes the way back of `flow`, which `tuple` is of, and gives it another port if that
/// has another flow already. The port as a number, or what is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_claim(tuple: *const Tuple, protocol: u32, flow: *const Flow) -> u32 {
    let (Ok(tuple), Ok(flow)) = (apart::get(tuple), apart::get(flow)) else { return u32::MAX };
    let back = Flow {
        ip: tuple.dst,
        other_port: tuple.dport,
        client: tuple.src,
        port: tuple.sport,
        ..*flow
    };
    let mut key = FlowKey {
        client: flow.client,
        called: flow.ip,
        client_port: flow.port,
        port: flow.other_port,
        ..FlowKey::new(Kind::Exit, flow.vni, protocol as u8)
    };
    for _ in 0..=TRIES {
        if maps::try_remember(&key, &back, u64::from(BPF_NOEXIST)) || is_free_for(&key, &back) {
            return u32::from(u16::from_be_bytes(key.client_port));
        }
        // SAFETY: the helper takes nothing.
        let random = unsafe { bpf_get_prandom_u32() };
        let span = u32::from(PORTS.end() - PORTS.start()) + 1;
        key.client_port = (PORTS.start() + (random % span) as u16).to_be_bytes();
    }
    u32::MAX
}

/// Whether an entry that was in the way is this flow's, or nobody's any more.
#[inline(always)]
fn is_free_for(key: &FlowKey, back: &Flow) -> bool {
    let Some(entry) = maps::flow(key) else { return false };
    let other = entry.get();
    let same = other.ip == back.ip
        && other.other_port == back.other_port
        && other.client == back.client
        && other.port == back.port;
    if same || other.is_over(back.seen, IDLE) {
        return maps::try_remember(key, back, u64::from(BPF_ANY));
    }
    false
}

#[inline(always)]
fn entry_key(protocol: u8, tuple: &Tuple) -> FlowKey {
    FlowKey {
        client: tuple.src,
        client_port: tuple.sport,
        called: tuple.dst,
        port: tuple.dport,
        ..FlowKey::new(Kind::Entry, 0, protocol)
    }
}
