//! Kernel state as data: a map from the identity of a thing to its content.
//! What is observed and what is desired have this one form, so one `diff` and one
//! executor serve both datapaths.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use netagent_common::Scheduler;

use crate::model::{Mac, Vni};

use super::encryption::{Association, Policy, Way};
use super::ipvs::{Ipvs, RealServer, VirtualServer};

/// Kernel state: everything of ours, and nothing of others.
pub type State = BTreeMap<Key, Value>;

/// Name of the collect-metadata vxlan device.
pub const VXLAN_LINK: &str = "na-vxlan";
/// Name of that for encrypted networks.
pub const IPSEC_LINK: &str = "na-ipsec";
/// All links of ours in the host's namespace start with this.
pub const LINK_PREFIX: &str = "na-";
/// Name of our nftables table (family `ip`), in every namespace where there is one.
pub const NFT_TABLE: &str = "netagent";

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ns {
    /// The one the agent runs in.
    Host,
    /// The one that this file names (`/proc/PID/ns/net`, `/run/netns/NAME`).
    At(PathBuf),
}

/// Identity of one piece of kernel state. The order is the order of creation;
/// removal runs backwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A namespace of ours, by its name under `/run/netns`. Value: `Present`.
    Namespace(String),
    /// A security association of IPsec in the host's namespace, by the receiving node and
    /// its index (SPI), host order. Value: `Association`.
    Association(Ipv4Addr, u32),
    /// A policy of IPsec in the host's namespace: of packets from or to this node, or of all
    /// that no other is for. It comes before the device whose packets it is about. Value:
    /// `Policy`.
    Policy(Way, Option<Ipv4Addr>),
    /// A link. Value: `Link`.
    Link(Ns, String),
    /// An address of a link. Value: `Present`.
    Address(Ns, String, Ipv4Network),
    /// A switch of a link, turned on. Value: `Present`. Deleting it restores what was
    /// found.
    Sysctl(Ns, String, Sysctl),
    /// An IPv4 route in the main table. Value: `Route`, or `Local`.
    Route(Ns, Ipv4Network),
    /// A permanent neighbour of a link. Value: `Mac`.
    Neighbour(Ns, String, Ipv4Addr),
    /// A permanent FDB entry of a vxlan link: frames to the MAC go to the VTEP.
    /// Value: `Vtep`.
    Fdb(Ns, String, Mac),
    /// The table [`NFT_TABLE`] of a namespace, whole. Value: `Ruleset`.
    Nftables(Ns),
    /// How IPVS works in a namespace. Value: `Ipvs`. Deleting it restores what the kernel
    /// has in a new one.
    Ipvs(Ns),
    /// A virtual server of IPVS. Value: `VirtualServer`.
    VirtualServer(Ns, Socket),
    /// A real server of a virtual one. Value: `RealServer`.
    RealServer(Ns, Socket, SocketAddrV4),
    /// An entry of a pinned BPF map. Value: `Map*`.
    Map(MapKey),
    /// A program at a hook of a host link. Value: `Program`.
    Hook(String, Hook),
}

/// A switch of a link, `net.ipv4.conf.LINK.NAME`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Sysctl {
    /// Packets that came in here may be forwarded.
    Forwarding,
    /// 127.0.0.0/8 is no martian here.
    RouteLocalnet,
    /// Packets that came in here may have an address of this host for a source.
    AcceptLocal,
}

/// Identity of an entry of a BPF map; see `ebpf/common` for the layouts. What is pointed
/// to comes before what points to it: a backend before the ring, a list of sources before
/// the port that asks it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapKey {
    /// The one entry of `CONFIG`. Value: `Config`.
    Config,
    /// `ENCRYPTED`. Value: `Through`.
    Encrypted(Vni),
    /// `NETWORKS`. Value: `Network`.
    Network(Vni),
    /// `SUBNETS`. Value: `Vni`.
    Subnet(Ipv4Network),
    /// `PEERS`, by VTEP. Value: `Peer`.
    Peer(Ipv4Addr),
    /// `ENDPOINTS`. Value: `Endpoint`, or `Vip` for a virtual address.
    Endpoint(Vni, Ipv4Addr),
    /// `PORTS`, by name of the host link. An observed entry whose interface is
    /// gone carries `#IFINDEX` for a name. Value: `Port`.
    Port(String),
    /// `SERVICES` and the half of the service's ring in `RING` that is in force, as one:
    /// a change of either changes over from the old to the new at one instant. By network
    /// and virtual address. Value: `Service`.
    Service(Vni, Ipv4Addr),
    /// Observed only, never wanted: an entry of `RING` that is not in force. Value:
    /// `Present`.
    Slot {
        /// Network.
        vni: Vni,
        /// Virtual address.
        vip: Ipv4Addr,
        /// Half of the ring, 0 or 1 if it is one.
        half: u32,
        /// Number within the half.
        slot: u32,
    },
    /// `ALLOWED`, by number of the list and source. Value: `Present`.
    Allowed(u32, Ipv4Network),
    /// `PUBLISHED`. Value: `Published`.
    Published(Socket),
    /// `VIRTUAL`. Value: `Present`.
    Virtual(Socket),
}

/// An address and a port of a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    /// Address.
    pub ip: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, host order.
    pub port: u16,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// tc ingress of an endpoint's host link: `from_endpoint`.
    FromEndpoint,
    /// tc ingress of a vxlan device: `from_overlay`.
    FromOverlay,
    /// tc ingress of the uplink: `from_uplink`.
    FromUplink,
    /// tc ingress of the loopback device: `from_host`.
    FromHost,
    /// tc ingress of the host side of the veth to the namespace of IPVS: `from_lb`.
    FromLb,
    /// tc egress of the uplink: `to_uplink`.
    ToUplink,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 6] = [
        Self::FromEndpoint,
        Self::FromOverlay,
        Self::FromUplink,
        Self::FromHost,
        Self::FromLb,
        Self::ToUplink,
    ];

    /// Whether it is at the egress of its link, and not at the ingress.
    #[must_use]
    pub fn is_egress(self) -> bool {
        self == Self::ToUplink
    }
}

/// Content of one piece of kernel state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing but that it is there.
    Present,
    /// Of [`Key::Link`].
    Link(Link),
    /// Of [`Key::Route`].
    Route {
        /// Outgoing link.
        link: String,
        /// Next hop; none for a destination on the link.
        gateway: Option<Ipv4Addr>,
        /// Preferred source address.
        source: Option<Ipv4Addr>,
    },
    /// Of [`Key::Route`]: packets to it are for the namespace itself, though none of its
    /// links has such an address.
    Local,
    /// Of [`Key::Neighbour`].
    Mac(Mac),
    /// Of [`Key::Fdb`].
    Vtep(Ipv4Addr),
    /// Of [`Key::Nftables`]: the table as `nft -s list table` prints it.
    Ruleset(String),
    /// Of [`Key::Association`]. An observed one that differs from any of ours in what this
    /// does not say is `Present`.
    Association(Association),
    /// Of [`Key::Policy`]; the same is true.
    Policy(Policy),
    /// Of [`Key::Ipvs`].
    Ipvs(Ipvs),
    /// Of [`Key::VirtualServer`].
    VirtualServer(VirtualServer),
    /// Of [`Key::RealServer`].
    RealServer(RealServer),
    /// Of [`MapKey::Config`]; links by name, resolved to indexes when written. An
    /// observed index that names no link is `#IFINDEX`.
    Config {
        /// The uplink.
        uplink: String,
        /// The vxlan device.
        vxlan: String,
        /// This node's VTEP.
        vtep: Ipv4Addr,
        /// As in [`Me`](super::Me).
        advertised: Ipv4Addr,
        /// VXLAN UDP port.
        port: u16,
        /// As in [`Me`](super::Me).
        neighbour_bits: u8,
        /// Host side of the veth to the namespace of IPVS, if there is one.
        lb: Option<String>,
        /// VXLAN UDP port of encrypted networks, if there is one.
        encrypted: Option<u16>,
    },
    /// Of [`MapKey::Encrypted`]: the vxlan device that carries the network; none if nothing
    /// on this node can.
    Through(Option<String>),
    /// Of [`MapKey::Peer`].
    Peer {
        /// Whether ESP comes from it in UDP.
        in_udp: bool,
    },
    /// Of [`MapKey::Network`].
    Network {
        /// Gateway address.
        gateway: Ipv4Addr,
        /// MTU in bytes.
        mtu: u16,
    },
    /// Of [`MapKey::Subnet`].
    Vni(Vni),
    /// Of [`MapKey::Endpoint`].
    Endpoint {
        /// Its MAC.
        mac: Mac,
        /// Host link if it is on this node; `#IFINDEX` if observed and gone.
        link: Option<String>,
        /// VTEP of the node that owns it.
        vtep: Ipv4Addr,
        /// Virtual address that it is a backend of; 0.0.0.0 if of none.
        serves: Ipv4Addr,
        /// Whether it may take new flows of a service.
        eligible: bool,
    },
    /// Of [`MapKey::Endpoint`]: a virtual address, by its MAC.
    Vip(Mac),
    /// Of [`MapKey::Port`].
    Port {
        /// Network.
        vni: Vni,
        /// The endpoint's address.
        ip: Ipv4Addr,
        /// The endpoint's MAC.
        mac: Mac,
        /// MTU of the network in bytes.
        mtu: u16,
        /// Whether the network is internal.
        internal: bool,
        /// Whether it is a backend of a service.
        backend: bool,
        /// Gateway address.
        gateway: Ipv4Addr,
    },
    /// Of [`MapKey::Service`].
    Service(Balance),
    /// Of [`MapKey::Published`].
    Published {
        /// Network.
        vni: Vni,
        /// Virtual address of the service, or address of a backend on this node.
        ip: Ipv4Addr,
        /// Port there, host order.
        port: u16,
        /// Number of the list of sources that may connect; 0 for all.
        allowed: u32,
        /// Whether known flows go on there and no others begin.
        draining: bool,
        /// MTU of the network in bytes.
        mtu: u16,
    },
    /// Of [`Key::Hook`]: digest of the object that the program comes from.
    Program(String),
}

/// How new flows to a virtual address are balanced, and over whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// How a slot is found.
    pub scheduler: Scheduler,
    /// Seconds for which a client keeps its backend; 0 for not at all.
    pub affinity: u32,
    /// Seconds without a packet after which a flow is forgotten.
    pub idle: u32,
    /// The slots. An observed one that is missing is [`Slot::MISSING`].
    pub ring: Vec<Slot>,
}

/// A slot of a ring: a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its weight, from 1.
    pub weight: u32,
}

impl Slot {
    /// Nobody; never wanted.
    pub const MISSING: Self = Self { ip: Ipv4Addr::UNSPECIFIED, weight: 0 };
}

/// Kind and attributes of a link of ours. Every link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A veth whose other end is in a workload (or in the bridges' namespace).
    Veth {
        /// MAC of this side.
        mac: Mac,
        /// MTU of both sides, bytes.
        mtu: u16,
        /// Bridge that this side is a port of.
        master: Option<String>,
        /// Namespace of the other end.
        peer_ns: Ns,
        /// Name of the other end.
        peer: String,
        /// MAC of the other end.
        peer_mac: Mac,
    },
    /// The node's one vxlan device for all VNIs (`external`, collect metadata).
    VxlanExternal {
        /// UDP port.
        port: u16,
        /// MTU, bytes.
        mtu: u16,
    },
    /// A vxlan device of one network: `nolearning`, `proxy` (it answers ARP from
    /// its permanent neighbours). Its socket is in the host's namespace.
    Vxlan {
        /// Network.
        vni: Vni,
        /// UDP port.
        port: u16,
        /// Outer source address.
        local: Ipv4Addr,
        /// MTU, bytes.
        mtu: u16,
        /// Bridge it is a port of.
        master: String,
    },
    /// A bridge.
    Bridge {
        /// Its MAC.
        mac: Mac,
        /// MTU, bytes.
        mtu: u16,
    },
    /// Observed only, never wanted: a link of ours that is none of the above as it
    /// should be, and why.
    Broken(String),
}
