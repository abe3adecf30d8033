//! Handshake, FIN and RST of a flow that is known. The flow changes only by what both ends are seen to say: promotion by
//! the client's ACK of exactly the backend's SYN-ACK, demotion by both FINs acknowledged or a RST that its receiver
//! accepts (RFC 9293 section 3.10.7.4, RFC 5961 section 3.2).

use aya_ebpf::{bindings::BPF_NOEXIST, programs::XdpContext};
use lb_common::{
    claim::{self, Claim, State},
    counters::Counter,
    maps::{BACKEND_USED, Backend, FLOW_CLOSING, Flow, FlowKey, Record},
    tcp,
};

use crate::{
    Outcome, atomic, clock, count,
    established::{count_in, count_out},
    flow::Known,
    frame::{Link, TcpPacket},
    maps::{FLOWS, HALF_OPEN, SERVICES},
    nat::{self, End},
    reset,
};

/// How often a claim is tried again when another CPU changed it first: each try loses only to a change that was made,
/// and a flow has few to make.
const CLAIM_TRIES: u32 = 4;

/// A SYN on the tuple of a closed flow begins a new one.
#[inline(always)]
pub fn begins_anew(known: &Known<'_>, packet: &TcpPacket) -> bool {
    packet.segment.is_syn() && known.claim.is(State::Closed)
}

#[inline(always)]
pub fn from_client(ctx: &XdpContext, link: &Link, packet: &TcpPacket, known: Known<'_>) -> Outcome {
    let Known { key, flow, record, mut claim, backend } = known;
    if flow.epoch != backend.epoch {
        return reset::answer(ctx, link, packet, Counter::FlowReset);
    }
    // SAFETY: a live map value; only fields that the client's packets write are written, or the claim, atomically.
    let record = unsafe { &mut *record };
    let segment = &packet.segment;
    if segment.any(tcp::RST) {
        if segment.seq == record.last_ack || segment.seq == flow.edge {
            end(key, flow, record, claim, Claim::reset);
        } else {
            count::count(Counter::RstNotExact);
        }
    } else {
        learn_mac(link, packet, flow, record, claim);
        if segment.any(tcp::SYN) {
            record.client_edge = segment.seq_end();
        } else if acknowledges_handshake(packet, record, claim) {
            claim = promote(key, flow, record, claim);
        }
        if segment.any(tcp::ACK) {
            flow.last_ack = segment.ack;
        }
        flow.edge = segment.seq_end();
        let mut seen = 0;
        if segment.any(tcp::FIN) {
            record.client_edge = segment.seq_end();
            seen |= claim::CLIENT_FIN;
        }
        if claim.has(claim::BACKEND_FIN)
            && segment.any(tcp::ACK)
            && tcp::seq_at_or_after(segment.ack, record.edge)
        {
            seen |= claim::BACKEND_FIN_ACKED;
        }
        fins(key, flow, record, claim, seen);
    }
    flow.last_seen = clock::coarse();
    if link.tags != backend.hop.tags {
        return Err(Counter::Vlan);
    }
    count_in(packet, flow.backend);
    let from = End { address: backend.source, port: flow.nat_port };
    let to = End { address: backend.address, port: backend.port };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, backend.hop.ifindex, backend.hop.mac)
    }
}

#[inline(always)]
pub fn from_backend(
    ctx: &XdpContext,
    link: &Link,
    packet: &TcpPacket,
    number: u16,
    record: *mut Record,
    claim: Claim,
    backend: &Backend,
) -> Outcome {
    // SAFETY: a live map value; only fields that the backend's packets write are written, or the claim, atomically.
    let record = unsafe { &mut *record };
    let key = FlowKey { client: record.client, port: record.client_port, service: backend.service };
    let (ifindex, mac, tags) = (record.ifindex, record.client_mac, [record.outer_tag, record.inner_tag]);
    // SAFETY: as above. An identity that was read while another flow took the slot is not used.
    if unsafe { (&raw const record.claim).read_volatile() } >> 32 != (claim.generation() as u64) {
        return Err(Counter::StaleHandshake);
    }
    if record.epoch != backend.epoch || backend.flags & BACKEND_USED == 0 {
        return reset::answer(ctx, link, packet, Counter::FlowReset);
    }
    let service = SERVICES.get(backend.service as u32).ok_or(Counter::UnknownReturn)?;
    let segment = &packet.segment;
    if claim.is(State::HalfOpen) {
        handshake(packet, number, record, claim);
    } else {
        let Some(flow) = forward_entry(&key, claim) else { return Err(Counter::UnknownReturn) };
        if segment.any(tcp::RST) {
            if segment.seq == flow.last_ack || segment.seq == record.edge {
                end(&key, flow, record, claim, Claim::reset);
            } else {
                count::count(Counter::RstNotExact);
            }
        } else if !segment.any(tcp::SYN) {
            record.edge = segment.seq_end();
            let mut seen = 0;
            if segment.any(tcp::FIN) {
                seen |= claim::BACKEND_FIN;
            }
            if claim.has(claim::CLIENT_FIN)
                && segment.any(tcp::ACK)
                && tcp::seq_at_or_after(segment.ack, record.client_edge)
            {
                seen |= claim::CLIENT_FIN_ACKED;
            }
            fins(&key, flow, record, claim, seen);
        }
    }
    if segment.any(tcp::ACK) && !segment.any(tcp::RST) {
        record.last_ack = segment.ack;
    }
    record.last_seen = clock::coarse();
    if link.tags != tags {
        return Err(Counter::Vlan);
    }
    count_out(packet, number);
    let from = End { address: service.vip, port: service.port };
    let to = End { address: key.client, port: key.port };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, ifindex, mac)
    }
}

/// The backend's part of the handshake.
#[inline(always)]
fn handshake(packet: &TcpPacket, number: u16, record: &mut Record, claim: Claim) {
    let segment = &packet.segment;
    if segment.is_syn_ack() {
        record.edge = segment.seq_end();
        change(record, claim, |claim| claim.with(claim::SYN_ACKED));
    } else if segment.any(tcp::RST) && segment.ack == record.client_edge && !claim.has(claim::SYN_ACKED) {
        // The backend refuses: RST with the ACK of the client's SYN (RFC 9293 section 3.10.7.1).
        count::backend(number, |counters| counters.refused += 1);
        change(record, claim, Claim::reset);
    } else if segment.any(tcp::RST) && segment.seq == record.edge && claim.has(claim::SYN_ACKED) {
        change(record, claim, Claim::reset);
    }
}

/// The client's MAC follows its packets, if their ACK shows that they come from the end of this connection.
#[inline(always)]
fn learn_mac(link: &Link, packet: &TcpPacket, flow: &mut Flow, record: &mut Record, claim: Claim) {
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let mac = unsafe { (*link.ethernet).source };
    let plausible = claim.is(State::Established)
        && packet.segment.any(tcp::ACK)
        && tcp::plausible_ack(packet.segment.ack, flow.last_ack);
    if flow.client_mac != mac && plausible {
        flow.client_mac = mac;
        record.client_mac = mac;
    }
}

#[inline(always)]
fn acknowledges_handshake(packet: &TcpPacket, record: &Record, claim: Claim) -> bool {
    claim.is(State::HalfOpen)
        && claim.has(claim::SYN_ACKED)
        && packet.segment.any(tcp::ACK)
        && packet.segment.ack == record.edge
}

/// Half-open → established: the forward entry moves to `flows`, which has room for it, since SYNs are refused before it
/// could be full.
#[inline(always)]
fn promote(key: &FlowKey, flow: &mut Flow, record: &mut Record, claim: Claim) -> Claim {
    const EEXIST: i32 = -17;
    match FLOWS.insert(key, *flow, BPF_NOEXIST.into()) {
        Ok(()) | Err(EEXIST) => {}
        Err(_) => {
            count::count(Counter::PromotionFailed);
            return claim;
        }
    }
    match change(
        record,
        claim,
        |claim| if claim.is(State::HalfOpen) { claim.to(State::Established) } else { claim },
    ) {
        Some((before, after)) => {
            if before.is(State::HalfOpen) {
                let _gone_already = HALF_OPEN.remove(key);
                count::load(flow.backend, key.service, 1);
                count::count(Counter::FlowEstablished);
            }
            after
        }
        None => {
            // The slot went to another flow meanwhile.
            let _gone_already = FLOWS.remove(key);
            claim
        }
    }
}

/// FINs and their acknowledgments.
#[inline(always)]
fn fins(key: &FlowKey, flow: &mut Flow, record: &mut Record, claim: Claim, seen: u64) {
    if seen == 0 || !claim.is(State::Established) {
        return;
    }
    // From here on every packet of the flow leaves the established path. The entry in `flows` may be another one than
    // `flow` if the flow was promoted by this very packet.
    flow.flags |= FLOW_CLOSING;
    if let Some(entry) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a live map value.
        unsafe { (*entry).flags |= FLOW_CLOSING };
    }
    end(key, flow, record, claim, |claim| claim.fin(seen));
}

/// Changes the claim; if that closes an established flow, its forward entry moves to `half_open`, where the last packets
/// of the connection still find it.
#[inline(always)]
fn end(key: &FlowKey, flow: &Flow, record: &mut Record, claim: Claim, to: impl Fn(Claim) -> Claim) {
    let Some((before, after)) = change(record, claim, to) else { return };
    if before.is(State::Established) && after.is(State::Closed) {
        let _full_is_no_harm = HALF_OPEN.insert(key, flow, 0);
        let _gone_already = FLOWS.remove(key);
        count::load(flow.backend, key.service, -1);
        count::count(Counter::FlowClosed);
    }
}

/// Applies `to` to the claim atomically, however often another CPU gets in between; `None` if the slot went to another
/// owner. Exactly one CPU sees each change.
#[inline(always)]
fn change(record: &mut Record, claim: Claim, to: impl Fn(Claim) -> Claim) -> Option<(Claim, Claim)> {
    let mut before = claim;
    for _ in 0..CLAIM_TRIES {
        let after = to(before);
        if after == before {
            return Some((before, after));
        }
        // SAFETY: the record is a live map value, and its claim word is aligned to 8.
        let held = Claim(unsafe { atomic::compare_exchange(&raw mut record.claim, before.0, after.0) });
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

/// The forward entry of a record's flow.
#[inline(always)]
fn forward_entry<'a>(key: &FlowKey, claim: Claim) -> Option<&'a mut Flow> {
    let entry = FLOWS.get_ptr_mut(key).or_else(|| HALF_OPEN.get_ptr_mut(key))?;
    // SAFETY: a live map value.
    let flow = unsafe { &mut *entry };
    if flow.generation == claim.generation() { Some(flow) } else { None }
}
