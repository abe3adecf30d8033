//! What one program found out about a packet, for the program that it hands the packet to.
//!
//! It lies in a per-CPU map, since the stack does not outlive a tail call. Nothing else runs on the CPU between the two:
//! an XDP program is not interrupted by another one.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    addr::{Addr, Mac, Port},
    claim::Claim,
    counters::Counter,
    maps::{Backend, FLOW_DSR, FlowKey, NextHop},
    tcp::Segment,
    wire::{Ethernet, Ipv6, Tcp},
};

use crate::{
    Outcome,
    frame::{self, Ip, Link, TcpPacket, put_address, put_mac},
    maps::HANDOVER,
    nat::End,
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
    /// The backend that `choose` or `adopt` chose, for `new_flow`, and [`ADOPTS`].
    chosen: u32,
    /// Of a flow that is to be adopted: `flow_asked` of the backends that were asked.
    asked: u32,
    /// The client's hash, by which it was chosen.
    hash: u64,
    onward: Onward,
    change: Change,
    /// When the backend was chosen, ns.
    now: u64,
}

/// Where a packet is sent, for `onward`.
#[repr(C)]
pub struct Onward {
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    pub ifindex: u32,
    pub tags: [u16; 2],
    pub mac: Mac,
    /// Not 0: the packet keeps its ends, and its TTL.
    pub as_it_is: u16,
}

/// What a packet says of its flow, for `life`.
#[repr(C)]
pub struct Change {
    /// The claim as the packet found it; once the step is taken, as it was before.
    pub claim: u64,
    /// The claim once the step is taken.
    pub after: u64,
    /// The step that the packet says.
    pub step: u64,
    /// When the flow's SYN came, ns: of use while it is not answered.
    pub since: u64,
    pub key: FlowKey,
    /// The flow's slot.
    pub nat_port: Port,
    pub backend: u16,
}

/// In [`Handover::chosen`]: the flow is no new one, but adopted. `asked` says it too, but to compare that with 0 makes the verifier
/// walk half as much of `new_flow` again.
const ADOPTS: u32 = 1 << 16;

/// Says which backend was chosen for this CPU's packet, by the client's hash, and when. `asked`: of a flow that is to be adopted
/// `flow_asked` of the backends that were asked, this one included; 0: the flow is a new one.
#[inline(always)]
pub fn put_chosen(backend: u16, hash: u64, now: u64, asked: u16) {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return };
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        (*slot).chosen = backend as u32 | if asked != 0 { ADOPTS } else { 0 };
        (*slot).asked = asked as u32;
        (*slot).hash = hash;
        (*slot).now = now;
    }
}

/// The backends that were asked for this CPU's packet's flow.
#[inline(always)]
pub fn asked() -> u16 {
    // SAFETY: a live map value, and this CPU's own.
    HANDOVER.get_ptr_mut(0).map_or(0, |slot| unsafe { (*slot).asked as u16 })
}

/// When the backend of this CPU's packet was chosen.
#[inline(always)]
pub fn now() -> Option<u64> {
    // SAFETY: a live map value, and this CPU's own.
    HANDOVER.get_ptr_mut(0).map(|slot| unsafe { (*slot).now })
}

/// The client's hash, by which a backend was chosen for this CPU's packet.
#[inline(always)]
pub fn hash() -> Option<u64> {
    // SAFETY: a live map value, and this CPU's own.
    HANDOVER.get_ptr_mut(0).map(|slot| unsafe { (*slot).hash })
}

/// The backend that was chosen for this CPU's packet, and whether its flow is adopted.
#[inline(always)]
pub fn chosen() -> Option<(u16, bool)> {
    // SAFETY: a live map value, and this CPU's own.
    let chosen = HANDOVER.get_ptr_mut(0).map(|slot| unsafe { (*slot).chosen })?;
    Some((chosen as u16, chosen & ADOPTS != 0))
}

/// Says where this CPU's packet is to be sent.
#[inline(always)]
pub fn put_onward(from: End, to: End, ifindex: u32, mac: Mac, tags: [u16; 2]) {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return };
    // SAFETY: a live map value, and this CPU's own; addresses lie there aligned to 4.
    unsafe {
        let onward = &raw mut (*slot).onward;
        put_address(&raw mut (*onward).from, &raw const from.address);
        put_address(&raw mut (*onward).to, &raw const to.address);
        (*onward).from_port = from.port;
        (*onward).to_port = to.port;
        (*onward).ifindex = ifindex;
        (*onward).tags = tags;
        put_mac(&raw mut (*onward).mac, mac);
        (*onward).as_it_is = 0;
    }
}

/// Says where this CPU's packet is to be sent as it is.
#[inline(always)]
pub fn put_onward_as_it_is(hop: &NextHop) {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return };
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        let onward = &raw mut (*slot).onward;
        (*onward).ifindex = hop.ifindex;
        (*onward).tags = hop.tags;
        put_mac(&raw mut (*onward).mac, hop.mac);
        (*onward).as_it_is = 1;
    }
}

/// Says that a client's packet is to be sent to a flow's backend.
#[inline(always)]
pub fn put_to_backend(flow_flags: u16, nat_port: Port, backend: &Backend) {
    if flow_flags & FLOW_DSR != 0 {
        return put_onward_as_it_is(&backend.hop);
    }
    let from = End { address: backend.source, port: nat_port };
    let to = End { address: backend.address, port: backend.port };
    put_onward(from, to, backend.hop.ifindex, backend.hop.mac, backend.hop.tags);
}

/// Says what this CPU's packet says of its flow.
#[inline(always)]
pub fn put_change(key: &FlowKey, (backend, nat_port): (u16, Port), claim: Claim, step: u64, since: u64) {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return };
    // SAFETY: a live map value, and this CPU's own; addresses lie there aligned to 4.
    unsafe {
        let change = &raw mut (*slot).change;
        (*change).claim = claim.0;
        (*change).step = step;
        (*change).since = since;
        put_address(&raw mut (*change).key.client, &raw const key.client);
        (*change).key.port = key.port;
        (*change).key.service = key.service;
        (*change).nat_port = nat_port;
        (*change).backend = backend;
    }
}

/// Says what became of the claim.
#[inline(always)]
pub fn put_changed(before: u64, after: u64) {
    let Some(slot) = HANDOVER.get_ptr_mut(0) else { return };
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        (&raw mut (*slot).change.claim).write_volatile(before);
        (&raw mut (*slot).change.after).write_volatile(after);
    }
}

/// What became of the claim, before and after, and the step. The verifier does not know by which way they came to be, and
/// so walks what follows once and not once for each.
#[inline(always)]
pub fn changed() -> Option<(Claim, Claim, u64)> {
    let slot = HANDOVER.get_ptr_mut(0)?;
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        let before = (&raw const (*slot).change.claim).read_volatile();
        let after = (&raw const (*slot).change.after).read_volatile();
        Some((Claim(before), Claim(after), (&raw const (*slot).change.step).read_volatile()))
    }
}

/// Where this CPU's packet is to be sent.
#[inline(always)]
pub fn onward() -> Option<&'static Onward> {
    // SAFETY: a live map value, and this CPU's own; nothing writes it until the packet is sent.
    HANDOVER.get_ptr_mut(0).map(|slot| unsafe { &(*slot).onward })
}

/// What this CPU's packet says of its flow.
#[inline(always)]
pub fn change() -> Option<&'static Change> {
    // SAFETY: a live map value, and this CPU's own; nothing writes it until the packet is sent.
    HANDOVER.get_ptr_mut(0).map(|slot| unsafe { &(*slot).change })
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
    let frame = frame::of(ctx);
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

const _: () = assert!(frame::MAX_L4 <= 0x1ff);
