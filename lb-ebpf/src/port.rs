//! Claiming a NAT port.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use lb_common::{
    addr::{Addr, Port},
    claim::{self, Claim, State},
    counters::Counter,
    maps::{FlowKey, Record},
    nat,
};

use crate::{atomic, count, frame, lookup::record};

/// The search under way. It lies on the caller's stack.
struct Search {
    hash: u64,
    now: u64,
    client: Addr,
    client_port: Port,
    range: nat::Range,
    backend: u16,
    /// The silent longest of the half-open and closed slots seen; `u64::MAX`: none yet.
    oldest: u64,
    oldest_port: u16,
    /// Where a claim succeeded.
    port: u16,
    /// The claim; 0: none yet.
    claim: u64,
}

/// Claims a NAT port: the first free candidate, else the half-open or closed one that was silent longest; never an
/// established one. `adopts`: the client's own, if it is free. Returns the port, its record, and the claim, in state
/// `Claiming`.
#[inline(always)]
pub fn claim(
    backend: u16,
    key: &FlowKey,
    (hash, range): (u64, nat::Range),
    now: u64,
    adopts: bool,
) -> Option<(Port, *mut Record, Claim)> {
    let mut search = Search {
        hash,
        now,
        client: key.client,
        client_port: key.port,
        range,
        backend,
        oldest: u64::MAX,
        oldest_port: 0,
        port: 0,
        claim: 0,
    };
    let tries = frame::forget(if adopts { 1 } else { nat::tries(range) }).ok()?;
    each(tries, &mut search);
    if search.claim == 0 && search.oldest != u64::MAX && !adopts {
        take_oldest(&mut search);
    }
    if search.claim == 0 {
        return None;
    }
    let (record, _) = record(backend, search.port)?;
    Some((Port::new(search.port), record, Claim(search.claim)))
}

/// Calls [`attempt`] for each number below `tries`. By `bpf_loop` (Linux 5.17), so that the verifier reads the body once
/// and not once a try.
#[inline(always)]
fn each(tries: u32, search: &mut Search) {
    let search: *mut Search = search;
    // SAFETY: the helper calls `attempt` with `search`, which outlives the call.
    unsafe { generated::bpf_loop(tries, attempt as *mut c_void, search.cast(), 0) };
}

/// One try; returns 1 to end the loop.
extern "C" fn attempt(number: u32, search: *mut c_void) -> i64 {
    // SAFETY: `each` passes a pointer to its `Search`, to which nothing else refers during the call.
    let search = unsafe { &mut *search.cast::<Search>() };
    let port = nat::candidate(search.client_port.get(), search.hash, number, search.range);
    let Some((record, claim)) = record(search.backend, port) else { return 1 };
    // SAFETY: a live map value.
    let last_seen = unsafe { (*record).last_seen };
    if is_free(claim, last_seen, search.now) || is_own(record, claim, search) {
        if let Some(claimed) = take(record, claim) {
            search.claim = claimed.0;
            search.port = port;
            return 1;
        }
    } else if (claim.is(State::HalfOpen) || claim.is(State::Closed)) && last_seen < search.oldest {
        search.oldest = last_seen;
        search.oldest_port = port;
    }
    0
}

#[inline(always)]
fn take_oldest(search: &mut Search) {
    let Some((record, claim)) = record(search.backend, search.oldest_port) else { return };
    if !(claim.is(State::HalfOpen) || claim.is(State::Closed)) {
        return;
    }
    if let Some(claimed) = take(record, claim) {
        if claim.is(State::HalfOpen) {
            count::count(Counter::HalfOpenTaken);
        }
        search.claim = claimed.0;
        search.port = search.oldest_port;
    }
}

#[inline(always)]
fn is_free(claim: Claim, last_seen: u64, now: u64) -> bool {
    let waited = || now.saturating_sub(last_seen) > nat::TIME_WAIT_NS;
    claim.is(State::Free) || (claim.is(State::Closed) && (claim.has(claim::FREE_AT_ONCE) || waited()))
}

/// The slot of this very client's last attempt, whose forward entry was evicted.
#[inline(always)]
fn is_own(record: *mut Record, claim: Claim, search: &Search) -> bool {
    // SAFETY: a live map value.
    let (client, port) = unsafe { ((*record).client, (*record).client_port) };
    claim.is(State::HalfOpen) && client == search.client && port == search.client_port
}

#[inline(always)]
fn take(record: *mut Record, claim: Claim) -> Option<Claim> {
    let claimed = claim.next_owner();
    // SAFETY: the record is a live map value, and its claim word is aligned to 8.
    let held = unsafe { atomic::compare_exchange(&raw mut (*record).claim, claim.0, claimed.0) };
    if held == claim.0 { Some(claimed) } else { None }
}
