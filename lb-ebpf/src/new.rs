//! A new flow: may it begin, which backend, which NAT port.

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};
use lb_common::{
    claim::State,
    counters::Counter,
    hash,
    maps::{
        ALLOW_SERVICE_BITS, AllowData, BACKEND_USED, Backend, FLOW_DSR, Flow, FlowKey, MAGLEV_SLOTS,
        SERVICE_AFFINITY, SERVICE_ALLOW, SERVICE_DROP, SERVICE_DSR, Service, program,
    },
};

use crate::{
    Outcome, atomic, clock, count,
    established::count_in,
    frame::ingress,
    handover, log,
    maps::{ALLOW, BACKENDS, HALF_OPEN, LAYOUT, LEASE, SERVICES},
    port, reset, signal, suspect, tail_call,
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
    if !has_room() {
        signal::table_full(now);
        return reset::answer(ctx, Counter::TableFull);
    }
    let hash = hash::client(&service.seed, &key.client, Some(key.port));
    let Some((number, backend)) = choose(service, &key, hash, now) else {
        if service.flags & SERVICE_DROP != 0 {
            return Err(Counter::NoBackendDrop);
        }
        return reset::answer(ctx, Counter::NoBackendReset);
    };
    if backend.hop.mac.is_unknown() {
        return Err(Counter::NoNextHop);
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
        established: 0,
        backend: number,
        nat_port: port,
        client_mac,
        flags: if service.flags & SERVICE_DSR != 0 { FLOW_DSR } else { 0 },
    };
    let _an_lru_makes_room = HALF_OPEN.insert(key, flow, 0);
    log::new_flow(ctx, &key, number, port);
    count::count(Counter::FlowNew);
    count::backend(number, |counters| counters.connections += 1);
    count_in(&packet, number);
    handover::put_to_backend(flow.flags, port, backend);
    tail_call(ctx, program::ONWARD_INDEX)
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

/// The backend that the service's Maglev table has for this client, or the next one's if that is suspect.
#[inline(always)]
fn choose(service: &Service, key: &FlowKey, hash: u64, now: u64) -> Option<(u16, &'static Backend)> {
    let hash = if service.flags & SERVICE_AFFINITY != 0 {
        hash::client(&service.seed, &key.client, None)
    } else {
        hash
    };
    let number = suspect::pass_over(key.service, hash::slot(hash, MAGLEV_SLOTS), now);
    let backend = BACKENDS.get(number as u32)?;
    let ours = backend.flags & BACKEND_USED != 0 && backend.service == key.service;
    if ours { Some((number, backend)) } else { None }
}
