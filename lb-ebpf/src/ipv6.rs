//! IPv6: how its packets are read. What becomes of them is the same as for IPv4. A program of its own, so that neither
//! family asks on its established path which one it is.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    maps::program,
    wire::{IPV6_LEN, Ipv6, protocol},
};

use crate::{
    Outcome, established,
    frame::{self, Link, TcpPacket, length},
    maps::FILTER,
    tail_call,
};

/// The entry found that the packet may be for a VIP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = frame::of(ctx);
    // One after the other: a link that is not there must not be kept over the look-up.
    let Some(link) = Link::parse(&frame) else { return Ok(xdp_action::XDP_PASS) };
    let Some(filter) = FILTER.get(0) else { return Ok(xdp_action::XDP_PASS) };
    let Some(ip) = frame.at::<Ipv6>(link.l3) else { return Ok(xdp_action::XDP_PASS) };
    // SAFETY: `at` checked that the header lies in the frame.
    if unsafe { (*ip).next_header() } != protocol::TCP {
        return tail_call(ctx, program::OTHER_V6_INDEX);
    }
    let packet = TcpPacket::parse_v6(&frame, &link, || length(ctx), IPV6_LEN);
    established::tcp(ctx, &link, filter, packet, program::OTHER_V6_INDEX)
}
