//! The end of the way of a packet off the established path: it gets its new ends, its MSS is clamped and its tags are
//! changed where need be, and it is sent. What does not fit is answered.

use aya_ebpf::programs::XdpContext;
use lb_common::{counters::Counter, maps::program, tcp, wire::ethertype};

use crate::{
    Outcome,
    frame::ingress,
    handover, mss,
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
    if packet.segment.any(tcp::SYN) {
        let back = interface(ingress(ctx)).ok_or(Counter::NoNextHop)?;
        mss::clamp(ctx, &packet, if back.mtu < out.mtu { back.mtu } else { out.mtu });
    }
    let from = End { address: onward.from, port: onward.from_port };
    let to = End { address: onward.to, port: onward.to_port };
    let ethertype = if packet.ip.is_v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    // SAFETY: `take` checked that the headers lie in the frame, which did not move since.
    unsafe { nat::rewrite(packet.ip, packet.tcp, from, to)? };
    let ethernet = vlan::retag(ctx, &link, onward.tags, ethertype)?;
    // SAFETY: `retag` vouches for the header.
    unsafe { nat::transmit(ctx, ethernet, out, onward.mac) }
}
