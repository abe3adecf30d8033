//! Packets of clients that are not on the established path: the handshake's last ACK, FIN, RST, a changed MAC, and what
//! belongs to no flow.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    addr::Addr,
    claim::{self, Claim, State},
    counters::Counter,
    maps::{Backend, FLOW_COPIED, FLOW_DSR, Flow, FlowKey, Forward, Record, program},
    tcp::{self, Segment},
};

use crate::{
    Outcome, clock, count,
    established::count_in,
    frame::{Link, TcpPacket, ingress},
    gateway, handover,
    lookup::{self, forward_entry, slot_of},
    maps::{FLOWS, HALF_OPEN},
    reset, shortcut, tail_call,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, service) = handover::take(ctx)?;
    let key = FlowKey { client: packet.source, port: packet.ports.0, service };
    if let Some(flow) = forward_entry(&key) {
        if let Some(slot) = slot_of(&key, &flow) {
            let (claim, backend) = (slot.claim, slot.backend);
            // SAFETY: live map values; only what clients' packets write is written, or the claim and the gate, atomically.
            let (record, forward) = unsafe { (&mut *slot.record, &mut *slot.forward) };
            let ended = forward.epoch != backend.epoch || claim.has(claim::ENDED);
            let is_adopted = claim.has(claim::ADOPTED);
            if packet.segment.is_syn() && (ended || is_adopted || claim.is(State::Closed)) {
                // One that the balancer ended may still be there, and would hide the new one.
                lookup::close(slot.forward, claim.generation());
                let _gone_already = FLOWS.remove(key);
                return tail_call(ctx, program::CHOOSE_INDEX);
            }
            if !is_adopted || (claim.is(State::HalfOpen) && !packet.segment.any(tcp::FIN)) {
                return known(ctx, &link, &packet, &key, &flow, forward, record, claim, backend);
            }
            // The backend that was asked does not know it; the entry tells which one that was. Or it was not heard yet: a
            // FIN comes again.
        } else {
            // Its NAT port went to another flow.
            let _gone_already = FLOWS.remove(key);
            let _gone_already = HALF_OPEN.remove(key);
        }
    }
    if packet.segment.is_syn() {
        return tail_call(ctx, program::CHOOSE_INDEX);
    }
    match lookup::may_be_unknown() {
        Err(Counter::Fenced) => tail_call(ctx, program::RELAY_INDEX),
        _ if packet.segment.any(tcp::RST) => Err(Counter::UnknownRst),
        Ok(()) => reset::answer(ctx, Counter::UnknownFlow),
        Err(Counter::TakeoverGrace) => tail_call(ctx, program::ADOPT_INDEX),
        Err(reason) => Err(reason),
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one packet and its flow; a struct of references costs stack")]
fn known(
    ctx: &XdpContext,
    link: &Link,
    packet: &TcpPacket,
    key: &FlowKey,
    entry: &Flow,
    flow: &mut Forward,
    record: &mut Record,
    claim: Claim,
    backend: &Backend,
) -> Outcome {
    let segment = &packet.segment;
    if flow.epoch != backend.epoch || claim.has(claim::ENDED) {
        if segment.any(tcp::RST) {
            return Err(Counter::UnknownRst);
        }
        return reset::answer(ctx, Counter::FlowReset);
    }
    let mut step = 0;
    if flow.flags & FLOW_DSR != 0 {
        // SAFETY: `Link::parse` checked that the header lies in the frame. Nothing is sent there: any may be taken for usual.
        flow.client_mac = unsafe { (*link.ethernet).source };
        step = unseen(segment, flow, record, claim);
    } else if segment.any(tcp::RST) {
        if segment.seq == record.last_ack || segment.seq == flow.edge {
            step = claim::RESET;
        } else {
            count::count(Counter::RstNotExact);
        }
    } else {
        if segment.any(tcp::ACK) {
            if claim.is(State::HalfOpen) && segment.ack == record.edge {
                step |= claim::HANDSHAKE_DONE;
            }
            if claim.has(claim::BACKEND_FIN) && tcp::seq_at_or_after(segment.ack, record.edge) {
                step |= claim::BACKEND_FIN_ACKED;
            }
            let is_copied = flow.flags & FLOW_COPIED != 0;
            if is_copied || claim.is(State::HalfOpen) || tcp::plausible_ack(segment.ack, flow.last_ack) {
                if is_copied {
                    learn_way(ctx, link, flow, record);
                }
                flow.last_ack = segment.ack;
                learn_mac(link, &key.client, flow, record);
            }
        }
        if segment.any(tcp::FIN) {
            step |= claim::CLIENT_FIN;
        }
        if segment.any(tcp::FIN | tcp::SYN) {
            record.client_edge = segment.seq_end();
        }
        flow.edge = segment.seq_end();
    }
    flow.last_seen = clock::coarse();
    count_in(packet, entry.backend);
    handover::put_to_backend(flow.flags, entry.nat_port, backend);
    handover::put_change(key, (entry.backend, entry.nat_port), claim, step, 0);
    if step != 0 {
        return tail_call(ctx, program::LIFE_INDEX);
    }
    if flow.gate().is_open() {
        // So that the next packet is not here again.
        shortcut::leave(key, entry.backend, entry.nat_port);
    }
    tail_call(ctx, program::ONWARD_INDEX)
}

/// The step that a segment means where only the client is seen (`mode = "dsr"`).
#[inline(always)]
fn unseen(segment: &Segment, flow: &mut Forward, record: &mut Record, claim: Claim) -> u64 {
    // Nothing comes from the backend: its time is the client's, so that a connection that is half closed lives on.
    record.last_seen = clock::coarse();
    if segment.any(tcp::RST) {
        return if segment.seq == flow.edge { claim::RESET } else { 0 };
    }
    flow.edge = segment.seq_end();
    if segment.any(tcp::SYN) || !segment.any(tcp::ACK) {
        return 0;
    }
    flow.last_ack = segment.ack;
    let begun = if claim.is(State::HalfOpen) { claim::UNSEEN_HANDSHAKE } else { 0 };
    begun | if segment.any(tcp::FIN) { claim::UNSEEN_CLOSE } else { 0 }
}

/// Another node's flow: the agent has guessed the way to its client, whose first packet shows it.
#[inline(always)]
fn learn_way(ctx: &XdpContext, link: &Link, flow: &mut Forward, record: &mut Record) {
    flow.flags &= !FLOW_COPIED;
    record.ifindex = ingress(ctx);
    record.outer_tag = link.tags[0];
    record.inner_tag = link.tags[1];
}

/// The client's MAC follows its packets; the caller checked that their ACK comes from the end of this connection. Where a
/// router is known its MAC does not.
#[inline(always)]
fn learn_mac(link: &Link, client: &Addr, flow: &mut Forward, record: &mut Record) {
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let mac = unsafe { (*link.ethernet).source };
    if flow.client_mac != mac {
        flow.client_mac = mac;
        if gateway::router(link, client).is_none() {
            record.client_mac = mac;
        }
    }
}
