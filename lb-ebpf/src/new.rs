//! A new flow: may it begin, which backend, which NAT port.

use aya_ebpf::{maps::lpm_trie::Key, programs::XdpContext};
use lb_common::{
    addr::Port,
    claim::{self, Claim, State},
    counters::Counter,
    hash,
    maps::{
        ALLOW_SERVICE_BITS, AllowData, BACKEND_USED, Backend, Flow, FlowKey, MAGLEV_SLOTS, MAX_BACKENDS,
        Record, SERVICE_AFFINITY, SERVICE_ALLOW, SERVICE_DROP, Service,
    },
    nat as nat_ports,
};

use crate::{
    Outcome, atomic, clock, count,
    established::count_in,
    frame::{Link, TcpPacket, ingress},
    maps::{ALLOW, BACKENDS, HALF_OPEN, LAYOUT, LEASE, MAGLEV, PORTS, SERVICES},
    nat::{self, End},
    reset,
};

#[inline(always)]
pub fn flow(ctx: &XdpContext, link: &Link, packet: &TcpPacket, key: &FlowKey) -> Outcome {
    let now = clock::exact();
    let service = SERVICES.get(key.service as u32).ok_or(Counter::NoBackendDrop)?;
    if !LEASE.get(0).is_some_and(|lease| lease.holds(now)) {
        return Err(Counter::Fenced);
    }
    if service.flags & SERVICE_ALLOW != 0 && !is_allowed(key) {
        return Err(Counter::NotAllowed);
    }
    if !has_room() {
        return reset::answer(ctx, link, packet, Counter::TableFull);
    }
    let hash = hash::client(&service.seed, &key.client, Some(key.port));
    let Some((number, backend)) = choose(service, key, hash) else {
        if service.flags & SERVICE_DROP != 0 {
            return Err(Counter::NoBackendDrop);
        }
        return reset::answer(ctx, link, packet, Counter::NoBackendReset);
    };
    if backend.hop.mac.is_unknown() {
        return Err(Counter::NoNextHop);
    }
    if backend.hop.tags != link.tags {
        return Err(Counter::Vlan);
    }
    let Some((port, record, claim)) = claim_port(number, key, hash, now) else {
        return reset::answer(ctx, link, packet, Counter::NatPortsExhausted);
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
        reserved: 0,
        backend: number,
        nat_port: port,
        client_mac,
        flags: 0,
    };
    let _an_lru_makes_room = HALF_OPEN.insert(key, flow, 0);
    count::count(Counter::FlowNew);
    count::backend(number, |counters| counters.connections += 1);
    count_in(packet, number);
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

/// The backend that the service's Maglev table has for this client.
#[inline(always)]
fn choose(service: &Service, key: &FlowKey, hash: u64) -> Option<(u16, &'static Backend)> {
    let hash = if service.flags & SERVICE_AFFINITY != 0 {
        hash::client(&service.seed, &key.client, None)
    } else {
        hash
    };
    let slot = hash::slot(hash, MAGLEV_SLOTS);
    let table = MAGLEV.get_value(key.service as u32, &0)?;
    let number = *table.slots.get(slot as usize)?;
    if number as usize >= MAX_BACKENDS {
        return None;
    }
    let backend = BACKENDS.get(number as u32)?;
    let ours = backend.flags & BACKEND_USED != 0 && backend.service == key.service;
    if ours { Some((number, backend)) } else { None }
}

/// Claims a NAT port: the first free candidate, else the half-open or closed one that was silent longest; never an
/// established one.
#[inline(always)]
fn claim_port(number: u16, key: &FlowKey, hash: u64, now: u64) -> Option<(Port, *mut Record, Claim)> {
    let table = PORTS.get(number as u32)?;
    let mut oldest = u64::MAX;
    let mut oldest_port = 0u32;
    for attempt in 0..=nat_ports::TRIES {
        let port = nat_ports::candidate(key.port.get(), hash, attempt);
        let record = table.get_ptr_mut(port as u32)?;
        // SAFETY: a live map value.
        let (claim, last_seen) =
            unsafe { (Claim((&raw const (*record).claim).read_volatile()), (*record).last_seen) };
        if is_free(claim, last_seen, now) || is_own(record, claim, key) {
            if let Some(claimed) = take(record, claim) {
                return Some((Port::new(port), record, claimed));
            }
        } else if (claim.is(State::HalfOpen) || claim.is(State::Closed)) && last_seen < oldest {
            oldest = last_seen;
            oldest_port = port as u32;
        }
    }
    if oldest == u64::MAX {
        return None;
    }
    let record = table.get_ptr_mut(oldest_port)?;
    // SAFETY: a live map value.
    let claim = unsafe { Claim((&raw const (*record).claim).read_volatile()) };
    if !(claim.is(State::HalfOpen) || claim.is(State::Closed)) {
        return None;
    }
    let claimed = take(record, claim)?;
    if claim.is(State::HalfOpen) {
        count::count(Counter::HalfOpenTaken);
    }
    Some((Port::new(oldest_port as u16), record, claimed))
}

#[inline(always)]
fn is_free(claim: Claim, last_seen: u64, now: u64) -> bool {
    let waited = || now.saturating_sub(last_seen) > nat_ports::TIME_WAIT_NS;
    claim.is(State::Free) || (claim.is(State::Closed) && (claim.has(claim::FREE_AT_ONCE) || waited()))
}

/// The slot of this very client's last attempt, whose forward entry was evicted.
#[inline(always)]
fn is_own(record: *mut Record, claim: Claim, key: &FlowKey) -> bool {
    // SAFETY: a live map value.
    claim.is(State::HalfOpen)
        && unsafe { (*record).client == key.client && (*record).client_port == key.port }
}

#[inline(always)]
fn take(record: *mut Record, claim: Claim) -> Option<Claim> {
    let claimed = claim.next_owner();
    // SAFETY: the record is a live map value, and its claim word is aligned to 8.
    let held = unsafe { atomic::compare_exchange(&raw mut (*record).claim, claim.0, claimed.0) };
    if held == claim.0 { Some(claimed) } else { None }
}
