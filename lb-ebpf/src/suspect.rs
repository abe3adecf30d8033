//! Backends that seem to have died: new flows pass them over for a moment, until the agent's probe has told.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use lb_common::{
    counters::Counter,
    maps::{ENDED_TOGETHER_NS, MAGLEV_SLOTS, NO_BACKEND, SIGNAL_ENDED, SIGNAL_REFUSED, SUSPECT_NS},
};

use crate::{
    clock, count,
    maps::{SUSPECTS, maglev},
    signal,
};

/// Slots looked at for a backend that is no suspect. With two of three backends suspect all of them are in vain once in
/// 10^22 connections.
const TRIES: u32 = 128;

/// Whether new flows are to pass a backend over.
#[inline(always)]
pub fn is(number: u16, now: u64) -> bool {
    SUSPECTS.get(number as u32).is_some_and(|suspect| now < suspect.until)
}

/// The backend of a Maglev slot, or of the next one whose backend is no suspect; the first slot's if all are.
#[inline(always)]
pub fn pass_over(service: u16, slot: u32, now: u64) -> u16 {
    let mut search = Search { now, slot, service, first: NO_BACKEND, found: NO_BACKEND };
    let raw: *mut Search = &mut search;
    // SAFETY: the helper calls `attempt` with `search`, which outlives the call.
    unsafe { generated::bpf_loop(TRIES, attempt as *mut c_void, raw.cast(), 0) };
    if search.found == NO_BACKEND { search.first } else { search.found }
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

/// The walk under way. It lies on the caller's stack.
struct Search {
    now: u64,
    slot: u32,
    service: u16,
    first: u16,
    found: u16,
}

/// One slot; returns 1 to end the loop. By `bpf_loop`, so that the verifier reads it once.
extern "C" fn attempt(tried: u32, search: *mut c_void) -> i64 {
    // SAFETY: `pass_over` passes a pointer to its `Search`, to which nothing else refers during the call.
    let search = unsafe { &mut *search.cast::<Search>() };
    let Some(table) = maglev(search.service) else { return 1 };
    let Some(&number) = table.slots.get(search.slot as usize) else { return 1 };
    if tried == 0 {
        search.first = number;
    }
    if number == NO_BACKEND {
        return 1;
    }
    if !is(number, search.now) {
        if number != search.first {
            count::count(Counter::SuspectPassedOver);
        }
        search.found = number;
        return 1;
    }
    let next = search.slot + 1;
    search.slot = if next < MAGLEV_SLOTS { next } else { 0 };
    0
}
