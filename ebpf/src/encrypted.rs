//! Encrypted networks: who carries them, and what of them must not be seen in clear. The
//! kernel's IPsec encrypts what leaves by their own vxlan device, and hands on what it has
//! decrypted. At the uplink there is nothing of them that is still UDP, unless something is
//! wrong or somebody pretends; nothing of that gets in or out, even while IPsec has lost
//! its policies.

use aya_ebpf::bindings::{__sk_buff, bpf_xfrm_state};
use aya_ebpf::helpers::bpf_skb_get_xfrm_state;
use netagent_common::{Config, Counter, IPSEC_REQID};

use crate::headers::{ETHERNET, IPV4, Ipv4, TYPE_IPV4, UDP};
use crate::maps;
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};

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
