//! Of services.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    Endpoint, EndpointMode, Health, Name, Prefer, Protocol, PublishMode, Scheduler, Service,
};

/// A port to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Port on the nodes; by default a free one of 30000 to 32767.
    pub published: Option<u16>,
    /// Port of the backends.
    pub target: u16,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// Which nodes answer.
    #[serde(default)]
    pub mode: PublishMode,
    /// The one address of the nodes at which they answer.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Sources that may connect; empty for all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Ipv4Network>,
}

/// `POST /v1/services`. The reply is the `Service`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateService {
    /// Name: unique in the cluster, and no network of it has a workload or alias of
    /// this name.
    pub name: Name,
    /// Further names.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Networks, by name or identifier; published ports lead to it on the first.
    pub networks: Vec<String>,
    /// How the name resolves.
    #[serde(default)]
    pub endpoint_mode: EndpointMode,
    /// Virtual address asked for, on a service of one network.
    #[schema(value_type = Option<String>)]
    pub vip: Option<Ipv4Addr>,
    /// Ports to publish.
    #[serde(default)]
    pub ports: Vec<Publish>,
    /// How new connections find their backend.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// A client keeps its backend for so many seconds.
    pub affinity: Option<u32>,
    /// Seconds without a packet after which a connection is forgotten.
    pub idle_timeout: Option<u32>,
    /// Backends that nodes prefer.
    #[serde(default)]
    pub prefer: Prefer,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `PATCH /v1/services/{service}`: what is named changes, the rest stays. The reply is
/// the `Service` as it is now, sent when every node that is ready has applied it, or
/// after two seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateService {
    /// How the name resolves. From `dnsrr` to `vip` allocates addresses, the other way
    /// gives them back.
    pub endpoint_mode: Option<EndpointMode>,
    /// Virtual address to have from now on; only for a service of one network.
    #[schema(value_type = Option<String>)]
    pub vip: Option<Ipv4Addr>,
    /// Further names to resolve by.
    #[serde(default)]
    pub alias_add: Vec<Name>,
    /// Aliases to resolve by no longer.
    #[serde(default)]
    pub alias_rm: Vec<Name>,
    /// Ports to publish in addition; one with the same published port, protocol and
    /// address replaces what is there.
    #[serde(default)]
    pub publish_add: Vec<Publish>,
    /// Target ports, with their transport, to publish no longer.
    #[serde(default)]
    pub publish_rm: Vec<PortRef>,
    /// Scheduler.
    pub scheduler: Option<Scheduler>,
    /// Seconds for which a client keeps its backend; 0 for not at all.
    pub affinity: Option<u32>,
    /// Seconds without a packet after which a connection is forgotten.
    pub idle_timeout: Option<u32>,
    /// Backends that nodes prefer.
    pub prefer: Option<Prefer>,
    /// Labels to set.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Labels to take away.
    #[serde(default)]
    pub label_rm: Vec<String>,
}

/// A published port, named by its target as Docker's `--publish-rm` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRef {
    /// Target port.
    pub target: u16,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
}

/// `GET /v1/services/{service}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceDetail {
    /// The service.
    #[serde(flatten)]
    pub service: Service,
    /// The endpoints that serve it, on all its networks.
    pub tasks: Vec<Endpoint>,
}

/// What a workload is to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// Service, by name or identifier.
    pub service: String,
    /// Share of new connections beside that of the others.
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether it may take connections at once.
    #[serde(default)]
    pub health: Health,
}

fn one() -> u16 {
    1
}
