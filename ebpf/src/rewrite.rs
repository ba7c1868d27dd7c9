//! Gives a packet other addresses and ports, with every checksum right. Which ones is
//! decided elsewhere.
//!
//! A checksum that the kernel or the device has still to write (of what a local stack
//! sends, or of merged packets) holds the sum of the addresses alone; the kernel's helpers
//! know which kind it is. An ICMP error is about another packet and quotes it; that quote
//! is rewritten too (`icmp_error.rs`).

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use netagent_common::Counter;

use crate::checksum::Delta;
use crate::crc32c;
use crate::headers::{Ipv4, SCTP, TCP, UDP};
use crate::packet::Packet;

/// Whose packet it is and whom it is for.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) sport: [u8; 2],
    pub(crate) dport: [u8; 2],
}

impl Tuple {
    /// Of the packet at byte `at` with header `ip`: TCP, UDP or SCTP.
    ///
    /// # Errors
    /// `DropMalformed` if its ports are not there.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet, at: u32, ip: &Ipv4) -> Result<Self, Counter> {
        let [a, b, c, d] = packet.load::<[u8; 4]>(at + ip.header_len())?;
        Ok(Self { src: ip.src, dst: ip.dst, sport: [a, b], dport: [c, d] })
    }

    /// The same seen from the other side.
    #[inline(always)]
    pub(crate) fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    /// Both addresses as they stand in an IPv4 header.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> [[u8; 4]; 2] {
        [self.src, self.dst]
    }

    /// Both ports as they stand in a packet.
    #[inline(always)]
    pub(crate) fn ports(&self) -> [u8; 4] {
        let [[a, b], [c, d]] = [self.sport, self.dport];
        [a, b, c, d]
    }

    /// What turning the addresses into those of `new` adds to a sum.
    #[inline(always)]
    pub(crate) fn addresses_to(&self, new: &Self) -> Delta {
        Delta::of(self.src, new.src).and(Delta::of(self.dst, new.dst))
    }
}

/// Makes the packet at byte `at`, which has header `ip`, one of `new`; `old` is what it
/// has: of its ports, whatever `new` has too if it is a fragment after the first, whose
/// ports are not there.
///
/// # Errors
/// `DropRefused` if the packet cannot be written, or if it is the first fragment of an SCTP
/// packet: the checksum is about all of it. `DropMalformed` if its header is cut off.
#[inline(always)]
pub(crate) fn rewrite(
    packet: &mut Packet,
    at: u32,
    ip: &Ipv4,
    old: &Tuple,
    new: &Tuple,
) -> Result<(), Counter> {
    let addresses = old.addresses_to(new);
    if old.addresses() != new.addresses() {
        packet.store(at + Ipv4::END, &ip.readdressed(new.addresses()).end())?;
    }
    if ip.is_later_fragment() {
        return Ok(());
    }
    let l4 = at + ip.header_len();
    let ports = Delta::of(old.ports(), new.ports());
    match ip.protocol {
        TCP => replace(packet, l4 + 16, 0, addresses, ports)?,
        UDP => replace(packet, l4 + 6, u64::from(BPF_F_MARK_MANGLED_0), addresses, ports)?,
        SCTP if old.ports() != new.ports() => sctp(packet, l4, ip, old.ports(), new.ports())?,
        _ => {}
    }
    if old.ports() != new.ports() {
        packet.store(l4, &new.ports())?;
    }
    Ok(())
}

/// The addresses are in the sum of a checksum that is still to be written, the ports are not.
#[inline(always)]
fn replace(
    packet: &mut Packet,
    at: u32,
    flags: u64,
    addresses: Delta,
    ports: Delta,
) -> Result<(), Counter> {
    if !addresses.is_nothing() {
        packet.replace_l4_checksum(at, addresses, flags | u64::from(BPF_F_PSEUDO_HDR))?;
    }
    if !ports.is_nothing() {
        packet.replace_l4_checksum(at, ports, flags)?;
    }
    Ok(())
}

/// The addresses are no part of it.
#[inline(always)]
fn sctp(
    packet: &mut Packet,
    at: u32,
    ip: &Ipv4,
    old: [u8; 4],
    new: [u8; 4],
) -> Result<(), Counter> {
    if ip.is_fragment() {
        return Err(Counter::DropRefused);
    }
    let len = u32::from(u16::from_be_bytes(ip.tot_len)).saturating_sub(ip.header_len());
    let checksum = packet.load::<[u8; 4]>(at + 8)?;
    packet.store(at + 8, &crc32c::with_ports(checksum, old, new, len))
}
