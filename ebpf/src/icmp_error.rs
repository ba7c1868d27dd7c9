//! ICMP errors: about a packet that was translated, from whoever could not handle it. What
//! it quotes must become the packet that the receiver of the error knows, or it would not
//! know what is meant.

use netagent_common::Counter;

use crate::checksum::Delta;
use crate::headers::{ICMP, IPV4, Icmp, Ipv4, SCTP, TCP, UDP};
use crate::packet::Packet;
use crate::rewrite::Tuple;

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Bytes of an ICMP header.
const HEADER: u32 = size_of::<Icmp>() as u32;

/// The packet that an ICMP error is about.
#[derive(Clone, Copy)]
pub(crate) struct Quoted {
    /// Byte at which it begins.
    pub(crate) at: u32,
    /// Its header, without options.
    pub(crate) ip: Ipv4,
    /// Whose it was.
    pub(crate) tuple: Tuple,
}

/// What the packet at byte `at` quotes, if it is an error about TCP, UDP or SCTP that
/// says which ports.
#[inline(always)]
pub(crate) fn quoted(packet: &Packet, at: u32, ip: &Ipv4) -> Option<Quoted> {
    if ip.protocol != ICMP || ip.is_fragment() {
        return None;
    }
    let icmp = at + ip.header_len();
    let kind = packet.load::<u8>(icmp).ok()?;
    if !matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) {
        return None;
    }
    let at = icmp + HEADER;
    let ip = packet.load::<Ipv4>(at).ok()?;
    let valid = ip.version_ihl >> 4 == 4
        && ip.header_len() >= IPV4
        && !ip.is_later_fragment()
        && matches!(ip.protocol, TCP | UDP | SCTP);
    if !valid {
        return None;
    }
    let tuple = Tuple::of(packet, at, &ip).ok()?;
    Some(Quoted { at, ip, tuple })
}

/// Makes the error at byte `at`, which has header `ip` and quotes `quoted`, one with these
/// addresses about a packet of `new`.
///
/// An SCTP checksum in the quote stays as it is: nobody can check it there.
///
/// # Errors
/// `DropRefused` if the packet cannot be written.
#[inline(always)]
pub(crate) fn rewrite(
    packet: &mut Packet,
    at: u32,
    ip: &Ipv4,
    new_addresses: [[u8; 4]; 2],
    quoted: &Quoted,
    new: &Tuple,
) -> Result<(), Counter> {
    if [ip.src, ip.dst] != new_addresses {
        packet.store(at + Ipv4::END, &ip.readdressed(new_addresses).end())?;
    }
    let addresses = quoted.tuple.addresses_to(new);
    let ports = Delta::of(quoted.tuple.ports(), new.ports());
    let end = quoted.ip.readdressed(new.addresses()).end();
    packet.store(quoted.at + Ipv4::END, &end)?;
    let l4 = quoted.at + quoted.ip.header_len();
    packet.store(l4, &new.ports())?;
    let change = addresses
        .and(Delta::of_word(quoted.ip.checksum, end.checksum))
        .and(ports)
        .and(quoted_checksum(packet, l4, quoted.ip.protocol, addresses.and(ports))?);
    // An ICMP checksum knows no addresses.
    packet.replace_l4_checksum(at + ip.header_len() + 2, change, 0)
}

/// Corrects the checksum of a quoted layer 4 header, if it is quoted so far and there is one;
/// what that adds to the sum.
#[inline(always)]
fn quoted_checksum(
    packet: &mut Packet,
    l4: u32,
    protocol: u8,
    change: Delta,
) -> Result<Delta, Counter> {
    let at = match protocol {
        TCP => l4 + 16,
        UDP => l4 + 6,
        _ => return Ok(Delta::NOTHING),
    };
    let Ok(old) = packet.load::<[u8; 2]>(at) else { return Ok(Delta::NOTHING) };
    let new = match change.applied_to(old) {
        _ if protocol == UDP && old == [0; 2] => old,
        // 0 would mean "none" (RFC 768).
        [0, 0] if protocol == UDP => [0xff; 2],
        new => new,
    };
    packet.store(at, &new)?;
    Ok(Delta::of_word(old, new))
}
