//! A packet to the virtual address of a service: a backend is chosen, and the packet is
//! carried to its node. Up to there the destination stays the virtual address; the inner
//! Ethernet header says which backend is meant. The backend's node translates
//! (`backend.rs`), so that nothing inside a workload is configured.

use netagent_common::{Counter, Endpoint, GATEWAY_MAC, Port};

use crate::choose::{self, Choice};
use crate::encap::{self, Hop};
use crate::headers::{ETHERNET, Ethernet, ICMP, Ipv4, SCTP, TCP, UDP};
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};
use crate::{backend, gateway, icmp_error, maps, refuse, steer};

/// Who calls a service, in a network.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    /// The network.
    pub(crate) vni: u32,
    /// Tunnel address of the node where the packet came into the mesh; 0 if an endpoint
    /// sent it.
    pub(crate) via: [u8; 4],
    /// Source MAC within the network: the endpoint's, or the gateway's for the mesh.
    pub(crate) mac: [u8; 6],
    _pad: [u8; 2],
}

impl Caller {
    /// The endpoint behind `port`.
    #[inline(always)]
    pub(crate) fn endpoint(port: &Port) -> Self {
        Self::new(port.vni, [0; 4], port.mac)
    }

    /// In network `vni`, see the fields.
    #[inline(always)]
    pub(crate) fn new(vni: u32, via: [u8; 4], mac: [u8; 6]) -> Self {
        Self { vni, via, mac, _pad: [0; 2] }
    }

    /// Whether services take packets of this protocol.
    #[inline(always)]
    pub(crate) fn may_send(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }
}

/// An endpoint calls the virtual address `vip`.
#[inline(always)]
pub(crate) fn call(packet: &mut Packet, port: &Port, ip: &Ipv4, vip: &Endpoint) -> Outcome {
    if ip.protocol == ICMP && icmp_error::quoted(packet, ETHERNET, ip).is_none() {
        return gateway::echo(packet, port, vip.mac);
    }
    let caller = Caller::endpoint(port);
    let mut choice = Choice::NONE;
    match choose::choose(packet, &caller, ip, &mut choice) {
        Ok(()) => carry_on(packet, &caller, ip, &choice),
        Err(Counter::DropNoBackend) => refuse::answer(packet, port, ip, vip.mac),
        Err(reason) => Err(reason),
    }
}

#[inline(always)]
pub(crate) fn carry_on(
    packet: &mut Packet,
    caller: &Caller,
    ip: &Ipv4,
    choice: &Choice,
) -> Outcome {
    if choice.ask {
        return steer::ask(packet, caller);
    }
    if choice.tell {
        steer::tell(packet, caller)?;
    }
    carry_to(packet, caller, ip, choice.backend)
}

/// Carries it to the backend with address `backend`.
#[inline(always)]
pub(crate) fn carry_to(
    packet: &mut Packet,
    caller: &Caller,
    ip: &Ipv4,
    backend: [u8; 4],
) -> Outcome {
    let to = maps::endpoint(caller.vni, backend).ok_or(Counter::DropNoBackend)?;
    if to.ifindex == 0 {
        let hop = Hop { vni: caller.vni, src: caller.mac, dst: to.mac, vtep: to.vtep };
        return encap::carry(packet, &hop, ip.tos);
    }
    backend::translate(packet, caller, ip, backend)?;
    let src = if ip.src == backend { GATEWAY_MAC } else { caller.mac };
    packet.store(0, &Ethernet::ipv4(to.mac, src))?;
    Ok(Verdict::Deliver { ifindex: to.ifindex, counter: Counter::DeliveredLocally })
}
