//! What this node says nothing to since it does not own the VIP. From clients and members on this node itself it goes to the
//! node that does, as it would without us; from others it is dropped.
//!
//! The agent takes the routes away that lead here when this node gives the VIP up. Until it has, and where it died with the
//! routes in place, clients on this node go on being served.

use aya_ebpf::programs::XdpContext;
use lb_common::{counters::Counter, maps::INTERFACE_NODE, wire::Ethernet};

use crate::{
    Outcome, count,
    frame::{self, ingress},
    maps::LEASE,
    nat,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let ethernet = frame::of(ctx).at::<Ethernet>(0).ok_or(Counter::Malformed)?;
    let here = nat::interface(ingress(ctx)).ok_or(Counter::Fenced)?;
    if here.flags & INTERFACE_NODE == 0 {
        return Err(Counter::Fenced);
    }
    let lease = LEASE.get(0).ok_or(Counter::Fenced)?;
    if lease.other_ifindex == 0 {
        return Err(Counter::Fenced);
    }
    let out = nat::interface(lease.other_ifindex).ok_or(Counter::NoNextHop)?;
    // SAFETY: `at` checked that the header lies in the frame.
    unsafe {
        if (*ethernet).destination != here.mac {
            return Err(Counter::GroupMac);
        }
        let action = nat::transmit(ctx, ethernet, out, lease.other_mac)?;
        count::count(Counter::Relayed);
        Ok(action)
    }
}
