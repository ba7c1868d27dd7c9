//! Of workloads and their endpoints.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::services::Serve;
use crate::model::{EndpointId, Health, HealthCheck, Name, NodeId, Task, WorkloadId};

/// `PATCH /v1/endpoints/{endpoint}`: a node tells of an endpoint of its own that serves;
/// what is named changes. The reply is the `Endpoint`, sent when every node that is ready
/// has applied it, or after two seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateEndpoint {
    /// Share of new connections.
    pub weight: Option<u16>,
    /// Whether it may take connections.
    pub health: Option<Health>,
    /// Whether it is about to end.
    pub draining: Option<bool>,
}

impl UpdateEndpoint {
    /// Changes what is named, leaves the rest.
    pub fn apply(&self, task: &mut Task) {
        task.weight = self.weight.unwrap_or(task.weight);
        task.health = self.health.unwrap_or(task.health);
        task.draining = self.draining.unwrap_or(task.draining);
    }
}

/// `POST /v1/endpoints`: a node asks for an endpoint of its own. The reply is the
/// `Endpoint`, sent when every node that is ready has applied it, or after two
/// seconds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateEndpoint {
    /// Network, by name or identifier.
    pub network: String,
    /// Node that it is on: the one that asks.
    pub node: NodeId,
    /// Workload that it belongs to.
    pub workload: WorkloadId,
    /// Name of the workload.
    pub name: Name,
    /// Further names on this network.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Address asked for; by default one is allocated.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// The service that it is to serve, which must be on this network.
    pub serve: Option<Serve>,
    /// Identifier that it had before the cluster was restored from an older backup; a new
    /// one if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<EndpointId>,
}

/// One network of a workload to be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Network, by name or identifier.
    pub network: String,
    /// Further names on this network.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Address asked for.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// `POST /v1/workloads`, unix socket only: attach a namespace of this node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkload {
    /// Name; by default made from the identifier.
    pub name: Option<Name>,
    /// Namespace of this process, and released when it ends.
    pub pid: Option<i32>,
    /// Namespace that this file names, and released when that is gone.
    #[schema(value_type = Option<String>)]
    pub netns: Option<PathBuf>,
    /// Mount the workload's `resolv.conf` and `hosts` over those that the process
    /// sees, and keep them there. It must have a mount namespace of its own.
    #[serde(default)]
    pub mount: bool,
    /// Networks in the order of the interfaces; with `serve`, none for all of the
    /// service's.
    pub networks: Vec<Attach>,
    /// The service that it is to serve, on those of its networks that it shares with it.
    pub serve: Option<Serve>,
    /// How its health is found out; without it the workload is healthy.
    pub health_check: Option<HealthCheck>,
}

/// `PATCH /v1/workloads/{workload}`, unix socket only: what is named changes, for a
/// workload that serves. The reply is the `Workload`, sent when every node that is ready
/// has applied it, or after two seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkload {
    /// Share of new connections.
    pub weight: Option<u16>,
    /// Whether it is about to end: its connections go on, new ones go to others.
    pub draining: Option<bool>,
}

/// `GET /v1/workloads/{workload}/flows`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkloadFlows {
    /// Connections to the workload that have not ended, through services and directly; of
    /// UDP, flows with a packet within the last half minute.
    pub flows: u64,
}

/// Reply to `POST /v1/workloads`: the kernel is set up when it arrives.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkloadReady {
    /// The workload.
    pub workload: crate::model::Workload,
    /// File to mount over `/etc/resolv.conf`.
    #[schema(value_type = String)]
    pub resolv_conf: PathBuf,
    /// File to mount over `/etc/hosts`.
    #[schema(value_type = String)]
    pub hosts: PathBuf,
    /// What does not work although the rest does, for people to read.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `POST /v1/networks/{network}/connect` and `/disconnect`, unix socket only.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Workload of this node, by name or identifier.
    pub workload: String,
    /// Further names (connect only).
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Address asked for (connect only).
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}
