//! Into the tunnel: pushes the VXLAN header, or has the kernel push it.
//!
//! The outer checksum is 0 as RFC 7348 asks; the source port tells flows apart for the
//! underlay's load balancing; fragmenting is forbidden, because the MTU has been seen
//! to. Congestion marks are carried out and in again (RFC 6040): the outer header takes
//! the inner ECN bits, and what was marked on the way is left to the kernel to combine.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Config, Counter};

use crate::headers::{
    ECN, ETHERNET, Ethernet, IPV4, Ipv4, OVERHEAD, Outer, UDP, Udp, Vxlan, u16_or_0,
};
use crate::overlay::Origin;
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};
use crate::{apart, encrypted, maps};

/// Source ports of the tunnel: Linux's ephemeral range, as its own vxlan uses.
const PORTS: core::ops::Range<u16> = 32_768..60_999;

/// The way of a packet to another node.
#[repr(C)]
pub(crate) struct Hop {
    /// Its network.
    pub(crate) vni: u32,
    /// Source of the inner frame.
    pub(crate) src: [u8; 6],
    /// Destination of the inner frame.
    pub(crate) dst: [u8; 6],
    /// The other node's tunnel address.
    pub(crate) vtep: [u8; 4],
}

/// Carries an IPv4 packet with the given type of service to another node.
#[inline(always)]
pub(crate) fn push(packet: &mut Packet, hop: &Hop, tos: u8) -> Outcome {
    let config = maps::config().ok_or(Counter::DropRefused)?;
    let ethernet = Ethernet::ipv4(hop.dst, hop.src);
    let source = source_port(packet.flow_hash());
    let encrypted = encrypted::device(config, hop.vni);
    // A tunnel within the tunnel, above all: the kernel can segment it first.
    if encrypted.is_some() || packet.push_outer().is_err() {
        packet.store(0, &ethernet)?;
        packet.set_tunnel(config.vtep, hop.vtep, hop.vni)?;
        return by_device(config, encrypted);
    }
    let len = packet.len() - ETHERNET;
    packet.store(
        ETHERNET,
        &Outer {
            ip: Ipv4::new(len, tos & ECN, UDP, config.vtep, hop.vtep),
            udp: udp(source, config, len - IPV4),
            vxlan: Vxlan::new(hop.vni),
            ethernet,
        },
    )?;
    Ok(Verdict::send(config, hop.vtep, Counter::Encapsulated))
}

/// Out of a vxlan device, which has been told where to.
#[inline(always)]
fn by_device(config: &Config, encrypted: Option<u32>) -> Outcome {
    let (ifindex, counter) = match encrypted {
        Some(0) => return Err(Counter::DropCleartextOut),
        Some(ifindex) => (ifindex, Counter::Encrypted),
        None => (config.vxlan, Counter::PassedToVxlan),
    };
    Ok(Verdict::Redirect { ifindex, counter })
}

/// As [`push`], for packets of services: not a part of every way.
#[inline(always)]
pub(crate) fn carry(packet: &mut Packet, hop: &Hop, tos: u8) -> Outcome {
    let done = netagent_push(packet.context(), hop, u32::from(tos));
    let config = maps::config().ok_or(Counter::DropRefused)?;
    match Counter::from_index(done) {
        Some(counter @ Counter::Encapsulated) => Ok(Verdict::send(config, hop.vtep, counter)),
        Some(Counter::PassedToVxlan | Counter::Encrypted) => {
            by_device(config, encrypted::device(config, hop.vni))
        }
        Some(reason) => Err(reason),
        None => Err(Counter::DropRefused),
    }
}

/// The counter of what became of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_push(skb: *mut __sk_buff, hop: *const Hop, tos: u32) -> u32 {
    let run = || push(&mut Packet::of(skb), apart::get(hop)?, tos as u8);
    let counter = match run() {
        Ok(Verdict::Send { counter, .. } | Verdict::Redirect { counter, .. }) => counter,
        Ok(_) => Counter::DropRefused,
        Err(reason) => reason,
    };
    counter as u32
}

/// Sends a packet of the tunnel whose inner frame was made its own answer back to where it
/// came from.
#[inline(always)]
pub(crate) fn turn_round(
    packet: &mut Packet,
    config: &Config,
    Origin { vtep, vni }: Origin,
    counter: Counter,
) -> Outcome {
    apart::decode(netagent_turn_round(packet.context(), u32::from_ne_bytes(vtep), vni))?;
    Ok(Verdict::send(config, vtep, counter))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_turn_round(skb: *mut __sk_buff, vtep: u32, vni: u32) -> u32 {
    apart::encode(turned_round(&mut Packet::of(skb), vtep.to_ne_bytes(), vni))
}

#[inline(always)]
fn turned_round(packet: &mut Packet, vtep: [u8; 4], vni: u32) -> Result<(), Counter> {
    let config = maps::config().ok_or(Counter::DropRefused)?;
    packet.linear(ETHERNET + OVERHEAD)?;
    let Outer { udp: Udp { src, .. }, ethernet, .. } = packet.at::<Outer>(ETHERNET)?;
    let len = packet.len() - ETHERNET;
    packet.store(
        ETHERNET,
        &Outer {
            ip: Ipv4::new(len, 0, UDP, config.vtep, vtep),
            udp: udp(src, config, len - IPV4),
            vxlan: Vxlan::new(vni),
            ethernet,
        },
    )
}

#[inline(always)]
fn udp(src: [u8; 2], config: &Config, len: u32) -> Udp {
    Udp { src, dst: config.port_be(), len: u16_or_0(len).to_be_bytes(), checksum: [0; 2] }
}

/// As `udp_flow_src_port` of the kernel.
#[inline(always)]
fn source_port(hash: u32) -> [u8; 2] {
    let span = u64::from(PORTS.end - PORTS.start);
    let hash = hash ^ (hash << 16);
    (PORTS.start + ((u64::from(hash) * span) >> 32) as u16).to_be_bytes()
}

const _: () = assert!(OVERHEAD as usize == size_of::<Outer>());
