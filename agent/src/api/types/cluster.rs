//! Of the cluster as a whole: how it is made, joined and left, and its keys.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{CaRotation, ClusterInfo, Node, NodeId, Role};

/// `GET /v1/cluster`: what this node knows of its cluster.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// Version of the agent that answers.
    pub version: String,
    /// None if the node is in no cluster.
    pub cluster: Option<ClusterInfo>,
    /// This node; None if in no cluster.
    pub node: Option<Node>,
    /// Whether a manager answers (on a manager: true).
    pub manager_reachable: bool,
    /// Revision that this node's kernel reflects.
    pub applied: u64,
    /// When this node's certificate ends, RFC 3339, UTC; it is renewed long before.
    #[serde(default)]
    pub certificate_expires: Option<String>,
    /// How far the replacement of the CA has come; none if nobody has anything to do for it.
    #[serde(default)]
    pub ca_rotation: Option<CaRotation>,
    /// The keys of encrypted networks; None without such networks.
    #[serde(default)]
    pub keys: Option<KeyStatus>,
}

/// `POST /v1/cluster/ca/rotate`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateCa {
    /// End the rotation that is under way: nodes that have not renewed must join again.
    #[serde(default)]
    pub force: bool,
}

/// What may be known of the keys of encrypted networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// Epoch of the newest; grows by one with each renewal.
    pub epoch: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Packets from one node to another after which it is renewed.
    pub packets: u64,
    /// Seconds after which it is renewed; only managers know.
    pub rotation: Option<u64>,
}

/// `PATCH /v1/cluster`: what is named changes, the rest stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateCluster {
    /// Seconds for which certificates are valid that are signed from now on.
    pub cert_expiry: Option<u32>,
    /// Seconds after which the keys of encrypted networks are renewed.
    pub key_rotation: Option<u64>,
    /// Packets from one node to another after which they are renewed.
    pub key_packets: Option<u64>,
}

/// Reply to `POST /v1/cluster/rotate-key`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RotatedKey {
    /// Epoch of the new keys.
    pub epoch: u64,
}

/// `POST /v1/cluster/init`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// Address that the other nodes use; needed if the host has several.
    #[schema(value_type = Option<String>)]
    pub advertise: Option<Ipv4Addr>,
    /// Address of this host, if that is another because it is behind NAT.
    #[schema(value_type = Option<String>)]
    pub local: Option<Ipv4Addr>,
    /// Pool from which subnets of networks are taken.
    #[schema(value_type = Option<String>, example = "10.0.0.0/8")]
    pub pool: Option<Ipv4Network>,
    /// Prefix length of such a subnet.
    pub pool_prefix: Option<u8>,
    /// UDP port of VXLAN on every node.
    pub data_path_port: Option<u16>,
}

/// `POST /v1/cluster/join`, on the unix socket of the node that is to join.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Join token, as `cluster join-token` prints it.
    pub token: String,
    /// Address of a manager; port 2377 if it names none.
    pub manager: String,
    /// Address that the other nodes use; by default the one that reaches the manager.
    #[schema(value_type = Option<String>)]
    pub advertise: Option<Ipv4Addr>,
    /// Address of this host, if that is another because it is behind NAT.
    #[schema(value_type = Option<String>)]
    pub local: Option<Ipv4Addr>,
}

/// Reply to init and join.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Membership {
    /// Identifier of the cluster.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
}

/// `POST /v1/cluster/leave`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Leave although workloads run, no manager answers, or this is the manager.
    pub force: bool,
}

/// `GET /v1/cluster/join-token/{role}`, and with `POST` a new one replaces it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// Role that it admits to.
    pub role: Role,
    /// The token.
    pub token: String,
    /// Address of this manager, with port.
    pub manager: String,
}
