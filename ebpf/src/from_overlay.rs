//! tc ingress of the collect-metadata vxlan devices: what the kernel took out of the
//! tunnel because the uplink's hook left it alone, or because that hook is not there yet.
//! The checks are the same.

use netagent_common::Counter;

use crate::overlay::{Admitted, Origin};
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};
use crate::{encrypted, maps};

#[inline(always)]
pub(crate) fn handle(packet: &mut Packet) -> Outcome {
    let (vtep, vni) = packet.tunnel()?;
    let origin = Origin { vtep, vni };
    match origin.admit(packet, 0)? {
        // The way that is probed is the one by the uplink's program.
        Admitted::Probe => Err(Counter::DropOtherProtocol),
        Admitted::Ipv4(inner) => inner.deliver(packet, Counter::DeliveredFromVxlan),
        Admitted::Arp => {
            let config = maps::config().ok_or(Counter::DropRefused)?;
            packet.set_tunnel(config.vtep, vtep, vni)?;
            // By the way that it came.
            let ifindex = encrypted::device(config, vni).unwrap_or(config.vxlan);
            Ok(Verdict::Redirect { ifindex, counter: Counter::ArpAnsweredRemote })
        }
    }
}
