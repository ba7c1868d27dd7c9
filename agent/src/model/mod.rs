//! The objects of a cluster: what the store holds, the API carries and the plan
//! reads. Plain data with its own validation; no I/O.

mod encryption;
mod endpoint;
mod id;
mod mac;
mod name;
mod network;
mod node;
mod path;
mod service;
mod snapshot;
mod trust;
mod workload;

pub use encryption::{ClusterKey, Ipsec, Keyring, Secret};
pub use endpoint::Endpoint;
pub use id::{EndpointId, NetworkId, NodeId, SHORT_ID_LEN, ServiceId, WorkloadId};
pub use mac::Mac;
pub use name::{InvalidName, Name};
pub use network::{Network, Vni};
pub use node::{Datapath, Node, NodeStatus, Role};
pub use path::{Path, Reach};
pub use service::{
    EndpointMode, Health, Prefer, Protocol, PublishMode, PublishedPort, Scheduler, Service,
    ServiceNetwork, Task,
};
pub use snapshot::{Backend, ClusterInfo, Restored, Snapshot};
pub use trust::{CaRotation, Certificate, Trust};
pub use workload::{Attachment, HealthCheck, Hold, Serving, Workload};
