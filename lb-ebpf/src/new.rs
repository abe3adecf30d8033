//! A new flow: may it begin, which backend, which NAT port.

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};
use lb_common::{
    claim::State,
    counters::Counter,
    hash,
    maps::{ALLOW_SERVICE_BITS, AllowData, Flow, FlowKey, SERVICE_ALLOW, SERVICE_DROP},
    pending::Window,
};

use crate::{
    Outcome, atomic, choose, clients, clock, count,
    established::count_in,
    frame::ingress,
    handover, log,
    maps::{ALLOW, HALF_OPEN, LAYOUT, LEASE, SERVICES},
    nat::{self, End},
    port, reset,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, service_number) = handover::take(ctx)?;
    let key = FlowKey { client: packet.source, port: packet.ports.0, service: service_number };
    let service = SERVICES.get(key.service as u32).ok_or(Counter::NoBackendDrop)?;
    let now = clock::exact();
    if !LEASE.get(0).is_some_and(|lease| lease.holds(now)) {
        return Err(Counter::Fenced);
    }
    if service.flags & SERVICE_ALLOW != 0 && !is_allowed(&key) {
        return Err(Counter::NotAllowed);
    }
    if service.max_flows_per_client != 0 && clients::is_at_limit(service, &key) {
        return reset::answer(ctx, Counter::ClientLimit);
    }
    if !has_room() {
        return reset::answer(ctx, Counter::TableFull);
    }
    let hash = hash::client(&service.seed, &key.client, Some(key.port));
    let window = Window::at(now);
    let (number, backend) = match choose::choose(service, &key, hash, window) {
        Ok(chosen) => chosen,
        Err(Counter::NoBackendReset) if service.flags & SERVICE_DROP != 0 => {
            return Err(Counter::NoBackendDrop);
        }
        Err(reason) => return reset::answer(ctx, reason),
    };
    if backend.hop.mac.is_unknown() {
        return Err(Counter::NoNextHop);
    }
    if backend.hop.tags != link.tags {
        return Err(Counter::Vlan);
    }
    let Some((port, record, claim)) = port::claim(number, &key, hash, now) else {
        return reset::answer(ctx, Counter::NatPortsExhausted);
    };
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let client_mac = unsafe { (*link.ethernet).source };
    // SAFETY: a live map value, and by the claim this CPU's own until the state is no longer `Claiming`.
    unsafe {
        (*record).last_seen = now;
        (*record).client = key.client;
        (*record).client_port = key.port;
        (*record).outer_tag = link.tags[0];
        (*record).inner_tag = link.tags[1];
        (*record).ifindex = ingress(ctx);
        (*record).client_mac = client_mac;
        (*record).last_ack = 0;
        (*record).epoch = backend.epoch;
        (*record).edge = 0;
        (*record).client_edge = packet.segment.seq_end();
        // A full barrier: whoever sees the new state sees the identity.
        atomic::compare_exchange(&raw mut (*record).claim, claim.0, claim.to(State::HalfOpen).0);
    }
    let flow = Flow {
        last_seen: now,
        generation: claim.generation(),
        epoch: backend.epoch,
        last_ack: 0,
        edge: packet.segment.seq_end(),
        begun: window.number(),
        backend: number,
        nat_port: port,
        client_mac,
        flags: 0,
    };
    let _an_lru_makes_room = HALF_OPEN.insert(key, flow, 0);
    log::new_flow(ctx, &key, number, port);
    count::count(Counter::FlowNew);
    count::backend(number, |counters| counters.connections += 1);
    count_in(&packet, number);
    let from = End { address: backend.source, port };
    let to = End { address: backend.address, port: backend.port };
    // SAFETY: `TcpPacket::parse` and `Link::parse` checked that the headers lie in the frame, which did not move since.
    unsafe {
        nat::rewrite(packet.ip, packet.tcp, from, to)?;
        nat::transmit(ctx, link.ethernet, backend.hop.ifindex, backend.hop.mac)
    }
}

#[inline(always)]
fn is_allowed(key: &FlowKey) -> bool {
    let data = AllowData { service: (key.service as u32).to_be_bytes(), address: key.client };
    ALLOW.get(&Key::new(ALLOW_SERVICE_BITS + 128, data)).is_some()
}

/// Whether fewer than `max_flows` are established.
#[inline(always)]
fn has_room() -> bool {
    match (LAYOUT.get(0), count::established()) {
        (Some(layout), Some(established)) => established < layout.max_flows as i64,
        _ => false,
    }
}
