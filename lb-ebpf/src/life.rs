//! A flow's life: how a packet changes its claim, and what follows from that. The flow changes only by what both ends are
//! seen to say (see [`lb_common::claim::Claim::after`]).

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated, programs::XdpContext};
use lb_common::{
    claim::{self, Claim, State},
    counters::Counter,
    maps::{EVENT_CLOSED, EVENT_ESTABLISHED, Flow, Forward, age_stamp, program},
    pending::Window,
};

use crate::{
    Outcome, atomic, clients, clock, count,
    handover::{self, Change},
    lookup::{self, forward_entry, record},
    maps::{FLOWS, HALF_OPEN},
    reset, shortcut, signal, suspect, tail_call, walk,
};

/// How often a claim is tried again when another CPU changed it first: each try loses only to a change that was made,
/// and a flow has few to make.
const CLAIM_TRIES: u32 = 4;

/// Both FINs and their acknowledgments.
const FINS: u64 = claim::CLIENT_FIN | claim::BACKEND_FIN | claim::CLIENT_FIN_ACKED | claim::BACKEND_FIN_ACKED;

/// Takes the step that the packet says, and hands the packet on to be sent.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let change = handover::change().ok_or(Counter::TailCall)?;
    if let Some(flow) = forward_entry(&change.key) {
        let generation = Claim(change.claim).generation();
        if flow.is_of(change.backend, change.nat_port, generation)
            && let Some(forward) = lookup::forward(change.backend, change.nat_port.get(), generation)
            // SAFETY: a live map value; only its owner's state and the gate are written, by the CPU that changed the claim.
            && step(change, &flow, unsafe { &mut *forward }).is_err()
        {
            return reset::answer(ctx, Counter::ClientLimit);
        }
    }
    tail_call(ctx, program::ONWARD_INDEX)
}

/// The client has `max_flows_per_client`: the flow is closed instead of established.
struct Refused;

/// Takes the step, atomically; exactly one CPU sees each change and does what follows from it.
#[inline(always)]
fn step(said: &Change, entry: &Flow, flow: &mut Forward) -> Result<(), Refused> {
    let Some((claim, after, step)) = would_be(Claim(said.claim), said.step) else { return Ok(()) };
    if after == claim {
        // Said before.
        return Ok(());
    }
    let promotes =
        step & claim::HANDSHAKE_DONE != 0 && claim.is(State::HalfOpen) && after.is(State::Established);
    if promotes && !clients::enter(&said.key) {
        return refuse(said, claim);
    }
    // Once the flow has ended, its slot may be another's.
    let since = flow.since;
    let now = clock::coarse();
    // The forward entry first: whoever sees the claim established finds it. `flows` has room for it, since SYNs are
    // refused before it could be full.
    if promotes && !is_inserted(said, Flow { asked: 0, ..*entry }) {
        count::count(Counter::PromotionFailed);
        clients::leave(&said.key);
        return Ok(());
    }
    let Some((before, after, step)) = exchange(said, claim, step) else {
        if promotes {
            // The slot went to another flow meanwhile.
            let _gone_already = FLOWS.remove(said.key);
            clients::leave(&said.key);
        }
        return Ok(());
    };
    if step & claim::HANDSHAKE_DONE != 0 && !before.is(State::HalfOpen) {
        // Another CPU was first, and counted it.
        clients::leave(&said.key);
    }
    if before.is(State::HalfOpen) {
        answered(said, before, after);
    }
    let began = before.is(State::HalfOpen) && after.is(State::Established);
    let ended = before.is(State::Established) && after.is(State::Closed);
    let generation = before.generation();
    if began {
        let _gone_already = HALF_OPEN.remove(said.key);
        flow.since = age_stamp(now);
        // An adopted flow's first answer may be its FIN.
        if step & FINS == 0 {
            lookup::open(flow, generation);
            let now = record(said.backend, said.nat_port.get());
            if now.is_none_or(|(_, claim)| !claim.is_plain_established()) {
                // Whoever ended the flow just now found the gate closed still.
                lookup::close(flow, generation);
            }
            shortcut::leave(&said.key, said.backend, said.nat_port);
        }
        walk::complete(said.backend, said.key.service, Window::at(now), Window::of_stamp(since));
        count::count(Counter::FlowEstablished);
    } else if ended {
        lookup::close(flow, generation);
        // In `half_open` the connection's last packets still find it.
        let _an_lru_makes_room = HALF_OPEN.insert(said.key, entry, 0);
        let _gone_already = FLOWS.remove(said.key);
        shortcut::take_away(&said.key, said.backend);
        clients::leave(&said.key);
        count::count(Counter::FlowClosed);
    } else if step & FINS != 0 {
        lookup::close(flow, generation);
    }
    if before.is(State::Established) && is_end_by_backend(before, step) {
        suspect::ended(said.backend);
    }
    if began || ended {
        tell(said, if began { age_stamp(now) } else { since });
    }
    Ok(())
}

/// Closes a half-open flow, if it is that still: what another CPU has established meanwhile stays.
#[inline(always)]
fn refuse(said: &Change, claim: Claim) -> Result<(), Refused> {
    let Some((record, _)) = record(said.backend, said.nat_port.get()) else { return Ok(()) };
    // SAFETY: a live map value, aligned to 8.
    let held =
        unsafe { atomic::compare_exchange(&raw mut (*record).claim, claim.0, claim.after(claim::RESET).0) };
    if held == claim.0 { Err(Refused) } else { Ok(()) }
}

/// What follows from a flow's begin or end for those who count and listen.
#[inline(always)]
fn tell(said: &Change, established: u32) {
    let Some((_, after, step)) = handover::changed() else { return };
    let closed = after.is(State::Closed);
    count::load(said.backend, said.key.service, if closed { -1 } else { 1 });
    if closed && step & claim::RESET != 0 {
        count::backend(said.backend, |counters| {
            let by_backend = (step & claim::BY_BACKEND != 0) as u64;
            counters.reset_by_backend += by_backend;
            counters.reset_by_client += 1 - by_backend;
        });
    }
    let (kind, why) = if closed { (EVENT_CLOSED, signal::why(after, step)) } else { (EVENT_ESTABLISHED, 0) };
    signal::event(said, after.generation(), kind, why, established);
}

/// The backend answers the SYN, one way or the other.
#[inline(always)]
fn answered(said: &Change, before: Claim, after: Claim) {
    if before.0 & (claim::SYN_ACKED | claim::ADOPTED) != 0 {
        return;
    }
    if after.has(claim::SYN_ACKED) {
        signal::handshake(said.backend, said.since);
    } else if after.is(State::Closed) && said.step & claim::BY_BACKEND != 0 {
        count::backend(said.backend, |counters| counters.refused += 1);
        suspect::refused(said.backend);
    }
}

/// The backend ends a flow that its client had not begun to close.
#[inline(always)]
fn is_end_by_backend(before: Claim, step: u64) -> bool {
    step & claim::BY_BACKEND != 0
        && step & (claim::RESET | claim::BACKEND_FIN) != 0
        && before.0 & (claim::CLIENT_FIN | claim::BACKEND_FIN) == 0
}

/// Writes the forward entry, unless another CPU did just now.
#[inline(always)]
fn is_inserted(said: &Change, flow: Flow) -> bool {
    const EEXIST: i32 = -17;
    match FLOWS.insert(said.key, flow, BPF_NOEXIST.into()) {
        Ok(()) => true,
        Err(EEXIST) => {
            // SAFETY: a live map value, only read.
            let is_ours = |entry: *mut Flow| unsafe { (*entry).is_same(&flow) };
            // One that an earlier flow of this client left behind goes with it.
            FLOWS.get_ptr_mut(said.key).is_some_and(is_ours) || FLOWS.insert(said.key, flow, 0).is_ok()
        }
        Err(_) => false,
    }
}

/// What a step would make of a claim, by way of the handover: see [`handover::changed`].
#[inline(always)]
fn would_be(claim: Claim, step: u64) -> Option<(Claim, Claim, u64)> {
    handover::put_changed(claim.0, claim.after(step).0);
    handover::changed()
}

/// The exchange under way. It lies on the caller's stack.
struct Exchange {
    /// The claim as it was seen last.
    before: u64,
    step: u64,
    backend: u16,
    port: u16,
    /// 1 once the step is taken.
    done: u32,
}

/// Takes the step; `None` if the slot went to another owner.
#[inline(always)]
fn exchange(said: &Change, claim: Claim, step: u64) -> Option<(Claim, Claim, u64)> {
    let mut exchange =
        Exchange { before: claim.0, step, backend: said.backend, port: said.nat_port.get(), done: 0 };
    let raw: *mut Exchange = &mut exchange;
    // SAFETY: the helper calls `attempt` with `exchange`, which outlives the call.
    unsafe { generated::bpf_loop(CLAIM_TRIES, attempt as *mut c_void, raw.cast(), 0) };
    if exchange.done == 0 {
        return None;
    }
    handover::changed()
}

/// One try; returns 1 to end the loop. By `bpf_loop`, so that the verifier reads it once.
extern "C" fn attempt(_number: u32, exchange: *mut c_void) -> i64 {
    // SAFETY: `exchange` passes a pointer to its `Exchange`, to which nothing else refers during the call.
    let exchange = unsafe { &mut *exchange.cast::<Exchange>() };
    let Some((record, _)) = record(exchange.backend, exchange.port) else { return 1 };
    let Some((before, after, _)) = would_be(Claim(exchange.before), exchange.step) else { return 1 };
    // SAFETY: the record is a live map value, and its claim word is aligned to 8.
    let held = Claim(unsafe { atomic::compare_exchange(&raw mut (*record).claim, before.0, after.0) });
    if held == before {
        exchange.done = 1;
        return 1;
    }
    exchange.before = held.0;
    (held.generation() != before.generation() || !held.is_live()) as i64
}
