//! Everything for a VIP that is no TCP of a service: ARP, ping, closed ports, fragments and what is malformed. Decides
//! for certain whether the packet is for us, before anything is dropped.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac},
    checksum::Delta,
    counters::Counter,
    election,
    maps::{Interface, VipOnInterface, program},
    tcp,
    wire::{Arp, Icmp, Ipv4, ethertype, protocol},
};

use crate::{
    Outcome, clock, count,
    frame::{self, Frame, Link, TcpPacket, ingress, length, put_mac},
    handover,
    maps::{LEASE, VIPS},
    nat::interface,
    signal, tail_call,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let Some(link) = Link::parse(&frame::of(ctx)) else { return Ok(xdp_action::XDP_PASS) };
    let link = frame::forget_tags(ctx, &link)?;
    let frame = frame::anew(ctx);
    let Some(&Interface { mac: own_mac, .. }) = interface(ingress(ctx)) else {
        return Ok(xdp_action::XDP_PASS);
    };
    match link.ethertype {
        ethertype::ARP => match frame.at::<Arp>(link.l3) {
            // SAFETY: `at` checked that the packet lies in the frame.
            Some(arp) => unsafe { handle_arp(ctx, &link, &mut *arp, own_mac) },
            None => Ok(xdp_action::XDP_PASS),
        },
        ethertype::IPV4 => match frame.at::<Ipv4>(link.l3) {
            Some(ip) => handle_ipv4(ctx, &frame, &link, ip, own_mac),
            None => Ok(xdp_action::XDP_PASS),
        },
        _ => Ok(xdp_action::XDP_PASS),
    }
}

#[inline(always)]
pub fn is_vip(address: Addr) -> bool {
    // SAFETY: the value is not read.
    unsafe { VIPS.get(VipOnInterface::anywhere(address)) }.is_some()
}

/// Whether ARP and ND for the VIP are answered on the interface and VLAN that a frame came by.
#[inline(always)]
pub fn is_answered_here(ctx: &XdpContext, link: &Link, address: Addr) -> bool {
    let here = VipOnInterface { address, ifindex: ingress(ctx), vlan: link.vlan() };
    // SAFETY: an entry's value is one word.
    unsafe { VIPS.get(here) }.is_some_and(|claim| claim.answered != 0)
}

/// Whether this node owns the VIP now.
#[inline(always)]
pub fn owns_vip() -> bool {
    let now = clock::exact();
    LEASE.get(0).is_some_and(|lease| lease.holds(now))
}

/// ARP (RFC 826): requests for the VIP are answered, broadcast, unicast and address probes (RFC 5227) alike.
#[inline(always)]
fn handle_arp(ctx: &XdpContext, link: &Link, arp: &mut Arp, own_mac: Mac) -> Outcome {
    const ETHERNET: u16 = 1u16.to_be();
    const LENGTHS: u16 = u16::from_ne_bytes([6, 4]);
    const REQUEST: u16 = 1u16.to_be();
    const REPLY: u16 = 2u16.to_be();
    if arp.hardware != ETHERNET || arp.protocol != ethertype::IPV4 || arp.lengths != LENGTHS {
        return Ok(xdp_action::XDP_PASS);
    }
    let (sender, target) = (address(arp.sender), address(arp.target));
    if arp.sender_mac != own_mac && is_vip(sender) {
        if !owns_vip() {
            // The other node's, for the kernel too: its own clients find the VIP by it.
            return Ok(xdp_action::XDP_PASS);
        }
        count::count(Counter::VipConflict);
        signal::vip_conflict(sender, arp.sender_mac);
        return if is_vip(target) { Err(Counter::ArpOther) } else { Ok(xdp_action::XDP_PASS) };
    }
    if !is_vip(target) {
        return Ok(xdp_action::XDP_PASS);
    }
    if arp.operation != REQUEST {
        return Err(Counter::ArpOther);
    }
    if !is_answered_here(ctx, link, target) {
        return Err(Counter::ArpElsewhere);
    }
    if !owns_vip() {
        return Err(Counter::Fenced);
    }
    let asker = arp.sender_mac;
    let (sender, target) = (arp.sender, arp.target);
    arp.operation = REPLY;
    (arp.sender, arp.target) = (target, sender);
    // SAFETY: `Link::parse` checked that the Ethernet header lies in the frame, the caller that the ARP packet does.
    unsafe {
        put_mac(&raw mut (*link.ethernet).destination, asker);
        put_mac(&raw mut (*link.ethernet).source, own_mac);
        put_mac(&raw mut arp.sender_mac, own_mac);
        put_mac(&raw mut arp.target_mac, asker);
    }
    count::count(Counter::ArpReply);
    Ok(xdp_action::XDP_TX)
}

#[inline(always)]
fn address(halves: [u16; 2]) -> Addr {
    let [a, b] = halves[0].to_ne_bytes();
    let [c, d] = halves[1].to_ne_bytes();
    Addr::from_v4_word(u32::from_ne_bytes([a, b, c, d]))
}

#[inline(always)]
fn handle_ipv4(ctx: &XdpContext, frame: &Frame, link: &Link, ip: *mut Ipv4, own_mac: Mac) -> Outcome {
    // SAFETY: the caller's `at` checked that the header lies in the frame, `Link::parse` the Ethernet header.
    let (header, to_mac) = unsafe { (&mut *ip, (*link.ethernet).destination) };
    if !is_vip(Addr::from_v4_word(header.destination)) {
        let is_vrrp = header.protocol() == election::PROTOCOL;
        return if is_vrrp { tail_call(ctx, program::VRRP_INDEX) } else { Ok(xdp_action::XDP_PASS) };
    }
    if to_mac != own_mac {
        // A frame for another host, flooded by the switch, is none of ours; the kernel drops it too.
        return if to_mac.is_group() { Err(Counter::GroupMac) } else { Ok(xdp_action::XDP_PASS) };
    }
    match TcpPacket::parse(frame, link, || length(ctx)) {
        Ok(packet) => closed_port(ctx, link, &packet),
        Err(Counter::Protocol) if header.protocol() == protocol::ICMP => {
            icmp(ctx, frame, link, header, own_mac)
        }
        Err(reason) => Err(reason),
    }
}

/// TCP to a port without a service (RFC 9293 section 3.10.7.1).
#[inline(always)]
pub fn closed_port(ctx: &XdpContext, link: &Link, packet: &TcpPacket) -> Outcome {
    if packet.segment.any(tcp::RST) {
        return Err(Counter::UnknownRst);
    }
    if !owns_vip() {
        return tail_call(ctx, program::RELAY_INDEX);
    }
    count::count(Counter::ClosedPort);
    handover::to(ctx, link, packet, 0, program::RESET_INDEX)
}

/// Echo requests (RFC 792) are answered in place. The data's checksum is not checked: a reply to a corrupted request is
/// corrupted by the same amount, and its receiver drops it. Errors may be about a flow.
#[inline(always)]
fn icmp(ctx: &XdpContext, frame: &Frame, link: &Link, ip: &mut Ipv4, own_mac: Mac) -> Outcome {
    let Some(icmp) = frame.at::<Icmp>(link.l3 + ip.header_len()) else { return Err(Counter::Malformed) };
    // SAFETY: `at` checked that the header lies in the frame.
    let icmp = unsafe { &mut *icmp };
    if icmp.is_error() {
        return tail_call(ctx, program::ICMP_INDEX);
    }
    // Options would have to be reversed (RFC 1122 section 3.2.2.6); nobody sends them.
    if icmp.type_code != Icmp::ECHO_REQUEST || ip.version_ihl != 0x45 {
        return Err(Counter::Icmp);
    }
    if !owns_vip() {
        return tail_call(ctx, program::RELAY_INDEX);
    }
    icmp.check = icmp.reply_check();
    icmp.type_code = Icmp::ECHO_REPLY;
    let ttl_protocol = u16::from_ne_bytes([64, protocol::ICMP]);
    ip.check = Delta::new().word(ip.ttl_protocol, ttl_protocol).apply(ip.check);
    ip.ttl_protocol = ttl_protocol;
    core::mem::swap(&mut ip.source, &mut ip.destination);
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    unsafe {
        let asker = (*link.ethernet).source;
        put_mac(&raw mut (*link.ethernet).source, own_mac);
        put_mac(&raw mut (*link.ethernet).destination, asker);
    }
    count::count(Counter::EchoReply);
    Ok(xdp_action::XDP_TX)
}
