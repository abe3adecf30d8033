//! What benchmarks run a program by. `BPF_PROG_TEST_RUN` gives every repetition the frame that the last one left, so a
//! program that rewrites would be measured on another path from the second on: this writes the frame anew, of another flow
//! each time, and hands it on.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::counters::Counter;

use crate::{Outcome, frame, maps};

/// What to write. The first two fields are the agent's in no build: benchmarks set them.
#[repr(C)]
pub struct Template {
    /// The frame's first 64 octets.
    frame: [u32; 16],
    /// Flows, a power of two, less one.
    mask: u32,
    /// From one flow to the next, odd, so that all are visited, in an order that no cache foresees.
    stride: u32,
    /// The flow of the last packet.
    flow: u32,
    /// Offset of the address whose last two octets name the flow's high bits; 0: every packet is the same.
    address: u32,
    /// Offset of the port that names the flow's low 15 bits.
    port: u32,
}

#[btf_map(name = "bench_template")]
static TEMPLATE: Array<Template, 1> = Array::new();
#[btf_map(name = "bench_target")]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// NAT ports, and so flows of a backend, begin here.
const FIRST_PORT: u32 = 16_384;

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = frame::of(ctx);
    let template = TEMPLATE.get_ptr_mut(0).ok_or(Counter::TailCall)?;
    let words = frame.at::<[u32; 16]>(0).ok_or(Counter::Malformed)?;
    // SAFETY: a live map value, used by one benchmark at a time, and `at` checked that 64 octets lie in the frame.
    unsafe {
        let mut word = 0;
        while word < 16 {
            (&raw mut (*words)[word]).write_volatile((*template).frame[word]);
            word += 1;
        }
        let address = (*template).address & 0x3f;
        let port = (*template).port & 0x3f;
        if address != 0 {
            let flow = (*template).flow.wrapping_add((*template).stride) & (*template).mask;
            (*template).flow = flow;
            let low = frame.at::<u16>(address + 2).ok_or(Counter::Malformed)?;
            let port = frame.at::<u16>(port).ok_or(Counter::Malformed)?;
            *low = ((flow >> 15) as u16 + 1).to_be();
            *port = ((FIRST_PORT + (flow & 0x7fff)) as u16).to_be();
        }
        TARGET.tail_call(ctx, 0);
    }
    Err(Counter::TailCall)
}

/// A yardstick: one line of the flow's slot, and nothing else. Flows are numbered as the frames that `handle` writes.
#[inline(always)]
pub fn line() -> Outcome {
    let template = TEMPLATE.get_ptr(0).ok_or(Counter::TailCall)?;
    // SAFETY: a live map value, used by one benchmark at a time.
    let flow = unsafe { (*template).flow };
    let slot = maps::forward((flow >> 15) as u16, (FIRST_PORT + (flow & 0x7fff)) as u16);
    // SAFETY: a live map value, aligned to 8, only read. Volatile: it is read although nothing comes of it.
    let _touched = unsafe { (&raw const (*slot.ok_or(Counter::UnknownFlow)?).last_seen).read_volatile() };
    Ok(xdp_action::XDP_TX)
}
