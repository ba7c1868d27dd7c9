//! Bodies of requests and replies that are not themselves objects of the model.
//! Unknown fields are refused where people may write them: a misspelt option must not pass
//! silently. Between nodes they are ignored, as objects of an unknown kind are: a newer agent
//! may send them (`version` has the rules).

mod cluster;
mod networks;
mod nodes;
mod services;
mod watch;
mod workloads;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::cluster::{
    ClusterStatus, InitRequest, JoinRequest, JoinToken, KeyStatus, LeaveRequest, Membership,
    RotateCa, RotatedKey, UpdateCluster,
};
pub use self::networks::{
    AddressUse, CreateNetwork, NetworkDetail, NetworkPeer, Pruned, ServiceAddress,
};
pub use self::nodes::{
    CertificateReply, CertificateRequest, CounterReading, NodeDetail, NodeFacts, RenewalReply,
    RenewalRequest, StatusReport,
};
pub use self::services::{CreateService, PortRef, Publish, Serve, ServiceDetail, UpdateService};
pub use self::watch::{Change, WatchEvent};
pub use self::workloads::{
    Attach, Connect, CreateEndpoint, CreateWorkload, UpdateEndpoint, UpdateWorkload, WorkloadFlows,
    WorkloadReady,
};

/// Body of every reply that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong, with what, and what to do.
    pub message: String,
}
