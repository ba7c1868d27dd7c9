//! ARP is answered in place from what the agent has written: no request ever crosses
//! the underlay. Which requests deserve an answer is the hooks' decision.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, GATEWAY_MAC, Port};

use crate::headers::{Arp, ETHERNET, Ethernet, TYPE_ARP};
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};
use crate::{apart, maps};

const NOBODY: [u8; 4] = [0; 4];

/// The ARP packet of the frame that begins at byte `at`.
///
/// # Errors
/// `DropMalformed` if it is cut short or not about IPv4 and Ethernet.
#[inline(always)]
pub(crate) fn parse(packet: &mut Packet, at: u32) -> Result<Arp, Counter> {
    packet.linear(at + ETHERNET + size_of::<Arp>() as u32)?;
    let arp = packet.at::<Arp>(at + ETHERNET)?;
    if arp.is_ipv4_over_ethernet() { Ok(arp) } else { Err(Counter::DropMalformed) }
}

/// Turns the request of the frame that begins at byte `at` into its answer: `mac`.
///
/// # Errors
/// `DropRefused` if the packet cannot be written.
#[inline(always)]
pub(crate) fn answer(
    packet: &mut Packet,
    at: u32,
    request: &Arp,
    mac: [u8; 6],
) -> Result<(), Counter> {
    let ethernet = Ethernet { ethertype: TYPE_ARP, ..Ethernet::ipv4(request.sender_mac, mac) };
    packet.store(at, &ethernet)?;
    packet.store(at + ETHERNET, &request.answer(mac))
}

/// Answers a local endpoint.
///
/// Who asks must give its own MAC and address. Probes (sender 0.0.0.0), announcements
/// (target is the sender) and replies want no answer and have nobody to reach: the
/// manager has already seen to it that an address has one owner.
#[inline(always)]
pub(crate) fn from_endpoint(packet: &mut Packet, port: &Port) -> Outcome {
    apart::decode(netagent_arp(packet.context(), port))?;
    Ok(Verdict::Deliver { ifindex: packet.ifindex(), counter: Counter::ArpAnswered })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_arp(skb: *mut __sk_buff, port: *const Port) -> u32 {
    let run = || ask(&mut Packet::of(skb), apart::get(port)?);
    apart::encode(run())
}

#[inline(always)]
fn ask(packet: &mut Packet, port: &Port) -> Result<(), Counter> {
    let request = parse(packet, 0)?;
    if request.sender_mac != port.mac {
        return Err(Counter::DropSpoofedMac);
    }
    if request.sender_ip == NOBODY {
        return Err(Counter::DropArp);
    }
    if request.sender_ip != port.ip {
        return Err(Counter::DropSpoofedAddress);
    }
    if request.operation != Arp::REQUEST || request.target_ip == port.ip {
        return Err(Counter::DropArp);
    }
    let mac = if request.target_ip == port.gateway {
        GATEWAY_MAC
    } else {
        maps::endpoint(port.vni, request.target_ip).ok_or(Counter::DropUnknownDestination)?.mac
    };
    answer(packet, 0, &request, mac)
}
