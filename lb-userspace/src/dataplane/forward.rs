//! Removing forward entries that outlived their flow.
//!
//! The data plane removes an entry when its flow closes. What is left over comes from rare races, from flows that the
//! agent ended, and from agents that were killed while they did: it is found by a walk, a part of the map at a time.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use lb_common::{
    claim::State,
    maps::{Flow, FlowKey, name},
};
use zerocopy::FromZeros as _;

use super::{
    bpf,
    error::Error,
    maps::{Maps, is_absent},
    port_table::PortTable,
};

/// `BPF_NOEXIST` of bpf(2).
pub(super) const NO_EXIST: u64 = 1;

/// Entries looked at in one go: about 5 ms.
const STEP: usize = 16_384;
/// An entry of a flow that is not established is spared for so long: the data plane writes it before the claim, and
/// leaves it for the last packets. Nanoseconds.
const SPARE_NS: u64 = 60_000_000_000;

/// Where the walk over `flows` stands.
#[derive(Debug, Default)]
pub(super) struct Forward {
    cursor: Option<bpf::Cursor>,
    /// Buffers, made by the first step.
    keys: Vec<FlowKey>,
    values: Vec<Flow>,
}

impl Forward {
    /// Looks at the next part of `flows`; how many entries were removed.
    pub(super) fn step(
        &mut self,
        maps: &mut Maps,
        tables: &BTreeMap<u16, PortTable>,
        now_ns: u64,
    ) -> Result<usize, Error> {
        self.keys.resize_with(STEP, FlowKey::new_zeroed);
        self.values.resize_with(STEP, Flow::new_zeroed);
        let map = maps.raw.flows.fd().as_fd();
        // SAFETY: `layout::check` and the object hold `flows` to these types' sizes.
        let read = unsafe { bpf::lookup_batch(map, self.cursor, &mut self.keys, &mut self.values) };
        let (count, next) = read.map_err(Error::call("list", name::FLOWS))?;
        self.cursor = next;
        // In the order of the tables, which are costly to look at out of order.
        let mut found: Vec<_> = self.keys.iter().zip(&self.values).take(count).collect();
        found.sort_unstable_by_key(|(_, flow)| (flow.backend, flow.nat_port.get()));
        let mut gone = 0;
        for (key, flow) in found {
            if is_stale(tables, flow, now_ns) {
                gone += usize::from(remove(maps, key, flow)?);
            }
        }
        tables.values().for_each(PortTable::close);
        Ok(gone)
    }
}

/// Removes the forward entry of a flow as it was read a while ago, and of no other: a new flow of the same client may have
/// it by now. Whether it was there.
pub(super) fn remove(maps: &mut Maps, key: &FlowKey, flow: &Flow) -> Result<bool, Error> {
    // Nearly always the first look tells; what changes after it is put back.
    match maps.flows.get(key, 0) {
        Ok(found) if found.is_same(flow) => {}
        Ok(_) => return Ok(false),
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(Error::map(name::FLOWS)(error)),
    }
    // SAFETY: `layout::check` and the object hold `flows` to these types' sizes.
    let taken = unsafe { bpf::take::<FlowKey, Flow>(maps.raw.flows.fd().as_fd(), key) };
    match taken.map_err(Error::call("remove from", name::FLOWS))? {
        Some(other) if !other.is_same(flow) => {
            // Should the client begin yet another one meanwhile, that stays.
            let _may_be_there = maps.flows.insert(key, other, NO_EXIST);
            Ok(false)
        }
        taken => Ok(taken.is_some()),
    }
}

fn is_stale(tables: &BTreeMap<u16, PortTable>, flow: &Flow, now_ns: u64) -> bool {
    let Some(table) = tables.get(&flow.backend) else { return true };
    let claim = table.claim(flow.nat_port.get());
    let ours = claim.generation() == flow.generation && claim.is_live();
    let last_seen = || table.client_last_seen(flow.nat_port.get(), flow.generation);
    let rested = || now_ns.saturating_sub(last_seen()) > SPARE_NS;
    !ours || (!claim.is(State::Established) && rested())
}
