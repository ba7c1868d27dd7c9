//! Encrypted networks: who carries them, and what of them must not be seen in clear. The
//! kernel's IPsec encrypts what leaves by their own vxlan device, and hands on what it has
//! decrypted. At the uplink there is nothing of them that is still UDP, unless something is
//! wrong or somebody pretends; nothing of that gets in or out, even while IPsec has lost
//! its policies.
//!
//! Through NAT, ESP goes in UDP (RFC 3948). The kernel's IPsec puts it there itself; it would
//! take it out by a socket of the agent's, and so only while that runs. So it is taken out
//! here, and IPsec sees the ESP that it would have got without NAT.

use aya_ebpf::bindings::{__sk_buff, bpf_xfrm_state};
use aya_ebpf::helpers::bpf_skb_get_xfrm_state;
use netagent_common::{Config, Counter, IPSEC_REQID};

use crate::apart::{self, OTHER};
use crate::checksum::Delta;
use crate::headers::{ESP, ETHERNET, IPV4, Ipv4, TYPE_IPV4, UDP, Udp};
use crate::maps;
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};

/// Bytes of the shortest packet that may be ESP in UDP: with index and sequence number.
const SHORTEST: u32 = IPV4 + Udp::LEN + 8;

/// The vxlan device that carries the network, if that is an encrypted one; 0 if nothing can.
#[inline(always)]
pub(crate) fn device(config: &Config, vni: u32) -> Option<u32> {
    if config.encrypts() { maps::encrypted(vni) } else { None }
}

/// Whether the kernel has decrypted the packet by an association of ours, and now has it
/// come in once more.
#[inline(always)]
pub(crate) fn is_decrypted(packet: &mut Packet) -> bool {
    netagent_is_decrypted(packet.context()) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_is_decrypted(skb: *mut __sk_buff) -> u32 {
    // SAFETY: an all-zero state is valid.
    let mut state: bpf_xfrm_state = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel passes a valid context; the helper writes at most the size given.
    let failed = unsafe {
        bpf_skb_get_xfrm_state(skb, 0, &raw mut state, size_of::<bpf_xfrm_state>() as u32, 0)
    };
    u32::from(failed == 0 && state.reqid == IPSEC_REQID)
}

/// Takes ESP of another node out of UDP, for the kernel to decrypt. `None` if the packet is
/// none, and unchanged: others may speak IKE at this port (RFC 3947).
#[inline(always)]
pub(crate) fn out_of_udp(packet: &mut Packet) -> Option<Outcome> {
    match netagent_out_of_udp(packet.context()) {
        OTHER => None,
        code => Some(apart::decode(code).map(|()| Verdict::Pass(Counter::TakenOutOfUdp))),
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_out_of_udp(skb: *mut __sk_buff) -> u32 {
    let mut packet = Packet::of(skb);
    match esp_in_udp(&mut packet) {
        Some(ip) => apart::encode(strip(&mut packet, ip)),
        None => OTHER,
    }
}

/// The header of a packet that is ESP in UDP of another node. IPsec forbids to fragment what
/// it sends and adds no options; the NAT may have chosen another source port.
#[inline(always)]
fn esp_in_udp(packet: &mut Packet) -> Option<Ipv4> {
    packet.linear(ETHERNET + SHORTEST).ok()?;
    let index = packet.at::<[u8; 4]>(ETHERNET + IPV4 + Udp::LEN).ok()?;
    let ip = packet.ipv4(ETHERNET).ok()?;
    // A keepalive is shorter (RFC 3948, 2.3), whatever a short frame is filled up with.
    let whole = ip.header_len() == IPV4
        && !ip.is_fragment()
        && packet.gso_size() == 0
        && u32::from(u16::from_be_bytes(ip.tot_len)) >= SHORTEST;
    // Of IKE there are zeros where ESP has its index (RFC 3948, 2.2).
    (whole && index != [0; 4] && maps::sends_in_udp(ip.src)).then_some(ip)
}

/// Removes the UDP header that follows this header.
#[inline(always)]
fn strip(packet: &mut Packet, ip: Ipv4) -> Result<(), Counter> {
    let tot_len = (u16::from_be_bytes(ip.tot_len) - Udp::LEN as u16).to_be_bytes();
    // What was wrong with the checksum stays wrong.
    let change = Delta::of_word(ip.tot_len, tot_len)
        .and(Delta::of_word([ip.ttl, ip.protocol], [ip.ttl, ESP]));
    let checksum = change.applied_to(ip.checksum);
    packet.store(ETHERNET, &Ipv4 { tot_len, protocol: ESP, checksum, ..ip })?;
    packet.pop_udp()
}

/// tc egress of the uplink: stops what is for another node's port of encrypted networks and
/// is not encrypted.
#[inline(always)]
pub(crate) fn to_uplink(packet: &mut Packet) -> Outcome {
    if is_cleartext(packet) {
        Err(Counter::DropCleartextOut)
    } else {
        Ok(Verdict::Pass(Counter::PassedOut))
    }
}

#[inline(always)]
fn is_cleartext(packet: &mut Packet) -> bool {
    let Some(config) = maps::config() else { return false };
    if packet.ethertype() != Some(TYPE_IPV4) || packet.linear(ETHERNET + IPV4).is_err() {
        return false;
    }
    let Ok(ip) = packet.at::<Ipv4>(ETHERNET) else { return false };
    // A later fragment is nothing without the first.
    ip.protocol == UDP
        && !ip.is_later_fragment()
        && packet
            .load::<[u8; 2]>(ETHERNET + ip.header_len() + 2)
            .is_ok_and(|port| config.is_encrypted(port))
        && maps::is_member(ip.dst)
}
