//! What one program found out about a packet, for the program that it hands the packet to.
//!
//! It lies in a per-CPU map, since the stack does not outlive a tail call. Nothing else runs on the CPU between the two:
//! an XDP program is not interrupted by another one.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    addr::{Addr, Port},
    counters::Counter,
    tcp::Segment,
    wire::{Ethernet, Ipv6, Tcp},
};

use crate::{
    Outcome,
    frame::{Frame, Ip, Link, TcpPacket},
    maps::HANDOVER,
    tail_call,
};

/// A TCP packet that was found sound, and the service or backend that it is for or from.
#[repr(C)]
pub struct Handover {
    source: Addr,
    destination: Addr,
    ports: (Port, Port),
    tags: [u16; 2],
    l3: u32,
    l4: u32,
    seq: u32,
    ack: u32,
    payload: u32,
    length: u32,
    number: u16,
    flags: u8,
    is_v6: u8,
}

/// Hands a TCP packet to another program; comes back only if that is not loaded.
#[inline(always)]
pub fn to(ctx: &XdpContext, link: &Link, packet: &TcpPacket, number: u16, program: u32) -> Outcome {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return Err(Counter::TailCall) };
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        (*slot).source = packet.source;
        (*slot).destination = packet.destination;
        (*slot).ports = packet.ports;
        (*slot).tags = link.tags;
        (*slot).l3 = link.l3;
        (*slot).l4 = packet.l4;
        (*slot).seq = packet.segment.seq;
        (*slot).ack = packet.segment.ack;
        (*slot).payload = packet.segment.payload;
        (*slot).length = packet.length;
        (*slot).number = number;
        (*slot).flags = packet.segment.flags;
        (*slot).is_v6 = packet.ip.is_v6 as u8;
    }
    tail_call(ctx, program)
}

/// Takes the packet over: its headers, and the number of the service or backend.
#[inline(always)]
pub fn take(ctx: &XdpContext) -> Result<(Link, TcpPacket, u16), Counter> {
    let slot = HANDOVER.get_ptr_mut(0).ok_or(Counter::TailCall)?;
    // SAFETY: a live map value, and this CPU's own.
    let slot = unsafe { &*slot };
    // The masks change nothing: they tell the verifier what the first program knew. 14 + 2 tags; `frame::MAX_L4`.
    let (l3, l4) = (slot.l3 & 0x1f, slot.l4 & 0x1ff);
    let frame = Frame::new(ctx);
    let ethernet = frame.at::<Ethernet>(0).ok_or(Counter::Malformed)?;
    // IPv6's header is as long as IPv4's and TCP's together, so either family has it.
    let ip = Ip { start: frame.at::<Ipv6>(l3).ok_or(Counter::Malformed)?, is_v6: slot.is_v6 != 0 };
    let tcp = frame.at::<Tcp>(l4).ok_or(Counter::Malformed)?;
    let link = Link { ethernet, ethertype: 0, l3, tags: slot.tags };
    let packet = TcpPacket {
        ip,
        tcp,
        l4,
        source: slot.source,
        destination: slot.destination,
        ports: slot.ports,
        length: slot.length,
        segment: Segment { seq: slot.seq, ack: slot.ack, payload: slot.payload, flags: slot.flags },
    };
    Ok((link, packet, slot.number))
}

const _: () = assert!(crate::frame::MAX_L4 <= 0x1ff);
