//! Removing forward entries that outlived their flow, a part of the map at a time.
//!
//! The data plane removes an entry when its flow closes. What is left over comes from rare races, from flows that the
//! agent ended, and from agents that were killed while they did.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use lb_common::{
    claim::State,
    maps::{Flow, FlowKey, name},
};
use zerocopy::FromZeros as _;

use super::{apply, bpf, error::Error, maps::Maps, port_table::PortTable};

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
        let mut gone = 0;
        for (key, flow) in self.keys.iter().zip(&self.values).take(count) {
            if is_stale(tables, flow, now_ns) && still_stale(maps, tables, key, now_ns)? {
                apply::removed(maps.flows.remove(key), name::FLOWS)?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// The batch was read a while ago: a new flow of the same client may have the entry by now.
fn still_stale(
    maps: &Maps,
    tables: &BTreeMap<u16, PortTable>,
    key: &FlowKey,
    now_ns: u64,
) -> Result<bool, Error> {
    match maps.flows.get(key, 0) {
        Ok(flow) => Ok(is_stale(tables, &flow, now_ns)),
        Err(error) if super::maps::is_absent(&error) => Ok(false),
        Err(error) => Err(Error::map(name::FLOWS)(error)),
    }
}

fn is_stale(tables: &BTreeMap<u16, PortTable>, flow: &Flow, now_ns: u64) -> bool {
    let Some(table) = tables.get(&flow.backend) else { return true };
    let claim = table.claim(flow.nat_port.get());
    let ours = claim.generation() == flow.generation && claim.is_live();
    let rested = now_ns.saturating_sub(flow.last_seen) > SPARE_NS;
    !ours || (!claim.is(State::Established) && rested)
}
