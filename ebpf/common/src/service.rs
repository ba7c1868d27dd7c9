use core::net::Ipv4Addr;

use crate::pod;

/// How a new flow finds its backend. Names and rules are those of ipvsadm(8).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// The slots of the ring in turn. Weights are in the ring: a backend of twice the
    /// weight has twice the slots. Serves `rr` (weights left out) and `wrr`.
    Turn = 0,
    /// The slot that the client's address hashes to. The agent laid the ring out so that
    /// few clients move when backends change. Serves `sh` and `mh`.
    Source = 1,
    /// The backend with the least active flows of this node per weight; one slot each.
    /// Serves `lc` (all weights equal) and `wlc`.
    Least = 2,
}

/// Value of map `SERVICES` (key: [`EndpointKey`](crate::EndpointKey) of the virtual
/// address): how new flows are balanced.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Slots of the ring; 0 if no backend may take a new flow.
    pub slots: u32,
    /// Half of the ring that is in force, 0 or 1. A new ring is written into the other
    /// half, then this entry changes over, then the old half goes.
    pub half: u32,
    scheduler: u32,
    /// A client keeps its backend for so many seconds after its last new flow; 0 for
    /// not at all.
    pub affinity: u32,
    /// A flow without a packet for so many seconds is forgotten.
    pub idle: u32,
}

impl Service {
    /// `slots` in the first half.
    #[must_use]
    pub fn new(scheduler: Scheduler, slots: u32, affinity: u32, idle: u32) -> Self {
        Self { slots, half: 0, scheduler: scheduler as u32, affinity, idle }
    }

    /// The scheduler; `Turn` for a number that is none.
    #[inline(always)]
    #[must_use]
    pub fn scheduler(&self) -> Scheduler {
        match self.scheduler {
            1 => Scheduler::Source,
            2 => Scheduler::Least,
            _ => Scheduler::Turn,
        }
    }
}

/// Key of map `RING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// VXLAN network identifier, 24 bits, host order.
    pub vni: u32,
    vip: [u8; 4],
    /// Slot within the half, from 0.
    pub slot: u32,
    /// As in [`Service::half`].
    pub half: u32,
}

impl SlotKey {
    /// A slot of the service with virtual address `vip` in network `vni`.
    #[inline(always)]
    #[must_use]
    pub fn new(vni: u32, vip: [u8; 4], half: u32, slot: u32) -> Self {
        Self { vni, vip, slot, half }
    }

    /// The virtual address.
    #[must_use]
    pub fn vip(&self) -> Ipv4Addr {
        self.vip.into()
    }
}

/// Value of map `RING`: a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its address, big-endian bytes.
    pub ip: [u8; 4],
    /// Its weight, at least 1; used by [`Scheduler::Least`].
    pub weight: u32,
}

/// Key of map `PUBLISHED`: a port of this node that leads to a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublishedKey {
    ip: [u8; 4],
    port: [u8; 2],
    /// IP protocol: 6, 17 or 132.
    pub protocol: u8,
    _pad: u8,
}

impl PublishedKey {
    /// `port` in host order, at this node's address `ip`.
    #[must_use]
    pub fn new(ip: Ipv4Addr, protocol: u8, port: u16) -> Self {
        Self::from_wire(ip.octets(), protocol, port.to_be_bytes())
    }

    /// From the destination of a packet.
    #[inline(always)]
    #[must_use]
    pub fn from_wire(ip: [u8; 4], protocol: u8, port: [u8; 2]) -> Self {
        Self { ip, port, protocol, _pad: 0 }
    }

    /// The address.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.ip.into()
    }

    /// The port in host order.
    #[must_use]
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Value of map `PUBLISHED`: where it leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// VXLAN network identifier, 24 bits, host order.
    pub vni: u32,
    /// A service's virtual address, or in host mode the address of a backend on this node.
    pub ip: [u8; 4],
    port: [u8; 2],
    flags: u16,
    /// List in map `ALLOWED` that the source must be in; 0 for any source.
    pub allowed: u32,
    /// MTU of the network: largest inner IP packet, in bytes.
    pub mtu: u32,
}

impl Published {
    /// Leads to `port` (host order) of `ip` in network `vni`.
    #[must_use]
    pub fn new(vni: u32, ip: Ipv4Addr, port: u16, allowed: u32, mtu: u32) -> Self {
        Self { vni, ip: ip.octets(), port: port.to_be_bytes(), flags: 0, allowed, mtu }
    }

    const DRAINING: u16 = 1;

    /// The same for known flows alone, while what it leads to is `draining`: a packet that
    /// begins another is the host's.
    #[must_use]
    pub fn draining(self, draining: bool) -> Self {
        Self { flags: if draining { Self::DRAINING } else { 0 }, ..self }
    }

    /// Whether no flow may begin here.
    #[inline(always)]
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.flags & Self::DRAINING != 0
    }

    /// The target port as it stands in a packet.
    #[inline(always)]
    #[must_use]
    pub fn port_be(&self) -> [u8; 2] {
        self.port
    }

    /// The target port in host order.
    #[must_use]
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Bits of [`AllowedKey`] before the address.
pub const ALLOWED_LIST_BITS: u32 = 32;

/// Data part of the key of the longest-prefix map `ALLOWED` (value: 1): sources that may
/// use a published port. The prefix length counts [`ALLOWED_LIST_BITS`] too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedKey {
    /// The list, from 1.
    pub list: u32,
    /// Network address, big-endian bytes.
    pub ip: [u8; 4],
}

/// Key of map `VIRTUAL` (value: 1): a port for which this node's IPVS has a virtual
/// server; flows to other ports of a virtual address are balanced by the programs.
/// Laid out as [`PublishedKey`].
pub type VirtualKey = PublishedKey;

const _: () = assert!(size_of::<Service>() == 20);
const _: () = assert!(size_of::<SlotKey>() == 16);
const _: () = assert!(size_of::<Slot>() == 8);
const _: () = assert!(size_of::<PublishedKey>() == 8);
const _: () = assert!(size_of::<Published>() == 20);
const _: () = assert!(size_of::<AllowedKey>() == 8);
pod!(Service, SlotKey, Slot, PublishedKey, Published, AllowedKey);
