//! The maximum segment size that a SYN offers, clamped to what the smaller interface takes, so that no segment needs an
//! answer of `too_big.rs` (RFC 9293 section 3.7.1; RFC 4459 section 3.2).

use core::ffi::c_void;

use aya_ebpf::{helpers::generated, programs::XdpContext};
use lb_common::{
    checksum::Delta,
    tcp,
    wire::{IPV4_LEN, IPV6_LEN},
};

use crate::frame::TcpPacket;

/// Options looked at: 40 octets hold no more that are longer than one octet, and padding by single octets before the MSS.
const MAX_OPTIONS: u32 = 20;
/// Option kinds (RFC 9293 section 3.2).
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// The walk under way. It lies on the caller's stack.
struct Walk {
    ctx: *mut c_void,
    /// Where the next option starts, octets.
    at: u32,
    /// Where the last one ends.
    end: u32,
    /// The option's value, network order; 0: none seen.
    mss: u16,
}

/// Lowers the MSS of a SYN or SYN-ACK to what fits into `mtu` octets of IP.
#[inline(always)]
pub fn clamp(ctx: &XdpContext, packet: &TcpPacket, mtu: u16) {
    let ip_len = if packet.ip.is_v6 { IPV6_LEN } else { IPV4_LEN };
    let fits = mtu.saturating_sub((ip_len + tcp::HEADER_LEN) as u16);
    // SAFETY: `handover::take` checked that the header lies in the frame.
    let header_len = unsafe { (*packet.tcp).header_len() };
    let start = packet.l4 + tcp::HEADER_LEN;
    let mut walk = Walk { ctx: ctx.ctx.cast(), at: start, end: packet.l4 + header_len, mss: 0 };
    let raw: *mut Walk = &mut walk;
    // A SYN without options has nothing to be looked for.
    let options = if header_len > tcp::HEADER_LEN { MAX_OPTIONS } else { 0 };
    // SAFETY: the helper calls `option` with `walk`, which outlives the call.
    unsafe { generated::bpf_loop(options, option as *mut c_void, raw.cast(), 0) };
    let (old, new) = (walk.mss, fits.to_be());
    if old == 0 || u16::from_be(old) <= fits {
        return;
    }
    // SAFETY: the helper checks that the value lies in the frame, and does not move it.
    let stored = unsafe {
        generated::bpf_xdp_store_bytes(ctx.ctx, walk.at + 2, (&raw const new).cast_mut().cast(), 2)
    };
    if stored != 0 {
        return;
    }
    // At an odd place the value's octets are in two words of the sum (RFC 1071 section 2 (B)).
    let delta = if (walk.at - start) & 1 == 0 {
        Delta::new().word(old, new)
    } else {
        Delta::new().word(old.swap_bytes(), new.swap_bytes())
    };
    // SAFETY: as above.
    unsafe { (*packet.tcp).check = delta.apply((*packet.tcp).check) };
}

/// One option; returns 1 to end the loop. By `bpf_loop`, so that the verifier reads it once.
extern "C" fn option(_number: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `clamp` passes a pointer to its `Walk`, to which nothing else refers during the call.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    if walk.at + u32::from(MSS_LEN) > walk.end {
        return 1;
    }
    let mut octets = [0u8; 4];
    // SAFETY: the helper checks that the octets lie in the frame.
    if unsafe { generated::bpf_xdp_load_bytes(walk.ctx.cast(), walk.at, octets.as_mut_ptr().cast(), 4) } != 0
    {
        return 1;
    }
    let [kind, length, high, low] = octets;
    match kind {
        END => return 1,
        NOTHING => walk.at += 1,
        MSS if length == MSS_LEN => {
            walk.mss = u16::from_ne_bytes([high, low]);
            return 1;
        }
        _ if length < 2 => return 1,
        _ => walk.at += u32::from(length),
    }
    0
}
