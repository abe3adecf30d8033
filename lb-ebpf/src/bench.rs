//! What benchmarks run a program by. `BPF_PROG_TEST_RUN` gives every repetition the frame that the last one left, so a
//! program that rewrites would be measured on another path from the second on: this writes the frame anew, of another flow
//! each time, and hands it on. And yardsticks: the least that a cache line costs, and the least that XDP does.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    bench::{StaticNat, Template},
    counters::Counter,
    wire::ethertype,
};

use crate::{
    Outcome,
    frame::{self, Link, TcpPacket, length},
    maps,
    nat::{self, End},
};

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
            let flow = (*template).flow.wrapping_mul((*template).factor);
            let flow = flow.wrapping_add((*template).stride) & (*template).mask;
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

/// A yardstick: one line of the flow's slot, and nothing else. Which flow is next is not known before it has come. Flows are
/// numbered as the frames that `handle` writes.
#[inline(always)]
pub fn line() -> Outcome {
    let template = TEMPLATE.get_ptr_mut(0).ok_or(Counter::TailCall)?;
    // SAFETY: a live map value, used by one benchmark at a time.
    let flow = unsafe { (*template).flow };
    let slot = maps::forward((flow >> 15) as u16, (FIRST_PORT + (flow & 0x7fff)) as u16);
    let slot = slot.ok_or(Counter::UnknownFlow)?;
    // SAFETY: live map values, aligned to 8. A time's top bit is 0, so the flow stays the same.
    unsafe {
        let seen = (&raw const (*slot).last_seen).read_volatile();
        (*template).flow = flow ^ (seen >> 63) as u32;
    }
    Ok(xdp_action::XDP_TX)
}

#[btf_map(name = "bench_static_nat")]
static STATIC_NAT: Array<StaticNat, 1> = Array::new();

/// A yardstick: what a balancer that knows all beforehand does, with one client and one member. It looks nothing up and
/// remembers nothing.
#[inline(always)]
pub fn static_nat(ctx: &XdpContext) -> Outcome {
    let pass = Ok(xdp_action::XDP_PASS);
    let Some(known) = STATIC_NAT.get(0) else { return pass };
    let frame = frame::of(ctx);
    let Some(link) = Link::parse(&frame) else { return pass };
    if link.ethertype != ethertype::IPV4 {
        return pass;
    }
    let Ok(packet) = TcpPacket::parse(&frame, &link, || length(ctx)) else { return pass };
    if packet.destination != known.vip {
        return pass;
    }
    let is_back = packet.source == known.member;
    let (address, mac) =
        if is_back { (known.client, known.client_mac) } else { (known.member, known.member_mac) };
    let from = End { address: known.vip, port: packet.ports.0 };
    let to = End { address, port: packet.ports.1 };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, &known.interface, mac)
    }
}
