//! Which backend takes a new flow. The arithmetic is [`lb_common::choose`]; here are the walks: over the slots that follow
//! the client's own, or over the turns; and over the live backends for the least loaded of them. Suspects are passed over,
//! unless there is nobody else.
//!
//! Whoever takes a backend adds itself to its handshakes under way by compare-and-swap from the word that it judged by, so
//! that two CPUs which choose at the same moment do not both take the last place.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use lb_common::{
    choose::{self, Algorithm, Rank, TRIES, Verdict},
    counters::Counter,
    hash,
    maps::{
        FlowKey, Load, MAGLEV_SLOTS, MAX_BACKENDS, Maglev, NO_BACKEND, Service, Share, load_of_backend,
        load_of_service,
    },
    pending::{Pending, Window},
};

use crate::{
    atomic, count,
    frame::forget,
    maps::{CHOICE, LOADS, maglev, table_in_use},
    suspect,
};

/// The choice under way. It lies in a per-CPU map, so that the verifier does not follow by which way its fields came to be.
#[repr(C)]
pub struct Choice {
    now: u64,
    /// The service's flows with this one.
    k: u64,
    /// What the next one is judged by: `k`, or more than any bound.
    bound: u64,
    /// Where the walk begins: a slot, or a turn. 64 bits, since of a remainder of 32 the verifier forgets the upper half.
    start: u64,
    /// The service's table that counts.
    table: u64,
    /// The least loaded so far.
    best: Rank,
    service: u16,
    /// The service's.
    flags: u16,
    /// Whose `best` is; `NO_BACKEND`: nobody's.
    best_number: u16,
    /// The first suspect that was passed over; `NO_BACKEND`: none.
    spare: u16,
    /// The choice; `NO_BACKEND`: none yet.
    number: u16,
    /// Not 0: a live backend was passed over for having `max_connections`.
    full: u16,
    /// The backend that is asked before all, whatever its load; `NO_BACKEND`: none.
    near: u16,
    /// 0.
    reserved: u16,
}

/// This CPU's choice.
#[inline(always)]
fn under_way() -> Option<&'static mut Choice> {
    // SAFETY: a live map value, and this CPU's own; each function takes it once, and none while another holds it.
    CHOICE.get_ptr_mut(0).map(|choice| unsafe { &mut *choice })
}

/// The backend for a client of this hash, or `NO_BACKEND`; and whether that is because all have `max_connections`. `near`: the
/// backend that is asked before all, or `NO_BACKEND`.
#[inline(always)]
pub fn choose(service: &Service, key: &FlowKey, hash: u64, near: u16, now: u64) -> (u16, bool) {
    const NONE: (u16, bool) = (NO_BACKEND, false);
    let Some(totals) = LOADS.get_ptr_mut(load_of_service(key.service)) else { return NONE };
    let start = start(service, hash, totals);
    let Some(choice) = under_way() else { return NONE };
    choice.now = now;
    // SAFETY: a live map value; a copy of words that other CPUs change one by one.
    choice.k = unsafe { (*totals).flows(Window::at(now)) }.all() + 1;
    choice.start = start;
    choice.table = table_in_use(totals);
    choice.service = key.service;
    choice.flags = service.flags;
    choice.best_number = NO_BACKEND;
    choice.spare = NO_BACKEND;
    choice.number = NO_BACKEND;
    choice.full = 0;
    choice.near = near;
    let walk = if matches!(Algorithm::of(service.flags), Algorithm::LeastConn) { 0 } else { TRIES + 1 };
    // One more with a near one; without a branch, since the verifier would walk what follows for each side.
    let more = ((near ^ NO_BACKEND) as u32 + NO_BACKEND as u32) >> 16;
    each(forget(walk + more).unwrap_or(0), ask);
    if under_way().is_some_and(|choice| choice.number == NO_BACKEND) {
        // From another one each time, so that equals take turns.
        each(MAX_BACKENDS as u32, rank);
        settle(Window::at(now));
    }
    let Some(choice) = under_way() else { return NONE };
    if choice.number == NO_BACKEND {
        return (NO_BACKEND, choice.full != 0);
    }
    if choice.spare != NO_BACKEND && choice.spare != choice.number {
        count::count(Counter::SuspectPassedOver);
    }
    begin(load_of_service(key.service), Window::at(now));
    (choice.number, false)
}

/// Where the walk begins.
#[inline(always)]
fn start(service: &Service, hash: u64, totals: *mut Load) -> u64 {
    if matches!(Algorithm::of(service.flags), Algorithm::LeastConn | Algorithm::RoundRobin) {
        // SAFETY: a live map value, aligned to 8.
        return unsafe { atomic::fetch_add(&raw mut (*totals).turn, 1) as u64 };
    }
    hash::slot(hash, MAGLEV_SLOTS).into()
}

/// The walk did not find one: the least loaded backend is taken, else a suspect.
#[inline(always)]
fn settle(now: Window) {
    let Some(choice) = under_way() else { return };
    let number = if choice.best_number == NO_BACKEND { choice.spare } else { choice.best_number };
    if number != NO_BACKEND {
        choice.number = number;
        begin(load_of_backend(number), now);
    }
}

type Step = extern "C" fn(u32, *mut c_void) -> i64;

/// Calls `step` for each number below `count`, until it returns 1. By `bpf_loop`, so that the verifier reads it once.
#[inline(always)]
fn each(count: u32, step: Step) {
    // SAFETY: the steps take nothing from the helper but the number.
    unsafe { generated::bpf_loop(count, step as *mut c_void, core::ptr::null_mut(), 0) };
}

/// Asks the backend of the next slot, or of the next turn.
extern "C" fn ask(number: u32, _nothing: *mut c_void) -> i64 {
    let Some(choice) = under_way() else { return 1 };
    let Some(table) = maglev(choice.service, choice.table) else { return 1 };
    let Some(backend) = next(table, choice, number) else { return 1 };
    let Some(share) = table.shares.get(backend as usize) else { return 0 };
    let Some(load) = LOADS.get_ptr_mut(load_of_backend(backend)) else { return 0 };
    // Where another CPU took the same backend at the same moment, the next one is asked.
    if takes(choice, share, table.live_weight, load, backend) {
        choice.number = backend;
        return 1;
    }
    0
}

/// Who is asked next, and by which bound: the near one first.
#[inline(always)]
fn next(table: &Maglev, choice: &mut Choice, number: u32) -> Option<u16> {
    let near = choice.near;
    choice.bound = choice.k;
    if near == NO_BACKEND {
        return candidate(table, choice, number);
    }
    choice.near = NO_BACKEND;
    choice.bound = u64::MAX;
    // The walk begins with the next number.
    choice.start = choice.start.wrapping_sub(1);
    Some(near)
}

#[inline(always)]
fn candidate(table: &Maglev, choice: &Choice, number: u32) -> Option<u16> {
    if matches!(Algorithm::of(choice.flags), Algorithm::RoundRobin) {
        let turn = place(choice, number, table.turn_count)?;
        return table.turns.get(turn as usize).copied();
    }
    let slot = choice.start.wrapping_add(number as u64);
    let slot = if slot >= MAGLEV_SLOTS as u64 { slot.wrapping_sub(MAGLEV_SLOTS as u64) } else { slot };
    table.slots.get(slot as usize).copied()
}

/// The place of a step in a list, which begins again at its end.
#[inline(always)]
fn place(choice: &Choice, number: u32, length: u32) -> Option<u64> {
    choice.start.wrapping_add(number as u64).checked_rem(length as u64)
}

/// Whether the backend takes the flow; then it has one more handshake under way.
#[inline(always)]
fn takes(choice: &mut Choice, share: &Share, live_weight: u32, load: *mut Load, backend: u16) -> bool {
    let now = Window::at(choice.now);
    // SAFETY: a live map value; a copy of words that other CPUs change one by one.
    let (seen, flows) = unsafe { ((*load).pending, (*load).flows(now)) };
    match choose::verdict(Algorithm::of(choice.flags), share, flows, live_weight, choice.bound) {
        Verdict::Takes if is_spared(choice, backend) => false,
        Verdict::Takes => {
            let begun = Pending(seen).begun(now);
            // SAFETY: a live map value, aligned to 8.
            unsafe { atomic::compare_exchange(&raw mut (*load).pending, seen, begun.0) == seen }
        }
        Verdict::Full => {
            choice.full = 1;
            false
        }
        Verdict::NotLive | Verdict::OverBound => false,
    }
}

/// Whether a backend is a suspect; the first one is remembered, should there be nobody else.
#[inline(always)]
fn is_spared(choice: &mut Choice, backend: u16) -> bool {
    let is_suspect = suspect::is(backend, choice.now);
    if is_suspect && choice.spare == NO_BACKEND {
        choice.spare = backend;
    }
    is_suspect
}

/// Ranks a live backend; returns 1 after the last.
extern "C" fn rank(number: u32, _nothing: *mut c_void) -> i64 {
    let Some(choice) = under_way() else { return 1 };
    let Some(table) = maglev(choice.service, choice.table) else { return 1 };
    if number >= table.live_count {
        return 1;
    }
    let Some(place) = place(choice, number, table.live_count) else { return 1 };
    let Some(&backend) = table.live.get(place as usize) else { return 0 };
    let Some(share) = table.shares.get(backend as usize) else { return 0 };
    let Some(load) = LOADS.get(load_of_backend(backend)) else { return 0 };
    let flows = load.flows(Window::at(choice.now));
    if share.weight == 0 {
        return 0;
    }
    if choose::is_full(share, flows) {
        choice.full = 1;
        return 0;
    }
    let rank = Rank::new(share, flows);
    let best = choice.best_number == NO_BACKEND || rank.is_before(&choice.best);
    if best && !is_spared(choice, backend) {
        choice.best = rank;
        choice.best_number = backend;
    }
    0
}

/// A change of words of handshakes under way, tried once each: a count that is lost because another CPU changed the word at
/// the same moment is gone with its window anyway. It lies on the caller's stack.
struct Change {
    slots: [u32; 2],
    now: Window,
    begun: Window,
    done: bool,
}

/// A handshake begins.
#[inline(always)]
fn begin(slot: u32, now: Window) {
    change(1, Change { slots: [slot; 2], now, begun: now, done: false });
}

/// A handshake is complete: it counts as established from here on.
#[inline(always)]
pub fn complete(backend: u16, service: u16, now: Window, begun: Window) {
    let slots = [load_of_backend(backend), load_of_service(service)];
    change(2, Change { slots, now, begun, done: true });
}

#[inline(always)]
fn change(count: u32, mut change: Change) {
    let change: *mut Change = &raw mut change;
    // SAFETY: the helper calls `attempt` with `change`, which outlives the call.
    unsafe { generated::bpf_loop(count, attempt as *mut c_void, change.cast(), 0) };
}

/// One word.
extern "C" fn attempt(number: u32, change: *mut c_void) -> i64 {
    // SAFETY: `change` passes a pointer to its `Change`, to which nothing else refers during the call.
    let change = unsafe { &*change.cast::<Change>() };
    let slot = if number == 0 { change.slots[0] } else { change.slots[1] };
    let Some(load) = LOADS.get_ptr_mut(slot) else { return 1 };
    // SAFETY: a live map value, aligned to 8.
    unsafe {
        let seen = (&raw const (*load).pending).read_volatile();
        let word = Pending(seen);
        let to = if change.done { word.done(change.now, change.begun) } else { word.begun(change.now) };
        atomic::compare_exchange(&raw mut (*load).pending, seen, to.0);
    }
    0
}
