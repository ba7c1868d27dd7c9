use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{Name, NetworkId, ServiceId};

/// How a service's name resolves.
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
)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// To one virtual address, behind which connections are balanced.
    #[default]
    Vip,
    /// To the addresses of all its backends, shuffled.
    Dnsrr,
}

/// How a new connection finds its backend.
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
pub enum Scheduler {
    /// Each in turn.
    Rr,
    /// Each in turn, as often as its weight says.
    #[default]
    Wrr,
    /// The one with the least connections.
    Lc,
    /// The one with the least connections for its weight.
    Wlc,
    /// By a hash of the client's address.
    Sh,
    /// By a consistent hash of the client's address (Maglev): few clients move when
    /// backends come and go.
    Mh,
}

/// Transport of a published port.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
    strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Number in the IP header (IANA, protocol numbers).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which nodes answer on a published port.
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
)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Every node, for backends anywhere.
    #[default]
    Ingress,
    /// The nodes that run a backend, each for its own.
    Host,
}

/// Which backends a node prefers for its own clients.
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
)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// All alike.
    #[default]
    Any,
    /// Those on the same node, as long as one of them may take connections.
    Local,
}

/// Whether a task may take new connections.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Health {
    /// It may: its check succeeds, or it has none.
    #[default]
    Healthy,
    /// Not yet: its first check has not succeeded.
    Starting,
    /// Not now: its check failed as often in a row as it may.
    Unhealthy,
}

/// What makes an endpoint a backend: part of one running instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Task {
    /// The service.
    pub service: ServiceId,
    /// Share of new connections beside that of the others, 0 to 65,535; 0 for none.
    pub weight: u16,
    /// As its checks say.
    pub health: Health,
    /// It is about to end: its connections go on, new ones go to others.
    pub draining: bool,
}

impl Task {
    /// Whether it may take new connections.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.weight > 0 && self.health == Health::Healthy && !self.draining
    }
}

/// A port of every node that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublishedPort {
    /// Port on the nodes, host order.
    pub published: u16,
    /// Port of the backends, host order.
    pub target: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Which nodes answer.
    pub mode: PublishMode,
    /// The one address of the nodes at which they answer; none for all of them.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Sources that may connect; empty for all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Ipv4Network>,
}

/// A network that a service is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceNetwork {
    /// The network.
    pub network: NetworkId,
    /// The service's virtual address there; none in mode `dnsrr`.
    #[schema(value_type = Option<String>)]
    pub vip: Option<Ipv4Addr>,
}

/// One name, and one virtual address on each of its networks, for any number of backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Service {
    /// Identifier.
    pub id: ServiceId,
    /// Name, unique in the cluster.
    pub name: Name,
    /// Further names that resolve as its name does.
    pub aliases: Vec<Name>,
    /// Networks that it is on, at least one; published ports lead to it on the first.
    pub networks: Vec<ServiceNetwork>,
    /// How its name resolves.
    pub endpoint_mode: EndpointMode,
    /// Ports of the nodes that lead to it.
    pub ports: Vec<PublishedPort>,
    /// How a new connection finds its backend.
    pub scheduler: Scheduler,
    /// A client keeps its backend for this many seconds after its last new connection.
    pub affinity: Option<u32>,
    /// A connection without a packet for this many seconds is forgotten.
    pub idle_timeout: u32,
    /// Backends that nodes prefer.
    pub prefer: Prefer,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Time of creation, RFC 3339, UTC.
    pub created: String,
}

impl Service {
    /// Idle time after which a connection is forgotten if none was chosen, seconds:
    /// five days, as Linux's connection tracking has it
    /// (`nf_conntrack_tcp_timeout_established`).
    pub const IDLE_TIMEOUT: u32 = 432_000;

    /// Whether it is on this network.
    #[must_use]
    pub fn is_on(&self, network: &NetworkId) -> bool {
        self.networks.iter().any(|n| n.network == *network)
    }

    /// All names that it resolves by on its networks.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        [&self.name].into_iter().chain(&self.aliases)
    }

    /// Its virtual address on a network.
    #[must_use]
    pub fn vip_on(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        self.networks.iter().find(|n| n.network == *network).and_then(|n| n.vip)
    }
}
