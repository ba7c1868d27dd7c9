//! A network's MTU, and the answer to who exceeds it: ICMP "fragmentation needed" from
//! the gateway, quoting the packet. It goes out whether or not the packet may be
//! fragmented: the endpoint's own interface has this MTU, so only a stack that was
//! told otherwise sends more, and the answer makes it fragment at the source.

use netagent_common::{Counter, GATEWAY_MAC, Port};

use crate::headers::{ETHERNET, Ethernet, Ipv4, TCP, UDP, Udp};
use crate::packet::Packet;
use crate::unreachable::Unreachable;
use crate::verdict::{Outcome, Verdict};

/// Whether the IPv4 packet, or each packet that a GSO packet stands for, fits into
/// `mtu` bytes. Trailing bytes that are not of the IPv4 packet count: they would
/// travel along.
///
/// # Errors
/// `DropMalformed` if a GSO packet lacks its layer 4 header.
#[inline(always)]
pub(crate) fn fits(packet: &Packet, ip: &Ipv4, mtu: u32) -> Result<bool, Counter> {
    let segment = packet.gso_size();
    if segment == 0 {
        return Ok(packet.len() - ETHERNET <= mtu);
    }
    let at = ETHERNET + ip.header_len();
    let header = match ip.protocol {
        TCP => u32::from(packet.load::<u8>(at + 12)? >> 4) * 4,
        UDP => Udp::LEN,
        _ => 0,
    };
    Ok(ip.header_len() + header + segment <= mtu)
}

/// Turns the packet into the answer to its sender.
#[inline(always)]
pub(crate) fn fragmentation_needed(packet: &mut Packet, port: &Port) -> Outcome {
    let answer = Unreachable {
        code: Unreachable::FRAGMENTATION_NEEDED,
        from: port.gateway,
        to: port.ip,
        mtu: port.mtu,
    };
    if packet.at::<Ipv4>(ETHERNET)?.is_later_fragment() {
        // RFC 1122, 3.2.2: never about a fragment after the first.
        return Err(Counter::DropTooBig);
    }
    answer.send(packet)?;
    packet.store(0, &Ethernet::ipv4(port.mac, GATEWAY_MAC))?;
    Ok(Verdict::Deliver { ifindex: packet.ifindex(), counter: Counter::FragNeeded })
}
