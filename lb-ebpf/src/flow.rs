//! TCP of a service that is not on the established path: finds the flow, or decides what becomes of a packet that
//! belongs to none.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    claim::Claim,
    counters::Counter,
    maps::{Backend, Flow, FlowKey, Record, ReturnKey, ServiceKey},
    tcp,
};

use crate::{
    Outcome,
    frame::{Frame, Link, TcpPacket},
    known,
    maps::{BACKENDS, FLOWS, HALF_OPEN, PORTS, RETURNS, SERVICE_PORTS},
    new, reset, to_other,
};

/// A flow that is known: its forward entry, its record, and the claim as read.
pub struct Known<'a> {
    pub key: &'a FlowKey,
    pub flow: &'a mut Flow,
    pub record: *mut Record,
    pub claim: Claim,
    pub backend: &'a Backend,
}

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    let link = Link::parse(&frame).ok_or(Counter::Malformed)?;
    let packet = TcpPacket::parse(ctx, &frame, &link)?;
    let key = ServiceKey::new(packet.destination, packet.ports.1);
    // SAFETY: a service's number is written once, before the key.
    if let Some(&service) = unsafe { SERVICE_PORTS.get(key) } {
        return from_client(ctx, &link, &packet, service as u16);
    }
    let key = ReturnKey::new(packet.destination, packet.source, packet.ports.0);
    // SAFETY: a backend's number is written once, before the key.
    match unsafe { RETURNS.get(key) } {
        Some(&backend) => from_backend(ctx, &link, &packet, backend as u16),
        // The service went away between the two programs.
        None => to_other(ctx),
    }
}

#[inline(always)]
fn from_client(ctx: &XdpContext, link: &Link, packet: &TcpPacket, service: u16) -> Outcome {
    let key = FlowKey { client: packet.source, port: packet.ports.0, service };
    if let Some(flow) = FLOWS.get_ptr_mut(key).or_else(|| HALF_OPEN.get_ptr_mut(key)) {
        // SAFETY: a live map value. An entry that is removed meanwhile by another CPU may be reused for another key; then
        // its generation or the record's client does not match any more, and nothing is done by it.
        let flow = unsafe { &mut *flow };
        match find_record(&key, flow) {
            Some((record, claim, backend)) => {
                let known = Known { key: &key, flow, record, claim, backend };
                if !known::begins_anew(&known, packet) {
                    return known::from_client(ctx, link, packet, known);
                }
            }
            None => forget(&key),
        }
    }
    if packet.segment.is_syn() {
        return new::flow(ctx, link, packet, &key);
    }
    if packet.segment.any(tcp::RST) {
        return Err(Counter::UnknownRst);
    }
    reset::answer(ctx, link, packet, Counter::UnknownFlow)
}

/// The record that a forward entry names, if it still is this client's.
#[inline(always)]
fn find_record<'a>(key: &FlowKey, flow: &Flow) -> Option<(*mut Record, Claim, &'a Backend)> {
    let backend = BACKENDS.get(flow.backend as u32)?;
    let record = PORTS.get_value_ptr_mut(flow.backend as u32, &(flow.nat_port.get() as u32))?;
    // SAFETY: a live map value.
    let (claim, client, port) = unsafe {
        (Claim((&raw const (*record).claim).read_volatile()), (*record).client, (*record).client_port)
    };
    let ours =
        claim.is_live() && claim.generation() == flow.generation && client == key.client && port == key.port;
    if ours && backend.service == key.service { Some((record, claim, backend)) } else { None }
}

/// Removes a forward entry whose NAT port another flow has taken.
#[inline(always)]
fn forget(key: &FlowKey) {
    let _gone_already = FLOWS.remove(key);
    let _gone_already = HALF_OPEN.remove(key);
}

#[inline(always)]
fn from_backend(ctx: &XdpContext, link: &Link, packet: &TcpPacket, number: u16) -> Outcome {
    let port = packet.ports.1.get() as u32;
    let (Some(record), Some(backend)) =
        (PORTS.get_value_ptr_mut(number as u32, &port), BACKENDS.get(number as u32))
    else {
        return unknown_return(ctx, link, packet);
    };
    // SAFETY: a live map value.
    let claim = unsafe { Claim((&raw const (*record).claim).read_volatile()) };
    if !claim.is_live() {
        return unknown_return(ctx, link, packet);
    }
    known::from_backend(ctx, link, packet, number, record, claim, backend)
}

#[inline(always)]
fn unknown_return(ctx: &XdpContext, link: &Link, packet: &TcpPacket) -> Outcome {
    if packet.segment.any(tcp::RST) {
        return Err(Counter::UnknownRst);
    }
    if packet.segment.any(tcp::SYN) {
        // The client has given up, or chosen another NAT port: a RST ends the backend's half of it.
        return reset::answer(ctx, link, packet, Counter::StaleHandshake);
    }
    reset::answer(ctx, link, packet, Counter::UnknownReturn)
}
