//! Atomic operations on map memory. The BPF target has none in `core`, so they are written in its assembly.

/// Stores `new` at `word` if it holds `old`; returns what it held. A full barrier (BPF instruction set, RFC 9669
/// section 5.3).
///
/// # Safety
/// `word` points into a map value, is aligned to 8, and is valid for reads and writes.
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let held: u64;
        // SAFETY: the caller vouches for `word`; `r0` is the instruction's implicit operand.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) word,
                new = in(reg) new,
                inout("r0") old => held,
            );
        }
        held
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller vouches for `word`.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|held| held)
    }
}

/// Adds `value` to the number at `word`; returns what it was. A full barrier.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_add(word: *mut i64, value: i64) -> i64 {
    #[cfg(target_arch = "bpf")]
    {
        let before: i64;
        // SAFETY: the caller vouches for `word`.
        unsafe {
            core::arch::asm!(
                "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
                word = in(reg) word,
                value = inout(reg) value => before,
            );
        }
        before
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicI64, Ordering};
        // SAFETY: the caller vouches for `word`.
        unsafe { AtomicI64::from_ptr(word) }.fetch_add(value, Ordering::SeqCst)
    }
}

/// Adds `value` to the number at `word`.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub unsafe fn add(word: *mut i64, value: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller vouches for `word`.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicI64, Ordering};
        // SAFETY: the caller vouches for `word`.
        unsafe { AtomicI64::from_ptr(word) }.fetch_add(value, Ordering::Relaxed);
    }
}
