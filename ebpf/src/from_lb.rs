//! tc ingress of the host side of the veth to the namespace where IPVS schedules
//! (`steer.rs`): the destination MAC says which backend it chose. Nothing else that comes
//! from there is let through, so the namespace never speaks for itself.

use netagent_common::{Counter, GATEWAY_MAC};

use crate::headers::{ETHERNET, Ethernet, IPV4, Ipv4, TYPE_IPV4};
use crate::packet::Packet;
use crate::rewrite::Tuple;
use crate::service::{self, Caller};
use crate::verdict::Outcome;
use crate::{backend, choose, exit, maps};

#[inline(always)]
pub(crate) fn handle(packet: &mut Packet) -> Outcome {
    if packet.ethertype() != Some(TYPE_IPV4) {
        return Err(Counter::DropScheduler);
    }
    packet.linear(ETHERNET + IPV4)?;
    let ip = packet.ipv4(ETHERNET)?;
    if !Caller::may_send(ip.protocol) || ip.is_later_fragment() {
        return Err(Counter::DropScheduler);
    }
    let vni = maps::network_of(ip.dst).ok_or(Counter::DropScheduler)?;
    let mac = packet.at::<Ethernet>(0)?.dst;
    let (backend, _) = backend::named(vni, mac, ip.dst).ok_or(Counter::DropScheduler)?;
    let tuple = Tuple::of(packet, ETHERNET, &ip)?;
    let caller = caller(vni, &ip, &tuple)?;
    let key = choose::key(&caller, ip.protocol, &tuple);
    if maps::flow(&key).is_some() {
        return Err(Counter::DropAccounted);
    }
    choose::begin(packet, &caller, &ip, backend)?;
    service::carry_to(packet, &caller, &ip, backend)
}

/// Whose packet it was before IPVS had it.
#[inline(always)]
fn caller(vni: u32, ip: &Ipv4, tuple: &Tuple) -> Result<Caller, Counter> {
    match maps::endpoint(vni, ip.src) {
        // It called a published port of this node, which has remembered the way back.
        Some(_) if exit::find(vni, ip.protocol, &tuple.reversed()).is_ok() => mesh(vni),
        Some(client) if client.ifindex != 0 => Ok(Caller::new(vni, [0; 4], client.mac)),
        None if maps::network_of(ip.src).is_none() => mesh(vni),
        _ => Err(Counter::DropScheduler),
    }
}

/// Somebody whose packet came into the mesh on this node.
#[inline(always)]
fn mesh(vni: u32) -> Result<Caller, Counter> {
    let config = maps::config().ok_or(Counter::DropRefused)?;
    Ok(Caller::new(vni, config.advertised, GATEWAY_MAC))
}
