//! Rewriting a packet's addresses and ports, and sending it on.

use aya_ebpf::{bindings::xdp_action, helpers::generated, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac, Port},
    checksum::Delta,
    counters::Counter,
    maps::{Interface, interface_slot},
    wire::{Ethernet, Ipv4, Ipv6, Tcp},
};

use crate::{
    frame::{Ip, ingress, put_mac},
    maps::INTERFACES,
};

/// One end of the rewritten packet.
#[derive(Clone, Copy)]
pub struct End {
    pub address: Addr,
    pub port: Port,
}

/// Gives the packet new ends, takes one hop off its TTL or hop limit, and mends the checksums by the difference.
///
/// # Safety
/// `ip` and `tcp` point to whole headers in the frame.
#[inline(always)]
pub unsafe fn rewrite(ip: Ip, tcp: *mut Tcp, from: End, to: End) -> Result<(), Counter> {
    // SAFETY: the caller vouches for both pointers, and they do not overlap: TCP follows IP.
    let (addresses, tcp) = unsafe {
        let addresses = if ip.is_v6 {
            rewrite_v6(&mut *ip.start, from.address, to.address)?
        } else {
            rewrite_v4(&mut *ip.start.cast(), from.address, to.address)?
        };
        (addresses, &mut *tcp)
    };
    let ports = Delta::new().word(tcp.source, from.port.word()).word(tcp.destination, to.port.word());
    tcp.check = addresses.and(ports).apply(tcp.check);
    tcp.source = from.port.word();
    tcp.destination = to.port.word();
    Ok(())
}

/// Returns the change of the pseudo-header.
#[inline(always)]
pub fn rewrite_v4(ip: &mut Ipv4, from: Addr, to: Addr) -> Result<Delta, Counter> {
    if ip.ttl() <= 1 {
        return Err(Counter::TtlExpired);
    }
    let (source, destination) = (from.v4_word(), to.v4_word());
    let addresses = Delta::new().dword(ip.source, source).dword(ip.destination, destination);
    let ttl_protocol = ip.one_hop_less();
    ip.check = addresses.word(ip.ttl_protocol, ttl_protocol).apply(ip.check);
    ip.ttl_protocol = ttl_protocol;
    ip.source = source;
    ip.destination = destination;
    Ok(addresses)
}

/// The same; IPv6 has no checksum of its own (RFC 8200 section 3).
#[inline(always)]
pub fn rewrite_v6(ip: &mut Ipv6, from: Addr, to: Addr) -> Result<Delta, Counter> {
    if ip.hop_limit() <= 1 {
        return Err(Counter::TtlExpired);
    }
    let (source, destination) = (from.words(), to.words());
    let addresses = Delta::new().address(ip.source, source).address(ip.destination, destination);
    ip.next_hop = ip.one_hop_less();
    ip.source = source;
    ip.destination = destination;
    Ok(addresses)
}

/// Sends the frame to `mac` by `out`, under the interface's own MAC.
///
/// # Safety
/// `ethernet` points to a whole header in the frame.
#[inline(always)]
pub unsafe fn transmit(
    ctx: &XdpContext,
    ethernet: *mut Ethernet,
    out: &Interface,
    mac: Mac,
) -> Result<u32, Counter> {
    if mac.is_unknown() {
        return Err(Counter::NoNextHop);
    }
    // SAFETY: the caller vouches for the pointer; the helper takes plain numbers.
    unsafe {
        put_mac(&raw mut (*ethernet).source, out.mac);
        put_mac(&raw mut (*ethernet).destination, mac);
        if out.ifindex == ingress(ctx) {
            Ok(xdp_action::XDP_TX)
        } else {
            Ok(generated::bpf_redirect(out.ifindex, 0) as u32)
        }
    }
}

/// An interface that the program is attached to.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<&'static Interface> {
    let interface = INTERFACES.get(interface_slot(ifindex))?;
    if interface.ifindex == ifindex { Some(interface) } else { None }
}
