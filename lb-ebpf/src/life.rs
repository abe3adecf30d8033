//! A flow's life: how a packet changes its claim, and what follows from that. The flow changes only by what both ends are
//! seen to say (see [`lb_common::claim::Claim::after`]).

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    claim::{self, Claim, State},
    counters::Counter,
    maps::{EVENT_CLOSED, EVENT_ESTABLISHED, FLOW_CLOSING, Flow, FlowKey, Record, age_stamp},
};

use crate::{
    atomic, clock, count,
    maps::{FLOWS, HALF_OPEN},
    signal,
};

/// How often a claim is tried again when another CPU changed it first: each try loses only to a change that was made,
/// and a flow has few to make.
const CLAIM_TRIES: u32 = 4;

/// Both FINs and their acknowledgments.
const FINS: u64 = claim::CLIENT_FIN | claim::BACKEND_FIN | claim::CLIENT_FIN_ACKED | claim::BACKEND_FIN_ACKED;

/// Takes the step that a packet says, atomically; exactly one CPU sees each change and does what follows from it.
#[inline(always)]
pub fn step(key: &FlowKey, flow: &Flow, record: *mut Record, claim: Claim, step: u64) {
    if claim.after(step) == claim {
        return;
    }
    let promotes = step & claim::HANDSHAKE_DONE != 0 && claim.is(State::HalfOpen);
    let now = age_stamp(clock::coarse());
    // The forward entry first: whoever sees the claim established finds it. `flows` has room for it, since SYNs are
    // refused before it could be full.
    if promotes && !is_inserted(FLOWS.insert(key, established(flow, now), BPF_NOEXIST.into())) {
        count::count(Counter::PromotionFailed);
        return;
    }
    let Some((before, after)) = change(record, claim, step) else {
        if promotes {
            // The slot went to another flow meanwhile.
            let _gone_already = FLOWS.remove(key);
        }
        return;
    };
    let Some((news, before, after, step)) = signal::news(before, after, step) else { return };
    let mut kind = 0;
    if before.is(State::HalfOpen) && after.is(State::Established) {
        let _gone_already = HALF_OPEN.remove(key);
        count::load(flow.backend, key.service, 1);
        count::count(Counter::FlowEstablished);
        kind = EVENT_ESTABLISHED;
    }
    if before.is(State::Established) && after.is(State::Closed) {
        // In `half_open` the connection's last packets still find it.
        let _an_lru_makes_room = HALF_OPEN.insert(key, flow, 0);
        let _gone_already = FLOWS.remove(key);
        count::load(flow.backend, key.service, -1);
        count::count(Counter::FlowClosed);
        kind = EVENT_CLOSED;
    } else if step & FINS != 0
        && let Some(entry) = FLOWS.get_ptr_mut(key)
    {
        // From here on every packet of the flow leaves the established path.
        // SAFETY: a live map value.
        unsafe { (*entry).flags |= FLOW_CLOSING };
    }
    let by_backend = before.is(State::Established) && is_end_by_backend(before, step);
    if kind != 0 || by_backend {
        // SAFETY: both are valid, and addresses are aligned to 4.
        unsafe { signal::put_address(&raw mut news.key.client, &raw const key.client) };
        news.key.port = key.port;
        news.key.service = key.service;
        news.nat_port = flow.nat_port;
        news.backend = flow.backend;
        news.generation = flow.generation;
        news.established = if kind == EVENT_ESTABLISHED { now } else { flow.established };
        news.kind = kind;
        news.by_backend = by_backend as u16;
        signal::tell();
    }
}

/// The forward entry that a flow has from now on.
#[inline(always)]
fn established(flow: &Flow, now: u32) -> Flow {
    Flow { established: now, ..*flow }
}

/// The backend ends a flow that its client had not begun to close.
#[inline(always)]
fn is_end_by_backend(before: Claim, step: u64) -> bool {
    step & claim::BY_BACKEND != 0
        && step & (claim::RESET | claim::BACKEND_FIN) != 0
        && before.0 & (claim::CLIENT_FIN | claim::BACKEND_FIN) == 0
}

#[inline(always)]
fn is_inserted(result: Result<(), i32>) -> bool {
    const EEXIST: i32 = -17;
    matches!(result, Ok(()) | Err(EEXIST))
}

/// `None` if the slot went to another owner.
#[inline(always)]
fn change(record: *mut Record, claim: Claim, step: u64) -> Option<(Claim, Claim)> {
    let mut before = claim;
    for _ in 0..CLAIM_TRIES {
        let after = before.after(step);
        // SAFETY: the record is a live map value, and its claim word is aligned to 8.
        let held = Claim(unsafe { atomic::compare_exchange(&raw mut (*record).claim, before.0, after.0) });
        if held == before {
            return Some((before, after));
        }
        if held.generation() != claim.generation() || !held.is_live() {
            return None;
        }
        before = held;
    }
    None
}
