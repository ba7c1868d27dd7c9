use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{Certificate, Ipsec, NodeId};

/// What a node may do in the control plane.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Role {
    /// Holds the store and serves the API.
    Manager,
    /// Follows a manager; writes its own endpoints and status only.
    Worker,
}

/// How a node carries packets.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
    strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Datapath {
    /// eBPF programs at the endpoints and the uplink.
    #[default]
    Ebpf,
    /// A bridge and a vxlan device per network.
    Kernel,
}

/// Whether a node's agent answers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum NodeStatus {
    /// Its lease is being renewed.
    Ready,
    /// Its lease has ended.
    Down,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Node {
    /// Identifier.
    pub id: NodeId,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Address of its agent and of its tunnel end (VTEP).
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// The address that its host has, if it is behind NAT, which takes it for `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub local_address: Option<Ipv4Addr>,
    /// MTU of its uplink, in bytes.
    pub mtu: u16,
    /// Datapath it runs.
    pub datapath: Datapath,
    /// Version of its agent.
    pub version: String,
    /// Whether its agent answers, as the manager knows it.
    pub status: NodeStatus,
    /// Destinations its host routes itself: no network may overlap them.
    #[schema(value_type = Vec<String>)]
    pub routes: Vec<Ipv4Network>,
    /// Its certificate, once it has told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// What its kernel does for encrypted networks.
    #[serde(default)]
    pub ipsec: Ipsec,
    /// Newest epoch of the cluster's keys that its kernel receives by; 0 for none.
    #[serde(default)]
    pub epoch: u64,
}

impl Node {
    /// Its addresses: two if it is behind NAT.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        [Some(self.address), self.local_address].into_iter().flatten()
    }

    /// Whether the other nodes reach it through NAT.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        self.local_address.is_some()
    }
}
