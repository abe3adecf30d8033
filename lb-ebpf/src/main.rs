//! The XDP program of etcd-lb.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

#[xdp(frags)]
fn xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Passes everything. A veth delivers what its peer's program transmits only if it has a program too: the lab attaches
/// this one to the bridge's ports.
#[xdp(frags)]
fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
