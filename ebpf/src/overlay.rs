//! What may come out of the tunnel: the checks that both receiving hooks share. Only a
//! member's packets are let in, only those of endpoints that it owns, and only to
//! endpoints that are here.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Endpoint, GATEWAY_MAC, PROBE_ETHERTYPE, PROBE_VNI};

use crate::entry::Call;
use crate::headers::{Arp, ETHERNET, Ethernet, IPV4, Ipv4, OVERHEAD, TYPE_ARP, TYPE_IPV4};
use crate::packet::Packet;
use crate::service::Caller;
use crate::verdict::{Outcome, Verdict};
use crate::{apart, arp, backend, encrypted, exit, maps, stranger};

/// Where a packet of the tunnel says that it comes from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) vtep: [u8; 4],
    pub(crate) vni: u32,
}

/// A packet from the tunnel that is admitted.
pub(crate) enum Admitted {
    /// An IPv4 packet.
    Ipv4(Ipv4Packet),
    /// An ARP request about a local endpoint. It has become its own answer.
    Arp,
    /// A probe, of a member.
    Probe,
}

/// An IPv4 packet for a local endpoint, or of a service for a client outside of all networks
/// that has called it through this node.
pub(crate) struct Ipv4Packet {
    /// Its header, and whose it is.
    call: &'static mut Call,
    /// Address of the endpoint or client that it is for.
    to: [u8; 4],
    /// That endpoint.
    receiver: Option<&'static Endpoint>,
}

impl Origin {
    /// Looks at the inner frame, which begins at byte `at`.
    ///
    /// # Errors
    /// The reason why it is not admitted.
    #[inline(always)]
    pub(crate) fn admit(self, packet: &mut Packet, at: u32) -> Result<Admitted, Counter> {
        self.look(packet, at).map_err(|reason| self.refuse(reason))
    }

    /// The reason to refuse a packet, which is another if the sender is no member. It is
    /// asked for only then: who owns an endpoint is a member, so what is admitted needs
    /// no look at `PEERS`.
    #[inline(always)]
    pub(crate) fn refuse(self, reason: Counter) -> Counter {
        if maps::is_member(self.vtep) {
            return reason;
        }
        stranger::report(self.vtep);
        Counter::DropNotMember
    }

    #[inline(always)]
    fn look(self, packet: &mut Packet, at: u32) -> Result<Admitted, Counter> {
        let config = maps::config().ok_or(Counter::DropRefused)?;
        if encrypted::device(config, self.vni).is_some_and(|device| device != packet.ifindex()) {
            return Err(Counter::DropCleartextIn);
        }
        packet.linear(at + ETHERNET)?;
        let ethernet = packet.at::<Ethernet>(at)?;
        match ethernet.ethertype {
            TYPE_IPV4 => {
                packet.linear(at + ETHERNET + IPV4)?;
                let ip = packet.ipv4(at + ETHERNET)?;
                let (mac, via) = self.sender(&ethernet, &ip)?;
                let (to, receiver) = self.receiver(&ethernet, &ip, via)?;
                let call = maps::call().ok_or(Counter::DropRefused)?;
                call.ip = ip;
                call.caller = Caller::new(self.vni, via, mac);
                Ok(Admitted::Ipv4(Ipv4Packet { call, to, receiver }))
            }
            TYPE_ARP => {
                let (vtep, context) = (u32::from_ne_bytes(self.vtep), packet.context());
                apart::decode(netagent_overlay_arp(context, at, vtep, self.vni))?;
                Ok(Admitted::Arp)
            }
            PROBE_ETHERTYPE if self.vni == PROBE_VNI && maps::is_member(self.vtep) => {
                Ok(Admitted::Probe)
            }
            _ => Err(Counter::DropOtherProtocol),
        }
    }

    /// Answers the ARP request in the inner frame.
    #[inline(always)]
    fn arp(self, packet: &mut Packet, at: u32) -> Result<(), Counter> {
        let request = arp::parse(packet, at)?;
        self.owned(request.sender_ip)?;
        if request.operation != Arp::REQUEST || request.target_ip == request.sender_ip {
            return Err(Counter::DropArp);
        }
        let target = maps::endpoint(self.vni, request.target_ip)
            .filter(|target| target.ifindex != 0)
            .ok_or(Counter::DropNotLocal)?;
        arp::answer(packet, at, &request, target.mac)
    }

    /// Who sent an IPv4 packet, if the sending node may send it: the MAC that it has for its
    /// receiver, and where it came into the mesh.
    #[inline(always)]
    fn sender(self, ethernet: &Ethernet, ip: &Ipv4) -> Result<([u8; 6], [u8; 4]), Counter> {
        match maps::endpoint(self.vni, ip.src) {
            Some(sender) if self.owns(sender) => Ok((sender.mac, [0; 4])),
            // An answer of a service, whose address is nobody's: its backend counts.
            Some(vip) if vip.is_vip() => match backend::named(self.vni, ethernet.src, ip.src) {
                Some((_, backend)) if self.owns(backend) => Ok((vip.mac, [0; 4])),
                _ => Err(Counter::DropNotOwner),
            },
            // Through the mesh, and so from outside of all networks.
            None if ethernet.src == GATEWAY_MAC
                && maps::is_member(self.vtep)
                && maps::network_of(ip.src).is_none() =>
            {
                Ok((GATEWAY_MAC, self.vtep))
            }
            _ => Err(self.disown(ip.src)),
        }
    }

    /// Whether the endpoint is the sending node's.
    #[inline(always)]
    fn owns(self, endpoint: &Endpoint) -> bool {
        endpoint.ifindex == 0 && endpoint.vtep == self.vtep && !endpoint.is_vip()
    }

    /// Checks that the endpoint with address `ip` is the sending node's.
    #[inline(always)]
    fn owned(self, ip: [u8; 4]) -> Result<(), Counter> {
        match maps::endpoint(self.vni, ip) {
            Some(endpoint) if self.owns(endpoint) => Ok(()),
            _ => Err(self.disown(ip)),
        }
    }

    /// Why the sending node may not use `ip`. Asked only then: the endpoints of an unknown
    /// network are unknown too.
    #[inline(always)]
    fn disown(self, ip: [u8; 4]) -> Counter {
        if maps::endpoint(self.vni, ip).is_none() && maps::network(self.vni).is_none() {
            return Counter::DropUnknownVni;
        }
        Counter::DropNotOwner
    }

    /// The local endpoint that an IPv4 packet is for; none if it is for a client outside of
    /// all networks, which is behind the gateway.
    #[inline(always)]
    fn receiver(
        self,
        ethernet: &Ethernet,
        ip: &Ipv4,
        via: [u8; 4],
    ) -> Result<([u8; 4], Option<&'static Endpoint>), Counter> {
        // A MAC of another address is a backend's, if anybody's: without a look at the service's.
        if ethernet.dst != GATEWAY_MAC
            && backend::address(ethernet.dst) != ip.dst
            && let Some((ip, backend)) = backend::named(self.vni, ethernet.dst, ip.dst)
            && backend.ifindex != 0
        {
            return Ok((ip, Some(backend)));
        }
        match maps::endpoint(self.vni, ip.dst) {
            // What comes through the mesh is for a service.
            Some(receiver) if receiver.ifindex != 0 && via == [0; 4] => {
                Ok((ip.dst, Some(receiver)))
            }
            Some(vip) if vip.is_vip() => Err(Counter::DropNotBackend),
            None if ethernet.dst == GATEWAY_MAC && via == [0; 4] => Ok((ip.dst, None)),
            None if maps::network(self.vni).is_none() => Err(Counter::DropUnknownVni),
            _ => Err(Counter::DropNotLocal),
        }
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_overlay_arp(skb: *mut __sk_buff, at: u32, vtep: u32, vni: u32) -> u32 {
    // One of the two that the verifier then knows.
    let at = if at == 0 { 0 } else { OVERHEAD };
    let origin = Origin { vtep: vtep.to_ne_bytes(), vni };
    apart::encode(origin.arp(&mut Packet::of(skb), at))
}

impl Ipv4Packet {
    /// Its IP protocol.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        self.call.ip.protocol
    }

    /// Whether it leaves all networks here.
    #[inline(always)]
    pub(crate) fn leaves(&self) -> bool {
        self.receiver.is_none()
    }

    /// Makes the packet, whose frame begins at byte 0 by now, one for its receiver, and sends
    /// it there. The MACs become those that the agent knows: a workload sees the MAC of no
    /// other thing than its peer.
    #[inline(always)]
    pub(crate) fn deliver(self, packet: &mut Packet, counter: Counter) -> Outcome {
        let Some(receiver) = self.receiver else {
            return exit::leave(packet, self.call);
        };
        if receiver.is_backend() {
            backend::translate(packet, &self.call.caller, &self.call.ip, self.to)?;
        }
        packet.store(0, &Ethernet::ipv4(receiver.mac, self.call.caller.mac))?;
        Ok(Verdict::Deliver { ifindex: receiver.ifindex, counter })
    }
}
