//! ICMP errors about a flow: what a router or host says of a packet that we sent goes on to the end that the packet came
//! from, in the words of that end (RFC 5508 section 4.2). They never change a flow.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    addr::Port,
    counters::Counter,
    maps::{FLOW_DSR, FlowKey, ReturnKey, ServiceKey},
    quote::{self, Ports, Quote},
};

use crate::{
    Outcome, count,
    frame::{self, Link, forget},
    handover,
    lookup::{forward_entry, record, slot_of},
    maps::{BACKENDS, RETURNS, SERVICE_PORTS, SERVICES},
    nat::{self, End, interface},
    vlan,
};

/// `other` or `other_v6` found that it is an error for a VIP.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let frame = frame::of(ctx);
    let Some(link) = Link::parse(&frame) else { return Ok(xdp_action::XDP_PASS) };
    let link = frame::forget_tags(ctx, &link)?;
    let frame = frame::anew(ctx);
    let quote = Quote::read(&frame, link.ethertype, link.l3)?;
    let (l4, ports) = (forget(quote.l4)? & 0x7f, forget(quote.ports)? & 0xff);
    let ports = frame.at::<Ports>(ports).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that the ports lie in the frame.
    find(&quote, unsafe { (*ports).get() })?;
    let way = handover::onward().ok_or(Counter::TailCall)?;
    if way.as_it_is == 0 {
        let from = End { address: way.from, port: way.from_port };
        let to = End { address: way.to, port: way.to_port };
        // SAFETY: nothing changed the frame since it was read.
        unsafe { quote::rewrite(&frame, link.ethertype, (link.l3, l4), ports, from, to)? };
    }
    let out = interface(way.ifindex).ok_or(Counter::NoNextHop)?;
    count::count(Counter::IcmpTranslated);
    let ethernet = vlan::retag(ctx, &link, way.tags, link.ethertype)?;
    // SAFETY: `retag` vouches for the header.
    unsafe { nat::transmit(ctx, ethernet, out, way.mac) }
}

/// Finds the flow that the quoted packet was of, one that we sent to a backend or to a client, and says (see
/// [`handover::put_onward`]) what its ends are to the end that sent it, and the way there.
#[inline(always)]
fn find(quote: &Quote, (from, to): (Port, Port)) -> Result<(), Counter> {
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
    let slot = slot_of(key, &flow).ok_or(Counter::Icmp)?;
    let backend = slot.backend;
    // SAFETY: a live map value, only read.
    if unsafe { (*slot.forward).flags } & FLOW_DSR != 0 {
        handover::put_onward_as_it_is(&backend.hop);
        return Ok(());
    }
    let from = End { address: backend.address, port: backend.port };
    let to = End { address: backend.source, port: flow.nat_port };
    handover::put_onward(from, to, backend.hop.ifindex, backend.hop.mac, backend.hop.tags);
    Ok(())
}
