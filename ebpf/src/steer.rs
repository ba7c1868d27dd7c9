//! IPVS as the scheduler. It runs in a namespace of its own behind a veth, in direct
//! routing mode: a packet of a new flow goes in, and the same packet comes out again with
//! the MAC of the backend that it chose (`from_lb.rs`). Known flows do not pass through it;
//! for its counts and timers to be right it is told of them by copies of what matters:
//! what begins and ends a connection, its second packet, and one packet a minute.

use netagent_common::{Counter, Flow, LB_MAC, VirtualKey};

use crate::flow::{Entry, Event};
use crate::headers::{Ethernet, Ipv4};
use crate::maps;
use crate::packet::Packet;
use crate::rewrite::Tuple;
use crate::service::Caller;
use crate::verdict::{Outcome, Verdict};

/// Seconds after which it is told of a flow again.
const TOLD_EVERY: u32 = 60;

/// Whether the packet, which has header `ip`, is IPVS's to schedule. Of fragments it would
/// wait for the rest.
#[inline(always)]
pub(crate) fn schedules(tuple: &Tuple, ip: &Ipv4) -> bool {
    !ip.is_fragment()
        && maps::config().is_some_and(|config| config.lb != 0)
        && maps::is_virtual(&VirtualKey::from_wire(tuple.dst, ip.protocol, tuple.dport))
}

/// Whether IPVS is to be told of a packet of a known flow, whose entry is `flow`.
#[inline(always)]
pub(crate) fn tells(tuple: &Tuple, ip: &Ipv4, flow: Entry, event: &Event) -> bool {
    let second = flow.state() & Flow::ANSWERED == 0;
    let matters = event.begins || event.ends || second;
    if !matters && flow.untold(event.now) < TOLD_EVERY {
        return false;
    }
    if !schedules(tuple, ip) {
        return false;
    }
    flow.set_told(event.now);
    true
}

/// Lets IPVS choose the backend.
#[inline(always)]
pub(crate) fn ask(packet: &mut Packet, caller: &Caller) -> Outcome {
    let config = maps::config().ok_or(Counter::DropRefused)?;
    address(packet, caller)?;
    Ok(Verdict::Redirect { ifindex: config.lb, counter: Counter::ToScheduler })
}

/// Gives IPVS a copy.
///
/// # Errors
/// `DropRefused` if the packet cannot be written. That the copy is lost is no error.
#[inline(always)]
pub(crate) fn tell(packet: &mut Packet, caller: &Caller) -> Result<(), Counter> {
    let config = maps::config().ok_or(Counter::DropRefused)?;
    address(packet, caller)?;
    packet.copy_to(config.lb);
    Ok(())
}

#[inline(always)]
fn address(packet: &mut Packet, caller: &Caller) -> Result<(), Counter> {
    packet.store(0, &Ethernet::ipv4(LB_MAC, caller.mac))
}
