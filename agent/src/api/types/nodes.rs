//! Of nodes: what they tell of themselves, and their certificates.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Certificate, ClusterInfo, Datapath, Ipsec, Node, NodeId, Path, Role};

/// One of the datapath's counters on this node; `GET /v1/counters` answers with
/// all of them, summed over the processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CounterReading {
    /// Stable name.
    pub name: String,
    /// What it counts, one line.
    pub help: String,
    /// Packets since the datapath was loaded; a GSO packet counts once.
    pub packets: u64,
    /// Bytes of these packets, Ethernet header included.
    pub bytes: u64,
}

/// `GET /v1/nodes/{node}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeDetail {
    /// The node.
    #[serde(flatten)]
    pub node: Node,
    /// The path to it from the node that was asked; none to that node itself.
    pub path: Option<Path>,
}

/// What a node tells of itself when it joins and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// Address of its agent and its tunnel end.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// The address that its host has, if it is behind NAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub local_address: Option<Ipv4Addr>,
    /// MTU of its uplink, bytes.
    pub mtu: u16,
    /// Datapath.
    pub datapath: Datapath,
    /// Version of its agent.
    pub version: String,
    /// Destinations that its host routes itself.
    #[schema(value_type = Vec<String>)]
    pub routes: Vec<Ipv4Network>,
    /// Its certificate; none before it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// What its kernel does for encrypted networks.
    #[serde(default)]
    pub ipsec: Ipsec,
}

/// `POST /v1/nodes/{node}/status`: renews the node's lease.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusReport {
    /// Facts, if they changed or the agent has just started.
    pub facts: Option<NodeFacts>,
    /// Revision that the node's kernel reflects.
    pub applied: u64,
}

/// `POST /v1/join`, between nodes, without a certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateRequest {
    /// The join token's secret.
    pub token: String,
    /// Certificate signing request, PEM.
    pub csr: String,
    /// The joining node's facts.
    pub facts: NodeFacts,
}

/// Reply to `POST /v1/join`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateReply {
    /// The cluster.
    pub cluster: ClusterInfo,
    /// Identifier given to the node.
    pub node: NodeId,
    /// Role given to it.
    pub role: Role,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The cluster's CA certificate, PEM.
    pub ca: String,
}

/// `POST /v1/nodes/{node}/certificate`, between nodes: a new key of the calling node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// Certificate signing request, PEM.
    pub csr: String,
}

/// Reply to it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RenewalReply {
    /// The node's new certificate, PEM.
    pub certificate: String,
    /// Certificates of the CAs that nodes trust, PEM; the one that signed is first.
    pub ca: String,
}
