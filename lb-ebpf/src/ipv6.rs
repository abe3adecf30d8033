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
};

/// The entry found that the packet may be for a VIP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    let (Some(link), Some(filter)) = (Link::parse(&frame), FILTER.get(0)) else {
        return Ok(xdp_action::XDP_PASS);
    };
    let packet = match frame.at::<Ipv6>(link.l3) {
        // SAFETY: `at` checked that the header lies in the frame.
        Some(ip) if unsafe { (*ip).next_header() } == protocol::TCP => {
            TcpPacket::parse_v6(ctx, &frame, &link, ip, IPV6_LEN)
        }
        _ => Err(Counter::Protocol),
    };
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
        if !header.is_sound() || ends.0.is_v4() || ends.1.is_v4() {
            return Err(Counter::Malformed);
        }
        let total = IPV6_LEN + u16::from_be(header.payload_length) as u32;
        Self::over(ctx, frame, Ip::v6(ip), (link.l3, before, total), ends)
    }
}
