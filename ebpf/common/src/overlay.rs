use core::net::Ipv4Addr;

use crate::pod;

/// MAC address of every network's gateway on every node, and of the host side of
/// every endpoint's veth: a frame to the gateway is a frame to the host's stack
/// as it is. It never crosses the underlay.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x6e, 0x61, 0xff, 0xff, 0xfe];

/// MAC address of the end of the veth to IPVS that lies in its namespace.
pub const LB_MAC: [u8; 6] = [0x02, 0x6e, 0x61, 0xff, 0xff, 0xfd];

/// Key of map `ENDPOINTS`: an address within a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// VXLAN network identifier, 24 bits, host order.
    pub vni: u32,
    ip: [u8; 4],
}

impl EndpointKey {
    /// The endpoint with address `ip` in network `vni`.
    #[must_use]
    pub fn new(vni: u32, ip: Ipv4Addr) -> Self {
        Self { vni, ip: ip.octets() }
    }

    /// From the address bytes of a packet.
    #[inline(always)]
    #[must_use]
    pub fn from_wire(vni: u32, ip: [u8; 4]) -> Self {
        Self { vni, ip }
    }

    /// The address.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.ip)
    }
}

/// Value of map `ENDPOINTS`: where an endpoint is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The endpoint's MAC address; a virtual address has one in the same way.
    pub mac: [u8; 6],
    flags: u16,
    /// Host side of the endpoint's veth if it is on this node, 0 if remote.
    pub ifindex: u32,
    /// Tunnel address of the node that owns it (also when that is this node). 0 for a
    /// virtual address, which nobody owns.
    pub vtep: [u8; 4],
    /// Virtual address of the service that it is a backend of in this network; 0 if none.
    pub serves: [u8; 4],
}

impl Endpoint {
    /// An endpoint on this node, behind interface `ifindex`.
    #[must_use]
    pub fn local(mac: [u8; 6], ifindex: u32, vtep: Ipv4Addr) -> Self {
        Self { mac, flags: 0, ifindex, vtep: vtep.octets(), serves: [0; 4] }
    }

    /// An endpoint on the node with tunnel address `vtep`.
    #[must_use]
    pub fn remote(mac: [u8; 6], vtep: Ipv4Addr) -> Self {
        Self::local(mac, 0, vtep)
    }

    /// The virtual address of a service: map `SERVICES` has it under the same key.
    #[must_use]
    pub fn vip(mac: [u8; 6]) -> Self {
        Self { mac, flags: Self::VIP, ifindex: 0, vtep: [0; 4], serves: [0; 4] }
    }

    /// The same as a backend of the service with virtual address `vip`. New flows go to
    /// it only if it is `eligible`: healthy, and not draining.
    #[must_use]
    pub fn serving(self, vip: Ipv4Addr, eligible: bool) -> Self {
        Self { serves: vip.octets(), flags: if eligible { Self::ELIGIBLE } else { 0 }, ..self }
    }

    const VIP: u16 = 1;
    const ELIGIBLE: u16 = 2;

    /// Whether this is a service's virtual address.
    #[inline(always)]
    #[must_use]
    pub fn is_vip(&self) -> bool {
        self.flags & Self::VIP != 0
    }

    /// Whether it is a backend of a service.
    #[inline(always)]
    #[must_use]
    pub fn is_backend(&self) -> bool {
        self.serves != [0; 4]
    }

    /// Whether it may take new flows of the service that it serves.
    #[inline(always)]
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.flags & Self::ELIGIBLE != 0
    }
}

/// Value of map `PORTS` (key: interface index of the host side of an
/// endpoint's veth): who may speak there, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Network, 24 bits, host order.
    pub vni: u32,
    /// The only source address that may come in here.
    pub ip: [u8; 4],
    /// The only source MAC that may come in here.
    pub mac: [u8; 6],
    /// Reserved, 0.
    pub _pad: [u8; 2],
    /// The network's MTU: largest inner IP packet, in bytes.
    pub mtu: u32,
    /// [`Port::INTERNAL`] and [`Port::BACKEND`].
    pub flags: u32,
    /// The network's gateway address.
    pub gateway: [u8; 4],
}

impl Port {
    /// The network is internal: nothing leaves it for the host or beyond.
    pub const INTERNAL: u32 = 1;
    /// The endpoint is a backend of a service: what it sends may answer translated flows.
    pub const BACKEND: u32 = 2;
}

/// Value of map `NETWORKS` (key: VNI, host order).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The network's gateway address.
    pub gateway: [u8; 4],
    /// The network's MTU: largest inner IP packet, in bytes.
    pub mtu: u32,
}

/// Value of map `PEERS` (key: VTEP address, big-endian bytes): a member node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    flags: u32,
}

impl Peer {
    const IN_UDP: u32 = 1;

    /// A member; `in_udp` if ESP comes from it in UDP, because it or this node is behind NAT.
    #[must_use]
    pub fn new(in_udp: bool) -> Self {
        Self { flags: if in_udp { Self::IN_UDP } else { 0 } }
    }

    /// Whether ESP comes from it in UDP.
    #[inline(always)]
    #[must_use]
    pub fn is_in_udp(&self) -> bool {
        self.flags & Self::IN_UDP != 0
    }
}

/// Bits of [`SubnetKey`] that a longest-prefix match compares at most.
pub const SUBNET_KEY_BITS: u32 = 32;

/// Data part of the key of the longest-prefix map `SUBNETS` (value: VNI, host
/// order): every overlay subnet of the cluster, so that no packet leaves one
/// network for another by way of the host's routing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetKey {
    /// Network address, big-endian bytes.
    pub ip: [u8; 4],
}

const _: () = assert!(size_of::<EndpointKey>() == 8);
const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<Port>() == 28);
const _: () = assert!(size_of::<Network>() == 8);
pod!(EndpointKey, Endpoint, Port, Network, Peer, SubnetKey);
