//! IPv4 routes of ours in the main table, known by their protocol number.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use crate::plan::{Key, Ns, State, Value};

use super::link::View;
use super::netlink::{acknowledged, collected, removed};
use super::netns::Netns;

/// The mark of our routes (`rtm_protocol`). Values from 4 on are for routing daemons;
/// this one is in none of the tables of the kernel and iproute2.
pub const ROUTE_PROTOCOL: u8 = 110;

/// Adds our routes of a namespace to `state`.
pub(super) async fn observe(
    netns: &Netns,
    ns: &Ns,
    links: &BTreeMap<u32, View>,
    state: &mut State,
) -> Result<()> {
    for message in ours(netns).await? {
        let Some((to, index, gateway, source)) = parse(&message) else { continue };
        let link = links.get(&index).map_or_else(|| format!("#{index}"), |v| v.name.clone());
        let value = match message.header.kind {
            RouteType::Local => Value::Local,
            _ => Value::Route { link, gateway, source },
        };
        state.insert(Key::Route(ns.clone(), to), value);
    }
    Ok(())
}

async fn ours(netns: &Netns) -> Result<Vec<RouteMessage>> {
    let mut filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
    // Strict checking makes the kernel filter by protocol and takes nothing else.
    filter.header.table = RouteHeader::RT_TABLE_UNSPEC;
    filter.header.kind = RouteType::Unspec;
    filter.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    let found =
        collected(netns.netlink.route().get(filter).execute()).await.context("listing routes")?;
    Ok(found
        .into_iter()
        .filter(|route| {
            route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        })
        .collect())
}

type Parsed = (Ipv4Network, u32, Option<Ipv4Addr>, Option<Ipv4Addr>);

fn parse(message: &RouteMessage) -> Option<Parsed> {
    let mut to = Ipv4Addr::UNSPECIFIED;
    let (mut index, mut gateway, mut source) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
            RouteAttribute::Oif(oif) => index = *oif,
            _ => {}
        }
    }
    let to = Ipv4Network::new(to, message.header.destination_prefix_length).ok()?;
    Some((to, index, gateway, source))
}

/// A route to be.
pub(super) struct Wanted {
    pub(super) to: Ipv4Network,
    pub(super) index: u32,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) source: Option<Ipv4Addr>,
    /// What it leads to is the namespace itself.
    pub(super) local: bool,
}

/// Makes or changes a route of ours, and never one of somebody else's.
pub(super) async fn put(netns: &Netns, wanted: &Wanted) -> Result<()> {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(wanted.to.network(), wanted.to.prefix())
        .output_interface(wanted.index)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    builder = match wanted.gateway {
        _ if wanted.local => builder.kind(RouteType::Local).scope(RouteScope::Host),
        Some(gateway) => builder.gateway(gateway),
        None => builder.scope(RouteScope::Link),
    };
    if let Some(source) = wanted.source {
        builder = builder.pref_source(source);
    }
    let request = netns.netlink.route().add(builder.build());
    match acknowledged(request.clone().execute()).await {
        Err(error) if error.is(Errno::EEXIST) => {}
        other => return Ok(other?),
    }
    let mine = ours(netns).await?.iter().filter_map(parse).any(|(to, ..)| to == wanted.to);
    if !mine {
        bail!("a route that is not ours leads there already (see `ip route`): remove it");
    }
    Ok(acknowledged(request.replace().execute()).await?)
}

/// Removes a route of ours.
pub(super) async fn delete(netns: &Netns, to: Ipv4Network) -> Result<()> {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to.network(), to.prefix())
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    // Of any scope and type.
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    Ok(removed(netns.netlink.route().del(message).execute()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_default_route() {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(Ipv4Addr::new(10, 0, 0, 1))
            .output_interface(4)
            .build();
        let (to, index, gateway, source) = parse(&message).unwrap();
        assert_eq!(to, "0.0.0.0/0".parse().unwrap());
        assert_eq!((index, gateway, source), (4, Some(Ipv4Addr::new(10, 0, 0, 1)), None));
    }
}
