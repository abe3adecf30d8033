//! What the agent is told: signals, which ask for something at once, and events, which are the flows' history. Both are
//! rare, and neither waits: what finds its ring buffer full is counted and lost.

use core::mem::MaybeUninit;

use lb_common::{
    addr::{Addr, Mac},
    claim::{self, Claim},
    counters::Counter,
    maps::{
        CLOSED_BY_BACKEND, CLOSED_BY_CLIENT, CLOSED_RESET_BY_BACKEND, CLOSED_RESET_BY_CLIENT, EVENT_CLOSED,
        Flow, FlowEvent, FlowKey, SIGNAL_GAP_NS, SIGNAL_TABLE_FULL, SIGNAL_VIP_CONFLICT, SUSPECT_TABLE_FULL,
        SUSPECT_VIP_CONFLICT, Signal, handshake_bucket,
    },
};

use crate::{
    clock, count,
    maps::{EVENTS, HANDSHAKES, SIGNALS, SUSPECTS},
};

/// Something about a backend; one in 10 ms is told.
#[inline(always)]
pub fn of_backend(number: u16, kind: u16, now: u64) {
    send(number as u32, Signal { backend: number, ..about_nobody(kind, now) });
}

/// A SYN was refused, since the flow table is full.
#[inline(always)]
pub fn table_full(now: u64) {
    send(SUSPECT_TABLE_FULL, about_nobody(SIGNAL_TABLE_FULL, now));
}

/// Another host, with this MAC, claims a VIP.
#[inline(always)]
pub fn vip_conflict(address: Addr, mac: Mac) {
    let now = clock::exact();
    send(SUSPECT_VIP_CONFLICT, Signal { address, mac, ..about_nobody(SIGNAL_VIP_CONFLICT, now) });
}

/// An established flow began or ended, by the step `step`; `after` is its claim from now on.
#[inline(always)]
pub fn event(key: &FlowKey, flow: &Flow, established: u32, kind: u16, after: Claim, step: u64) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        count::count(Counter::EventsLost);
        return;
    };
    let event: *mut FlowEvent = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `reserve` gave room for an event, and each of its fields is written.
    unsafe {
        (*event).at = clock::exact();
        (*event).client = key.client;
        (*event).client_port = key.port;
        (*event).nat_port = flow.nat_port;
        (*event).backend = flow.backend;
        (*event).service = key.service;
        (*event).generation = flow.generation;
        (*event).established = established;
        (*event).kind = kind;
        (*event).why = if kind == EVENT_CLOSED { why(after, step) } else { 0 };
        (*event).reserved = 0;
    }
    entry.submit(0);
}

/// A backend answered the SYN that was sent at `since`, ns.
#[inline(always)]
pub fn handshake(number: u16, since: u64) {
    let took = clock::exact().saturating_sub(since);
    let Some(times) = HANDSHAKES.get_ptr_mut(number as u32) else { return };
    // SAFETY: a live map value, and this CPU's own.
    let times = unsafe { &mut *times };
    if let Some(bucket) = times.buckets.get_mut(handshake_bucket(took)) {
        *bucket += 1;
    }
    times.sum = times.sum.wrapping_add(took);
}

#[inline(always)]
fn about_nobody(kind: u16, at: u64) -> Signal {
    Signal { at, address: Addr::UNSPECIFIED, mac: Mac::UNKNOWN, kind, backend: 0, reserved: [0; 3] }
}

#[inline(always)]
fn send(slot: u32, signal: Signal) {
    let Some(suspect) = SUSPECTS.get_ptr_mut(slot) else { return };
    // SAFETY: a live map value, of whole words that other CPUs may write too.
    unsafe {
        if (*suspect).signalled_at != 0 && signal.at.saturating_sub((*suspect).signalled_at) < SIGNAL_GAP_NS {
            return;
        }
        (*suspect).signalled_at = signal.at;
    }
    if SIGNALS.output(signal, 0).is_err() {
        count::count(Counter::EventsLost);
    }
}

#[inline(always)]
const fn why(after: Claim, step: u64) -> u16 {
    if step & claim::RESET != 0 {
        if step & claim::BY_BACKEND != 0 { CLOSED_RESET_BY_BACKEND } else { CLOSED_RESET_BY_CLIENT }
    } else if after.has(claim::FREE_AT_ONCE) {
        CLOSED_BY_CLIENT
    } else {
        CLOSED_BY_BACKEND
    }
}
