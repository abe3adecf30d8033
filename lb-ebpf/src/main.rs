//! The XDP program of etcd-lb.
//!
//! | file | what |
//! | --- | --- |
//! | `main.rs` | the programs, and what becomes of their outcome |
//! | `established.rs` | is the packet for us, and the established path in both directions |
//! | `shortcut.rs` | which backend seems to have a client's flow |
//! | `client.rs`, `backend.rs` | packets of clients and of backends that are not on the established path |
//! | `life.rs` | promotion and demotion of a flow |
//! | `onward.rs`, `mss.rs`, `vlan.rs`, `too_big.rs` | the end of the way of a packet off the established path |
//! | `choose.rs`, `walk.rs`, `clients.rs` | a new flow: may it begin, and which backend |
//! | `new.rs`, `port.rs`, `gateway.rs` | a new flow: claiming a NAT port, and the way back to the client |
//! | `adopt.rs` | a connection that another node had before a takeover |
//! | `relay.rs` | what this node says nothing to while another node has the VIP |
//! | `suspect.rs`, `signal.rs` | backends that new flows pass over; what the agent is told |
//! | `other.rs` | ARP, ping, and all else for a VIP |
//! | `ipv6.rs`, `other_v6.rs` | the same for IPv6: what differs between the families |
//! | `icmp.rs` | ICMP errors about a flow, to its other end |
//! | `vrrp.rs` | stronger VRRP advertisements end the lease |
//! | `reset.rs` | the RST that answers a packet |
//! | `handover.rs`, `lookup.rs`, `nat.rs`, `frame.rs`, `count.rs`, `clock.rs`, `atomic.rs`, `log.rs`, `maps.rs` | the tools of the above |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(clippy::needless_pass_by_value, reason = "the signature that the macro `xdp` asks for")]

mod adopt;
mod atomic;
mod backend;
#[cfg(feature = "bench")]
mod bench;
mod choose;
mod client;
mod clients;
mod clock;
mod count;
mod established;
mod frame;
mod gateway;
mod handover;
mod icmp;
mod ipv6;
mod life;
mod log;
mod lookup;
mod maps;
mod mss;
mod nat;
mod new;
mod onward;
mod other;
mod other_v6;
mod port;
mod relay;
mod reset;
mod shortcut;
mod signal;
mod suspect;
mod too_big;
mod vlan;
mod vrrp;
mod walk;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{counters::Counter, maps::program};

/// What becomes of a packet: an XDP action, or a drop and its reason.
type Outcome = Result<u32, Counter>;

/// The entry: whether the packet is for us, and the established path.
#[xdp(frags)]
fn xdp(ctx: XdpContext) -> u32 {
    finish(&ctx, established::handle(&ctx))
}

/// Packets of clients that are not on the established path.
#[xdp(frags)]
fn from_client(ctx: XdpContext) -> u32 {
    finish(&ctx, client::handle(&ctx))
}

/// Packets of backends that are not on the established path.
#[xdp(frags)]
fn from_backend(ctx: XdpContext) -> u32 {
    finish(&ctx, backend::handle(&ctx))
}

/// New flows: may they begin, and which backend.
#[xdp(frags)]
fn choose(ctx: XdpContext) -> u32 {
    finish(&ctx, choose::handle(&ctx))
}

/// New flows whose backend is chosen.
#[xdp(frags)]
fn new_flow(ctx: XdpContext) -> u32 {
    finish(&ctx, new::handle(&ctx))
}

/// Connections that another node had before a takeover.
#[xdp(frags)]
fn adopt(ctx: XdpContext) -> u32 {
    finish(&ctx, adopt::handle(&ctx))
}

/// A packet that changes its flow.
#[xdp(frags)]
fn life(ctx: XdpContext) -> u32 {
    finish(&ctx, life::handle(&ctx))
}

/// Sends a packet that is not on the established path.
#[xdp(frags)]
fn onward(ctx: XdpContext) -> u32 {
    finish(&ctx, onward::handle(&ctx))
}

/// Answers a packet that does not fit where it would be sent.
#[xdp(frags)]
fn too_big(ctx: XdpContext) -> u32 {
    finish(&ctx, too_big::handle(&ctx))
}

/// ICMP errors about a flow.
#[xdp(frags)]
fn icmp(ctx: XdpContext) -> u32 {
    finish(&ctx, icmp::handle(&ctx))
}

/// Turns a packet into the RST that answers it.
#[xdp(frags)]
fn reset(ctx: XdpContext) -> u32 {
    finish(&ctx, reset::handle(&ctx))
}

/// Everything else that may be for a VIP.
#[xdp(frags)]
fn other(ctx: XdpContext) -> u32 {
    finish(&ctx, other::handle(&ctx))
}

/// IPv6: the established path of that family.
#[xdp(frags)]
fn ipv6(ctx: XdpContext) -> u32 {
    finish(&ctx, ipv6::handle(&ctx))
}

/// Everything else of IPv6 that may be for a VIP.
#[xdp(frags)]
fn other_v6(ctx: XdpContext) -> u32 {
    finish(&ctx, other_v6::handle(&ctx))
}

/// VRRP advertisements.
#[xdp(frags)]
fn vrrp(ctx: XdpContext) -> u32 {
    finish(&ctx, vrrp::handle(&ctx))
}

/// What this node says nothing to while another node has the VIP.
#[xdp(frags)]
fn relay(ctx: XdpContext) -> u32 {
    finish(&ctx, relay::handle(&ctx))
}

/// Passes every packet: for the far end of a veth, which must have a program for XDP_TX to reach it.
#[xdp(frags)]
fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Sets the clock: run once, before anything is attached.
#[xdp(frags)]
fn set_clock(_ctx: XdpContext) -> u32 {
    clock::set_coarse(clock::exact());
    xdp_action::XDP_PASS
}

/// Writes a packet anew and hands it to the program that is measured.
#[cfg(feature = "bench")]
#[xdp(frags)]
fn bench(ctx: XdpContext) -> u32 {
    finish(&ctx, bench::handle(&ctx))
}

/// What one line of a flow's slot takes.
#[cfg(feature = "bench")]
#[xdp(frags)]
fn bench_line(ctx: XdpContext) -> u32 {
    finish(&ctx, bench::line())
}

/// What XDP does at the least.
#[cfg(feature = "bench")]
#[xdp(frags)]
fn bench_nat(ctx: XdpContext) -> u32 {
    finish(&ctx, bench::static_nat(&ctx))
}

#[inline(always)]
fn finish(ctx: &XdpContext, outcome: Outcome) -> u32 {
    match outcome {
        Ok(action) => action,
        Err(reason) => {
            count::count(reason);
            log::dropped(ctx, reason);
            xdp_action::XDP_DROP
        }
    }
}

/// Hands the packet to another program; comes back only if that is not loaded.
#[inline(always)]
fn tail_call(ctx: &XdpContext, index: u32) -> Outcome {
    // SAFETY: nothing of this program is needed after the call; indices are those of `program::TAIL_CALLED`.
    unsafe { maps::PROGRAMS.tail_call(ctx, index) };
    Err(Counter::TailCall)
}

#[inline(always)]
fn to_other(ctx: &XdpContext) -> Outcome {
    tail_call(ctx, program::OTHER_INDEX)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel offers some helpers only to programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
