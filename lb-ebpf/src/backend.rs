//! Packets of backends that are not on the established path: SYN-ACK, refusal, FIN, RST, and what belongs to no flow.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    claim::{self, Claim, State},
    counters::Counter,
    maps::{BACKEND_USED, FlowKey, Forward, Record, program},
    tcp::{self, Segment},
};

use crate::{
    Outcome, atomic, clock, count,
    established::count_out,
    handover,
    lookup::{self, forward_entry, record},
    maps::{BACKENDS, SERVICES},
    nat::End,
    reset, tail_call,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (_, packet, number) = handover::take(ctx)?;
    let segment = &packet.segment;
    let (Some((record, claim)), Some(backend)) =
        (record(number, packet.ports.1.get()), BACKENDS.get(number as u32))
    else {
        return unknown(ctx, segment);
    };
    let Some(service) = SERVICES.get(backend.service as u32) else { return unknown(ctx, segment) };
    if !claim.is_live() {
        return unknown(ctx, segment);
    }
    // SAFETY: a live map value; only what backends' packets write is written, or the claim, atomically.
    let record = unsafe { &mut *record };
    if record.epoch != backend.epoch || backend.flags & BACKEND_USED == 0 || claim.has(claim::ENDED) {
        if segment.any(tcp::RST) {
            return Err(Counter::UnknownRst);
        }
        return reset::answer(ctx, Counter::FlowReset);
    }
    let key = FlowKey { client: record.client, port: record.client_port, service: backend.service };
    // The forward entry also tells whether the identity that was just read is of the claim's owner.
    let Some(entry) = forward_entry(&key) else { return unknown(ctx, segment) };
    let forward = lookup::forward(number, packet.ports.1.get(), claim.generation());
    let (true, Some(forward)) = (entry.is_of(number, packet.ports.1, claim.generation()), forward) else {
        return unknown(ctx, segment);
    };
    // SAFETY: a live map value; only read here.
    let flow: &Forward = unsafe { &*forward };
    let step = if claim.has(claim::ADOPTED) {
        if !tcp::may_answer(segment, flow.last_ack, flow.edge) {
            return refuse(record, claim);
        }
        confirm(segment, record)
    } else {
        what_it_says(segment, flow, record, claim)
    };
    // Until the SYN is answered `last_seen` is when it claimed the slot.
    let since = record.last_seen;
    record.last_seen = clock::coarse();
    count_out(&packet, number);
    let from = End { address: service.vip, port: service.port };
    let to = End { address: key.client, port: key.port };
    handover::put_onward(from, to, record.ifindex, record.client_mac, [record.outer_tag, record.inner_tag]);
    handover::put_change(&key, (number, packet.ports.1), claim, step | claim::BY_BACKEND, since);
    tail_call(ctx, if step == 0 { program::ONWARD_INDEX } else { program::LIFE_INDEX })
}

/// The step that a segment means for its flow; the record's view of the backend is brought up to date.
#[inline(always)]
fn what_it_says(segment: &Segment, flow: &Forward, record: &mut Record, claim: Claim) -> u64 {
    if segment.any(tcp::RST) {
        // Before the SYN-ACK a RST is known by its ACK of the SYN (RFC 9293 section 3.10.7.3), later by its SEQ.
        let exact = if claim.is(State::HalfOpen) && !claim.has(claim::SYN_ACKED) {
            segment.any(tcp::ACK) && segment.ack == record.client_edge
        } else {
            segment.seq == flow.last_ack || segment.seq == record.edge
        };
        if exact {
            return claim::RESET;
        }
        count::count(Counter::RstNotExact);
        return 0;
    }
    let mut step = 0;
    if segment.any(tcp::ACK) {
        record.last_ack = segment.ack;
        if claim.has(claim::CLIENT_FIN) && tcp::seq_at_or_after(segment.ack, record.client_edge) {
            step |= claim::CLIENT_FIN_ACKED;
        }
    }
    if segment.is_syn_ack() {
        if claim.is(State::HalfOpen) {
            record.edge = segment.seq_end();
            step |= claim::SYN_ACKED;
        }
        return step;
    }
    if claim.is(State::HalfOpen) {
        return step;
    }
    // After the FIN only the FIN itself, sent again, tells where the backend's sequence ends.
    if segment.any(tcp::FIN) {
        step |= claim::BACKEND_FIN;
        record.edge = segment.seq_end();
    } else if !claim.has(claim::BACKEND_FIN) {
        record.edge = segment.seq_end();
    }
    step
}

/// The step that the first answer to an adopted flow means.
#[inline(always)]
fn confirm(segment: &Segment, record: &mut Record) -> u64 {
    count::count(Counter::FlowAdopted);
    record.last_ack = segment.ack;
    record.edge = segment.seq_end();
    claim::CONFIRMED | if segment.any(tcp::FIN) { claim::BACKEND_FIN } else { 0 }
}

/// The backend does not know the connection that it was asked for.
#[inline(always)]
fn refuse(record: &mut Record, claim: Claim) -> Outcome {
    // Where another CPU was first, it has seen another answer, or another flow has the slot.
    // SAFETY: a live map value, aligned to 8.
    unsafe { atomic::compare_exchange(&raw mut record.claim, claim.0, claim.after(claim::RESET).0) };
    Err(Counter::AdoptionRefused)
}

/// A packet for a connection that is not known: a RST ends the backend's half of it.
#[inline(always)]
fn unknown(ctx: &XdpContext, segment: &Segment) -> Outcome {
    match lookup::may_be_unknown() {
        Err(Counter::Fenced) => return tail_call(ctx, program::RELAY_INDEX),
        _ if segment.any(tcp::RST) => return Err(Counter::UnknownRst),
        Err(reason) => return Err(reason),
        Ok(()) => {}
    }
    let handshake = segment.any(tcp::SYN);
    reset::answer(ctx, if handshake { Counter::StaleHandshake } else { Counter::UnknownReturn })
}
