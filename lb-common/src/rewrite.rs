//! Giving a packet other ends: addresses, ports, one hop less, and the checksums mended by the difference.

use crate::{
    addr::{Addr, Port},
    checksum::Delta,
    counters::Counter,
    frame::Ip,
    wire::{Ipv4, Ipv6, Tcp},
};

/// One end of the rewritten packet.
#[derive(Clone, Copy)]
pub struct End {
    /// Its address.
    pub address: Addr,
    /// Its port.
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
