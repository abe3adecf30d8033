//! Sending a packet on.

use aya_ebpf::{bindings::xdp_action, helpers::generated, programs::XdpContext};
pub use lb_common::rewrite::{End, rewrite};
use lb_common::{
    addr::Mac,
    counters::Counter,
    maps::{Interface, interface_slot},
    wire::Ethernet,
};

use crate::{
    frame::{ingress, put_mac},
    maps::INTERFACES,
};

/// Sends the frame to `mac` by `out`, under the interface's own MAC.
///
/// # Safety
/// `ethernet` points to a whole header in the frame.
#[inline(always)]
pub unsafe fn transmit(
    ctx: &XdpContext,
    ethernet: *mut Ethernet,
    out: &Interface,
    mac: Mac,
) -> Result<u32, Counter> {
    if mac.is_unknown() {
        return Err(Counter::NoNextHop);
    }
    // SAFETY: the caller vouches for the pointer; the helper takes plain numbers.
    unsafe {
        put_mac(&raw mut (*ethernet).source, out.mac);
        put_mac(&raw mut (*ethernet).destination, mac);
        if out.ifindex == ingress(ctx) {
            Ok(xdp_action::XDP_TX)
        } else {
            Ok(generated::bpf_redirect(out.ifindex, 0) as u32)
        }
    }
}

/// An interface that the program is attached to.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<&'static Interface> {
    let interface = INTERFACES.get(interface_slot(ifindex))?;
    if interface.ifindex == ifindex { Some(interface) } else { None }
}
