//! Which backend takes a new flow. The arithmetic is [`lb_common::choose`]; here are the walks: over the slots that follow
//! the client's own, or over the turns; and over the live backends for the least loaded of them.
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
        BACKEND_USED, Backend, FlowKey, Load, MAGLEV_SLOTS, MAX_BACKENDS, Maglev, Service, Share,
        load_of_backend, load_of_service,
    },
    pending::{Pending, Window},
};

use crate::{
    atomic,
    maps::{BACKENDS, LOADS, maglev},
};

/// The choice under way. It lies on the caller's stack.
struct Choice {
    service: u16,
    algorithm: Algorithm,
    now: Window,
    /// The service's flows with this one.
    k: u64,
    /// Where the walk begins: a slot, or a turn. 64 bits, since of a remainder of 32 the verifier forgets the upper half.
    start: u64,
    /// The best so far, and how loaded it is.
    best: Rank,
    best_number: u16,
    /// The choice; `NO_BACKEND`: none yet.
    number: u16,
    /// A live backend was passed over for having `max_connections`.
    full: bool,
}

const NONE: u16 = lb_common::maps::NO_BACKEND;

/// The backend for a client, or why there is none: `BackendsFull`, or `NoBackendReset` where none is live. `hash` is that
/// of the client's address and port.
#[inline(always)]
pub fn choose(
    service: &Service,
    key: &FlowKey,
    hash: u64,
    now: Window,
) -> Result<(u16, &'static Backend), Counter> {
    let table = maglev(key.service).ok_or(Counter::NoBackendReset)?;
    let algorithm = Algorithm::of(service.flags);
    let totals = LOADS.get_ptr_mut(load_of_service(key.service)).ok_or(Counter::NoBackendReset)?;
    let turns = matches!(algorithm, Algorithm::LeastConn | Algorithm::RoundRobin);
    let start = if turns {
        // SAFETY: a live map value, aligned to 8.
        unsafe { atomic::fetch_add(&raw mut (*totals).turn, 1) as u64 }
    } else if service.flags & lb_common::maps::SERVICE_AFFINITY != 0 {
        hash::slot(hash::client(&service.seed, &key.client, None), MAGLEV_SLOTS).into()
    } else {
        hash::slot(hash, MAGLEV_SLOTS).into()
    };
    // SAFETY: a live map value; a copy of words that other CPUs change one by one.
    let k = unsafe { (*totals).flows(now) }.all() + 1;
    let idle =
        Rank::new(&Share { weight: 1, max_connections: 0 }, choose::Flows { established: 0, pending: 0 });
    let mut choice = Choice {
        service: key.service,
        algorithm,
        now,
        k,
        start,
        best: idle,
        best_number: NONE,
        number: NONE,
        full: false,
    };
    if !matches!(algorithm, Algorithm::LeastConn) {
        each(TRIES + 1, ask, &mut choice);
    }
    if choice.number == NONE {
        // From another one each time, so that equals take turns.
        let live = table.live_count;
        each(if live > MAX_BACKENDS as u32 { MAX_BACKENDS as u32 } else { live }, rank, &mut choice);
        if choice.best_number != NONE {
            choice.number = choice.best_number;
            begin(load_of_backend(choice.number), now);
        }
    }
    let backend = BACKENDS.get(choice.number as u32).filter(|backend| is_ours(backend, key.service));
    match backend {
        Some(backend) => {
            begin(load_of_service(key.service), now);
            Ok((choice.number, backend))
        }
        None if choice.full => Err(Counter::BackendsFull),
        None => Err(Counter::NoBackendReset),
    }
}

#[inline(always)]
fn is_ours(backend: &Backend, service: u16) -> bool {
    backend.flags & BACKEND_USED != 0 && backend.service == service
}

type Step = extern "C" fn(u32, *mut c_void) -> i64;

/// Calls `step` for each number below `count`, until it returns 1. By `bpf_loop`, so that the verifier reads it once.
#[inline(always)]
fn each(count: u32, step: Step, choice: &mut Choice) {
    let choice: *mut Choice = choice;
    // SAFETY: the helper calls `step` with `choice`, which outlives the call.
    unsafe { generated::bpf_loop(count, step as *mut c_void, choice.cast(), 0) };
}

/// Asks the backend of the next slot, or of the next turn.
extern "C" fn ask(number: u32, choice: *mut c_void) -> i64 {
    // SAFETY: `each` passes a pointer to its `Choice`, to which nothing else refers during the call.
    let choice = unsafe { &mut *choice.cast::<Choice>() };
    let Some(table) = maglev(choice.service) else { return 1 };
    let Some(backend) = candidate(table, choice, number) else { return 1 };
    let Some(share) = table.shares.get(backend as usize) else { return 0 };
    let Some(load) = LOADS.get_ptr_mut(load_of_backend(backend)) else { return 0 };
    // Where another CPU took the same backend at the same moment, the next one is asked.
    if takes(choice, share, table.live_weight, load) {
        choice.number = backend;
        return 1;
    }
    0
}

#[inline(always)]
fn candidate(table: &Maglev, choice: &Choice, number: u32) -> Option<u16> {
    if matches!(choice.algorithm, Algorithm::RoundRobin) {
        let turn = place(choice, number, table.turn_count)?;
        return table.turns.get(turn as usize).copied();
    }
    let slot = choice.start.wrapping_add(number as u64);
    let slot = if slot >= MAGLEV_SLOTS as u64 { slot - MAGLEV_SLOTS as u64 } else { slot };
    table.slots.get(slot as usize).copied()
}

/// The place of a step in a list, which begins again at its end.
#[inline(always)]
fn place(choice: &Choice, number: u32, length: u32) -> Option<u64> {
    choice.start.wrapping_add(number as u64).checked_rem(length as u64)
}

/// Whether the backend takes the flow; then it has one more handshake under way.
#[inline(always)]
fn takes(choice: &mut Choice, share: &Share, live_weight: u32, load: *mut Load) -> bool {
    // SAFETY: a live map value; a copy of words that other CPUs change one by one.
    let (seen, flows) = unsafe { ((*load).pending, (*load).flows(choice.now)) };
    match choose::verdict(choice.algorithm, share, flows, live_weight, choice.k) {
        Verdict::Takes => {
            let begun = Pending(seen).begun(choice.now);
            // SAFETY: a live map value, aligned to 8.
            unsafe { atomic::compare_exchange(&raw mut (*load).pending, seen, begun.0) == seen }
        }
        Verdict::Full => {
            choice.full = true;
            false
        }
        Verdict::NotLive | Verdict::OverBound => false,
    }
}

/// Ranks a live backend.
extern "C" fn rank(number: u32, choice: *mut c_void) -> i64 {
    // SAFETY: as in `ask`.
    let choice = unsafe { &mut *choice.cast::<Choice>() };
    let Some(table) = maglev(choice.service) else { return 1 };
    let Some(place) = place(choice, number, table.live_count) else { return 1 };
    let Some(&backend) = table.live.get(place as usize) else { return 0 };
    let Some(share) = table.shares.get(backend as usize) else { return 0 };
    let Some(load) = LOADS.get(load_of_backend(backend)) else { return 0 };
    let flows = load.flows(choice.now);
    if share.weight == 0 {
        return 0;
    }
    if choose::is_full(share, flows) {
        choice.full = true;
        return 0;
    }
    let rank = Rank::new(share, flows);
    if choice.best_number == NONE || rank.is_before(&choice.best) {
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
