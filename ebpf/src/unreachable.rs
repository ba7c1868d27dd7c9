//! ICMP "destination unreachable": a packet of an endpoint becomes the answer to it,
//! quoting it. Never about a fragment after the first (RFC 1122, 3.2.2); callers see to that.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::Counter;

use crate::apart;
use crate::headers::{ETHERNET, ICMP, IPV4, Icmp, Ipv4};
use crate::packet::Packet;

const DESTINATION_UNREACHABLE: u8 = 3;

/// Bytes of the packet that are quoted: all IPv4 options and the layer 4 header; zeros
/// behind a shorter packet. Less would do for the receiver (RFC 792: 8 bytes after the IPv4
/// header), but a packet whose checksum the kernel has still to write cannot be cut before
/// it, not even before that of a tunnel's inner packet.
const QUOTED: u32 = 128;

const MESSAGE: usize = size_of::<Icmp>() + QUOTED as usize;

/// What the answer says, and in whose name.
#[repr(C)]
pub(crate) struct Unreachable {
    /// Source address of the answer.
    pub(crate) from: [u8; 4],
    /// Its destination: who sent the packet.
    pub(crate) to: [u8; 4],
    /// MTU of the network, for `FRAGMENTATION_NEEDED`; else 0.
    pub(crate) mtu: u32,
    /// Why.
    pub(crate) code: u32,
}

impl Unreachable {
    /// [`Self::code`]: nobody takes packets to this port.
    pub(crate) const PORT: u32 = 3;
    /// [`Self::code`]: the packet is too big and may not be fragmented.
    pub(crate) const FRAGMENTATION_NEEDED: u32 = 4;

    /// Turns the packet into the answer to it. The Ethernet header is the caller's to write.
    ///
    /// # Errors
    /// `DropRefused` if the packet cannot be cut or written.
    #[inline(always)]
    pub(crate) fn send(&self, packet: &mut Packet) -> Result<(), Counter> {
        apart::decode(netagent_unreachable(packet.context(), self))
    }

    #[inline(always)]
    fn answer(&self, packet: &mut Packet) -> Result<(), Counter> {
        packet.cut(ETHERNET + QUOTED)?;
        packet.prepend(IPV4 + size_of::<Icmp>() as u32)?;
        let len = IPV4 + MESSAGE as u32;
        packet.store(ETHERNET, &Ipv4::new(len, 0, ICMP, self.from, self.to))?;
        let [_, _, high, low] = self.mtu.to_be_bytes();
        let mut icmp = Icmp {
            kind: DESTINATION_UNREACHABLE,
            code: self.code as u8,
            checksum: [0; 2],
            rest: [0, 0, high, low],
        };
        packet.store(ETHERNET + IPV4, &icmp)?;
        packet.linear(ETHERNET + IPV4 + MESSAGE as u32)?;
        icmp.checksum = packet.checksum::<MESSAGE>(ETHERNET + IPV4)?;
        packet.store(ETHERNET + IPV4, &icmp)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_unreachable(skb: *mut __sk_buff, answer: *const Unreachable) -> u32 {
    let run = || apart::get(answer)?.answer(&mut Packet::of(skb));
    apart::encode(run())
}
