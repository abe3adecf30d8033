//! Is the packet for us, and the established path: no loop, no probing, one flow look-up, one cache line of the flow
//! written. All else leaves early, by a tail call.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::Addr,
    claim::Claim,
    maps::{
        BACKEND_USED, FLOW_CLOSING, Filter, Flow, FlowKey, Record, ReturnKey, ServiceKey,
        filter_bit_of_address, program,
    },
    tcp,
    wire::{Arp, Ipv4, ethertype},
};

use crate::{
    Outcome, clock, count,
    frame::{Frame, Link, TcpPacket, ingress},
    handover,
    maps::{BACKENDS, FILTER, FLOWS, HALF_OPEN, RETURNS, SERVICE_PORTS, SERVICES, record},
    nat::{self, End},
    to_other,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    let (Some(link), Some(filter)) = (Link::parse(&frame), FILTER.get(0)) else {
        return Ok(xdp_action::XDP_PASS);
    };
    match link.ethertype {
        ethertype::IPV4 => match frame.at::<Ipv4>(link.l3) {
            // SAFETY: `at` checked that the header lies in the frame.
            Some(ip) if may_be_ours(filter, unsafe { (*ip).destination }) => {
                tcp_or_other(ctx, &frame, &link, filter)
            }
            _ => Ok(xdp_action::XDP_PASS),
        },
        ethertype::ARP => match frame.at::<Arp>(link.l3) {
            // SAFETY: `at` checked that the header lies in the frame.
            Some(arp) if unsafe { arp_may_be_ours(filter, &*arp) } => to_other(ctx),
            _ => Ok(xdp_action::XDP_PASS),
        },
        _ => Ok(xdp_action::XDP_PASS),
    }
}

/// A set bit: perhaps for a VIP; the look-ups that follow tell for certain.
#[inline(always)]
fn may_be_ours(filter: &Filter, address: u32) -> bool {
    has_bit(&filter.addresses, filter_bit_of_address(&Addr::from_v4_word(address)))
}

#[inline(always)]
fn arp_may_be_ours(filter: &Filter, arp: &Arp) -> bool {
    let low = |address: [u16; 2]| u16::from_be(address[1]);
    has_bit(&filter.addresses, low(arp.target)) || has_bit(&filter.addresses, low(arp.sender))
}

#[inline(always)]
fn has_bit(bits: &[u64; 1024], bit: u16) -> bool {
    bits[(bit >> 6) as usize] & (1 << (bit & 63)) != 0
}

#[inline(always)]
fn tcp_or_other(ctx: &XdpContext, frame: &Frame, link: &Link, filter: &Filter) -> Outcome {
    let Ok(packet) = TcpPacket::parse(ctx, frame, link) else {
        return to_other(ctx);
    };
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let for_our_mac = nat::interface_mac(ingress(ctx)) == Some(unsafe { (*link.ethernet).destination });
    if !for_our_mac {
        return to_other(ctx);
    }
    if has_bit(&filter.ports, packet.ports.1.get()) {
        let key = ServiceKey::new(packet.destination, packet.ports.1);
        // SAFETY: a service's number is written once, before the key.
        if let Some(&service) = unsafe { SERVICE_PORTS.get(key) } {
            return from_client(ctx, link, &packet, service as u16);
        }
    }
    let key = ReturnKey::new(packet.destination, packet.source, packet.ports.0);
    // SAFETY: a backend's number is written once, before the key.
    match unsafe { RETURNS.get(key) } {
        Some(&backend) => from_backend(ctx, link, &packet, backend as u16),
        None => to_other(ctx),
    }
}

/// A client's packet: the forward entry has all that it needs.
#[inline(always)]
fn from_client(ctx: &XdpContext, link: &Link, packet: &TcpPacket, service: u16) -> Outcome {
    let leave = |program| handover::to(ctx, link, packet, service, program);
    let key = FlowKey { client: packet.source, port: packet.ports.0, service };
    let Some(flow) = FLOWS.get_ptr_mut(key) else {
        // The commonest miss goes the shortest way: a SYN that is no retransmission.
        let is_new = packet.segment.is_syn() && HALF_OPEN.get_ptr(key).is_none();
        return if is_new { leave(program::NEW_INDEX) } else { leave(program::CLIENT_INDEX) };
    };
    // SAFETY: a live map value; what is written here is written by packets of this client only, which one CPU handles.
    let flow: &mut Flow = unsafe { &mut *flow };
    let Some(backend) = BACKENDS.get(flow.backend as u32) else { return leave(program::CLIENT_INDEX) };
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let source_mac = unsafe { (*link.ethernet).source };
    let unusual = packet.segment.any(tcp::UNUSUAL)
        || flow.flags & FLOW_CLOSING != 0
        || flow.epoch != backend.epoch
        || flow.client_mac != source_mac
        || link.tags != backend.hop.tags;
    if unusual {
        return leave(program::CLIENT_INDEX);
    }
    flow.last_seen = clock::coarse();
    flow.last_ack = packet.segment.ack;
    flow.edge = packet.segment.seq_end();
    count_in(packet, flow.backend);
    let from = End { address: backend.source, port: flow.nat_port };
    let to = End { address: backend.address, port: backend.port };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, backend.hop.ifindex, backend.hop.mac)
    }
}

/// A backend's packet: the record of its NAT port has all that it needs.
#[inline(always)]
fn from_backend(ctx: &XdpContext, link: &Link, packet: &TcpPacket, number: u16) -> Outcome {
    let leave = |program| handover::to(ctx, link, packet, number, program);
    let (Some(record), Some(backend)) = (record(number, packet.ports.1.get()), BACKENDS.get(number as u32))
    else {
        return leave(program::BACKEND_INDEX);
    };
    let Some(service) = SERVICES.get(backend.service as u32) else { return leave(program::BACKEND_INDEX) };
    // SAFETY: a live map value; what is written here is written by packets of this backend's flow only, which one CPU
    // handles. The claim is read before the identity and again after it, so an identity of a later owner is not used.
    let (record, claim): (&mut Record, Claim) =
        unsafe { (&mut *record, Claim((&raw const (*record).claim).read_volatile())) };
    let unusual = packet.segment.any(tcp::UNUSUAL)
        || !claim.is_plain_established()
        || record.epoch != backend.epoch
        || link.tags != [record.outer_tag, record.inner_tag]
        || backend.flags & BACKEND_USED == 0;
    if unusual {
        return leave(program::BACKEND_INDEX);
    }
    let from = End { address: service.vip, port: service.port };
    let to = End { address: record.client, port: record.client_port };
    let (ifindex, mac) = (record.ifindex, record.client_mac);
    // SAFETY: as above.
    if unsafe { (&raw const record.claim).read_volatile() } != claim.0 {
        return leave(program::BACKEND_INDEX);
    }
    record.last_seen = clock::coarse();
    record.last_ack = packet.segment.ack;
    record.edge = packet.segment.seq_end();
    count_out(packet, number);
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, ifindex, mac)
    }
}

/// Counts a packet toward a backend.
#[inline(always)]
pub fn count_in(packet: &TcpPacket, backend: u16) {
    count::backend(backend, |counters| {
        counters.packets_in += 1;
        counters.bytes_in += packet.octets();
    });
}

/// Counts a packet toward a client.
#[inline(always)]
pub fn count_out(packet: &TcpPacket, backend: u16) {
    count::backend(backend, |counters| {
        counters.packets_out += 1;
        counters.bytes_out += packet.octets();
    });
}
