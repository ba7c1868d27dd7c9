//! Headers as they stand in a packet: byte arrays in wire order, nothing else. Reading them
//! from a packet, at any address, and writing them to it is `packet.rs`'s business; the
//! alignment that some have is for where they lie meanwhile.

use netagent_common::VXLAN_OVERHEAD;

use crate::checksum::{Delta, fold};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: u32 = size_of::<Ethernet>() as u32;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4: u32 = size_of::<Ipv4>() as u32;
/// Bytes from a frame's IPv4 packet to the IPv4 packet inside the tunnel.
pub(crate) const OVERHEAD: u32 = VXLAN_OVERHEAD as u32;

pub(crate) const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const TYPE_ARP: [u8; 2] = [0x08, 0x06];

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ESP: u8 = 50;
pub(crate) const SCTP: u8 = 132;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ethernet {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
    pub(crate) ethertype: [u8; 2],
    /// See [`Ipv4`].
    pub(crate) _aligned: [u16; 0],
}

impl Ethernet {
    /// That of an IPv4 packet.
    #[inline(always)]
    pub(crate) fn ipv4(dst: [u8; 6], src: [u8; 6]) -> Self {
        Self { dst, src, ethertype: TYPE_IPV4, _aligned: [] }
    }
}

/// An IPv4 header without its options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) tot_len: [u8; 2],
    pub(crate) id: [u8; 2],
    pub(crate) fragment: [u8; 2],
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    /// By words, the compiler may read only what it knows to be aligned.
    pub(crate) _aligned: [u32; 0],
}

/// The last bytes of an [`Ipv4`]: what changes with its addresses.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4End {
    pub(crate) checksum: [u8; 2],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
}

/// The don't-fragment bit of [`Ipv4::fragment`].
pub(crate) const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];
/// The explicit congestion notification bits of [`Ipv4::tos`] (RFC 3168).
pub(crate) const ECN: u8 = 0b11;
/// Both of them set: congestion was experienced.
pub(crate) const CONGESTED: u8 = 0b11;

impl Ipv4 {
    /// Offset of its [`Ipv4End`].
    pub(crate) const END: u32 = core::mem::offset_of!(Self, checksum) as u32;

    /// A header without options that starts a packet of `len` bytes, its checksum
    /// filled in. A length that does not fit its field is written as 0, as the
    /// kernel does (`iph_set_totlen`): only a GSO packet is that long, and its
    /// segments get lengths of their own.
    #[inline(always)]
    pub(crate) fn new(len: u32, tos: u8, protocol: u8, src: [u8; 4], dst: [u8; 4]) -> Self {
        let mut header = Self {
            version_ihl: 0x45,
            tos,
            tot_len: u16_or_0(len).to_be_bytes(),
            id: [0; 2],
            fragment: DONT_FRAGMENT,
            ttl: 64,
            protocol,
            checksum: [0; 2],
            src,
            dst,
            _aligned: [],
        };
        header.checksum = header.sum();
        header
    }

    /// The same from and to others.
    #[inline(always)]
    pub(crate) fn readdressed(&self, [src, dst]: [[u8; 4]; 2]) -> Self {
        let change = Delta::of(self.src, src).and(Delta::of(self.dst, dst));
        Self { checksum: change.applied_to(self.checksum), src, dst, ..*self }
    }

    #[inline(always)]
    pub(crate) fn end(&self) -> Ipv4End {
        Ipv4End { checksum: self.checksum, src: self.src, dst: self.dst }
    }

    /// Header length in bytes, options included.
    #[inline(always)]
    pub(crate) fn header_len(&self) -> u32 {
        u32::from(self.version_ihl & 0x0f) * 4
    }

    /// Whether this is one of several fragments.
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    /// Whether this is a fragment after the first: it has no layer 4 header.
    #[inline(always)]
    pub(crate) fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff != 0
    }

    #[inline(always)]
    fn sum(&self) -> [u8; 2] {
        let [[a, b], [c, d], [e, f]] = [self.tot_len, self.id, self.fragment];
        let first = [self.version_ihl, self.tos, a, b];
        let words = [first, [c, d, e, f], [self.ttl, self.protocol, 0, 0], self.src, self.dst];
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        (!fold(sum as u32)).to_ne_bytes()
    }
}

#[inline(always)]
pub(crate) fn u16_or_0(len: u32) -> u16 {
    if len > 0xffff { 0 } else { len as u16 }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Udp {
    pub(crate) src: [u8; 2],
    pub(crate) dst: [u8; 2],
    pub(crate) len: [u8; 2],
    pub(crate) checksum: [u8; 2],
}

impl Udp {
    /// Bytes of it.
    pub(crate) const LEN: u32 = size_of::<Self>() as u32;
}

/// A TCP header without its options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    pub(crate) src: [u8; 2],
    pub(crate) dst: [u8; 2],
    pub(crate) seq: [u8; 4],
    pub(crate) ack: [u8; 4],
    pub(crate) offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: [u8; 2],
    pub(crate) checksum: [u8; 2],
    pub(crate) urgent: [u8; 2],
}

impl Tcp {
    /// Bytes of it.
    pub(crate) const LEN: u32 = size_of::<Self>() as u32;
    /// Offset of [`Self::flags`].
    pub(crate) const FLAGS: u32 = core::mem::offset_of!(Self, flags) as u32;

    /// Flags.
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;

    /// All zero but the length.
    pub(crate) const EMPTY: Self = Self {
        src: [0; 2],
        dst: [0; 2],
        seq: [0; 4],
        ack: [0; 4],
        offset: 5 << 4,
        flags: 0,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Icmp {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) rest: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Vxlan {
    pub(crate) flags: u8,
    pub(crate) reserved: [u8; 3],
    pub(crate) vni: [u8; 3],
    pub(crate) reserved_too: u8,
}

impl Vxlan {
    /// The one flag of RFC 7348: the VNI is valid.
    pub(crate) const VNI_VALID: u8 = 0x08;

    #[inline(always)]
    pub(crate) fn new(vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        Self { flags: Self::VNI_VALID, reserved: [0; 3], vni: [a, b, c], reserved_too: 0 }
    }

    /// The network, if the sender says that there is one. Reserved bits are
    /// ignored on receipt (RFC 7348, section 5).
    #[inline(always)]
    pub(crate) fn vni(&self) -> Option<u32> {
        let [a, b, c] = self.vni;
        (self.flags & Self::VNI_VALID != 0).then_some(u32::from_be_bytes([0, a, b, c]))
    }
}

/// What stands between the outer Ethernet header and the inner IPv4 packet.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub(crate) struct Outer {
    pub(crate) ip: Ipv4,
    pub(crate) udp: Udp,
    pub(crate) vxlan: Vxlan,
    pub(crate) ethernet: Ethernet,
}

const _: () = assert!(size_of::<Outer>() == VXLAN_OVERHEAD as usize);

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Arp {
    pub(crate) hardware: [u8; 2],
    pub(crate) protocol: [u8; 2],
    pub(crate) address_lengths: [u8; 2],
    pub(crate) operation: [u8; 2],
    pub(crate) sender_mac: [u8; 6],
    pub(crate) sender_ip: [u8; 4],
    pub(crate) target_mac: [u8; 6],
    pub(crate) target_ip: [u8; 4],
}

impl Arp {
    const ETHERNET: [u8; 2] = [0, 1];
    const LENGTHS: [u8; 2] = [6, 4];
    pub(crate) const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];

    /// Whether it speaks of IPv4 addresses and Ethernet MACs.
    #[inline(always)]
    pub(crate) fn is_ipv4_over_ethernet(&self) -> bool {
        self.hardware == Self::ETHERNET
            && self.protocol == TYPE_IPV4
            && self.address_lengths == Self::LENGTHS
    }

    /// The answer to this request: the target is at `mac`.
    #[inline(always)]
    pub(crate) fn answer(&self, mac: [u8; 6]) -> Self {
        Self {
            hardware: Self::ETHERNET,
            protocol: TYPE_IPV4,
            address_lengths: Self::LENGTHS,
            operation: Self::REPLY,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }
}
