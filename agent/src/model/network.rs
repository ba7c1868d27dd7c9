use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{Name, NetworkId};

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5). The allocator
/// starts at [`Vni::FIRST`], as Swarm does, to stay clear of VLAN numbers.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Vni(pub u32);

impl Vni {
    /// Smallest allocated identifier.
    pub const FIRST: Self = Self(4096);
    /// Largest identifier.
    pub const LAST: Self = Self((1 << 24) - 1);
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An overlay network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Network {
    /// Identifier.
    pub id: NetworkId,
    /// Name, unique in the cluster.
    pub name: Name,
    /// Always `overlay`.
    pub driver: String,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Address block, disjoint from every other network's.
    #[schema(value_type = String, example = "10.0.0.0/24")]
    pub subnet: Ipv4Network,
    /// The workloads' default gateway, an address of the subnet that every node
    /// answers for.
    #[schema(value_type = String)]
    pub gateway: Ipv4Addr,
    /// Part of the subnet from which addresses are allocated when none is asked for.
    #[schema(value_type = Option<String>)]
    pub ip_range: Option<Ipv4Network>,
    /// Addresses kept for others, by name.
    #[schema(value_type = BTreeMap<String, String>)]
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// Whether traffic to and from the outside is refused.
    pub internal: bool,
    /// Whether what it carries between nodes is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// MTU that workloads see, in bytes, if one was chosen.
    pub mtu: Option<u16>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Time of creation, RFC 3339, UTC.
    pub created: String,
}
