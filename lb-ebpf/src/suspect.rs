//! Backends that seem to have died: new flows pass them over for a moment, until the agent's probe has told.

use lb_common::maps::{ENDED_TOGETHER_NS, SIGNAL_ENDED, SIGNAL_REFUSED, SUSPECT_NS};

use crate::{clock, maps::SUSPECTS, signal};

/// Whether new flows are to pass a backend over.
#[inline(always)]
pub fn is(number: u16, now: u64) -> bool {
    SUSPECTS.get(number as u32).is_some_and(|suspect| now < suspect.until)
}

/// A backend refused a handshake.
#[inline(always)]
pub fn refused(number: u16) {
    accuse(number, clock::exact(), SIGNAL_REFUSED);
}

/// A backend ended an established flow that its client had not begun to close; two at once are suspicious.
#[inline(always)]
pub fn ended(number: u16) {
    let now = clock::exact();
    let Some(suspect) = SUSPECTS.get_ptr_mut(number as u32) else { return };
    // SAFETY: a live map value, of whole words that other CPUs may write too.
    let together = unsafe {
        let before = (*suspect).ended_at;
        (*suspect).ended_at = now;
        before != 0 && now.saturating_sub(before) <= ENDED_TOGETHER_NS
    };
    if together {
        accuse(number, now, SIGNAL_ENDED);
    }
}

#[inline(always)]
fn accuse(number: u16, now: u64, kind: u16) {
    let Some(suspect) = SUSPECTS.get_ptr_mut(number as u32) else { return };
    // SAFETY: a live map value, of whole words that other CPUs may write too.
    unsafe { (*suspect).until = now.saturating_add(SUSPECT_NS) };
    signal::of_backend(number, kind, now);
}
