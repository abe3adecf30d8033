//! The time, ns of `CLOCK_MONOTONIC`.

use aya_ebpf::helpers::generated;

/// To the kernel's tick (1 to 10 ms), for a tenth of the price: enough for when a packet was last seen.
#[inline(always)]
pub fn coarse() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { generated::bpf_ktime_get_coarse_ns() }
}

/// Exact, for the lease.
#[inline(always)]
pub fn exact() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { generated::bpf_ktime_get_ns() }
}
