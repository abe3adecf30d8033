//! Everything of IPv6 for a VIP that is no plain TCP of a service: neighbour discovery, ping, closed ports, extension
//! headers, fragments and what is malformed. Decides for certain whether the packet is for us, before anything is dropped.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac},
    checksum::Delta,
    counters::Counter,
    election,
    maps::{Interface, ReturnKey, ServiceKey, program},
    wire::{
        ECHO_REPLY_V6, ECHO_REQUEST_V6, Ethernet, IPV6_LEN, Icmp, Ipv6, NEIGHBOUR_LEN, NEIGHBOUR_MIN_LEN,
        Neighbour, protocol,
    },
};

use crate::{
    Outcome, count,
    frame::{self, Frame, Link, TcpPacket, ingress, length, put_mac, resize},
    handover,
    maps::{RETURNS, SERVICE_PORTS},
    nat::interface,
    other::{closed_port, is_answered_here, is_vip, owns_vip},
    signal, tail_call,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = frame::of(ctx);
    let Some(link) = Link::parse(&frame) else { return Ok(xdp_action::XDP_PASS) };
    let link = frame::forget_tags(ctx, &link)?;
    let frame = frame::anew(ctx);
    let Some(&Interface { mac: own_mac, .. }) = interface(ingress(ctx)) else {
        return Ok(xdp_action::XDP_PASS);
    };
    let Some(ip) = frame.at::<Ipv6>(link.l3) else { return Ok(xdp_action::XDP_PASS) };
    // SAFETY: `at` checked that the header lies in the frame.
    let header = unsafe { &*ip };
    if header.next_header() == protocol::ICMPV6
        && let Some(message) = frame.at::<Solicitation>(link.l3 + IPV6_LEN)
    {
        // SAFETY: `at` checked that the message lies in the frame.
        let (kind, target) = unsafe { ((*message).type_code, (*message).target) };
        if kind == Neighbour::SOLICITATION || kind == Neighbour::ADVERTISEMENT {
            return neighbour(ctx, &link, header, own_mac, kind, target);
        }
    }
    let destination = Addr::from_words(header.destination);
    // The table has IPv4 VIPs as IPv4-mapped addresses, which no IPv6 packet is sent to.
    if destination.is_v4() || !is_vip(destination) {
        let is_vrrp = header.next_header() == election::PROTOCOL;
        return if is_vrrp { tail_call(ctx, program::VRRP_INDEX) } else { Ok(xdp_action::XDP_PASS) };
    }
    // SAFETY: `Link::parse` checked that the Ethernet header lies in the frame.
    let to_mac = unsafe { (*link.ethernet).destination };
    if to_mac != own_mac {
        // A frame for another host, flooded by the switch, is none of ours; the kernel drops it too.
        return if to_mac.is_group() { Err(Counter::GroupMac) } else { Ok(xdp_action::XDP_PASS) };
    }
    if !header.is_sound() {
        return Err(Counter::Malformed);
    }
    match header.next_header() {
        protocol::ICMPV6 => icmp(ctx, &frame, &link, ip, own_mac),
        next => tcp(ctx, &frame, &link, next),
    }
}

/// Neighbour discovery (RFC 4861): a solicitation for the VIP is answered, to its group or to the VIP alike, also that of
/// a host that tries whether the address is free (RFC 4862 section 5.4). What is not about a VIP is passed, unless it is
/// sent to one.
#[inline(always)]
fn neighbour(
    ctx: &XdpContext,
    link: &Link,
    header: &Ipv6,
    own_mac: Mac,
    kind: u16,
    words: [u32; 4],
) -> Outcome {
    let target = Addr::from_words(words);
    let fits = u16::from_be(header.payload_length) as u32 >= NEIGHBOUR_MIN_LEN
        && length(ctx) >= link.l3 + IPV6_LEN + u16::from_be(header.payload_length) as u32;
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let (to_mac, asker) = unsafe { ((*link.ethernet).destination, (*link.ethernet).source) };
    let to_us = to_mac == own_mac || to_mac.is_group();
    let to_target = header.destination == words || header.is_to_group();
    if target.is_v4() || !header.is_sound() || !fits || !to_us || !to_target || !is_vip(target) {
        let destination = Addr::from_words(header.destination);
        let for_vip = to_mac == own_mac && !destination.is_v4() && is_vip(destination);
        return if for_vip { Err(Counter::NdOther) } else { Ok(xdp_action::XDP_PASS) };
    }
    if header.hop_limit() != Neighbour::HOP_LIMIT {
        return Err(Counter::NdOther);
    }
    let claims = kind == Neighbour::ADVERTISEMENT || header.source == words;
    if claims {
        if asker != own_mac {
            if !owns_vip() {
                // The other node's, for the kernel too: its own clients find the VIP by it.
                return Ok(xdp_action::XDP_PASS);
            }
            count::count(Counter::VipConflict);
            signal::vip_conflict(target, asker);
        }
        return Err(Counter::NdOther);
    }
    if !is_answered_here(ctx, link, target) {
        return Err(Counter::NdElsewhere);
    }
    if !owns_vip() {
        return Err(Counter::Fenced);
    }
    advertise(ctx, link.l3, words, header.source, asker, own_mac)
}

/// Turns the frame, whose IP header is at `l3`, into the answer to `asker`; to all nodes if it has no address yet.
#[inline(always)]
fn advertise(
    ctx: &XdpContext,
    l3: u32,
    target: [u32; 4],
    source: [u32; 4],
    asker: Mac,
    own_mac: Mac,
) -> Outcome {
    const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
    let nobody = source[0] | source[1] | source[2] | source[3] == 0;
    let (to, to_mac) = if nobody { (Ipv6::ALL_NODES, ALL_NODES_MAC) } else { (source, asker) };
    let mut ip = Ipv6::reply(protocol::ICMPV6, NEIGHBOUR_LEN as u16, target, to);
    ip.next_hop = u16::from_ne_bytes([protocol::ICMPV6, Neighbour::HOP_LIMIT]);
    let message = Neighbour::advertisement(&ip, target, own_mac);
    resize(ctx, l3 + IPV6_LEN + NEIGHBOUR_LEN)?;
    let frame = frame::of(ctx);
    let ethernet = frame.at::<Ethernet>(0).ok_or(Counter::AdjustFailed)?;
    let answer = frame.at::<Advertisement>(l3).ok_or(Counter::AdjustFailed)?;
    // SAFETY: `at` checked that both lie in the frame, and they do not overlap.
    unsafe {
        put_mac(&raw mut (*ethernet).destination, to_mac);
        put_mac(&raw mut (*ethernet).source, own_mac);
        (*answer).ip = ip;
        (*answer).type_check = [message.type_code, message.check];
        (*answer).flags = message.flags;
        (*answer).target = message.target;
        (*answer).option = message.option;
        put_mac(&raw mut (*answer).mac, message.mac);
    }
    count::count(Counter::NdReply);
    Ok(xdp_action::XDP_TX)
}

/// Echo requests (RFC 4443 section 4.1) are answered in place; as for IPv4, the data's checksum is not checked. Errors may
/// be about a flow.
#[inline(always)]
fn icmp(ctx: &XdpContext, frame: &Frame, link: &Link, ip: *mut Ipv6, own_mac: Mac) -> Outcome {
    let Some(icmp) = frame.at::<Icmp>(link.l3 + IPV6_LEN) else { return Err(Counter::Malformed) };
    // SAFETY: `at` checked that the headers lie in the frame, and they do not overlap.
    let (ip, icmp) = unsafe { (&mut *ip, &mut *icmp) };
    if icmp.is_error_v6() {
        return tail_call(ctx, program::ICMP_INDEX);
    }
    if icmp.type_code != ECHO_REQUEST_V6 {
        return Err(Counter::Icmp);
    }
    if !owns_vip() {
        return tail_call(ctx, program::RELAY_INDEX);
    }
    // The pseudo-header's sum is that of the same two addresses.
    icmp.check = Delta::new().word(ECHO_REQUEST_V6, ECHO_REPLY_V6).apply(icmp.check);
    icmp.type_code = ECHO_REPLY_V6;
    let (source, destination) = (ip.source, ip.destination);
    ip.next_hop = u16::from_ne_bytes([protocol::ICMPV6, 64]);
    ip.source = destination;
    ip.destination = source;
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    unsafe {
        let asker = (*link.ethernet).source;
        put_mac(&raw mut (*link.ethernet).source, own_mac);
        put_mac(&raw mut (*link.ethernet).destination, asker);
    }
    count::count(Counter::EchoReply);
    Ok(xdp_action::XDP_TX)
}

/// TCP to a port without a service; behind extension headers also that of a service, which takes the way off the
/// established path.
#[inline(always)]
fn tcp(ctx: &XdpContext, frame: &Frame, link: &Link, first: u8) -> Outcome {
    let extensions = frame::forget(frame::extensions(frame, link.l3 + IPV6_LEN, first)?)? & 0x1ff;
    let packet = TcpPacket::parse_v6(frame, link, || length(ctx), IPV6_LEN + extensions)?;
    let key = ServiceKey::new(packet.destination, packet.ports.1);
    // SAFETY: a service's number is written once, before the key.
    if let Some(&service) = unsafe { SERVICE_PORTS.get(key) } {
        return handover::to(ctx, link, &packet, service as u16, program::CLIENT_INDEX);
    }
    let key = ReturnKey::new(packet.destination, packet.source, packet.ports.0);
    // SAFETY: a backend's number is written once, before the key.
    match unsafe { RETURNS.get(key) } {
        Some(&backend) => handover::to(ctx, link, &packet, backend as u16, program::BACKEND_INDEX),
        None => closed_port(ctx, link, &packet),
    }
}

/// A solicitation or advertisement as far as all have it.
#[repr(C)]
struct Solicitation {
    type_code: u16,
    check: u16,
    flags: u32,
    target: [u32; 4],
}

/// The answer, its parts as they are written.
#[repr(C)]
struct Advertisement {
    ip: Ipv6,
    type_check: [u16; 2],
    flags: u32,
    target: [u32; 4],
    option: u16,
    mac: Mac,
}

const _: () = {
    assert!(size_of::<Solicitation>() == NEIGHBOUR_MIN_LEN as usize);
    assert!(size_of::<Advertisement>() == (IPV6_LEN + NEIGHBOUR_LEN) as usize);
};
