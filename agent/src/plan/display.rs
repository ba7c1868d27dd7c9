//! Kernel state in words, for logs and errors.

use std::fmt::{Display, Formatter, Result};

use super::{Hook, Key, MapKey, NFT_TABLE, Ns, Op, Socket, Sysctl, Way};

/// Appends ` in PATH` for a namespace other than the host's.
struct In<'a>(&'a Ns);

impl Display for In<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            Ns::Host => Ok(()),
            Ns::At(path) => write!(f, " in {}", path.display()),
        }
    }
}

impl Display for Ns {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Host => f.write_str("the host's namespace"),
            Self::At(path) => Display::fmt(&path.display(), f),
        }
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.pad(match self {
            Self::FromEndpoint => "from_endpoint",
            Self::FromOverlay => "from_overlay",
            Self::FromUplink => "from_uplink",
            Self::FromHost => "from_host",
            Self::FromLb => "from_lb",
            Self::ToUplink => "to_uplink",
        })
    }
}

impl Display for Way {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.pad(match self {
            Self::In => "in from",
            Self::Out => "out to",
        })
    }
}

impl Display for Sysctl {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.pad(match self {
            Self::Forwarding => "forwarding",
            Self::RouteLocalnet => "route_localnet",
            Self::AcceptLocal => "accept_local",
        })
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Association(to, index) => {
                write!(f, "IPsec association {index:#010x} to {to}")
            }
            Self::Policy(way, Some(other)) => write!(f, "IPsec policy {way} {other}"),
            Self::Policy(way, None) => write!(f, "IPsec policy {way} all others"),
            Self::Link(ns, name) => write!(f, "link {name}{}", In(ns)),
            Self::Address(ns, link, address) => write!(f, "address {address} on {link}{}", In(ns)),
            Self::Sysctl(ns, link, switch) => write!(f, "{switch} on {link}{}", In(ns)),
            Self::Route(ns, to) => write!(f, "route to {to}{}", In(ns)),
            Self::Neighbour(ns, link, ip) => write!(f, "neighbour {ip} on {link}{}", In(ns)),
            Self::Fdb(ns, link, mac) => write!(f, "FDB entry {mac} on {link}{}", In(ns)),
            Self::Nftables(ns) => write!(f, "nftables table ip {NFT_TABLE}{}", In(ns)),
            Self::Ipvs(ns) => write!(f, "settings of IPVS{}", In(ns)),
            Self::VirtualServer(ns, socket) => write!(f, "virtual server {socket}{}", In(ns)),
            Self::RealServer(ns, socket, address) => {
                write!(f, "real server {address} of {socket}{}", In(ns))
            }
            Self::Map(entry) => write!(f, "BPF map entry {entry}"),
            Self::Hook(link, hook) => write!(f, "program {hook} on {link}"),
        }
    }
}

impl Display for MapKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Config => f.write_str("CONFIG"),
            Self::Encrypted(vni) => write!(f, "ENCRYPTED[{vni}]"),
            Self::Network(vni) => write!(f, "NETWORKS[{vni}]"),
            Self::Subnet(subnet) => write!(f, "SUBNETS[{subnet}]"),
            Self::Peer(vtep) => write!(f, "PEERS[{vtep}]"),
            Self::Endpoint(vni, ip) => write!(f, "ENDPOINTS[{vni}, {ip}]"),
            Self::Port(link) => write!(f, "PORTS[{link}]"),
            Self::Service(vni, vip) => write!(f, "SERVICES[{vni}, {vip}]"),
            Self::Slot { vni, vip, half, slot } => {
                write!(f, "RING[{vni}, {vip}, {slot} of half {half}]")
            }
            Self::Allowed(list, source) => write!(f, "ALLOWED[{list}, {source}]"),
            Self::Published(socket) => write!(f, "PUBLISHED[{socket}]"),
            Self::Virtual(socket) => write!(f, "VIRTUAL[{socket}]"),
        }
    }
}

impl Display for Socket {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}:{}/", self.ip, self.port)?;
        match self.protocol {
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            132 => f.write_str("sctp"),
            other => Display::fmt(&other, f),
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Put(key, _) => write!(f, "set {key}"),
            Self::Delete(key) => write!(f, "remove {key}"),
        }
    }
}
