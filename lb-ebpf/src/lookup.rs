//! Which flow a packet belongs to, for the programs off the established path.

use lb_common::{
    claim::Claim,
    counters::Counter,
    maps::{Backend, Flow, FlowKey, Forward, Gate, Record},
};

use crate::{
    atomic, clock,
    maps::{self, BACKENDS, FLOWS, HALF_OPEN, LEASE},
};

/// The forward entry of a flow in whichever state.
#[inline(always)]
pub fn forward_entry(key: &FlowKey) -> Option<Flow> {
    // SAFETY: a live map value. An entry that another CPU removes meanwhile may be reused for another key; then the slot that it
    // names is not this client's.
    FLOWS.get_ptr(key).or_else(|| HALF_OPEN.get_ptr(key)).map(|flow| unsafe { *flow })
}

/// The record of a NAT port and its claim.
#[inline(always)]
pub fn record(backend: u16, port: u16) -> Option<(*mut Record, Claim)> {
    let record = maps::record(backend, port)?;
    // SAFETY: a live map value.
    let claim = unsafe { (&raw const (*record).claim).read_volatile() };
    Some((record, Claim(claim)))
}

/// A slot of a live flow.
pub struct Slot<'a> {
    pub record: *mut Record,
    pub forward: *mut Forward,
    pub claim: Claim,
    pub backend: &'a Backend,
}

/// The slot that a forward entry names, if it still is this client's.
#[inline(always)]
pub fn slot_of<'a>(key: &FlowKey, flow: &Flow) -> Option<Slot<'a>> {
    let backend = BACKENDS.get(flow.backend as u32)?;
    let (record, claim) = record(flow.backend, flow.nat_port.get())?;
    let forward = forward(flow.backend, flow.nat_port.get(), claim.generation())?;
    // SAFETY: a live map value.
    let (client, port) = unsafe { ((*record).client, (*record).client_port) };
    let ours =
        claim.is_live() && claim.generation() == flow.generation && client == key.client && port == key.port;
    if ours && backend.service == key.service { Some(Slot { record, forward, claim, backend }) } else { None }
}

/// The forward half of a slot, if it is of this owner.
#[inline(always)]
pub fn forward(backend: u16, port: u16, generation: u32) -> Option<*mut Forward> {
    let forward = maps::forward(backend, port)?;
    // SAFETY: a live map value.
    let gate = Gate(unsafe { (&raw const (*forward).gate).read_volatile() });
    if gate.generation() == generation { Some(forward) } else { None }
}

/// Lets the packets of a flow take the established path.
#[inline(always)]
pub fn open(forward: *mut Forward, generation: u32) {
    pass(forward, Gate::closed(generation), Gate::open(generation));
}

/// From here on every packet of a flow leaves the established path.
#[inline(always)]
pub fn close(forward: *mut Forward, generation: u32) {
    pass(forward, Gate::open(generation), Gate::closed(generation));
}

#[inline(always)]
fn pass(forward: *mut Forward, from: Gate, to: Gate) {
    // Where it is neither of the two the slot is another flow's, or another CPU was first.
    // SAFETY: a live map value, and the gate is aligned to 8.
    unsafe { atomic::compare_exchange(&raw mut (*forward).gate, from.0, to.0) };
}

/// Whether a connection that is not here is nowhere: a node that does not own the VIP, or has it since a moment, says
/// nothing about what it does not know.
#[inline(always)]
pub fn may_be_unknown() -> Result<(), Counter> {
    let now = clock::exact();
    let Some(lease) = LEASE.get(0) else { return Err(Counter::Fenced) };
    if !lease.holds(now) {
        return Err(Counter::Fenced);
    }
    if lease.is_in_grace(now) { Err(Counter::TakeoverGrace) } else { Ok(()) }
}
