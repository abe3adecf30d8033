//! The agent's own memory.

/// Gives the kernel back what only the start needed: reading types and loading programs leaves some 2 MB of free heap, which
/// glibc would keep.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, moves nothing that is allocated, and locks what it works on.
    let _whether_any_was = unsafe { libc::malloc_trim(0) };
}
