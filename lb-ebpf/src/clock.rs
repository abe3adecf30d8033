//! The time, ns of `CLOCK_MONOTONIC`.

use aya_ebpf::helpers::generated;

use crate::maps::TICKS;

/// How far `coarse` may be off before it is set again: where the kernel counts ticks by interrupts alone some get lost.
const OFF_NS: u64 = 1_000_000_000;

/// To the kernel's tick (1 to 10 ms): enough for when a packet was last seen. Made from jiffies, which the kernel turns into a
/// load of one word. To ask for the time is a call, and its returns alone take longer than all else here where the kernel
/// guards them (SRSO).
#[inline(always)]
pub fn coarse() -> u64 {
    // SAFETY: a live map value; the offset is a whole word.
    TICKS.get_ptr(0).map_or(0, |ticks| unsafe {
        counted((*ticks).ns).wrapping_add((&raw const (*ticks).offset).read_volatile())
    })
}

/// Exact, for the lease.
#[inline(always)]
pub fn exact() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { generated::bpf_ktime_get_ns() }
}

/// Sets `coarse` by the exact time if it is not near. It is never ahead.
#[inline(always)]
pub fn set_coarse(exact: u64) {
    let Some(ticks) = TICKS.get_ptr_mut(0) else { return };
    // SAFETY: as above; CPUs that are here at the same moment write what differs by a tick.
    unsafe {
        let (ns, offset) = ((*ticks).ns, &raw mut (*ticks).offset);
        let least = exact.wrapping_sub(counted(ns)).wrapping_sub(ns);
        if least.wrapping_sub(offset.read_volatile()).wrapping_add(OFF_NS) > 2 * OFF_NS {
            offset.write_volatile(least);
        }
    }
}

/// What the ticks of `ns` since the kernel's start come to.
#[inline(always)]
fn counted(ns: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { generated::bpf_jiffies64() }.wrapping_mul(ns)
}
