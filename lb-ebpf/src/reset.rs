//! The RST that answers a packet, from the end it was sent to: exact for its sender, whose own ACK it carries.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    counters::Counter,
    maps::program,
    tcp,
    wire::{Ethernet, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, Tcp, protocol},
};

use crate::{
    Outcome, count,
    frame::{self, put_mac, reply_length, resize},
    handover, tail_call,
};

/// Octets of the answer: two headers without options.
const TOTAL_V4: u32 = IPV4_LEN + tcp::HEADER_LEN;
const TOTAL_V6: u32 = IPV6_LEN + tcp::HEADER_LEN;

/// Answers a packet that was handed over, which must be no RST; `reason` is counted.
#[inline(always)]
pub fn answer(ctx: &XdpContext, reason: Counter) -> Outcome {
    count::count(reason);
    tail_call(ctx, program::RESET_INDEX)
}

/// Turns the frame into the RST that answers it. No RST answers a RST.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, _) = handover::take(ctx)?;
    let segment = packet.segment.reset().ok_or(Counter::UnknownRst)?;
    let ports = (packet.ports.1.word(), packet.ports.0.word());
    if packet.ip.is_v6 {
        let (from, to) = (packet.destination.words(), packet.source.words());
        let ip = Ipv6::reply(protocol::TCP, tcp::HEADER_LEN as u16, from, to);
        let tcp = Tcp::reply(ports, ip.sum_of_addresses(), &segment);
        return send(ctx, link.l3, Body { ip, tcp });
    }
    let (from, to) = (packet.destination.v4_word(), packet.source.v4_word());
    let ip = Ipv4::reply(protocol::TCP, TOTAL_V4 as u16, from, to);
    let tcp = Tcp::reply(ports, from as u64 + to as u64, &segment);
    send(ctx, link.l3, Body { ip, tcp })
}

/// Puts the answer in the place of the packet, and sends it back the way that it came.
#[inline(always)]
fn send<I>(ctx: &XdpContext, l3: u32, answer: Body<I>) -> Outcome {
    let total = size_of::<Body<I>>() as u32;
    resize(ctx, reply_length(l3, total))?;
    let frame = frame::of(ctx);
    let ethernet = frame.at::<Ethernet>(0).ok_or(Counter::AdjustFailed)?;
    let body = frame.at::<Body<I>>(l3).ok_or(Counter::AdjustFailed)?;
    // SAFETY: `at` checked that both lie in the frame, and they do not overlap.
    unsafe {
        let (source, destination) = ((*ethernet).source, (*ethernet).destination);
        put_mac(&raw mut (*ethernet).source, destination);
        put_mac(&raw mut (*ethernet).destination, source);
        *body = answer;
    }
    // IPv4's answer alone is shorter than the shortest frame.
    if total == TOTAL_V4
        && let Some(padding) = frame.at::<Padding>(l3 + total)
    {
        // SAFETY: `at` checked that the padding lies in the frame.
        unsafe {
            (*padding).low = 0;
            (*padding).high = 0;
        }
    }
    Ok(xdp_action::XDP_TX)
}

#[repr(C)]
struct Body<I> {
    ip: I,
    tcp: Tcp,
}

/// What an untagged answer lacks to the shortest frame.
#[repr(C, packed(2))]
struct Padding {
    low: u32,
    high: u16,
}

const _: () =
    assert!(size_of::<Body<Ipv4>>() == TOTAL_V4 as usize && size_of::<Body<Ipv6>>() == TOTAL_V6 as usize);
