//! IPv4 addresses of our links, inner ends in workloads included.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::AddressMessageBuilder;

use crate::plan::{Key, Ns, State, Value};

use super::netlink::{acknowledged, collected, removed};
use super::netns::Netns;

/// Adds the addresses of `links` (names by index) to `state`.
pub(super) async fn observe(
    netns: &Netns,
    ns: &Ns,
    links: &BTreeMap<u32, String>,
    state: &mut State,
) -> Result<()> {
    let mut request = netns.netlink.address().get();
    request.message_mut().header.family = AddressFamily::Inet;
    let found = collected(request.execute()).await.context("listing addresses")?;
    state.extend(found.iter().filter_map(|message| {
        let link = links.get(&message.header.index)?;
        Some((Key::Address(ns.clone(), link.clone(), parse(message)?), Value::Present))
    }));
    Ok(())
}

fn parse(message: &AddressMessage) -> Option<Ipv4Network> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => {
            Ipv4Network::new(*ip, message.header.prefix_len).ok()
        }
        _ => None,
    })
}

fn message(index: u32, address: Ipv4Network) -> AddressMessage {
    AddressMessageBuilder::<std::net::Ipv4Addr>::new()
        .index(index)
        .address(address.ip(), address.prefix())
        .build()
}

pub(super) async fn put(netns: &Netns, index: u32, address: Ipv4Network) -> Result<()> {
    let (ip, prefix) = (IpAddr::V4(address.ip()), address.prefix());
    let request = netns.netlink.address().add(index, ip, prefix).replace();
    Ok(acknowledged(request.execute()).await?)
}

pub(super) async fn delete(netns: &Netns, index: u32, address: Ipv4Network) -> Result<()> {
    let request = netns.netlink.address().del(message(index, address));
    Ok(removed(request.execute()).await?)
}
