//! The program of `etcd-lb capture`: it takes the entry's place in the links while packets are captured, keeps what each
//! packet is, calls the entry, and tells what became of it. An object of its own, loaded only then.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(clippy::needless_pass_by_value, reason = "the signature that the macro `xdp` asks for")]

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, PerCpuArray, ProgramArray, RingBuf},
    helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_output, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::capture::{self, Ends, HEAD, MAX_SNAP, RING, Record, Settings};

/// The packet under way. XDP programs do not interrupt each other.
#[repr(C)]
pub struct Scratch {
    /// What goes to the ring buffer: the record, then the octets before, then those after.
    record: Record,
    octets: [u8; 2 * MAX_SNAP],
    /// The beginnings of both, for the filter.
    was: [u8; HEAD],
    is: [u8; HEAD],
}

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "entry")]
static ENTRY: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map(name = "lost")]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map(name = "records")]
static RECORDS: RingBuf<Record, RING> = RingBuf::new();

#[xdp(frags)]
fn capture(ctx: XdpContext) -> u32 {
    let ctx = ctx.ctx;
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_ns() } > settings.until {
        return entry(ctx, settings.missing);
    }
    // SAFETY: a live map value, this CPU's own.
    let scratch = unsafe { &mut *scratch };
    scratch.record.before = length(ctx);
    scratch.record.before_kept = keep(ctx, &mut scratch.octets, 0, settings.snap) as u16;
    keep_head(ctx, &mut scratch.was);
    let verdict = entry(ctx, settings.missing);
    tell(ctx, settings, scratch, verdict);
    verdict
}

/// The XDP program. A function of its own, because what a tail call leads to returns to the caller of the function that
/// made it. Compiler and verifier know nothing of that: to them `missing` is all that is ever returned. Therefore it is
/// hidden from the one, and not a constant to the other, or they would do away with what asks for another verdict.
#[inline(never)]
fn entry(ctx: *mut xdp_md, missing: u32) -> u32 {
    // SAFETY: nothing of this function is needed after the call.
    unsafe { ENTRY.tail_call(&XdpContext::new(ctx), 0) };
    #[cfg(target_arch = "bpf")]
    let missing = {
        let mut missing = missing;
        // SAFETY: an assignment of a register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) missing, options(nostack)) };
        missing
    };
    missing
}

/// If the packet is asked for, tells of it. A function of its own: while [`entry`] runs, little stack may be in use.
#[inline(never)]
fn tell(ctx: *mut xdp_md, settings: &Settings, scratch: &mut Scratch, verdict: u32) {
    let record = &mut scratch.record;
    record.after = length(ctx);
    record.verdict = verdict;
    keep_head(ctx, &mut scratch.is);
    let untouched = record.before == record.after && same(&scratch.was, &scratch.is);
    if verdict == xdp_action::XDP_PASS && untouched && settings.passed == 0 {
        return;
    }
    let (before, after) = (Ends::of(&scratch.was, record.before), Ends::of(&scratch.is, record.after));
    if !capture::concerns(settings.client, before, after)
        || !capture::concerns(settings.backend, before, after)
    {
        return;
    }
    let before_kept = bounded(u32::from(record.before_kept));
    // A dropped packet is what it was.
    let after_kept = if verdict > xdp_action::XDP_DROP {
        keep(ctx, &mut scratch.octets, before_kept, settings.snap)
    } else {
        0
    };
    record.after_kept = after_kept as u16;
    // SAFETY: the context that the program was called with.
    unsafe {
        record.ifindex = (*ctx).ingress_ifindex;
        record.queue = (*ctx).rx_queue_index;
        record.time = bpf_ktime_get_ns();
    }
    let size = size_of::<Record>() as u32 + before_kept + bounded(after_kept);
    let from = (&raw mut *record).cast();
    // SAFETY: the record and the octets behind it lie in one map value, and the two together have at least this size.
    let full =
        unsafe { bpf_ringbuf_output((&raw const RECORDS).cast_mut().cast(), from, size.into(), 0) } != 0;
    if let (true, Some(lost)) = (full, LOST.get_ptr_mut(0)) {
        // SAFETY: a live map value, this CPU's own.
        unsafe { *lost += 1 };
    }
}

/// Copies the packet to `at`, at most [`MAX_SNAP`], at most `snap` octets; how many.
#[inline(always)]
fn keep(ctx: *mut xdp_md, octets: &mut [u8; 2 * MAX_SNAP], at: u32, snap: u32) -> u32 {
    let (length, at) = (length(ctx), bounded(at));
    let wanted = one_to::<MAX_SNAP>(bounded(if length < snap { length } else { snap }));
    // SAFETY: both `at` and `wanted` are at most half of what there is room for.
    let to = unsafe { octets.as_mut_ptr().add(at as usize) };
    // SAFETY: as above; the helper checks what it reads.
    if unsafe { bpf_xdp_load_bytes(ctx, 0, to.cast(), wanted) } == 0 { wanted } else { 0 }
}

/// Copies the packet's beginning; zeros where it is shorter.
#[inline(always)]
fn keep_head(ctx: *mut xdp_md, head: &mut [u8; HEAD]) {
    let words = head.as_mut_ptr().cast::<u64>();
    let mut word = 0;
    while word < HEAD / 8 {
        // SAFETY: within the head, which is 8-aligned in its struct.
        unsafe { words.add(word).write_volatile(0) };
        word += 1;
    }
    let length = length(ctx);
    let wanted = one_to::<HEAD>(if length < HEAD as u32 { length } else { HEAD as u32 });
    // SAFETY: at most HEAD octets; the helper checks what it reads.
    unsafe { bpf_xdp_load_bytes(ctx, 0, words.cast(), wanted) };
}

/// A number of 1 to `MOST`, a power of two, in a way that every verifier follows: that of Linux 6.1 does not learn from a
/// comparison with zero. A packet has 14 octets at least, so none is 0.
#[inline(always)]
fn one_to<const MOST: usize>(octets: u32) -> u32 {
    let less = u64::from(octets.wrapping_sub(1));
    #[cfg(target_arch = "bpf")]
    let less = {
        let mut less = less;
        // SAFETY: arithmetic in a register. The compiler, which knows the range, would leave it out.
        unsafe {
            core::arch::asm!("{0} &= {1}", inout(reg) less, const MOST - 1, options(pure, nomem, nostack));
        }
        less
    };
    less as u32 + 1
}

#[inline(always)]
fn same(a: &[u8; HEAD], b: &[u8; HEAD]) -> bool {
    let (a, b) = (a.as_ptr().cast::<u64>(), b.as_ptr().cast::<u64>());
    let (mut word, mut differs) = (0, 0);
    while word < HEAD / 8 {
        // SAFETY: within the heads, which are 8-aligned in their struct.
        differs |= unsafe { *a.add(word) ^ *b.add(word) };
        word += 1;
    }
    differs == 0
}

/// Octets of the packet, also of one that does not lie in one piece.
#[inline(always)]
fn length(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the context that the program was called with.
    unsafe { bpf_xdp_get_buff_len(ctx) as u32 }
}

/// At most [`MAX_SNAP`], in a way that the verifier follows.
#[inline(always)]
fn bounded(octets: u32) -> u32 {
    if octets > MAX_SNAP as u32 { MAX_SNAP as u32 } else { octets }
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
