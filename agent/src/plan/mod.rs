//! Decides, and touches nothing: [`desired`] turns the cluster's snapshot and
//! this node's workloads into the whole state that the kernel should have, and
//! [`diff`](diff::diff) tells what is missing.

mod diff;
mod display;
mod ebpf;
mod encryption;
#[cfg(test)]
pub(crate) mod fixture;
pub mod flow;
mod inside;
mod ipvs;
mod kernel;
mod names;
pub mod path;
mod ring;
mod ruleset;
mod service;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::model::{Datapath, Ipsec, NodeId, Snapshot, Workload};

pub use diff::{Op, diff};
pub use encryption::{AeadKey, Association, Need, Policy, Way, epoch_of, low};
pub use ipvs::{IPVS_SETTINGS, Ipvs, RealServer, Setting, Timeouts, VirtualServer, is_balancer};
pub use state::{
    Balance, Hook, IPSEC_LINK, Key, LINK_PREFIX, Link, MapKey, NFT_TABLE, Ns, Slot, Socket, State,
    Sysctl, VXLAN_LINK, Value,
};

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// This node.
    pub id: NodeId,
    /// Its tunnel address, which its uplink has.
    pub vtep: Ipv4Addr,
    /// The address by which the other nodes know it: the same, unless it is behind NAT.
    pub advertised: Ipv4Addr,
    /// Interface that carries the tunnel.
    pub uplink: String,
    /// Nodes whose addresses share so many bits with `vtep` are neighbours on the
    /// uplink, reached without a gateway; 32 if none is known to be.
    pub neighbour_bits: u8,
    /// The host's own addresses, where published ports answer: not the loopback's, and not
    /// those of our links.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// The datapath it was started with.
    pub datapath: Datapath,
    /// Whether IPVS schedules the published ports of services.
    pub ipvs: bool,
    /// What its kernel does for encrypted networks.
    pub ipsec: Ipsec,
    /// Digest of the eBPF object that this agent carries.
    pub object: String,
}

/// The whole kernel state that `me` should have. Pure.
#[must_use]
pub fn desired(snapshot: &Snapshot, workloads: &[Workload], me: &Me) -> State {
    match me.datapath {
        Datapath::Ebpf => ebpf::desired(snapshot, workloads, me),
        Datapath::Kernel => kernel::desired(snapshot, workloads, me),
    }
}
