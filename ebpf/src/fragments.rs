//! Fragments after the first carry no ports, so what was decided about the first is
//! remembered for them, by the identification that they share. One that comes before the
//! first finds nothing and is lost; its sender's stack sends them in order.

use netagent_common::{FlowKey, Kind};

use crate::flow::{Entry, now};
use crate::headers::Ipv4;
use crate::maps;

/// Seconds after which a stack gives up putting fragments together, so that an
/// identification may come again.
const PATIENCE: u32 = 30;

/// Remembers what stands in `flow` for the fragments to come after the one with header
/// `ip`, if that is one.
#[inline(always)]
pub(crate) fn remember(vni: u32, ip: &Ipv4, flow: Entry) {
    if ip.is_fragment() {
        maps::remember(&key(vni, ip), &flow.get());
    }
}

/// What was decided about the first of these fragments.
#[inline(always)]
pub(crate) fn recall(vni: u32, ip: &Ipv4) -> Option<Entry> {
    maps::flow(&key(vni, ip)).filter(|flow| flow.silent(now()) <= PATIENCE)
}

#[inline(always)]
fn key(vni: u32, ip: &Ipv4) -> FlowKey {
    FlowKey {
        client: ip.src,
        called: ip.dst,
        client_port: ip.id,
        ..FlowKey::new(Kind::Fragment, vni, ip.protocol)
    }
}
