//! VRRP advertisements. They go on to the agent in any case; a stronger one ends the lease here and now, so that two nodes
//! do not both own the VIP until the agent has been scheduled. Whose they are is kept, for what clients on this node say while
//! another node has the VIP.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac},
    counters::Counter,
    election::{Advertisement, Election, Envelope},
    wire::{IPV6_LEN, Ipv4, Ipv6, ethertype},
};

use crate::{
    Outcome, clock, count,
    frame::{self, Link, forget, ingress, put_mac},
    maps::{ELECTIONS, LEASE},
};

/// An IP packet of the protocol VRRP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    if let Some((from, is_stronger)) = other_node(ctx) {
        heed(ctx, from, is_stronger);
    }
    Ok(xdp_action::XDP_PASS)
}

/// The MAC of the node of this pair that advertises, and whether it is the stronger one.
#[inline(always)]
fn other_node(ctx: &XdpContext) -> Option<(Mac, bool)> {
    let link = Link::parse(&frame::of(ctx))?;
    if link.vlan() != [0; 2] {
        return None;
    }
    let link = frame::forget_tags(ctx, &link).ok()?;
    let frame = frame::anew(ctx);
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
    // By way of a map, before there are more ways by which it may have come to be.
    let is_stronger = forget(u32::from(election.is_weaker_than(&envelope, &advertisement))).ok()?;
    if !election.has(ingress(ctx), &envelope, &advertisement) {
        return None;
    }
    // SAFETY: `forget_tags` checked that the header lies in the frame.
    Some((unsafe { (*link.ethernet).source }, is_stronger != 0))
}

/// The end of the lease is never undone by a grant that was under way: that has an earlier time.
#[inline(always)]
fn heed(ctx: &XdpContext, from: Mac, is_stronger: bool) {
    let now = clock::exact();
    if let Some(lease) = LEASE.get_ptr_mut(0) {
        // SAFETY: a live map value; only the data plane writes these fields.
        unsafe {
            (*lease).other_ifindex = ingress(ctx);
            put_mac(&raw mut (*lease).other_mac, from);
            if !is_stronger {
                return;
            }
            if (*lease).holds(now) {
                count::count(Counter::LeaseRevoked);
            }
            (&raw mut (*lease).revoked_at).write_volatile(now);
        }
    }
}
