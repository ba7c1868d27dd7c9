//! Permanent neighbours of our links, and permanent entries of our vxlan links'
//! forwarding databases: the kernel keeps both in messages of one form.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::model::Mac;
use crate::plan::{Key, Ns, State, Value};

use super::netlink::{acknowledged, collected, removed};
use super::netns::Netns;

/// Adds the permanent neighbours and FDB entries of `links` (names by index) to `state`.
pub(super) async fn observe(
    netns: &Netns,
    ns: &Ns,
    links: &BTreeMap<u32, String>,
    state: &mut State,
) -> Result<()> {
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        let request = netns.netlink.neighbours().get().set_address_family(family);
        let found = collected(request.execute()).await.context("listing neighbours")?;
        state.extend(found.iter().filter_map(|message| entry(ns, links, message)));
    }
    Ok(())
}

fn entry(
    ns: &Ns,
    links: &BTreeMap<u32, String>,
    message: &NeighbourMessage,
) -> Option<(Key, Value)> {
    let link = links.get(&message.header.ifindex)?.clone();
    // A set of bits: iproute2 adds others to it.
    let permanent = u16::from(NeighbourState::Permanent);
    if u16::from(message.header.state) & permanent == 0 {
        return None;
    }
    let mut destination = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => destination = Some(*ip),
            // What an FDB entry has for a destination comes without a family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                destination = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    let (destination, mac) = (destination?, mac?);
    match message.header.family {
        AddressFamily::Inet => {
            Some((Key::Neighbour(ns.clone(), link, destination), Value::Mac(mac)))
        }
        // The link's own database, not that of the bridge it is a port of.
        AddressFamily::Bridge if message.header.flags.contains(NeighbourFlags::Own) => {
            Some((Key::Fdb(ns.clone(), link, mac), Value::Vtep(destination)))
        }
        _ => None,
    }
}

pub(super) async fn put(netns: &Netns, index: u32, ip: Ipv4Addr, mac: Mac) -> Result<()> {
    let request =
        netns.netlink.neighbours().add(index, IpAddr::V4(ip)).link_layer_address(&mac.0).replace();
    Ok(acknowledged(request.execute()).await?)
}

pub(super) async fn delete(netns: &Netns, index: u32, ip: Ipv4Addr) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    Ok(removed(netns.netlink.neighbours().del(message).execute()).await?)
}

pub(super) async fn put_fdb(netns: &Netns, index: u32, mac: Mac, vtep: Ipv4Addr) -> Result<()> {
    let request = netns
        .netlink
        .neighbours()
        .add_bridge(index, &mac.0)
        .destination(IpAddr::V4(vtep))
        .flags(NeighbourFlags::Own)
        .replace();
    Ok(acknowledged(request.execute()).await?)
}

pub(super) async fn delete_fdb(netns: &Netns, index: u32, mac: Mac) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    Ok(removed(netns.netlink.neighbours().del(message).execute()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fdb(flags: NeighbourFlags, state: NeighbourState) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = 4;
        message.header.flags = flags;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![2, 0x6e, 10, 0, 0, 3]),
            NeighbourAttribute::Destination(NeighbourAddress::Other(vec![192, 168, 50, 12])),
        ];
        message
    }

    #[test]
    fn only_permanent_entries_of_our_own_vxlan_links_count() {
        let links = BTreeMap::from([(4, "vx4096".to_owned())]);
        let read = |message: &NeighbourMessage| entry(&Ns::Host, &links, message);
        let wanted = fdb(NeighbourFlags::Own, NeighbourState::Permanent);
        let mac = Mac::of(Ipv4Addr::new(10, 0, 0, 3));
        let key = Key::Fdb(Ns::Host, "vx4096".into(), mac);
        let value = Value::Vtep(Ipv4Addr::new(192, 168, 50, 12));
        assert_eq!(read(&wanted), Some((key.clone(), value.clone())));
        assert_eq!(
            read(&fdb(NeighbourFlags::Own, NeighbourState::Other(0xc0))),
            Some((key, value))
        );
        assert_eq!(read(&fdb(NeighbourFlags::Own, NeighbourState::Reachable)), None);
        assert_eq!(read(&fdb(NeighbourFlags::Controller, NeighbourState::Permanent)), None);
        let mut other = wanted;
        other.header.ifindex = 5;
        assert_eq!(read(&other), None);
    }
}
