//! A new flow whose backend is chosen, or one that is adopted: its NAT port, its record, its forward entry.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    claim::{self, State},
    counters::Counter,
    maps::{BACKEND_USED, FLOW_DSR, Flow, FlowKey, Gate, SERVICE_DSR, age_stamp, program},
    nat,
};

use crate::{
    Outcome, atomic, count,
    established::count_in,
    frame::{here, put_address, put_mac},
    gateway, handover, log,
    maps::{BACKENDS, HALF_OPEN, SERVICES, forward, record},
    port, reset, tail_call,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, service_number) = handover::take(ctx)?;
    let key = FlowKey { client: packet.source, port: packet.ports.0, service: service_number };
    let service = SERVICES.get(key.service as u32).ok_or(Counter::NoBackendDrop)?;
    let hash = here(nat::hash(handover::hash().ok_or(Counter::TailCall)?, key.port.get()));
    let (number, adopts) = handover::chosen().ok_or(Counter::TailCall)?;
    let backend = BACKENDS.get(number as u32).ok_or(Counter::NoBackendDrop)?;
    if backend.flags & BACKEND_USED == 0 || backend.service != key.service {
        // It left just now.
        return Err(Counter::NoBackendDrop);
    }
    touch(number, key.port.get());
    let now = handover::now().ok_or(Counter::TailCall)?;
    if backend.hop.mac.is_unknown() {
        return Err(Counter::NoNextHop);
    }
    let Some((port, record, claim)) = port::claim(number, &key, (hash, service.nat), now, adopts) else {
        if adopts {
            return Err(Counter::TakeoverGrace);
        }
        return reset::answer(ctx, Counter::NatPortsExhausted);
    };
    let (ifindex, mac) = gateway::toward_client(ctx, &link, &key.client);
    // SAFETY: `Link::parse` checked that the header lies in the frame.
    let client_mac = unsafe { (*link.ethernet).source };
    // Without a branch, which would double what the verifier walks.
    let if_adopted = 0u32.wrapping_sub(adopts as u32);
    let half_open = claim.to(State::HalfOpen).with(claim::ADOPTED & if_adopted as u64);
    let dsr = if service.flags & SERVICE_DSR != 0 { FLOW_DSR } else { 0 };
    let forward = forward(number, port.get()).ok_or(Counter::NoBackendDrop)?;
    // SAFETY: live map values, and by the claim this CPU's own until the state is no longer `Claiming`.
    unsafe {
        // The gate first: nobody takes the former owner's established path into what follows.
        (&raw mut (*forward).gate).write_volatile(Gate::closed(claim.generation()).0);
        (*forward).last_seen = now;
        put_address(&raw mut (*forward).client, &raw const key.client);
        (*forward).client_port = key.port;
        (*forward).service = key.service;
        (*forward).epoch = backend.epoch;
        (*forward).last_ack = packet.segment.ack & if_adopted;
        (*forward).edge = packet.segment.seq_end();
        // Of an adopted one 0, long ago: no handshake under way is counted done by it.
        (*forward).since = age_stamp(now) & !if_adopted;
        put_mac(&raw mut (*forward).client_mac, client_mac);
        (*forward).flags = dsr;
        (*record).last_seen = now;
        (*record).client = key.client;
        (*record).client_port = key.port;
        (*record).outer_tag = link.tags[0];
        (*record).inner_tag = link.tags[1];
        (*record).ifindex = ifindex;
        (*record).client_mac = mac;
        (*record).last_ack = 0;
        (*record).epoch = backend.epoch;
        (*record).edge = 0;
        (*record).client_edge = packet.segment.seq_end();
        // A full barrier: whoever sees the new state sees the identity.
        atomic::compare_exchange(&raw mut (*record).claim, claim.0, half_open.0);
    }
    let flow = Flow::new(number, port, claim.generation(), handover::asked());
    let _an_lru_makes_room = HALF_OPEN.insert(key, flow, 0);
    log::new_flow(ctx, &key, number, port);
    if adopts {
        count::count(Counter::AdoptionAsked);
    } else {
        count::count(Counter::FlowNew);
        count::backend(number, |counters| counters.connections += 1);
    }
    count_in(&packet, number);
    handover::put_to_backend(dsr, port, backend);
    tail_call(ctx, program::ONWARD_INDEX)
}

/// Asks memory for both halves of the slot that the flow most likely gets, so that they come at the same time: neither is in a
/// cache, and what the claim does between the two waits for the first.
#[inline(always)]
fn touch(backend: u16, port: u16) {
    if let (Some(record), Some(forward)) = (record(backend, port), forward(backend, port)) {
        // SAFETY: live map values, aligned to 8, only read. Volatile: they are read although nothing comes of it.
        unsafe {
            (&raw const (*forward).gate).read_volatile();
            (&raw const (*record).claim).read_volatile();
        }
    }
}
