//! A heartbeat must not wait for other work, nor for a page on disk.

use std::{io, mem};

/// Above all ordinary threads, below the kernel's own that handle packets (50: `irq/` threads).
const PRIORITY: i32 = 20;

/// Gives the calling thread real-time priority (sched(7)).
///
/// # Errors
/// Not allowed: CAP_SYS_NICE is missing, or the cgroup has no real-time runtime.
pub(super) fn prioritise() -> io::Result<()> {
    // SAFETY: all zero is a value of this struct of integers.
    let mut parameter: libc::sched_param = unsafe { mem::zeroed() };
    parameter.sched_priority = PRIORITY;
    // SAFETY: 0 is the calling thread; the struct lives across the call, which only reads it.
    match unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nice value of the agent's loop, which passes advertisements and flows on to the other node.
const NICE: i32 = -10;

/// Lets the calling thread run before others where processors are busy (setpriority(2)); its children do not inherit it.
///
/// # Errors
/// Not allowed: CAP_SYS_NICE is missing.
pub fn favour() -> io::Result<()> {
    // SAFETY: all zero is a value of this struct of integers, and the priority of an ordinary thread.
    let parameter: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: 0 is the calling thread; the struct lives across the call, which only reads it.
    let reset = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    // SAFETY: it takes three integers; 0 is the calling thread.
    if reset == 0 && unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps every page in memory that the process has touched, and will touch (mlock(2)).
///
/// # Errors
/// Not allowed: CAP_IPC_LOCK is missing.
pub(super) fn lock_memory() -> io::Result<()> {
    // SAFETY: it takes a number, and changes what no reference can see.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
