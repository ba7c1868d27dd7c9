//! What becomes of a packet, and the one place where that turns into a tc action and
//! moves a counter. Every packet moves exactly one.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use netagent_common::{Config, Counter};

use crate::packet::Packet;
use crate::{exit, maps};

/// The fate of a packet that is not dropped.
pub(crate) enum Verdict {
    /// Goes on as if we were not there: to the next program of this hook, which may be
    /// another's, then to the host's stack.
    Pass(Counter),
    /// Into the workload behind veth `ifindex`.
    Deliver {
        /// Host side of the veth.
        ifindex: u32,
        /// What it was.
        counter: Counter,
    },
    /// Out of the uplink, to the node with this tunnel address, or to a client outside.
    Send {
        /// The uplink.
        uplink: u32,
        /// The other node as it stands in a packet, if it is a neighbour; 0 if the kernel's
        /// routes know the way.
        neighbour: u32,
        /// What it was.
        counter: Counter,
    },
    /// Into the host's stack, as if it came in at `lo`.
    Host {
        /// What it was.
        counter: Counter,
    },
    /// Out of an interface as it is: through the kernel's vxlan device, which has been told
    /// where to, or to where IPVS schedules.
    Redirect {
        /// The interface.
        ifindex: u32,
        /// What it was.
        counter: Counter,
    },
}

/// A verdict, or the counter of the reason why the packet is dropped.
pub(crate) type Outcome = Result<Verdict, Counter>;

impl Verdict {
    /// Out of the uplink to the node with tunnel address `vtep`.
    #[inline(always)]
    pub(crate) fn send(config: &Config, vtep: [u8; 4], counter: Counter) -> Self {
        let neighbour = if config.is_neighbour(vtep) { u32::from_ne_bytes(vtep) } else { 0 };
        Self::Send { uplink: config.uplink, neighbour, counter }
    }
}

/// Runs a hook on the packet and carries its verdict out.
#[inline(always)]
pub(crate) fn run(context: &TcContext, hook: impl FnOnce(&mut Packet) -> Outcome) -> i32 {
    let mut packet = Packet::new(context);
    let bytes = packet.len();
    let (action, counter) = match hook(&mut packet) {
        Ok(Verdict::Pass(counter)) => (TC_ACT_UNSPEC, counter),
        Ok(Verdict::Deliver { ifindex, counter }) => {
            redirected(packet.redirect_to_peer(ifindex), counter)
        }
        Ok(Verdict::Send { uplink, neighbour, counter }) => {
            let action = match neighbour {
                0 => packet.redirect_by_route(uplink),
                vtep => packet.redirect_to_neighbour(uplink, vtep.to_ne_bytes()),
            };
            redirected(action, counter)
        }
        Ok(Verdict::Host { counter }) => redirected(packet.redirect_into(exit::LOOPBACK), counter),
        Ok(Verdict::Redirect { ifindex, counter }) => redirected(packet.redirect(ifindex), counter),
        Err(reason) => (TC_ACT_SHOT, reason),
    };
    maps::count(counter, bytes);
    action
}

#[inline(always)]
fn redirected(action: i32, counter: Counter) -> (i32, Counter) {
    if action == TC_ACT_REDIRECT { (action, counter) } else { (TC_ACT_SHOT, Counter::DropRefused) }
}
