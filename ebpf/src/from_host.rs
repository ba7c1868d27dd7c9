//! tc ingress of `lo`: what the host's own clients send to the host. Published ports answer
//! there too, on 127.0.0.1 and on the node's own addresses; everything else is the host's.

use netagent_common::{Counter, GATEWAY_MAC};

use crate::entry::{self, Outside};
use crate::exit::LOOPBACK;
use crate::headers::{ETHERNET, Ethernet, IPV4, TYPE_IPV4};
use crate::maps;
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};

#[inline(always)]
pub(crate) fn handle(packet: &mut Packet) -> Outcome {
    mesh(packet).unwrap_or(Ok(Verdict::Pass(Counter::PassedAtLoopback)))
}

/// What becomes of a packet to a published port.
#[inline(always)]
fn mesh(packet: &mut Packet) -> Option<Outcome> {
    if packet.ethertype() != Some(TYPE_IPV4) {
        return None;
    }
    let config = maps::config()?;
    packet.linear(ETHERNET + IPV4).ok()?;
    // An answer of ours on its last steps (`exit.rs`); the host's frames have no MACs here.
    if packet.at::<Ethernet>(0).ok()?.src == GATEWAY_MAC {
        return None;
    }
    entry::enter(packet, Outside { link: LOOPBACK, vtep: config.advertised })
}
