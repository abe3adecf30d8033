//! The end of the way of a packet off the established path: it gets its new ends, its MSS is clamped and its tags are
//! changed where need be, and it is sent. What does not fit is answered.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    counters::Counter,
    maps::{Interface, program},
    tcp,
    wire::ethertype,
};

use crate::{
    Outcome,
    frame::{TcpPacket, ingress},
    handover::{self, Onward},
    mss,
    nat::{self, End, interface},
    tail_call, vlan,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, _) = handover::take(ctx)?;
    let onward = handover::onward().ok_or(Counter::TailCall)?;
    let out = interface(onward.ifindex).ok_or(Counter::NoNextHop)?;
    if packet.length > u32::from(out.mtu) {
        return tail_call(ctx, program::TOO_BIG_INDEX);
    }
    if onward.as_it_is == 0 {
        rewrite(ctx, &packet, onward, out)?;
    }
    let ethertype = if packet.ip.is_v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    let ethernet = vlan::retag(ctx, &link, onward.tags, ethertype)?;
    // SAFETY: `retag` vouches for the header.
    unsafe { nat::transmit(ctx, ethernet, out, onward.mac) }
}

#[inline(always)]
fn rewrite(ctx: &XdpContext, packet: &TcpPacket, onward: &Onward, out: &Interface) -> Result<(), Counter> {
    if packet.segment.any(tcp::SYN) {
        let back = interface(ingress(ctx)).ok_or(Counter::NoNextHop)?;
        mss::clamp(ctx, packet, if back.mtu < out.mtu { back.mtu } else { out.mtu });
    }
    let from = End { address: onward.from, port: onward.from_port };
    let to = End { address: onward.to, port: onward.to_port };
    // SAFETY: `take` checked that the headers lie in the frame, which did not move since.
    unsafe { nat::rewrite(packet.ip, packet.tcp, from, to) }
}
