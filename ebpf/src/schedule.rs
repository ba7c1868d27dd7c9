//! Which backend a new flow gets: the schedulers, by the names and rules of ipvsadm(8).
//! The agent has laid out the backends in a ring of slots; here one slot is taken.

use netagent_common::{Affinity, AffinityKey, Scheduler, Service, SlotKey};

use crate::{load, maps};

/// Slots that are looked at for the least load. Of a larger service each new flow looks
/// at those from another one on.
const LOOKED_AT: u32 = 64;

/// Slots that are tried in turn if a backend is not there any more, or not eligible: the
/// agent changes backends and ring one after the other.
const TRIED: u32 = 8;

/// A service that a client calls, in a network.
#[derive(Clone, Copy)]
pub(crate) struct Called {
    pub(crate) vni: u32,
    pub(crate) vip: [u8; 4],
    pub(crate) client: [u8; 4],
}

/// Whether the endpoint with address `ip` may take a new flow to `vip`.
#[inline(always)]
fn may_go_to(vni: u32, vip: [u8; 4], ip: [u8; 4]) -> bool {
    maps::endpoint(vni, ip).is_some_and(|endpoint| endpoint.serves == vip && endpoint.is_eligible())
}

/// The backend that the client keeps.
#[inline(always)]
pub(crate) fn kept(called: &Called, service: &Service, now: u32) -> Option<[u8; 4]> {
    if service.affinity == 0 {
        return None;
    }
    let kept = maps::affinity(&affinity_key(called))?;
    let valid = now.wrapping_sub(kept.seen) <= service.affinity
        && may_go_to(called.vni, called.vip, kept.ip);
    valid.then_some(kept.ip)
}

/// Lets the client keep the backend that a new flow of its goes to.
#[inline(always)]
pub(crate) fn keep(called: &Called, service: &Service, backend: [u8; 4], now: u32) {
    if service.affinity != 0 {
        maps::keep_affinity(&affinity_key(called), &Affinity { ip: backend, seen: now });
    }
}

#[inline(always)]
fn affinity_key(called: &Called) -> AffinityKey {
    AffinityKey { vni: called.vni, vip: called.vip, client: called.client }
}

/// The backend whose turn it is; none if none may take a new flow.
#[inline(always)]
pub(crate) fn next(called: &Called) -> Option<[u8; 4]> {
    let [vip, client] = [called.vip, called.client].map(u32::from_ne_bytes);
    let backend = netagent_schedule(called.vni, vip, client);
    (backend != 0).then_some(backend.to_ne_bytes())
}

/// Addresses are numbers here, and 0 is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_schedule(vni: u32, vip: u32, client: u32) -> u32 {
    let called = Called { vni, vip: vip.to_ne_bytes(), client: client.to_ne_bytes() };
    let Some(service) = maps::service(called.vni, called.vip) else { return 0 };
    if service.slots == 0 {
        return 0;
    }
    let backend = match service.scheduler() {
        Scheduler::Turn => first(&called, service, load::turn(called.vni, called.vip)),
        Scheduler::Source => first(&called, service, hash(called.client)),
        Scheduler::Least => least(&called, service),
    };
    u32::from_ne_bytes(backend)
}

/// The first eligible backend from slot `start` on.
#[inline(always)]
fn first(called: &Called, service: &Service, start: u32) -> [u8; 4] {
    for step in 0..TRIED {
        let number = start.wrapping_add(step).checked_rem(service.slots).unwrap_or(0);
        let key = SlotKey::new(called.vni, called.vip, service.half, number);
        if let Some(slot) = maps::slot(&key)
            && may_go_to(called.vni, called.vip, slot.ip)
        {
            return slot.ip;
        }
    }
    [0; 4]
}

/// The backend with the fewest flows of this node for its weight; of several the one that
/// comes first from the slot whose turn it is.
#[inline(always)]
fn least(called: &Called, service: &Service) -> [u8; 4] {
    let start = load::turn(called.vni, called.vip);
    let vip = u32::from_ne_bytes(called.vip);
    let (mut least, mut best) = (u64::MAX, 0);
    for step in 0..LOOKED_AT {
        if step >= service.slots {
            break;
        }
        let number = start.wrapping_add(step).checked_rem(service.slots).unwrap_or(0);
        let busy = netagent_busy(called.vni, vip, service.half, number);
        if busy < least {
            (least, best) = (busy, number);
        }
    }
    if least == u64::MAX {
        return [0; 4];
    }
    let best = maps::slot(&SlotKey::new(called.vni, called.vip, service.half, best));
    best.map_or([0; 4], |slot| slot.ip)
}

/// Flows of the backend in a slot for its weight, in parts of 2^-32; the largest number if
/// it may take none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_busy(vni: u32, vip: u32, half: u32, slot: u32) -> u64 {
    let vip = vip.to_ne_bytes();
    let Some(slot) = maps::slot(&SlotKey::new(vni, vip, half, slot)) else { return u64::MAX };
    if !may_go_to(vni, vip, slot.ip) {
        return u64::MAX;
    }
    let flows = load::of(vni, slot.ip) << 32;
    flows.checked_div(u64::from(slot.weight)).unwrap_or(flows)
}

/// Spreads addresses evenly, and on every node alike: the finalizer of MurmurHash3.
#[inline(always)]
fn hash(client: [u8; 4]) -> u32 {
    let mut hash = u32::from_be_bytes(client);
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
