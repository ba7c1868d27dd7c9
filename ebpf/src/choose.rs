//! Which backend a packet to a virtual address goes to. A flow keeps its backend as long
//! as that serves the address, healthy or not; only a new flow is scheduled. What was
//! chosen is remembered on the node that chose, and nowhere else.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Endpoint, Flow, FlowKey, Kind};

use crate::flow::{Entry, Event, now};
use crate::headers::{ETHERNET, ICMP, Ipv4};
use crate::packet::Packet;
use crate::rewrite::Tuple;
use crate::schedule::{self, Called};
use crate::service::Caller;
use crate::{apart, fragments, icmp_error, load, maps, steer};

/// What was decided about a packet.
#[repr(C)]
pub(crate) struct Choice {
    /// The backend's address; 0 if there is none yet.
    pub(crate) backend: [u8; 4],
    /// IPVS is to be asked.
    pub(crate) ask: bool,
    /// IPVS is to be told of the packet.
    pub(crate) tell: bool,
}

impl Choice {
    /// Before anything was decided.
    pub(crate) const NONE: Self = Self { backend: [0; 4], ask: false, tell: false };
}

/// Chooses for the packet, whose frame begins at byte 0 and which has header `ip`.
///
/// # Errors
/// `DropNoBackend` if there is none, `DropUnknownFlow` for a later fragment or an ICMP error
/// that belongs to no known flow, `DropServiceProtocol` for what no service serves,
/// `DropMalformed` if a header is cut off.
#[inline(always)]
pub(crate) fn choose(
    packet: &mut Packet,
    caller: &Caller,
    ip: &Ipv4,
    choice: &mut Choice,
) -> Result<(), Counter> {
    if ip.protocol == ICMP {
        choice.backend = netagent_choose_error(packet.context(), caller, ip).to_ne_bytes();
        return if choice.backend == [0; 4] { Err(Counter::DropUnknownFlow) } else { Ok(()) };
    }
    if !Caller::may_send(ip.protocol) {
        return Err(Counter::DropServiceProtocol);
    }
    apart::decode(netagent_choose_known(packet.context(), caller, ip, choice))?;
    if choice.backend != [0; 4] {
        return Ok(());
    }
    apart::decode(netagent_choose_new(packet.context(), caller, ip, choice))?;
    if choice.ask { Ok(()) } else { begin(packet, caller, ip, choice.backend) }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_choose_known(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    choice: *mut Choice,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        known(&Packet::of(skb), caller, ip, apart::get_mut(choice)?)
    };
    apart::encode(run())
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_choose_new(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    choice: *mut Choice,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        new(&Packet::of(skb), caller, ip, apart::get_mut(choice)?)
    };
    apart::encode(run())
}

/// The backend of a flow that is known and goes on.
#[inline(always)]
fn known(packet: &Packet, caller: &Caller, ip: &Ipv4, choice: &mut Choice) -> Result<(), Counter> {
    if ip.is_later_fragment() {
        let flow = fragments::recall(caller.vni, ip).ok_or(Counter::DropUnknownFlow)?;
        choice.backend = flow.ip();
        return Ok(());
    }
    let tuple = Tuple::of(packet, ETHERNET, ip)?;
    let event = Event::of(packet, ETHERNET, ip)?;
    let key = key(caller, ip.protocol, &tuple);
    let Some(flow) = maps::flow(&key) else { return Ok(()) };
    let goes_on = goes_on(caller, &tuple, flow, &event);
    if flow.state() & Flow::CLOSING == 0 && (event.ends || !goes_on) {
        load::end(caller.vni, flow.ip());
    }
    if !goes_on {
        maps::forget(&key);
        return Ok(());
    }
    choice.backend = flow.ip();
    choice.tell = steer::tells(&tuple, ip, flow, &event);
    flow.touch(&event);
    fragments::remember(caller.vni, ip, flow);
    Ok(())
}

/// Whether the packet is of the flow that `flow` stands for, and this goes on.
#[inline(always)]
fn goes_on(caller: &Caller, tuple: &Tuple, flow: Entry, event: &Event) -> bool {
    let Some(backend) = serving(caller.vni, flow.ip(), tuple.dst) else { return false };
    // A SYN that comes again is the same flow's, unless that has ended.
    if event.begins && (flow.state() & Flow::CLOSING != 0 || !backend.is_eligible()) {
        return false;
    }
    let silent = flow.silent(event.now);
    silent <= 1 || maps::service(caller.vni, tuple.dst).is_none_or(|service| silent <= service.idle)
}

/// A backend for a new flow.
#[inline(always)]
fn new(packet: &Packet, caller: &Caller, ip: &Ipv4, choice: &mut Choice) -> Result<(), Counter> {
    let tuple = Tuple::of(packet, ETHERNET, ip)?;
    let called = Called { vni: caller.vni, vip: tuple.dst, client: tuple.src };
    let service = maps::service(called.vni, called.vip).ok_or(Counter::DropNoBackend)?;
    if let Some(kept) = schedule::kept(&called, service, now()) {
        choice.backend = kept;
    } else if service.slots != 0 && steer::schedules(&tuple, ip) {
        choice.ask = true;
    } else {
        choice.backend = schedule::next(&called).ok_or(Counter::DropNoBackend)?;
    }
    Ok(())
}

/// Remembers that the new flow that the packet is of goes to `backend`.
///
/// # Errors
/// `DropNoBackend` if the service went in this instant, `DropMalformed` if a header is cut
/// off.
#[inline(always)]
pub(crate) fn begin(
    packet: &mut Packet,
    caller: &Caller,
    ip: &Ipv4,
    backend: [u8; 4],
) -> Result<(), Counter> {
    let backend = u32::from_ne_bytes(backend);
    apart::decode(netagent_begin(packet.context(), caller, ip, backend))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_begin(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
    backend: u32,
) -> u32 {
    let run = || {
        let (caller, ip) = (apart::get(caller)?, apart::get(ip)?);
        begun(&Packet::of(skb), caller, ip, backend.to_ne_bytes())
    };
    apart::encode(run())
}

#[inline(always)]
fn begun(packet: &Packet, caller: &Caller, ip: &Ipv4, backend: [u8; 4]) -> Result<(), Counter> {
    let tuple = Tuple::of(packet, ETHERNET, ip)?;
    let event = Event::of(packet, ETHERNET, ip)?;
    let called = Called { vni: caller.vni, vip: tuple.dst, client: tuple.src };
    let service = maps::service(called.vni, called.vip).ok_or(Counter::DropNoBackend)?;
    let state = if event.ends { Flow::CLOSING } else { 0 };
    let now = event.now;
    let flow = Flow { seen: now, state, ip: backend, link: now, ..Flow::default() };
    let key = key(caller, ip.protocol, &tuple);
    maps::remember(&key, &flow);
    if !event.ends {
        load::begin(called.vni, backend);
    }
    schedule::keep(&called, service, backend, now);
    if let Some(flow) = maps::flow(&key) {
        fragments::remember(called.vni, ip, flow);
    }
    Ok(())
}

/// The key under which the choice for this flow is remembered.
#[inline(always)]
pub(crate) fn key(caller: &Caller, protocol: u8, tuple: &Tuple) -> FlowKey {
    FlowKey {
        client: tuple.src,
        called: tuple.dst,
        client_port: tuple.sport,
        port: tuple.dport,
        ..FlowKey::new(Kind::Choice, caller.vni, protocol)
    }
}

/// The endpoint with address `ip`, if it serves `vip`.
#[inline(always)]
pub(crate) fn serving(vni: u32, ip: [u8; 4], vip: [u8; 4]) -> Option<&'static Endpoint> {
    maps::endpoint(vni, ip).filter(|endpoint| endpoint.serves == vip)
}

/// An ICMP error of the client goes where the packet came from that it is about: that
/// address as a number, 0 if none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_choose_error(
    skb: *mut __sk_buff,
    caller: *const Caller,
    ip: *const Ipv4,
) -> u32 {
    let (Ok(caller), Ok(ip)) = (apart::get(caller), apart::get(ip)) else { return 0 };
    let Some(quoted) = icmp_error::quoted(&Packet::of(skb), ETHERNET, ip) else { return 0 };
    let tuple = quoted.tuple.reversed();
    // Who is called is whom the packet goes to, whatever it quotes.
    if tuple.dst != ip.dst {
        return 0;
    }
    let flow = maps::flow(&key(caller, quoted.ip.protocol, &tuple));
    flow.map_or(0, |flow| u32::from_ne_bytes(flow.ip()))
}
