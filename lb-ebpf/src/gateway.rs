//! The way to a client: by the router that the kernel's route to it names, else the way that its own packets come by.
//!
//! A router's own MAC need not be the one that the kernel sends to: where two share an address (VRRP, HSRP), packets come by
//! the MAC of the one that sent them and go to that of the address, which outlives it.

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac},
    maps::ClientRoute,
};

use crate::{
    frame::{Link, ingress},
    maps::CLIENT_ROUTES,
};

/// Interface and MAC toward the client that sent this frame.
#[inline(always)]
pub fn toward_client(ctx: &XdpContext, link: &Link, client: &Addr) -> (u32, Mac) {
    // Read before: the verifier takes no pointer that is one of two.
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let way = (ingress(ctx), unsafe { (*link.ethernet).source });
    router(link, client).map_or(way, |route| (route.ifindex, route.mac))
}

/// The router toward the client that sent this frame; the agent knows of none behind VLAN tags.
#[inline(always)]
pub fn router(link: &Link, client: &Addr) -> Option<&'static ClientRoute> {
    if link.tags[0] != 0 {
        return None;
    }
    CLIENT_ROUTES.get(&Key::new(128, *client)).filter(|route| route.is_by_router())
}
