//! Probes: whether packets of the tunnel get from one node to another and back. They are in
//! VXLAN as what they stand for, in a network and of an ethertype that nobody else has: what a
//! workload sends is in its own network, and is IPv4 or ARP. A request is sent back as it is,
//! to a member alone and never longer than it came, without the agent; an answer is the
//! agent's, and so is the word that a request came.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use netagent_common::{Config, Counter, Probe, Probed};

use crate::headers::{ETHERNET, OVERHEAD};
use crate::overlay::Origin;
use crate::packet::Packet;
use crate::verdict::Outcome;
use crate::{apart, encap, maps};

/// Where a probe begins.
const AT: u32 = ETHERNET + OVERHEAD;

/// Takes a probe of a member's.
///
/// # Errors
/// `ProbeReturned` if it was one of this node's own, which ends here.
#[inline(always)]
pub(crate) fn take(packet: &mut Packet, config: &Config, origin: Origin) -> Outcome {
    let vtep = u32::from_ne_bytes(origin.vtep);
    apart::decode(netagent_probe(packet.context(), vtep))?;
    encap::turn_round(packet, config, origin, Counter::ProbeAnswered)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_probe(skb: *mut __sk_buff, vtep: u32) -> u32 {
    apart::encode(probe(&mut Packet::of(skb), vtep.to_ne_bytes()))
}

/// Makes a request its own answer.
#[inline(always)]
fn probe(packet: &mut Packet, vtep: [u8; 4]) -> Result<(), Counter> {
    packet.linear(AT + Probe::LEN as u32)?;
    let probe = packet.at::<Probe>(AT)?;
    // SAFETY: the helper only reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let record = Probed::new(&probe, vtep, now);
    if probe.is_answer() {
        let told = maps::probed(&record);
        return Err(if told { Counter::ProbeReturned } else { Counter::DropRefused });
    }
    if !probe.is_request() {
        return Err(Counter::DropMalformed);
    }
    // Without an agent there is nobody to tell, and it is answered all the same.
    maps::probed(&record);
    packet.store(AT, &probe.answer())
}
