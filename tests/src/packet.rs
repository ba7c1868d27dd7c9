//! Packets as tests write them: one header after the other, outermost first, with
//! lengths and checksums filled in when the whole is built.
//!
//! ```
//! use netagent_tests::packet::ethernet;
//! let frame = ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
//!     .ipv4("10.0.9.2", "10.0.9.3")
//!     .udp(1000, 2000)
//!     .payload(b"hello")
//!     .build();
//! assert_eq!(frame.len(), 14 + 20 + 8 + 5);
//! ```

use std::net::Ipv4Addr;

/// A MAC address in wire order.
pub type Mac = [u8; 6];

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

/// A packet in the making.
#[derive(Clone, Debug)]
pub struct Packet {
    layers: Vec<Layer>,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Layer {
    Ethernet { src: Mac, dst: Mac, ethertype: Option<[u8; 2]> },
    Ipv4(Ipv4),
    Udp { src: u16, dst: u16, checksum: bool },
    Tcp { src: u16, dst: u16, flags: u8 },
    Sctp { src: u16, dst: u16 },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Vxlan { flags: u8, vni: u32 },
    Arp { operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr) },
}

#[derive(Clone, Debug)]
struct Ipv4 {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    tos: u8,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: Option<u8>,
    options: Vec<u8>,
}

/// Starts a packet with an Ethernet header from `src` to `dst`. Its type follows from
/// the next header.
#[must_use]
pub fn ethernet(src: Mac, dst: Mac) -> Packet {
    Packet { layers: Vec::new(), payload: Vec::new() }.ethernet(src, dst)
}

impl Packet {
    /// An (inner) Ethernet header.
    #[must_use]
    pub fn ethernet(self, src: Mac, dst: Mac) -> Self {
        self.layer(Layer::Ethernet { src, dst, ethertype: None })
    }

    /// An IPv4 header: TTL 64, don't fragment. Panics if an address is none.
    #[must_use]
    pub fn ipv4(self, src: impl Address, dst: impl Address) -> Self {
        self.layer(Layer::Ipv4(Ipv4 {
            src: src.address(),
            dst: dst.address(),
            tos: 0,
            id: 0,
            fragment: 0x4000,
            ttl: 64,
            protocol: None,
            options: Vec::new(),
        }))
    }

    /// A UDP header with a checksum.
    #[must_use]
    pub fn udp(self, src: u16, dst: u16) -> Self {
        self.layer(Layer::Udp { src, dst, checksum: true })
    }

    /// A UDP header with checksum 0.
    #[must_use]
    pub fn udp_without_checksum(self, src: u16, dst: u16) -> Self {
        self.layer(Layer::Udp { src, dst, checksum: false })
    }

    /// A TCP header: ACK, sequence numbers 1, window 1024, no options.
    #[must_use]
    pub fn tcp(self, src: u16, dst: u16) -> Self {
        self.layer(Layer::Tcp { src, dst, flags: 0x10 })
    }

    /// Sets the flags of the last TCP header.
    #[must_use]
    pub fn flags(mut self, value: u8) -> Self {
        let Some(Layer::Tcp { flags, .. }) = self.layers.last_mut() else {
            panic!("flags() follows tcp()")
        };
        *flags = value;
        self
    }

    /// An SCTP header with verification tag 1.
    #[must_use]
    pub fn sctp(self, src: u16, dst: u16) -> Self {
        self.layer(Layer::Sctp { src, dst })
    }

    /// An ICMP header; `rest` is its second word.
    #[must_use]
    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.layer(Layer::Icmp { kind, code, rest })
    }

    /// A VXLAN header with a valid VNI.
    #[must_use]
    pub fn vxlan(self, vni: u32) -> Self {
        self.vxlan_flags(0x08, vni)
    }

    /// A VXLAN header with any flags.
    #[must_use]
    pub fn vxlan_flags(self, flags: u8, vni: u32) -> Self {
        self.layer(Layer::Vxlan { flags, vni })
    }

    /// An ARP request of `sender` for the MAC of `target`.
    #[must_use]
    pub fn arp_request(self, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Self {
        self.arp(1, sender, ([0; 6], target))
    }

    /// An ARP reply from `sender` to `target`.
    #[must_use]
    pub fn arp_reply(self, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        self.arp(2, sender, target)
    }

    /// An ARP packet of any operation.
    #[must_use]
    pub fn arp(self, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        self.layer(Layer::Arp { operation, sender, target })
    }

    /// What follows the last header.
    #[must_use]
    pub fn payload(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.payload = bytes.as_ref().to_vec();
        self
    }

    /// As many bytes of payload, none like its neighbours.
    #[must_use]
    pub fn payload_of(self, len: usize) -> Self {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        self.payload(bytes)
    }

    /// Sets the type of the last Ethernet header.
    #[must_use]
    pub fn ethertype(mut self, value: u16) -> Self {
        let Some(Layer::Ethernet { ethertype, .. }) = self.layers.last_mut() else {
            panic!("ethertype() follows ethernet()")
        };
        *ethertype = Some(value.to_be_bytes());
        self
    }

    /// Sets the type of service of the last IPv4 header.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.last_ipv4().tos = tos;
        self
    }

    /// Sets the identification of the last IPv4 header.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.last_ipv4().id = id;
        self
    }

    /// Sets flags and offset (in units of 8 bytes) of the last IPv4 header.
    #[must_use]
    pub fn fragment(mut self, flags_and_offset: u16) -> Self {
        self.last_ipv4().fragment = flags_and_offset;
        self
    }

    /// Sets the protocol of the last IPv4 header, which else follows from the next one.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.last_ipv4().protocol = Some(protocol);
        self
    }

    /// Adds options to the last IPv4 header; a multiple of 4 bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.last_ipv4().options = options.to_vec();
        self
    }

    /// The bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = self.payload.clone();
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let before = index.checked_sub(1).map(|i| &self.layers[i]);
            let mut packet = layer.header(self.layers.get(index + 1), before, &bytes);
            packet.extend(bytes);
            bytes = packet;
        }
        bytes
    }

    fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    fn last_ipv4(&mut self) -> &mut Ipv4 {
        match self.layers.last_mut() {
            Some(Layer::Ipv4(ip)) => ip,
            _ => panic!("this follows ipv4()"),
        }
    }
}

impl Layer {
    fn header(&self, next: Option<&Self>, before: Option<&Self>, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Ethernet { src, dst, ethertype } => {
                let ethertype = ethertype.unwrap_or(match next {
                    Some(Self::Ipv4(_)) => IPV4,
                    Some(Self::Arp { .. }) => ARP,
                    _ => [0xff, 0xff],
                });
                [&dst[..], src, &ethertype].concat()
            }
            Self::Ipv4(ip) => ip.header(next, payload.len()),
            Self::Udp { src, dst, checksum } => {
                let len = (8 + payload.len()) as u16;
                let mut header =
                    [src.to_be_bytes(), dst.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
                if *checksum {
                    let sum = transport_checksum(before, 17, &header, payload);
                    // 0 would mean "none" (RFC 768).
                    put(&mut header, 6, if sum == 0 { 0xffff } else { sum });
                }
                header
            }
            Self::Tcp { src, dst, flags } => {
                let mut header = vec![0; 20];
                put(&mut header, 0, *src);
                put(&mut header, 2, *dst);
                header[7] = 1;
                header[11] = 1;
                header[12] = 5 << 4;
                header[13] = *flags;
                put(&mut header, 14, 1024);
                let sum = transport_checksum(before, 6, &header, payload);
                put(&mut header, 16, sum);
                header
            }
            Self::Sctp { src, dst } => {
                let mut header = vec![0; 12];
                put(&mut header, 0, *src);
                put(&mut header, 2, *dst);
                header[7] = 1;
                let crc = crc32c(&[&header, payload].concat());
                header[8..].copy_from_slice(&crc.to_le_bytes());
                header
            }
            Self::Icmp { kind, code, rest } => {
                let mut header = [&[*kind, *code, 0, 0], &rest[..]].concat();
                let sum = checksum(&[&header, payload]);
                put(&mut header, 2, sum);
                header
            }
            Self::Vxlan { flags, vni } => {
                let [_, a, b, c] = vni.to_be_bytes();
                vec![*flags, 0, 0, 0, a, b, c, 0]
            }
            Self::Arp { operation, sender, target } => {
                let mut header = vec![0, 1, 8, 0, 6, 4];
                header.extend(operation.to_be_bytes());
                for (mac, ip) in [sender, target] {
                    header.extend(mac);
                    header.extend(ip.octets());
                }
                header
            }
        }
    }
}

impl Ipv4 {
    fn header(&self, next: Option<&Layer>, payload: usize) -> Vec<u8> {
        let protocol = self.protocol.unwrap_or(match next {
            Some(Layer::Udp { .. }) => 17,
            Some(Layer::Tcp { .. }) => 6,
            Some(Layer::Sctp { .. }) => 132,
            Some(Layer::Icmp { .. }) => 1,
            _ => 253,
        });
        let len = 20 + self.options.len();
        let mut header = vec![0x40 | (len / 4) as u8, self.tos];
        header.extend(((len + payload) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(self.src.octets());
        header.extend(self.dst.octets());
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        put(&mut header, 10, sum);
        header
    }
}

/// An address, or its text.
pub trait Address {
    /// The address. Panics if the text is none.
    fn address(&self) -> Ipv4Addr;
}

impl Address for Ipv4Addr {
    fn address(&self) -> Ipv4Addr {
        *self
    }
}

impl Address for &str {
    fn address(&self) -> Ipv4Addr {
        self.parse().unwrap_or_else(|_| panic!("{self} is no IPv4 address"))
    }
}

/// The internet checksum (RFC 1071) of the parts one after the other. All parts but the
/// last have an even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of SCTP (RFC 9260, appendix A) of a whole packet, its own field 0. It
/// stands in the packet in little-endian order.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    })
}

fn transport_checksum(ip: Option<&Layer>, protocol: u8, header: &[u8], payload: &[u8]) -> u16 {
    let Some(Layer::Ipv4(ip)) = ip else { panic!("UDP and TCP follow ipv4()") };
    let len = (header.len() + payload.len()) as u16;
    let [high, low] = len.to_be_bytes();
    checksum(&[&ip.src.octets(), &ip.dst.octets(), &[0, protocol, high, low], header, payload])
}

fn put(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4HeaderSlice, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn udp_is_as_etherparse_builds_it() {
        let mut expected = Vec::new();
        PacketBuilder::ethernet2(A, B)
            .ipv4([10, 0, 9, 2], [10, 0, 9, 3], 64)
            .udp(1000, 2000)
            .write(&mut expected, b"hello")
            .unwrap();
        let built = ethernet(A, B).ipv4("10.0.9.2", "10.0.9.3").udp(1000, 2000).payload(b"hello");
        assert_eq!(built.build(), expected);
    }

    #[test]
    fn tcp_and_options_have_the_checksums_that_etherparse_expects() {
        let built = ethernet(A, B)
            .ipv4("10.0.9.2", "10.0.9.3")
            .options(&[1, 1, 1, 0])
            .tcp(1000, 2000)
            .payload_of(77)
            .build();
        let ip = Ipv4HeaderSlice::from_slice(&built[14..]).unwrap().to_header();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ethernet(&built).unwrap().transport
        else {
            panic!("no TCP")
        };
        assert_eq!(
            tcp.checksum(),
            tcp.to_header().calc_checksum_ipv4(&ip, &built[14 + 24 + 20..]).unwrap()
        );
    }
}
