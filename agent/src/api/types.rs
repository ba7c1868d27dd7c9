//! Bodies of requests and replies that are not themselves objects of the model.
//! Unknown fields are refused where people may write them: a misspelt option must not pass
//! silently. Between nodes they are ignored, as objects of an unknown kind are: a newer agent
//! may send them (`version` has the rules).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::version;
use crate::model::{
    CaRotation, Certificate, ClusterInfo, Datapath, Endpoint, EndpointId, EndpointMode, Health,
    HealthCheck, Ipsec, Name, Network, NetworkId, Node, NodeId, Path, Prefer, Protocol,
    PublishMode, Role, Scheduler, Service, ServiceId, Task, WorkloadId,
};

/// Body of every reply that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong, with what, and what to do.
    pub message: String,
}

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

/// One object's change in the watch stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type", content = "object")]
pub enum Change {
    /// A node is new or changed.
    Node(Node),
    /// A node is gone.
    NodeRemoved(NodeId),
    /// A network is new or changed.
    Network(Network),
    /// A network is gone.
    NetworkRemoved(NetworkId),
    /// A service is new or changed.
    Service(Service),
    /// A service is gone.
    ServiceRemoved(ServiceId),
    /// An endpoint is new or changed.
    Endpoint(Endpoint),
    /// An endpoint is gone.
    EndpointRemoved(crate::model::EndpointId),
    /// Other CAs are trusted.
    Trust(crate::model::Trust),
    /// The keys of encrypted networks are others, or gone. Only members are told.
    Keyring(Option<crate::model::Keyring>),
}

/// `GET /v1/watch`: one JSON object a line. First a snapshot, then deltas.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum WatchEvent {
    /// The whole state.
    Snapshot {
        /// It.
        snapshot: Box<crate::model::Snapshot>,
    },
    /// What changed up to a revision, in order.
    Delta {
        /// Revision after the changes.
        revision: u64,
        /// The changes of one or several transactions.
        #[serde(deserialize_with = "version::known_changes")]
        changes: Vec<Change>,
    },
    /// Nothing changed; sent every second so that a dead peer is noticed.
    Alive {
        /// Current revision.
        revision: u64,
    },
    /// What a newer agent tells and this one does not know; never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}
