//! Is the packet for us, and the established path: no loop, no probing, hardly ever a hash table, one cache line of the flow,
//! which is written. All else leaves early, by a tail call.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::{Addr, Port},
    claim::Claim,
    counters::Counter,
    maps::{
        BACKEND_USED, FILTER_PLACES, FLOW_DSR, Filter, FlowKey, Forward, Interface, MAX_BACKENDS, Record,
        ReturnKey, ServiceKey, filter_bit_of_address, filter_place_of_return, filter_place_of_service,
        program,
    },
    tcp,
    wire::{Arp, Ipv4, Ipv6, ethertype},
};

use crate::{
    Outcome, clock, count,
    frame::{self, Link, TcpPacket, ingress, length},
    handover,
    lookup::forward_entry,
    maps::{BACKENDS, FILTER, FLOWS, RETURNS, SERVICE_PORTS, SERVICES, forward, record},
    nat::{self, End},
    shortcut, tail_call, to_other,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = frame::of(ctx);
    let (Some(link), Some(filter)) = (Link::parse(&frame), FILTER.get(0)) else {
        return Ok(xdp_action::XDP_PASS);
    };
    match link.ethertype {
        ethertype::IPV4 => match frame.at::<Ipv4>(link.l3) {
            // SAFETY: `at` checked that the header lies in the frame.
            Some(ip) if may_be_ours(filter, unsafe { (*ip).destination }) => {
                tcp(ctx, &link, filter, TcpPacket::parse(&frame, &link, || length(ctx)), program::OTHER_INDEX)
            }
            _ => Ok(xdp_action::XDP_PASS),
        },
        ethertype::IPV6 => match frame.at::<Ipv6>(link.l3) {
            // SAFETY: `at` checked that the header lies in the frame.
            Some(ip) if unsafe { ipv6_may_be_ours(filter, &*ip) } => tail_call(ctx, program::IPV6_INDEX),
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

/// A solicitation for an address goes to a group that ends as the address does (RFC 4291 section 2.7.1); what is said to
/// all nodes may be about a VIP.
#[inline(always)]
fn ipv6_may_be_ours(filter: &Filter, ip: &Ipv6) -> bool {
    let last = u32::from_be(ip.destination[3]);
    has_bit(&filter.addresses, last as u16) || ip.destination == Ipv6::ALL_NODES
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

/// A packet that may be for a VIP: to the flow it belongs to, or by a tail call to `other`.
#[inline(always)]
pub fn tcp(
    ctx: &XdpContext,
    link: &Link,
    filter: &Filter,
    packet: Result<TcpPacket, Counter>,
    other: u32,
) -> Outcome {
    let Ok(packet) = packet else { return tail_call(ctx, other) };
    let Some(here) = nat::interface(ingress(ctx)) else { return tail_call(ctx, other) };
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    if here.mac != unsafe { (*link.ethernet).destination } {
        return tail_call(ctx, other);
    }
    if let Some(service) = service_of(filter, &packet) {
        return from_client(ctx, link, here, &packet, service);
    }
    match backend_of(filter, &packet) {
        Some(backend) => from_backend(ctx, link, here, &packet, backend),
        None => tail_call(ctx, other),
    }
}

/// The service that a packet is for.
#[inline(always)]
fn service_of(filter: &Filter, packet: &TcpPacket) -> Option<u16> {
    let (vip, port) = (packet.destination, packet.ports.1);
    let guess = filter.services[filter_place_of_service(&vip, port) & (FILTER_PLACES - 1)];
    if guess == 0 {
        return None;
    }
    let service = SERVICES.get(guess as u32 - 1);
    if service.is_some_and(|service| service.vip == vip && service.port == port) {
        return Some(guess - 1);
    }
    // SAFETY: a service's number is written once, before the key.
    unsafe { SERVICE_PORTS.get(ServiceKey::new(vip, port)) }.map(|&number| number as u16)
}

/// The backend that a packet is from.
#[inline(always)]
fn backend_of(filter: &Filter, packet: &TcpPacket) -> Option<u16> {
    let (source, address, port) = (packet.destination, packet.source, packet.ports.0);
    let guess = filter.returns[filter_place_of_return(&source, &address, port) & (FILTER_PLACES - 1)];
    let backend = BACKENDS.get((guess as u32).wrapping_sub(1));
    if backend.is_some_and(|b| b.address == address && b.source == source && b.port == port) {
        return Some(guess.wrapping_sub(1));
    }
    // SAFETY: a backend's number is written once, before the key.
    unsafe { RETURNS.get(ReturnKey::new(source, address, port)) }.map(|&number| number as u16)
}

/// A client's packet: the forward half of its flow's slot has all that it needs.
#[inline(always)]
fn from_client(ctx: &XdpContext, link: &Link, here: &Interface, packet: &TcpPacket, service: u16) -> Outcome {
    let leave = |program| handover::to(ctx, link, packet, service, program);
    let key = FlowKey { client: packet.source, port: packet.ports.0, service };
    if packet.segment.any(tcp::UNUSUAL) {
        // The commonest of these goes the shortest way: a SYN that is no retransmission.
        let is_new = packet.segment.is_syn() && forward_entry(&key).is_none();
        return if is_new { leave(program::CHOOSE_INDEX) } else { leave(program::CLIENT_INDEX) };
    }
    let Some((number, nat_port)) = slot_of(&key) else { return leave(program::CLIENT_INDEX) };
    let (Some(flow), Some(backend)) = (forward(number, nat_port.get()), BACKENDS.get(number as u32)) else {
        return leave(program::CLIENT_INDEX);
    };
    // SAFETY: a live map value; what is written here is written by packets of this client only, which one CPU handles. Where
    // the slot goes to another flow just now, that one's first packets write it anew.
    let flow: &mut Forward = unsafe { &mut *flow };
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let source_mac = unsafe { (*link.ethernet).source };
    let Some(out) = way_out(here, backend.hop.ifindex) else { return leave(program::CLIENT_INDEX) };
    let unusual = !flow.gate().is_open()
        || flow.client != key.client
        || flow.client_port != key.port
        || flow.service != service
        || flow.epoch != backend.epoch
        || flow.client_mac != source_mac
        || link.tags != backend.hop.tags
        || packet.length > out.mtu as u32;
    if unusual {
        return leave(program::CLIENT_INDEX);
    }
    flow.last_seen = clock::coarse();
    flow.last_ack = packet.segment.ack;
    flow.edge = packet.segment.seq_end();
    count_in(packet, number);
    let from = End { address: backend.source, port: nat_port };
    let to = End { address: backend.address, port: backend.port };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        if flow.flags & FLOW_DSR == 0 {
            nat::rewrite(packet.ip, packet.tcp, from, to)?;
        }
        nat::transmit(ctx, link.ethernet, out, backend.hop.mac)
    }
}

/// Backend and NAT port of a client's flow: by a shortcut, whose guess is yet to be verified, else by its forward entry.
#[inline(always)]
fn slot_of(key: &FlowKey) -> Option<(u16, Port)> {
    if let Some(backend) = shortcut::find(key) {
        return Some((backend, key.port));
    }
    let flow = FLOWS.get_ptr(key)?;
    // SAFETY: a live map value. An entry that another CPU removes meanwhile may be reused for another key; then the slot that it
    // names is not this client's.
    let (backend, nat_port) = unsafe { ((*flow).backend, (*flow).nat_port) };
    // Changes nothing: of both ways the verifier is to know the same.
    let backend = backend & (MAX_BACKENDS - 1) as u16;
    shortcut::add(key, backend, nat_port);
    Some((backend, nat_port))
}

/// A backend's packet: the record of its NAT port has all that it needs.
#[inline(always)]
fn from_backend(ctx: &XdpContext, link: &Link, here: &Interface, packet: &TcpPacket, number: u16) -> Outcome {
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
    let Some(out) = way_out(here, record.ifindex) else { return leave(program::BACKEND_INDEX) };
    let unusual = packet.segment.any(tcp::UNUSUAL)
        || !claim.is_plain_established()
        || record.epoch != backend.epoch
        || link.tags != [record.outer_tag, record.inner_tag]
        || backend.flags & BACKEND_USED == 0
        || packet.length > out.mtu as u32;
    if unusual {
        return leave(program::BACKEND_INDEX);
    }
    let from = End { address: service.vip, port: service.port };
    let to = End { address: record.client, port: record.client_port };
    let mac = record.client_mac;
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
        nat::transmit(ctx, link.ethernet, out, mac)
    }
}

/// The interface that a packet leaves by: nearly always the one that it came in by.
#[inline(always)]
fn way_out(here: &Interface, ifindex: u32) -> Option<&Interface> {
    if ifindex == here.ifindex { Some(here) } else { nat::interface(ifindex) }
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
