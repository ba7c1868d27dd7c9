//! Of networks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Endpoint, Name, Network, NodeId, ServiceId};

/// `POST /v1/networks`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Name.
    pub name: Name,
    /// `overlay`, the only one.
    #[serde(default = "overlay")]
    pub driver: String,
    /// Address block; by default the next free one of the cluster's pool.
    #[schema(value_type = Option<String>)]
    pub subnet: Option<Ipv4Network>,
    /// Gateway; by default the first address.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Part of the subnet to allocate from.
    #[schema(value_type = Option<String>)]
    pub ip_range: Option<Ipv4Network>,
    /// Addresses kept for others, by name.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// No traffic to and from the outside.
    #[serde(default)]
    pub internal: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Driver options: `mtu` (what workloads see, in bytes; also under Docker's name
    /// `com.docker.network.driver.mtu`), `encrypted` (with no value, or `true` or `false`).
    /// Others are refused by name.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

fn overlay() -> String {
    "overlay".to_owned()
}

/// `GET /v1/networks/{network}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkDetail {
    /// The network.
    #[serde(flatten)]
    pub network: Network,
    /// MTU that workloads see now, in bytes.
    pub effective_mtu: u16,
    /// Addresses that can be allocated, and how many of them are.
    pub addresses: AddressUse,
    /// The services that are on it.
    #[serde(default)]
    pub services: Vec<ServiceAddress>,
    /// Its endpoints on all nodes.
    pub endpoints: Vec<Endpoint>,
    /// Nodes with at least one endpoint on it.
    pub peers: Vec<NetworkPeer>,
}

/// A service that is on a network.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceAddress {
    /// The service.
    pub service: ServiceId,
    /// Its name.
    pub name: Name,
    /// Its virtual address there; none in mode `dnsrr`.
    #[schema(value_type = Option<String>)]
    pub vip: Option<Ipv4Addr>,
}

/// How full a network is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddressUse {
    /// Addresses that can be allocated in all.
    pub total: u64,
    /// Of these, taken.
    pub used: u64,
}

/// A node that has endpoints on a network.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkPeer {
    /// The node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Its VTEP.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
}

/// `POST /v1/networks/prune`: names of what was removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Networks that nothing used.
    pub networks: Vec<Name>,
}
