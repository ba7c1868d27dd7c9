use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{EndpointId, Mac, Name, NetworkId, NodeId, Task, WorkloadId};

/// One interface of one workload on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Endpoint {
    /// Identifier.
    pub id: EndpointId,
    /// Network it is on.
    pub network: NetworkId,
    /// Node it is on.
    pub node: NodeId,
    /// Workload it belongs to.
    pub workload: WorkloadId,
    /// Name of the workload: `NAME` and `NAME.NETWORK` resolve to the address.
    pub name: Name,
    /// Further names that resolve to the address on this network.
    pub aliases: Vec<Name>,
    /// Address, unique in the cluster.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// MAC address, derived from the address.
    pub mac: Mac,
    /// What it is to a service, if its workload serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Time of creation, RFC 3339, UTC.
    pub created: String,
}
