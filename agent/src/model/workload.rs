use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Endpoint, Name, ServiceId, WorkloadId};

/// What keeps a workload attached; when it is gone, the workload is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Hold {
    /// A process lives in the namespace.
    Process {
        /// Process identifier.
        pid: i32,
        /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`),
        /// so that a reused pid is not taken for it.
        start: u64,
    },
    /// The file that names the namespace exists and still is that namespace.
    Path {
        /// Inode of the namespace.
        inode: u64,
    },
}

/// One interface inside the workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Attachment {
    /// Name inside the namespace, `eth0` and up.
    pub interface: String,
    /// The endpoint.
    pub endpoint: Endpoint,
}

/// How a workload's health is found out. Exactly one of `command`, `tcp` and `http`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Run by `/bin/sh -c` in the workload's namespaces: healthy if it exits with 0.
    pub command: Option<String>,
    /// Healthy if this port of the workload takes a connection.
    pub tcp: Option<u16>,
    /// Healthy if `GET` of `:PORT/PATH` at the workload is answered with 2xx or 3xx.
    pub http: Option<String>,
    /// Milliseconds between two checks.
    pub interval_ms: u64,
    /// Milliseconds after which a check has failed.
    pub timeout_ms: u64,
    /// Failures in a row that make the workload unhealthy.
    pub retries: u32,
    /// Milliseconds after the start in which failures do not count.
    pub start_period_ms: u64,
}

/// What a workload is to a service. Weight, health and drain are the tasks' of its
/// endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Serving {
    /// The service.
    pub service: ServiceId,
    /// How its health is found out; without it the workload is healthy.
    pub health_check: Option<HealthCheck>,
}

/// A network namespace of this node with endpoints in it. Kept by its node
/// alone, on disk, so that an agent that restarts finds its workloads again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Workload {
    /// Identifier.
    pub id: WorkloadId,
    /// Name, unique on this node.
    pub name: Name,
    /// Path of the network namespace.
    #[schema(value_type = String)]
    pub netns: PathBuf,
    /// What keeps it.
    pub hold: Hold,
    /// Whether its `resolv.conf` and `hosts` are kept mounted over those that its
    /// process sees.
    #[serde(default)]
    pub mounted: bool,
    /// The service that it serves, on those of its networks that it shares with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// Interfaces in the order of attachment; the first on a network that is not
    /// internal carries the default route.
    pub attachments: Vec<Attachment>,
}
