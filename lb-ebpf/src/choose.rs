//! A new flow: may it begin, and which backend takes it.

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};
use lb_common::{
    counters::Counter,
    hash,
    maps::{
        ALLOW_SERVICE_BITS, AllowData, FlowKey, INTERFACE_NODE, NO_BACKEND, SERVICE_AFFINITY, SERVICE_ALLOW,
        SERVICE_DROP, Service, interface_slot, program,
    },
};

use crate::{
    Outcome, clients, clock, count,
    frame::{forget, here, ingress},
    handover,
    maps::{ALLOW, INTERFACES, LAYOUT, LEASE, SERVICES},
    reset, signal, tail_call, walk,
};

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (_, packet, number) = handover::take(ctx)?;
    let key = FlowKey { client: packet.source, port: packet.ports.0, service: number };
    let service = SERVICES.get(number as u32).ok_or(Counter::NoBackendDrop)?;
    let by_address = service.flags & SERVICE_AFFINITY != 0;
    let hash = here(hash::client_of(&service.seed, &key.client, key.port, by_address));
    let now = clock::exact();
    clock::set_coarse(now);
    if !LEASE.get(0).is_some_and(|lease| lease.holds(now)) {
        return tail_call(ctx, program::RELAY_INDEX);
    }
    if service.flags & SERVICE_ALLOW != 0 && !is_allowed(&key) {
        return Err(Counter::NotAllowed);
    }
    if clients::is_at_limit(service, &key) {
        return reset::answer(ctx, Counter::ClientLimit);
    }
    if !has_room() {
        signal::table_full(now);
        return reset::answer(ctx, Counter::TableFull);
    }
    let (backend, full) = walk::choose(service, &key, hash, near(ctx, service)?, now);
    if backend == NO_BACKEND {
        return refuse(ctx, service, full);
    }
    handover::put_chosen(backend, hash, now, 0);
    tail_call(ctx, program::NEW_INDEX)
}

/// The backend that clients on this node are sent to while it takes any; `NO_BACKEND`: none.
#[inline(always)]
fn near(ctx: &XdpContext, service: &Service) -> Result<u16, Counter> {
    // The first program looked whether the slot is this interface's. Without a branch: all ones for the far end.
    let here = INTERFACES.get(interface_slot(ingress(ctx))).ok_or(Counter::NoNextHop)?;
    let number = service.near & (here.flags & INTERFACE_NODE).wrapping_neg();
    // 0 is one before the first.
    Ok(forget(number.wrapping_sub(1))? as u16)
}

#[inline(always)]
fn refuse(ctx: &XdpContext, service: &Service, full: bool) -> Outcome {
    if full {
        return reset::answer(ctx, Counter::BackendsFull);
    }
    if service.flags & SERVICE_DROP != 0 {
        return Err(Counter::NoBackendDrop);
    }
    reset::answer(ctx, Counter::NoBackendReset)
}

#[inline(always)]
pub fn is_allowed(key: &FlowKey) -> bool {
    let data = AllowData { service: (key.service as u32).to_be_bytes(), address: key.client };
    ALLOW.get(&Key::new(ALLOW_SERVICE_BITS + 128, data)).is_some()
}

/// Whether fewer than `max_flows` are established.
#[inline(always)]
pub fn has_room() -> bool {
    match (LAYOUT.get(0), count::established()) {
        (Some(layout), Some(established)) => established < layout.max_flows as i64,
        _ => false,
    }
}
