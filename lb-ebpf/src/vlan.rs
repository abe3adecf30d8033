//! VLAN tags: a packet leaves with those of its next hop.

use aya_ebpf::{helpers::generated, programs::XdpContext};
use lb_common::{
    counters::Counter,
    wire::{Ethernet, Vlan, ethertype},
};

use crate::frame::{self, Link};

const ETHERNET_LEN: u32 = size_of::<Ethernet>() as u32;
const TAG_LEN: u32 = size_of::<Vlan>() as u32;

/// Gives the frame other tags and returns its Ethernet header, whose addresses are to be written. Every other pointer
/// into it is void if the number of tags changed.
#[inline(always)]
pub fn retag(
    ctx: &XdpContext,
    link: &Link,
    tags: [u16; 2],
    ethertype: u16,
) -> Result<*mut Ethernet, Counter> {
    if link.tags == tags {
        return Ok(link.ethernet);
    }
    let wanted = ETHERNET_LEN
        + if tags[0] == 0 {
            0
        } else if tags[1] == 0 {
            TAG_LEN
        } else {
            2 * TAG_LEN
        };
    let delta = link.l3 as i32 - wanted as i32;
    // SAFETY: the helper takes the context that the program was called with, and checks the length itself.
    if unsafe { generated::bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
        return Err(Counter::AdjustFailed);
    }
    let frame = frame::of(ctx);
    let ethernet = frame.at::<Ethernet>(0).ok_or(Counter::AdjustFailed)?;
    // SAFETY: `at` checked that each header lies in the frame.
    unsafe {
        if tags[0] == 0 {
            (*ethernet).ethertype = ethertype;
            return Ok(ethernet);
        }
        let outer = frame.at::<Vlan>(ETHERNET_LEN).ok_or(Counter::AdjustFailed)?;
        (*outer).control = tags[0];
        if tags[1] == 0 {
            (*ethernet).ethertype = ethertype::VLAN;
            (*outer).ethertype = ethertype;
            return Ok(ethernet);
        }
        let inner = frame.at::<Vlan>(ETHERNET_LEN + TAG_LEN).ok_or(Counter::AdjustFailed)?;
        // IEEE 802.1ad: the outer one is the service provider's.
        (*ethernet).ethertype = ethertype::SERVICE_VLAN;
        (*outer).ethertype = ethertype::VLAN;
        (*inner).control = tags[1];
        (*inner).ethertype = ethertype;
    }
    Ok(ethernet)
}
