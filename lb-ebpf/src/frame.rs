//! The frame under way, in the kernel: where it lies, how it is cut to size, and what the verifier is to forget of it.

use aya_ebpf::{EbpfContext as _, helpers::generated, programs::XdpContext};
pub use lb_common::frame::{Frame, Ip, Link, MAX_L4, TcpPacket, extensions};
use lb_common::{
    addr::{Addr, Mac},
    counters::Counter,
};

use crate::maps::FORGET;

/// The frame's linear part.
#[inline(always)]
pub fn of(ctx: &XdpContext) -> Frame {
    Frame::between(ctx.data(), ctx.data_end())
}

/// The same, read again for sure: the verifier knows by a pointer how far it was checked, and takes two ways that checked
/// it differently far for two states.
#[inline(always)]
pub fn anew(ctx: &XdpContext) -> Frame {
    let raw = ctx.ctx;
    #[cfg(target_arch = "bpf")]
    let raw = {
        let mut raw = raw;
        // SAFETY: the pointer stays what it is, which the compiler does not know.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) raw, options(nomem, nostack)) };
        raw
    };
    of(&XdpContext::new(raw))
}

/// The same link, without what the verifier knows of the number of tags (see [`forget`]). The frame is to be taken
/// [`anew`]: it knows by its pointers too how far they were checked.
#[inline(always)]
pub fn forget_tags(ctx: &XdpContext, link: &Link) -> Result<Link, Counter> {
    Ok(Link {
        ethernet: anew(ctx).at(0).ok_or(Counter::Malformed)?,
        ethertype: link.ethertype,
        l3: forget(link.l3)? & 0x1f,
        tags: zerocopy::transmute!(forget(zerocopy::transmute!(link.tags))?),
    })
}

/// Length of the frame, also of one that does not lie in one piece, octets.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> u32 {
    // SAFETY: the helper takes the context that the program was called with.
    unsafe { generated::bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// The interface that the frame came in by.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

/// Writes a MAC into a frame, word by word: a copy of six octets would become a call to `memmove`, which the verifier
/// does not take.
///
/// # Safety
/// `place` lies in the frame, at an even address.
#[inline(always)]
pub unsafe fn put_mac(place: *mut Mac, mac: Mac) {
    let words: [u16; 3] = zerocopy::transmute!(mac);
    let place = place.cast::<u16>();
    // SAFETY: the caller vouches for the place, which is six octets long.
    unsafe {
        place.write_volatile(words[0]);
        place.add(1).write_volatile(words[1]);
        place.add(2).write_volatile(words[2]);
    }
}

/// Copies an address word by word: as one copy it becomes a call of `memmove`, which a BPF program does not have.
///
/// # Safety
/// Both are valid and aligned to 4.
#[inline(always)]
pub unsafe fn put_address(to: *mut Addr, from: *const Addr) {
    let (to, from) = (to.cast::<u32>(), from.cast::<u32>());
    // SAFETY: an address has four words; the caller vouches for the pointers.
    unsafe {
        to.write_volatile(from.read_volatile());
        to.add(1).write_volatile(from.add(1).read_volatile());
        to.add(2).write_volatile(from.add(2).read_volatile());
        to.add(3).write_volatile(from.add(3).read_volatile());
    }
}

/// The same number, computed here: the compiler would move it behind branches, and the verifier walk it once for each.
#[inline(always)]
pub fn here(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = number;
        // SAFETY: an assignment of a register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(nostack)) };
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// The same number, by way of a map: the verifier forgets by which branches it came to be, and walks what follows once and
/// not once for each.
#[inline(always)]
pub fn forget(number: u32) -> Result<u32, Counter> {
    let slot = FORGET.get_ptr_mut(0).ok_or(Counter::TailCall)?;
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        slot.write_volatile(number);
        Ok(slot.read_volatile())
    }
}

/// Shortens or lengthens the frame to `wanted` octets. Every pointer into it is void afterwards.
#[inline(always)]
pub fn resize(ctx: &XdpContext, wanted: u32) -> Result<(), Counter> {
    let delta = wanted as i32 - length(ctx) as i32;
    // SAFETY: the helper takes the context that the program was called with, and checks the length itself.
    let done = delta == 0 || unsafe { generated::bpf_xdp_adjust_tail(ctx.as_ptr().cast(), delta) } == 0;
    if done { Ok(()) } else { Err(Counter::AdjustFailed) }
}

/// Length of a reply of `total` octets of IP in a frame whose IP header starts at `l3`.
#[inline(always)]
pub fn reply_length(l3: u32, total: u32) -> u32 {
    let length = l3 + total;
    if length < lb_common::wire::MIN_FRAME { lb_common::wire::MIN_FRAME } else { length }
}
