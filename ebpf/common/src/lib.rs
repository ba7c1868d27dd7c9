//! The ABI between the eBPF programs and the agent: map keys, map values and
//! counters, and nothing else.
//!
//! Rules of this crate: every type is `repr(C)` without implicit padding; every
//! address and port that a packet carries is stored as big-endian bytes, as it
//! stands in the packet, behind typed constructors and getters, so that no
//! caller ever converts. A change of any layout raises [`ABI_VERSION`], which is
//! part of the pin path: an old map is never read with a new layout.
#![cfg_attr(not(feature = "user"), no_std)]

mod config;
mod counter;
mod flow;
mod names;
mod overlay;
mod probe;
mod service;

pub use config::Config;
pub use counter::{Count, Counter};
pub use flow::{Affinity, AffinityKey, Flow, FlowKey, Kind, Load};
pub use names::{maps, programs};
pub use overlay::{
    Endpoint, EndpointKey, GATEWAY_MAC, LB_MAC, Network, Peer, Port, SUBNET_KEY_BITS, SubnetKey,
};
pub use probe::{PROBE_ETHERTYPE, PROBE_VNI, Probe, Probed};
pub use service::{
    ALLOWED_LIST_BITS, AllowedKey, Published, PublishedKey, Scheduler, Service, Slot, SlotKey,
    VirtualKey,
};

/// Version of every layout in this crate; part of the path under which maps
/// and links are pinned.
pub const ABI_VERSION: u32 = 6;

/// Bytes that VXLAN over IPv4 puts in front of an inner IP packet: outer IPv4
/// 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5).
pub const VXLAN_OVERHEAD: u16 = 50;

/// What is around the UDP packet of an encrypted network's VXLAN: IPv4 20, SPI and sequence
/// number 8, IV 8, ICV 16 (RFC 4106).
const ESP_AROUND: u16 = 52;

/// What is before the inner IP packet within that, and the two bytes of ESP's trailer
/// behind it.
const ESP_WITHIN: u16 = 32;

/// What UDP puts around ESP (RFC 3948, 2.1).
const UDP_AROUND_ESP: u16 = 8;

/// Largest inner IP packet of an encrypted network where the underlay takes `underlay`
/// bytes, with ESP in UDP or not. ESP pads to four bytes (RFC 4303, 2.4).
#[must_use]
pub const fn encrypted_mtu(underlay: u16, in_udp: bool) -> u16 {
    let around = if in_udp { ESP_AROUND + UDP_AROUND_ESP } else { ESP_AROUND };
    (underlay.saturating_sub(around) & !3).saturating_sub(ESP_WITHIN)
}

/// UDP port of ESP in UDP, by which it gets through NAT (RFC 3948, 2.1).
pub const ESP_IN_UDP_PORT: u16 = 4500;

/// Marks the kernel's IPsec associations and policies that are ours (`reqid` of
/// ip-xfrm(8)).
pub const IPSEC_REQID: u32 = 0x6e61;

/// UDP port of VXLAN (RFC 7348, IANA), used unless the cluster chose another.
pub const VXLAN_PORT: u16 = 4789;

/// Implements `aya::Pod` for map types when built for the agent.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), Copy, no padding (asserted beside each type), valid
        // for every bit pattern.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+};
}
pub(crate) use pod;
