//! What this host has: links, IPv4 addresses and routes, read over netlink and
//! never changed here. [`Host`] is plain data, and what the cluster wants to know
//! of it (which address to advertise, which destinations no network may take) is
//! decided by pure functions.

mod address;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use ipnetwork::Ipv4Network;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use crate::plan::LINK_PREFIX;

pub use address::Addresses;

/// Routing protocol number of routes that netagent adds (`ip route ... proto 110`).
pub const OUR_PROTOCOL: u8 = 110;
/// IPv4 link-local addresses (RFC 3927): never routed between hosts.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// MTU in bytes; the loopback's 65536 counts as 65535.
    pub mtu: u16,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; of length 0 for the default route.
    pub destination: Ipv4Network,
    /// Outgoing link; none for multipath and blackhole routes.
    pub link: Option<String>,
    /// Whether what it leads to lies behind a gateway.
    pub gateway: bool,
    /// Who added it (`RTPROT_*`).
    pub protocol: u8,
}

/// A host's network, read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Links.
    pub links: Vec<Link>,
    /// IPv4 routes of the main table.
    pub routes: Vec<Route>,
}

/// Where a [`Host`] is read from: the kernel, or a test.
#[async_trait]
pub trait HostReader: Send + Sync + 'static {
    /// Reads it now.
    async fn read(&self) -> Result<Host>;
}

impl Host {
    /// The link that has this address.
    #[must_use]
    pub fn link_of(&self, address: Ipv4Addr) -> Option<&Link> {
        self.links.iter().find(|l| l.addresses.contains(&address))
    }

    /// Destinations that the host routes itself: not the default route, not what
    /// netagent routes, not link-local. In order, each once.
    #[must_use]
    pub fn own_routes(&self) -> Vec<Ipv4Network> {
        let ours = |route: &&Route| {
            let link = route.link.as_deref().unwrap_or_default();
            route.protocol != OUR_PROTOCOL && !link.starts_with(LINK_PREFIX)
        };
        let mut found: Vec<_> = self
            .routes
            .iter()
            .filter(ours)
            .map(|route| route.destination)
            .filter(|d| {
                d.prefix() > 0
                    && !(d.prefix() >= 16 && d.ip().octets()[..2] == LINK_LOCAL.octets()[..2])
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// The number of bits that an address must share with `address`, which is of `link`,
    /// to be reached without a gateway; 32 if none is sure to be. A route into the
    /// link's own subnet makes it unsure.
    #[must_use]
    pub fn neighbour_bits(&self, link: &str, address: Ipv4Addr) -> u8 {
        let is_own = |route: &&Route| {
            route.link.as_deref() == Some(link)
                && !route.gateway
                && route.destination.contains(address)
        };
        let own = self.routes.iter().filter(is_own).map(|route| route.destination.prefix());
        let bits = own.max().unwrap_or(32);
        let within = |route: &Route| {
            let there = route.destination;
            there.prefix() > bits
                && Ipv4Network::new(address, bits).is_ok_and(|own| own.contains(there.ip()))
        };
        if self.routes.iter().any(within) { 32 } else { bits }
    }

    /// Its own addresses: not 127.0.0.0/8, and not those of links that netagent made.
    #[must_use]
    pub fn own_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let own = self.links.iter().filter(|l| !l.name.starts_with(LINK_PREFIX));
        own.flat_map(|l| &l.addresses).copied().filter(|a| !a.is_loopback()).collect()
    }
}

/// The address that this host would send from to reach `peer`. Sends nothing.
///
/// # Errors
/// If no route leads there.
pub fn source_address(peer: SocketAddr) -> Result<Ipv4Addr> {
    let source = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(peer).and_then(|()| socket.local_addr()))
        .with_context(|| format!("no route to {peer}"))?;
    match source.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("{address} is not an IPv4 address"),
    }
}

/// Reads the network namespace that the calling process is in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Netlink;

#[async_trait]
impl HostReader for Netlink {
    async fn read(&self) -> Result<Host> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let driver = tokio::spawn(connection);
        let host = read(&handle).await.context("cannot read this host's links and routes");
        driver.abort();
        host
    }
}

/// What changes on this host, told while it changes.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Addresses, routes and links of the host's own.
    pub host: watch::Receiver<()>,
    /// Links, addresses, routes and rules of netagent's.
    pub ours: watch::Receiver<()>,
    /// Where others tell of what changes of netagent's.
    pub told: watch::Sender<()>,
}

impl Changes {
    /// Follows the network namespace that the calling process is in, until nobody listens.
    ///
    /// # Errors
    /// If there is no netlink socket to be had.
    pub fn follow() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)
            .context("cannot open a netlink socket for changes")?;
        let ((host, host_rx), (ours, ours_rx)) = (watch::channel(()), watch::channel(()));
        let told = ours.clone();
        tokio::spawn(connection);
        tokio::spawn(rules::follow(ours.clone()));
        tokio::spawn(async move {
            // The connection closes with it.
            let _open = handle;
            // Of each link, by index, whether it is ours.
            let mut links = BTreeMap::new();
            while let Some((message, _)) = messages.next().await {
                let about = about(&message.payload, &mut links);
                if about != About::Neither {
                    let sender = if about == About::Ours { &ours } else { &host };
                    if sender.send(()).is_err() && host.is_closed() && ours.is_closed() {
                        return;
                    }
                }
            }
        });
        Ok(Self { host: host_rx, ours: ours_rx, told })
    }
}

/// Whose a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Ours,
    Host,
    /// Such as the links of others' containers.
    Neither,
}

fn about(payload: &NetlinkPayload<RouteNetlinkMessage>, links: &mut BTreeMap<u32, bool>) -> About {
    use RouteNetlinkMessage as Message;
    let whose = |ours: bool| if ours { About::Ours } else { About::Host };
    match payload {
        NetlinkPayload::InnerMessage(Message::NewLink(link) | Message::DelLink(link)) => {
            let is_ours = link
                .attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(name) if name.starts_with(LINK_PREFIX)));
            let is_veth = link.attributes.iter().any(|attribute| {
                matches!(attribute, LinkAttribute::LinkInfo(info)
                    if info.contains(&LinkInfo::Kind(InfoKind::Veth)))
            });
            links.insert(link.header.index, is_ours);
            if is_veth && !is_ours { About::Neither } else { whose(is_ours) }
        }
        NetlinkPayload::InnerMessage(Message::NewAddress(a) | Message::DelAddress(a)) => {
            whose(links.get(&a.header.index).copied().unwrap_or(false))
        }
        NetlinkPayload::InnerMessage(Message::NewRoute(r) | Message::DelRoute(r)) => {
            whose(number(r.header.protocol) == OUR_PROTOCOL)
        }
        // Too many to be told.
        NetlinkPayload::Overrun(_) => About::Ours,
        _ => About::Neither,
    }
}

async fn read(handle: &rtnetlink::Handle) -> Result<Host> {
    let mut links = BTreeMap::new();
    let mut messages = handle.link().get().execute();
    while let Some(message) = messages.try_next().await? {
        let mut link = Link {
            name: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            addresses: vec![],
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(mtu).unwrap_or(u16::MAX),
                _ => {}
            }
        }
        links.insert(message.header.index, link);
    }
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        let Some(link) = links.get_mut(&message.header.index) else { continue };
        // IFA_LOCAL is the host's end also of a point-to-point link; IFA_ADDRESS the peer's.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        link.addresses.extend(local);
    }
    let mut routes = Vec::new();
    let mut messages = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(message) = messages.try_next().await? {
        routes.extend(route(&message, |index| links.get(&index).map(|l| l.name.clone())));
    }
    Ok(Host { links: links.into_values().collect(), routes })
}

/// The route that `message` tells of, if it is one of the main table.
fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    let kinds =
        [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    if header.table != RouteHeader::RT_TABLE_MAIN || !kinds.contains(&header.kind) {
        return None;
    }
    let (mut address, mut link, mut gateway) = (Ipv4Addr::UNSPECIFIED, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => address = *to,
            RouteAttribute::Oif(index) => link = name(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            _ => {}
        }
    }
    let destination = Ipv4Network::new(address, header.destination_prefix_length).ok()?;
    Some(Route { destination, link, gateway, protocol: number(header.protocol) })
}

fn number(protocol: RouteProtocol) -> u8 {
    protocol.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, addresses: &[&str]) -> Link {
        Link {
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn route(destination: &str, link: &str, protocol: u8) -> Route {
        let destination: Ipv4Network = destination.parse().unwrap();
        let gateway = destination.prefix() == 0;
        Route { destination, link: Some(link.to_owned()), gateway, protocol }
    }

    pub(super) fn host() -> Host {
        Host {
            links: vec![
                link("lo", &["127.0.0.1"]),
                link("eth0", &["192.168.50.11"]),
                link("docker0", &["172.17.0.1"]),
                link("na-abc", &["10.0.0.1"]),
            ],
            routes: vec![
                route("0.0.0.0/0", "eth0", 3),
                route("192.168.50.0/24", "eth0", 2),
                route("172.17.0.0/16", "docker0", 2),
                route("10.0.0.0/24", "na-abc", 4),
                route("10.9.0.0/24", "eth0", OUR_PROTOCOL),
                route("169.254.0.0/16", "eth0", 2),
                route("169.254.169.254/32", "eth0", 16),
                route("192.168.50.0/24", "eth0", 16),
            ],
        }
    }

    #[test]
    fn routes_of_the_host_itself() {
        let routes: Vec<_> = host().own_routes().iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["172.17.0.0/16", "192.168.50.0/24"]);
    }

    #[test]
    fn addresses_of_the_host_itself() {
        let mut host = host();
        host.links[0].addresses.push(Ipv4Addr::new(192, 168, 50, 200));
        let addresses: Vec<_> = host.own_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["172.17.0.1", "192.168.50.11", "192.168.50.200"]);
    }

    #[test]
    fn neighbours_are_those_of_the_subnet() {
        let (mut host, eth0) = (host(), Ipv4Addr::new(192, 168, 50, 11));
        assert_eq!(host.neighbour_bits("eth0", eth0), 24);
        assert_eq!(host.neighbour_bits("docker0", eth0), 32, "not of this link");
        host.routes.push(Route { gateway: true, ..route("192.168.0.0/16", "eth0", 4) });
        assert_eq!(host.neighbour_bits("eth0", eth0), 24, "less specific, so it does not matter");
        host.routes.push(Route { gateway: true, ..route("192.168.50.77/32", "eth0", 4) });
        assert_eq!(host.neighbour_bits("eth0", eth0), 32);
        host.routes.clear();
        host.routes.push(Route { gateway: true, ..route("0.0.0.0/0", "eth0", 4) });
        assert_eq!(host.neighbour_bits("eth0", eth0), 32, "all is behind the gateway");
    }

    #[test]
    fn changes_of_links_are_ours_or_the_hosts() {
        use netlink_packet_route::address::AddressMessage;
        use netlink_packet_route::link::LinkMessage;
        let link = |index, name: &str, kind: Option<InfoKind>| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.attributes.push(LinkAttribute::IfName(name.to_owned()));
            link.attributes.extend(kind.map(|k| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(k)])));
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
        };
        let address = |index| {
            let mut address = AddressMessage::default();
            address.header.index = index;
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address))
        };
        let mut links = BTreeMap::new();
        let mut of = |payload| about(&payload, &mut links);
        assert_eq!(of(link(2, "eth0", None)), About::Host);
        assert_eq!(of(link(3, "na-abc", Some(InfoKind::Veth))), About::Ours);
        assert_eq!(of(link(4, "veth1234", Some(InfoKind::Veth))), About::Neither);
        assert_eq!(of(address(2)), About::Host);
        assert_eq!(of(address(3)), About::Ours);
    }

    #[tokio::test]
    async fn reads_this_host() {
        let host = Netlink.read().await.unwrap();
        let lo = host.links.iter().find(|l| l.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.mtu), ("lo", u16::MAX));
        assert_eq!(host.link_of(Ipv4Addr::LOCALHOST), Some(lo));
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(source_address(peer).unwrap(), Ipv4Addr::LOCALHOST);
    }
}
