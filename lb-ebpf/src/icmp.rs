//! ICMP errors about a flow: what a router or host says of a packet that we sent goes on to the end that the packet came
//! from, in the words of that end (RFC 5508 section 4.2). They never change a flow.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::{Addr, Port},
    checksum::Delta,
    counters::Counter,
    maps::{FlowKey, ReturnKey, ServiceKey},
    wire::{IPV6_LEN, Icmp, Ipv4, Ipv6, ethertype, protocol},
};

use crate::{
    Outcome, count,
    frame::{Frame, Link, forget},
    handover::{self, Onward},
    lookup::{forward_entry, record, record_of},
    maps::{BACKENDS, RETURNS, SERVICE_PORTS, SERVICES},
    nat::{self, End, interface},
    vlan,
};

const ICMP_LEN: u32 = size_of::<Icmp>() as u32;

/// `other` or `other_v6` found that it is an error for a VIP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    let Some(link) = Link::parse(&frame) else { return Ok(xdp_action::XDP_PASS) };
    let link = link.forget(ctx)?;
    let frame = Frame::anew(ctx);
    let quote = match link.ethertype {
        ethertype::IPV4 => read_v4(&frame, link.l3)?,
        ethertype::IPV6 => read_v6(&frame, link.l3)?,
        _ => return Ok(xdp_action::XDP_PASS),
    };
    let (l4, ports) = (forget(quote.l4)? & 0x7f, forget(quote.ports)? & 0xff);
    let ports = frame.at::<Ports>(ports).ok_or(Counter::Malformed)?;
    let icmp = frame.at::<Icmp>(l4).ok_or(Counter::Malformed)?;
    find(&quote, ports)?;
    let way = handover::onward().ok_or(Counter::TailCall)?;
    // SAFETY: `at` checked that both lie in the frame, and that what `rewrite` needs does; headers do not overlap.
    unsafe {
        let ports = rewrite_ports(ports, way);
        let said = match link.ethertype {
            ethertype::IPV4 => rewrite_v4(&frame, link.l3, l4, way)?,
            _ => rewrite_v6(&frame, link.l3, l4, way)?,
        };
        (*icmp).check = said.and(ports).apply((*icmp).check);
    }
    let out = interface(way.ifindex).ok_or(Counter::NoNextHop)?;
    count::count(Counter::IcmpTranslated);
    let ethernet = vlan::retag(ctx, &link, way.tags, link.ethertype)?;
    // SAFETY: `retag` vouches for the header.
    unsafe { nat::transmit(ctx, ethernet, out, way.mac) }
}

/// The ends of the quoted packet, and where things are in the frame, octets.
struct Quote {
    source: Addr,
    destination: Addr,
    /// The ICMP header.
    l4: u32,
    /// The quoted packet's ports.
    ports: u32,
}

/// The quoted packet's ports.
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
}

#[inline(always)]
fn read_v4(frame: &Frame, l3: u32) -> Result<Quote, Counter> {
    let outer = frame.at::<Ipv4>(l3).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that the header lies in the frame.
    let outer = unsafe { &*outer };
    let l4 = l3 + outer.header_len();
    let quoted = frame.at::<Ipv4>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: as above.
    let quoted = unsafe { &*quoted };
    // Ours is the quoted packet's source, and the error came to it.
    let ours = quoted.is_sound()
        && quoted.protocol() == protocol::TCP
        && !quoted.is_later_fragment()
        && outer.destination == quoted.source;
    if !ours {
        return Err(Counter::Icmp);
    }
    Ok(Quote {
        source: Addr::from_v4_word(quoted.source),
        destination: Addr::from_v4_word(quoted.destination),
        l4,
        ports: l4 + ICMP_LEN + quoted.header_len(),
    })
}

/// The same. Neither the error nor the packet that it quotes has extension headers: the error's own would have come no
/// further than `other_v6`, and no end sends TCP behind any.
#[inline(always)]
fn read_v6(frame: &Frame, l3: u32) -> Result<Quote, Counter> {
    let l4 = l3 + IPV6_LEN;
    let outer = frame.at::<Ipv6>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv6>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both headers lie in the frame.
    let (outer, quoted) = unsafe { (&*outer, &*quoted) };
    let (source, destination) = (Addr::from_words(quoted.source), Addr::from_words(quoted.destination));
    // The tables have IPv4 addresses as IPv4-mapped ones, which no IPv6 packet has.
    let ours = quoted.next_header() == protocol::TCP
        && outer.destination == quoted.source
        && !source.is_v4()
        && !destination.is_v4();
    if !ours {
        return Err(Counter::Icmp);
    }
    Ok(Quote { source, destination, l4, ports: l4 + ICMP_LEN + IPV6_LEN })
}

/// Gives the quoted packet its ends and the error its destination; who says it stays. Returns what it changed of the
/// error's sum.
///
/// # Safety
/// Nothing else refers to the frame's headers.
#[inline(always)]
unsafe fn rewrite_v4(frame: &Frame, l3: u32, l4: u32, way: &Onward) -> Result<Delta, Counter> {
    let outer = frame.at::<Ipv4>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv4>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both lie in the frame; the second begins 28 octets behind the first or later.
    let (outer, quoted) = unsafe { (&mut *outer, &mut *quoted) };
    let (source, destination) = (way.from.v4_word(), way.to.v4_word());
    let addresses = Delta::new().dword(quoted.source, source).dword(quoted.destination, destination);
    let check = addresses.apply(quoted.check);
    let said = addresses.word(quoted.check, check);
    quoted.check = check;
    quoted.source = source;
    quoted.destination = destination;
    nat::rewrite_v4(outer, Addr::from_v4_word(outer.source), way.from)?;
    Ok(said)
}

/// The same; the error's sum is over the pseudo-header too.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn rewrite_v6(frame: &Frame, l3: u32, l4: u32, way: &Onward) -> Result<Delta, Counter> {
    let outer = frame.at::<Ipv6>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv6>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both lie in the frame; the second begins 48 octets behind the first.
    let (outer, quoted) = unsafe { (&mut *outer, &mut *quoted) };
    let (source, destination) = (way.from.words(), way.to.words());
    let addresses = Delta::new().address(quoted.source, source).address(quoted.destination, destination);
    quoted.source = source;
    quoted.destination = destination;
    Ok(addresses.and(nat::rewrite_v6(outer, Addr::from_words(outer.source), way.from)?))
}

/// # Safety
/// `ports` lies in the frame.
#[inline(always)]
unsafe fn rewrite_ports(ports: *mut Ports, way: &Onward) -> Delta {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        let (source, destination) = (way.from_port.word(), way.to_port.word());
        let delta = Delta::new().word((*ports).source, source).word((*ports).destination, destination);
        (*ports).source = source;
        (*ports).destination = destination;
        delta
    }
}

/// Finds the flow that the quoted packet was of, one that we sent to a backend or to a client, and says (see
/// [`handover::put_onward`]) what its ends are to the end that sent it, and the way there.
#[inline(always)]
fn find(quote: &Quote, ports: *const Ports) -> Result<(), Counter> {
    // SAFETY: the caller's `at` checked that the ports lie in the frame.
    let (from, to) = unsafe { (Port::from_word((*ports).source), Port::from_word((*ports).destination)) };
    let key = ReturnKey::new(quote.source, quote.destination, to);
    // SAFETY: a backend's number is written once, before the key.
    if let Some(&number) = unsafe { RETURNS.get(key) } {
        return to_client(number as u16, from);
    }
    let key = ServiceKey::new(quote.source, from);
    // SAFETY: a service's number is written once, before the key.
    let &service = unsafe { SERVICE_PORTS.get(key) }.ok_or(Counter::Icmp)?;
    to_backend(&FlowKey { client: quote.destination, port: to, service: service as u16 })
}

#[inline(always)]
fn to_client(number: u16, port: Port) -> Result<(), Counter> {
    let (record, claim) = record(number, port.get()).ok_or(Counter::Icmp)?;
    let backend = BACKENDS.get(number as u32).ok_or(Counter::Icmp)?;
    let service = SERVICES.get(backend.service as u32).ok_or(Counter::Icmp)?;
    if !claim.is_live() {
        return Err(Counter::Icmp);
    }
    // SAFETY: a live map value; identity is written before the claim is live. A record that goes to another client
    // meanwhile sends one error to a host that does not know the connection.
    let record = unsafe { &*record };
    let from = End { address: record.client, port: record.client_port };
    let to = End { address: service.vip, port: service.port };
    handover::put_onward(from, to, record.ifindex, record.client_mac, [record.outer_tag, record.inner_tag]);
    Ok(())
}

#[inline(always)]
fn to_backend(key: &FlowKey) -> Result<(), Counter> {
    let flow = forward_entry(key).ok_or(Counter::Icmp)?;
    // SAFETY: a live map value, only read.
    let flow = unsafe { &*flow };
    let (_, _, backend) = record_of(key, flow).ok_or(Counter::Icmp)?;
    let from = End { address: backend.address, port: backend.port };
    let to = End { address: backend.source, port: flow.nat_port };
    handover::put_onward(from, to, backend.hop.ifindex, backend.hop.mac, backend.hop.tags);
    Ok(())
}
