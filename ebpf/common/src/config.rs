use crate::pod;

/// What the programs know of their node: the one entry of map `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Interface index of the collect-metadata vxlan device.
    pub vxlan: u32,
    /// This node's VTEP address, which an interface of it has.
    pub vtep: [u8; 4],
    /// Bits in which another node's address must equal `vtep` for the node to be a
    /// neighbour on the uplink, reached without a gateway.
    mask: [u8; 4],
    port: [u8; 2],
    encrypted: [u8; 2],
    /// Interface index of the host side of the veth to the namespace where IPVS
    /// schedules; 0 if there is none.
    pub lb: u32,
    /// The address by which the other nodes know this one: `vtep`, unless it is behind NAT.
    /// No other node has it, as one may have `vtep` behind a NAT of its own.
    pub advertised: [u8; 4],
}

impl Config {
    /// `vtep` is this node's tunnel address, `port` the cluster's VXLAN UDP
    /// port in host order, the rest interface indexes. No other node counts as
    /// a neighbour.
    #[must_use]
    pub fn new(uplink: u32, vxlan: u32, vtep: core::net::Ipv4Addr, port: u16) -> Self {
        let (vtep, port) = (vtep.octets(), port.to_be_bytes());
        let (mask, encrypted, advertised) = ([u8::MAX; 4], [0; 2], vtep);
        Self { uplink, vxlan, vtep, mask, port, encrypted, lb: 0, advertised }
    }

    /// The same behind NAT, where the others know this node by `address`.
    #[must_use]
    pub fn advertised_as(self, address: core::net::Ipv4Addr) -> Self {
        Self { advertised: address.octets(), ..self }
    }

    /// The same where nodes whose addresses share the first `bits` bits with this one's
    /// are neighbours.
    #[must_use]
    pub fn with_neighbours(self, bits: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
        Self { mask: mask.to_be_bytes(), ..self }
    }

    /// The same with IPVS behind interface `lb`.
    #[must_use]
    pub fn with_scheduler(self, lb: u32) -> Self {
        Self { lb, ..self }
    }

    /// The same where encrypted networks have VXLAN UDP port `port`, host order.
    #[must_use]
    pub fn with_encrypted(self, port: u16) -> Self {
        Self { encrypted: port.to_be_bytes(), ..self }
    }

    /// The VXLAN UDP port of encrypted networks in host order; none without any.
    #[must_use]
    pub fn encrypted_port(&self) -> Option<u16> {
        self.encrypts().then_some(u16::from_be_bytes(self.encrypted))
    }

    /// Whether there is an encrypted network.
    #[inline(always)]
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.encrypted != [0; 2]
    }

    /// Whether a UDP port, as it stands in a packet, is that of encrypted networks.
    #[inline(always)]
    #[must_use]
    pub fn is_encrypted(&self, port: [u8; 2]) -> bool {
        self.encrypts() && self.encrypted == port
    }

    /// The number of bits that a neighbour's address shares with this node's.
    #[must_use]
    pub fn neighbour_bits(&self) -> u8 {
        u32::from_be_bytes(self.mask).leading_ones() as u8
    }

    /// Whether the node with tunnel address `vtep` is a neighbour on the uplink.
    #[inline(always)]
    #[must_use]
    pub fn is_neighbour(&self, vtep: [u8; 4]) -> bool {
        let [own, its, mask] = [self.vtep, vtep, self.mask].map(u32::from_ne_bytes);
        (own ^ its) & mask == 0
    }

    /// The VXLAN UDP port as it stands in a packet.
    #[must_use]
    pub fn port_be(&self) -> [u8; 2] {
        self.port
    }

    /// The VXLAN UDP port in host order.
    #[must_use]
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

const _: () = assert!(size_of::<Config>() == 28);
pod!(Config);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_the_first_bits() {
        let config = Config::new(1, 2, [192, 168, 50, 11].into(), 4789);
        assert!(!config.is_neighbour([192, 168, 50, 12]));
        assert_eq!(config.neighbour_bits(), 32);
        for (bits, near, far) in [
            (24, [192, 168, 50, 200], [192, 168, 51, 11]),
            (28, [192, 168, 50, 15], [192, 168, 50, 16]),
            (8, [192, 0, 0, 1], [10, 168, 50, 12]),
        ] {
            let config = config.with_neighbours(bits);
            assert_eq!(config.neighbour_bits(), bits);
            assert!(config.is_neighbour(near) && !config.is_neighbour(far), "{bits}");
        }
        assert_eq!(config.with_neighbours(0).neighbour_bits(), 0);
    }

    #[test]
    fn no_port_is_encrypted_where_nothing_is() {
        let config = Config::new(1, 2, [192, 168, 50, 11].into(), 4789);
        assert!(!config.is_encrypted([0; 2]) && config.encrypted_port().is_none());
        let config = config.with_encrypted(4790);
        assert!(config.is_encrypted(4790_u16.to_be_bytes()) && !config.is_encrypted([0; 2]));
        assert_eq!(config.encrypted_port(), Some(4790));
    }
}
