//! Which flow a packet belongs to, for the programs off the established path.

use lb_common::{
    claim::Claim,
    counters::Counter,
    maps::{Backend, Flow, FlowKey, Record},
};

use crate::{
    clock,
    maps::{self, BACKENDS, FLOWS, HALF_OPEN, LEASE},
};

/// The forward entry of a flow in whichever state.
#[inline(always)]
pub fn forward_entry(key: &FlowKey) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(key).or_else(|| HALF_OPEN.get_ptr_mut(key))
}

/// The record of a NAT port and its claim.
#[inline(always)]
pub fn record(backend: u16, port: u16) -> Option<(*mut Record, Claim)> {
    let record = maps::record(backend, port)?;
    // SAFETY: a live map value.
    let claim = unsafe { (&raw const (*record).claim).read_volatile() };
    Some((record, Claim(claim)))
}

/// The record that a forward entry names, if it still is this client's.
#[inline(always)]
pub fn record_of<'a>(key: &FlowKey, flow: &Flow) -> Option<(*mut Record, Claim, &'a Backend)> {
    let backend = BACKENDS.get(flow.backend as u32)?;
    let (record, claim) = record(flow.backend, flow.nat_port.get())?;
    // SAFETY: a live map value.
    let (client, port) = unsafe { ((*record).client, (*record).client_port) };
    let ours =
        claim.is_live() && claim.generation() == flow.generation && client == key.client && port == key.port;
    if ours && backend.service == key.service { Some((record, claim, backend)) } else { None }
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
