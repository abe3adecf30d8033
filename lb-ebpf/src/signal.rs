//! What the agent is told: signals, which ask for something at once, and events, which are the flows' history. Both are
//! rare, and neither waits: what finds its ring buffer full is counted and lost.

use core::mem::MaybeUninit;

use lb_common::{
    addr::{Addr, Mac},
    claim::{self, Claim},
    counters::Counter,
    maps::{
        CLOSED_BY_BACKEND, CLOSED_BY_CLIENT, CLOSED_RESET_BY_BACKEND, CLOSED_RESET_BY_CLIENT, FlowEvent,
        SIGNAL_GAP_NS, SIGNAL_TABLE_FULL, SIGNAL_VIP_CONFLICT, SUSPECT_TABLE_FULL, SUSPECT_VIP_CONFLICT,
        Signal, handshake_bucket,
    },
};

use crate::{
    clock, count,
    frame::{forget, put_address, put_mac},
    handover::Change,
    maps::{EVENTS, HANDSHAKES, SIGNALS, SUSPECTS},
};

/// Something about a backend; one in 10 ms is told.
#[inline(always)]
pub fn of_backend(number: u16, kind: u16, now: u64) {
    send(number as u32, kind, number, now, None);
}

/// A SYN was refused, since the flow table is full.
#[inline(always)]
pub fn table_full(now: u64) {
    send(SUSPECT_TABLE_FULL, SIGNAL_TABLE_FULL, 0, now, None);
}

/// Another host, with this MAC, claims a VIP.
#[inline(always)]
pub fn vip_conflict(address: Addr, mac: Mac) {
    send(SUSPECT_VIP_CONFLICT, SIGNAL_VIP_CONFLICT, 0, clock::exact(), Some((address, mac)));
}

/// A flow began or ended.
#[inline(always)]
pub fn event(said: &Change, generation: u32, kind: u16, why: u16, established: u32) {
    let Some(mut entry) = EVENTS.reserve_untyped::<FlowEvent>(0) else {
        count::count(Counter::EventsLost);
        return;
    };
    let event: *mut FlowEvent = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `reserve` gave room for an event, and each of its fields is written.
    unsafe {
        (*event).at = clock::exact();
        put_address(&raw mut (*event).client, &raw const said.key.client);
        (*event).client_port = said.key.port;
        (*event).nat_port = said.nat_port;
        (*event).backend = said.backend;
        (*event).service = said.key.service;
        (*event).generation = generation;
        (*event).established = established;
        (*event).kind = kind;
        (*event).why = why;
        (*event).reserved = 0;
    }
    entry.submit(0);
}

/// A backend answered the SYN that was sent at `since`, ns, by a SYN-ACK.
#[inline(always)]
pub fn handshake(number: u16, since: u64) {
    let took = clock::exact().saturating_sub(since);
    let Some(times) = HANDSHAKES.get_ptr_mut(number as u32) else { return };
    // SAFETY: a live map value, and this CPU's own.
    let times = unsafe { &mut *times };
    times.sum = times.sum.wrapping_add(took);
    let Ok(bucket) = forget(handshake_bucket(took) as u32) else { return };
    if let Some(bucket) = times.buckets.get_mut(bucket as usize) {
        *bucket += 1;
    }
}

#[inline(always)]
fn send(slot: u32, kind: u16, backend: u16, at: u64, claim: Option<(Addr, Mac)>) {
    let Some(suspect) = SUSPECTS.get_ptr_mut(slot) else { return };
    // SAFETY: a live map value, of whole words that other CPUs may write too.
    unsafe {
        if (*suspect).signalled_at != 0 && at.saturating_sub((*suspect).signalled_at) < SIGNAL_GAP_NS {
            return;
        }
        (*suspect).signalled_at = at;
    }
    let Some(mut entry) = SIGNALS.reserve_untyped::<Signal>(0) else {
        count::count(Counter::EventsLost);
        return;
    };
    let signal: *mut Signal = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `reserve` gave room for a signal, which is five words; each is written, the unused fields by 0.
    unsafe {
        for word in 0..size_of::<Signal>() / 8 {
            signal.cast::<u64>().add(word).write_volatile(0);
        }
        (*signal).at = at;
        (*signal).kind = kind;
        (*signal).backend = backend;
        if let Some((address, mac)) = &claim {
            put_address(&raw mut (*signal).address, address);
            put_mac(&raw mut (*signal).mac, *mac);
        }
    }
    entry.submit(0);
}

/// Why a flow ended: `CLOSED_*`.
#[inline(always)]
pub const fn why(after: Claim, step: u64) -> u16 {
    if step & claim::RESET != 0 {
        if step & claim::BY_BACKEND != 0 { CLOSED_RESET_BY_BACKEND } else { CLOSED_RESET_BY_CLIENT }
    } else if after.has(claim::FREE_AT_ONCE) {
        CLOSED_BY_CLIENT
    } else {
        CLOSED_BY_BACKEND
    }
}
