//! The RST that answers a packet, from the end it was sent to: exact for its sender, whose own ACK it carries.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    counters::Counter,
    maps::program,
    tcp,
    wire::{Ethernet, IPV4_LEN, Ipv4, Tcp, protocol},
};

use crate::{
    Outcome, count,
    frame::{Frame, put_mac, reply_length, resize},
    handover, tail_call,
};

/// Octets of the answer: two headers without options.
const TOTAL: u32 = IPV4_LEN + tcp::HEADER_LEN;

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
    let l3 = link.l3;
    let (from, to) = (packet.destination.v4_word(), packet.source.v4_word());
    let ports = (packet.ports.1.word(), packet.ports.0.word());
    let ip = Ipv4::reply(protocol::TCP, TOTAL as u16, from, to);
    let tcp = Tcp::reply_v4(ports, (from, to), &segment);
    resize(ctx, reply_length(l3, TOTAL))?;
    let frame = Frame::new(ctx);
    let ethernet = frame.at::<Ethernet>(0).ok_or(Counter::AdjustFailed)?;
    let body = frame.at::<Body>(l3).ok_or(Counter::AdjustFailed)?;
    // SAFETY: `at` checked that both lie in the frame, and they do not overlap.
    unsafe {
        let (source, destination) = ((*ethernet).source, (*ethernet).destination);
        put_mac(&raw mut (*ethernet).source, destination);
        put_mac(&raw mut (*ethernet).destination, source);
        (*body).ip = ip;
        (*body).tcp = tcp;
    }
    if let Some(padding) = frame.at::<Padding>(l3 + TOTAL) {
        // SAFETY: `at` checked that the padding lies in the frame.
        unsafe {
            (*padding).low = 0;
            (*padding).high = 0;
        }
    }
    Ok(xdp_action::XDP_TX)
}

#[repr(C)]
struct Body {
    ip: Ipv4,
    tcp: Tcp,
}

/// What an untagged answer lacks to the shortest frame.
#[repr(C, packed(2))]
struct Padding {
    low: u32,
    high: u16,
}
