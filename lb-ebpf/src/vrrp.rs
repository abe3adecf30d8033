//! VRRP advertisements. They go on to the agent in any case; a stronger one ends the lease here and now, so that two nodes
//! do not both own the VIP until the agent has been scheduled.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::Addr,
    counters::Counter,
    election::{Advertisement, Election, Envelope},
    wire::{IPV6_LEN, Ipv4, Ipv6, ethertype},
};

use crate::{
    Outcome, clock, count,
    frame::{self, Link, ingress},
    maps::{ELECTIONS, LEASE},
};

/// An IP packet of the protocol VRRP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    if loses(ctx).unwrap_or(false) {
        end_lease();
    }
    Ok(xdp_action::XDP_PASS)
}

#[inline(always)]
fn loses(ctx: &XdpContext) -> Option<bool> {
    let frame = frame::of(ctx);
    let link = Link::parse(&frame)?;
    let is_v4 = link.ethertype == ethertype::IPV4;
    let (envelope, start) = if is_v4 {
        // SAFETY: `at` checked that the header lies in the frame.
        let ip = unsafe { &*frame.at::<Ipv4>(link.l3)? };
        let length = u32::from(u16::from_be(ip.total_length)).checked_sub(ip.header_len())?;
        if !ip.is_sound() || ip.is_fragment() {
            return None;
        }
        let (source, destination) = (Addr::from_v4_word(ip.source), Addr::from_v4_word(ip.destination));
        (Envelope { source, destination, hop_limit: ip.ttl(), length }, link.l3 + ip.header_len())
    } else {
        // SAFETY: `at` checked that the header lies in the frame.
        let ip = unsafe { &*frame.at::<Ipv6>(link.l3)? };
        let (source, destination) = (Addr::from_words(ip.source), Addr::from_words(ip.destination));
        let length = u32::from(u16::from_be(ip.payload_length));
        (Envelope { source, destination, hop_limit: ip.hop_limit(), length }, link.l3 + IPV6_LEN)
    };
    // SAFETY: `at` checked that the header lies in the frame.
    let advertisement = unsafe { *frame.at::<Advertisement>(start)? };
    let election: &Election = ELECTIONS.get(u32::from(!is_v4))?;
    Some(link.vlan() == [0; 2] && election.is_lost_to(ingress(ctx), &envelope, &advertisement))
}

/// Never undone by a grant that was under way: that has an earlier time.
#[inline(always)]
fn end_lease() {
    let now = clock::exact();
    if let Some(lease) = LEASE.get_ptr_mut(0) {
        // SAFETY: a live map value; only the data plane writes this field.
        unsafe {
            if (*lease).holds(now) {
                count::count(Counter::LeaseRevoked);
            }
            (&raw mut (*lease).revoked_at).write_volatile(now);
        }
    }
}
