//! Messages for whoever debugs the program, in builds with the feature `log` only: one line costs a packet half its speed
//! and the verifier a multiple of its work. Never per packet of an established flow.

use aya_ebpf::programs::XdpContext;
use lb_common::{addr::Port, counters::Counter, maps::FlowKey};

/// A flow begins.
#[inline(always)]
pub fn new_flow(ctx: &XdpContext, key: &FlowKey, backend: u16, nat_port: Port) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "new flow: client {:i}:{}, service {}, backend {}, NAT port {}",
        u32::from_be(key.client.v4_word()),
        key.port.get(),
        key.service,
        backend,
        nat_port.get()
    );
    #[cfg(not(feature = "log"))]
    let _ = (ctx, key, backend, nat_port);
}

/// A packet is dropped.
#[inline(always)]
pub fn dropped(ctx: &XdpContext, reason: Counter) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "dropped: counter {}", reason as u32);
    #[cfg(not(feature = "log"))]
    let _ = (ctx, reason);
}
