//! IPv6: how its packets are read. What becomes of them is the same as for IPv4. A program of its own, so that neither
//! family asks on its established path which one it is.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::Addr,
    counters::Counter,
    maps::program,
    wire::{IPV6_LEN, Ipv6, protocol},
};

use crate::{
    Outcome, established,
    frame::{Frame, Ip, Link, TcpPacket},
    maps::FILTER,
    tail_call,
};

/// The entry found that the packet may be for a VIP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    // One after the other: a link that is not there must not be kept over the look-up.
    let Some(link) = Link::parse(&frame) else { return Ok(xdp_action::XDP_PASS) };
    let Some(filter) = FILTER.get(0) else { return Ok(xdp_action::XDP_PASS) };
    let Some(ip) = frame.at::<Ipv6>(link.l3) else { return Ok(xdp_action::XDP_PASS) };
    // SAFETY: `at` checked that the header lies in the frame.
    if unsafe { (*ip).next_header() } != protocol::TCP {
        return tail_call(ctx, program::OTHER_V6_INDEX);
    }
    let packet = TcpPacket::parse_v6(ctx, &frame, &link, ip, IPV6_LEN);
    established::tcp(ctx, &link, filter, packet, program::OTHER_V6_INDEX)
}

impl TcpPacket {
    /// Reads an IPv6 packet whose TCP header comes after `before` octets; the error names what is wrong with it.
    #[inline(always)]
    pub fn parse_v6(
        ctx: &XdpContext,
        frame: &Frame,
        link: &Link,
        ip: *mut Ipv6,
        before: u32,
    ) -> Result<Self, Counter> {
        // SAFETY: the caller's `at` checked that the header lies in the frame.
        let header = unsafe { &*ip };
        let ends = (Addr::from_words(header.source), Addr::from_words(header.destination));
        // An IPv4-mapped address stands for an IPv4 one, in the tables too; no packet has it (RFC 4291 section 2.5.5.2).
        // A group sends nothing (section 2.7).
        if !header.is_sound() || header.is_from_group() || ends.0.is_v4() || ends.1.is_v4() {
            return Err(Counter::Malformed);
        }
        let total = IPV6_LEN + u16::from_be(header.payload_length) as u32;
        Self::over(ctx, frame, Ip::v6(ip), (link.l3, before, total), ends)
    }
}
