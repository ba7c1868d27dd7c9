//! tc ingress of the uplink: takes VXLAN out of what comes from the underlay, takes what is
//! for published ports into the mesh, and leaves everything else alone. Everything of the host passes here, so the way to "not ours"
//! is short.

use netagent_common::{Config, Counter, ESP_IN_UDP_PORT};

use crate::entry::{self, Outside};
use crate::headers::{CONGESTED, ECN, ETHERNET, IPV4, Ipv4, OVERHEAD, Outer, TCP, TYPE_IPV4, UDP};
use crate::overlay::{Admitted, Origin};
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};
use crate::{encap, encrypted, maps, probe};

#[inline(always)]
pub(crate) fn handle(packet: &mut Packet) -> Outcome {
    let Some(config) = maps::config() else { return Ok(Verdict::Pass(Counter::PassedAtUplink)) };
    let tunnel = look(packet, config);
    if let Tunnel::InUdp = tunnel
        && let Some(outcome) = encrypted::out_of_udp(packet)
    {
        return outcome;
    }
    match tunnel {
        Tunnel::None => return Ok(Verdict::Pass(Counter::PassedAtUplink)),
        Tunnel::Unusual => return Ok(Verdict::Pass(Counter::PassedToVxlan)),
        Tunnel::Encrypted => return encrypted(packet),
        Tunnel::InUdp | Tunnel::Other => {
            let from = Outside { link: 0, vtep: config.advertised };
            let mesh = entry::enter(packet, from);
            return mesh.unwrap_or(Ok(Verdict::Pass(Counter::PassedAtUplink)));
        }
        Tunnel::Usual => {}
    }
    packet.linear(ETHERNET + OVERHEAD)?;
    let outer = packet.at::<Outer>(ETHERNET)?;
    if outer.udp.checksum != [0; 2] {
        // The kernel can verify it, and clears what a pending one leaves behind.
        return Ok(Verdict::Pass(Counter::PassedToVxlan));
    }
    let vni = outer.vxlan.vni();
    let origin = Origin { vtep: outer.ip.src, vni: vni.unwrap_or(0) };
    if vni.is_none() {
        return Err(origin.refuse(Counter::DropMalformed));
    }
    match origin.admit(packet, OVERHEAD)? {
        Admitted::Ipv4(inner)
            if packet.gso_size() != 0 && (inner.protocol() != TCP || inner.leaves()) =>
        {
            // Popped here, it would keep the mark of a tunnel's GSO packet, and UDP drops
            // those, as may an interface that it leaves by. The kernel's decapsulation takes
            // the mark off.
            Ok(Verdict::Pass(Counter::PassedToVxlan))
        }
        Admitted::Ipv4(inner) => {
            packet.pop_outer()?;
            inner.deliver(packet, Counter::Decapsulated)
        }
        Admitted::Arp => encap::turn_round(packet, config, origin, Counter::ArpAnsweredRemote),
        Admitted::Probe => probe::take(packet, config, origin),
    }
}

/// What a packet is to the tunnel.
enum Tunnel {
    /// Not even IPv4.
    None,
    /// For something else.
    Other,
    /// Of that of encrypted networks, and not encrypted (any more).
    Encrypted,
    /// Of that, and encrypted in UDP; or somebody else's who uses that port.
    InUdp,
    /// Of it, and left to the kernel.
    Unusual,
    /// Of it.
    Usual,
}

#[inline(always)]
fn look(packet: &mut Packet, config: &Config) -> Tunnel {
    if packet.ethertype() != Some(TYPE_IPV4) || packet.linear(ETHERNET + IPV4).is_err() {
        return Tunnel::None;
    }
    let Ok(ip) = packet.at::<Ipv4>(ETHERNET) else { return Tunnel::None };
    if ip.protocol != UDP || ip.dst != config.vtep || ip.is_later_fragment() {
        return Tunnel::Other;
    }
    match packet.load::<[u8; 2]>(ETHERNET + ip.header_len() + 2) {
        Ok(port) if port == config.port_be() => {
            if unusual(&ip) {
                Tunnel::Unusual
            } else {
                Tunnel::Usual
            }
        }
        Ok(port) if config.is_encrypted(port) => Tunnel::Encrypted,
        Ok(port) if port == ESP_IN_UDP_PORT.to_be_bytes() && config.encrypts() => Tunnel::InUdp,
        _ => Tunnel::Other,
    }
}

/// What the kernel has decrypted it pops, too. Anything else is not what it looks like.
#[inline(always)]
fn encrypted(packet: &mut Packet) -> Outcome {
    if encrypted::is_decrypted(packet) {
        return Ok(Verdict::Pass(Counter::PassedToVxlan));
    }
    let vtep = packet.at::<Ipv4>(ETHERNET)?.src;
    Err(Origin { vtep, vni: 0 }.refuse(Counter::DropCleartextIn))
}

/// What is rare and what the kernel does right: fragments, IPv4 options, and marks of
/// congestion, which have to be carried into the inner header (RFC 6040).
#[inline(always)]
fn unusual(ip: &Ipv4) -> bool {
    ip.header_len() != IPV4 || ip.is_fragment() || ip.tos & ECN == CONGESTED
}
