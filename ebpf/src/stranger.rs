//! Tells the agent's log who sends VXLAN without being a member: the counter knows how
//! many such packets came, but not from where. A line a second on each processor at
//! most, so that a flood of packets is no flood of lines.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::warn;

use crate::maps;

const SECOND: u64 = 1_000_000_000;

/// Reports a sender's address, big-endian bytes.
#[inline(never)]
pub(crate) fn report(vtep: [u8; 4]) {
    // SAFETY: the helper only reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(last) = maps::last_report() else { return };
    // SAFETY: this CPU's own slot; tc programs of a CPU do not interrupt each other.
    unsafe {
        if now - *last < SECOND {
            return;
        }
        *last = now;
    }
    warn!(
        (),
        "VXLAN from {:i}, which is no member of the cluster: dropped",
        u32::from_be_bytes(vtep)
    );
}
