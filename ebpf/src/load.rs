//! What each backend has to do, and whose turn it is (map `LOAD`).

use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xsub};

use netagent_common::{EndpointKey, Load};

use crate::maps;

const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;

/// A flow of this node to the backend begins.
#[inline(always)]
pub(crate) fn begin(vni: u32, backend: [u8; 4]) {
    if let Some(load) = entry(vni, backend) {
        // SAFETY: an entry stays readable until the program ends (see `maps.rs`).
        unsafe { atomic_xadd::<u64, u64, RELAXED>(&raw mut (*load).flows, 1) };
    }
}

/// One ends.
#[inline(always)]
pub(crate) fn end(vni: u32, backend: [u8; 4]) {
    // Where there is no entry it was given up, with all that it counted. Where it says 0 the
    // agent has taken the flow off already.
    if let Some(load) = maps::load(&EndpointKey::from_wire(vni, backend))
        && read(load) != 0
    {
        // SAFETY: as in `begin`.
        unsafe { atomic_xsub::<u64, u64, RELAXED>(&raw mut (*load).flows, 1) };
    }
}

/// Flows of this node to the backend.
#[inline(always)]
pub(crate) fn of(vni: u32, backend: [u8; 4]) -> u64 {
    maps::load(&EndpointKey::from_wire(vni, backend)).map_or(0, read)
}

/// The number of the next turn of the service with virtual address `vip`. Two CPUs in the
/// same instant may get the same one, and then the next goes to nobody: the compiler has no
/// addition for this machine that returns what was there.
#[inline(always)]
pub(crate) fn turn(vni: u32, vip: [u8; 4]) -> u32 {
    let Some(load) = entry(vni, vip) else { return 0 };
    // SAFETY: as in `begin`.
    unsafe {
        let turn = (*load).turn;
        atomic_xadd::<u64, u64, RELAXED>(&raw mut (*load).turn, 1);
        turn as u32
    }
}

#[inline(always)]
fn read(load: *mut Load) -> u64 {
    // SAFETY: as in `begin`.
    unsafe { (*load).flows }
}

/// The entry, which is made if there is none.
#[inline(always)]
fn entry(vni: u32, ip: [u8; 4]) -> Option<*mut Load> {
    let key = EndpointKey::from_wire(vni, ip);
    maps::load(&key).or_else(|| {
        maps::new_load(&key);
        maps::load(&key)
    })
}
