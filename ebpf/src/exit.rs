//! The routing mesh, outwards: what a service answers to a client outside of all networks
//! leaves this node as an answer of the published port that the client has called.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Flow, FlowKey, GATEWAY_MAC, Kind};

use crate::entry::Call;
use crate::flow::{Entry, now};
use crate::headers::{ETHERNET, Ethernet, ICMP};
use crate::icmp_error::{self, quoted};
use crate::packet::Packet;
use crate::rewrite::{Tuple, rewrite};
use crate::service::Caller;
use crate::verdict::{Outcome, Verdict};
use crate::{apart, fragments, maps};

/// The loopback device's index in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Sends a packet on that a service has sent to a client of this node's ports, in the
/// network of `call.caller` and with header `call.ip`.
///
/// # Errors
/// `DropUnknownFlow` if no client has asked for it.
#[inline(always)]
pub(crate) fn leave(packet: &mut Packet, call: &mut Call) -> Outcome {
    let code = if call.ip.protocol == ICMP {
        netagent_leave_error(packet.context(), call)
    } else {
        netagent_leave(packet.context(), call)
    };
    apart::decode(code)?;
    hand_over(packet, call.flow.link, call.flow.client, Counter::LeftMesh)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_leave(skb: *mut __sk_buff, call: *mut Call) -> u32 {
    let run = || translate(&mut Packet::of(skb), apart::get_mut(call)?);
    apart::encode(run())
}

/// Makes a packet what the client is to see.
#[inline(always)]
fn translate(packet: &mut Packet, call: &mut Call) -> Result<(), Counter> {
    let Call { ip, flow, tuple, caller: Caller { vni, .. }, .. } = call;
    let entry = if ip.is_later_fragment() {
        let entry = fragments::recall(*vni, ip).ok_or(Counter::DropUnknownFlow)?;
        *tuple = Tuple { src: ip.src, dst: ip.dst, ..seen(&entry.get()) };
        entry
    } else {
        *tuple = Tuple::of(packet, ETHERNET, ip)?;
        let entry = find(*vni, ip.protocol, tuple)?;
        entry.refresh(now());
        fragments::remember(*vni, ip, entry);
        entry
    };
    *flow = entry.get();
    rewrite(packet, ETHERNET, ip, tuple, &seen(flow))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_leave_error(skb: *mut __sk_buff, call: *mut Call) -> u32 {
    let run = || error(&mut Packet::of(skb), apart::get_mut(call)?);
    apart::encode(run())
}

/// Makes an error about a packet of a client's one about what the client has sent.
#[inline(always)]
fn error(packet: &mut Packet, call: &mut Call) -> Result<(), Counter> {
    let Call { ip, flow, caller: Caller { vni, .. }, .. } = call;
    let quoted = quoted(packet, ETHERNET, ip).ok_or(Counter::DropUnknownFlow)?;
    *flow = find(*vni, quoted.ip.protocol, &quoted.tuple.reversed())?.get();
    let new = seen(flow);
    icmp_error::rewrite(packet, ETHERNET, ip, new.addresses(), &quoted, &new.reversed())
}

/// What the client sees of a flow.
#[inline(always)]
fn seen(flow: &Flow) -> Tuple {
    Tuple { src: flow.ip, dst: flow.client, sport: flow.other_port, dport: flow.port }
}

/// The flow that a packet of a service is of.
///
/// # Errors
/// `DropUnknownFlow` if it did not come into the mesh here.
#[inline(always)]
pub(crate) fn find(vni: u32, protocol: u8, tuple: &Tuple) -> Result<Entry, Counter> {
    let key = FlowKey {
        client: tuple.dst,
        client_port: tuple.dport,
        called: tuple.src,
        port: tuple.sport,
        ..FlowKey::new(Kind::Exit, vni, protocol)
    };
    maps::flow(&key).ok_or(Counter::DropUnknownFlow)
}

/// Brings a packet that is ready to a client outside of all networks.
///
/// # Errors
/// `DropUnknownPort` if the client was a workload that is gone.
#[inline(always)]
pub(crate) fn hand_over(
    packet: &mut Packet,
    link: u32,
    client: [u8; 4],
    counter: Counter,
) -> Outcome {
    let (dst, verdict) = match link {
        0 => {
            let config = maps::config().ok_or(Counter::DropRefused)?;
            return Ok(Verdict::send(config, client, counter));
        }
        LOOPBACK => ([0; 6], Verdict::Host { counter }),
        ifindex => {
            let port = maps::port(ifindex).filter(|port| port.ip == client);
            (port.ok_or(Counter::DropUnknownPort)?.mac, Verdict::Deliver { ifindex, counter })
        }
    };
    packet.store(0, &Ethernet::ipv4(dst, GATEWAY_MAC))?;
    Ok(verdict)
}
