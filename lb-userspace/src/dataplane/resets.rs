//! Ending flows at both ends.
//!
//! A flow is ended by its claim (`ENDED`), and stops counting as established at once. From then on the data plane answers
//! whatever either end says with an exact RST: the backend from the claim on, the client from the gate's closing. So it does
//! from the instant that a backend's epoch is raised; the agent follows with the claims. Then both ends are told: see
//! [`super::farewell`].
//!
//! The NAT port rests for as long as one in TIME_WAIT: the backend may hold the connection yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    addr::{Addr, Port},
    claim::{Claim, ENDED, State},
    maps::Record,
};
use lb_core::resets::Schedule;
use tracing::debug;

use super::{DataPlane, clients, leaving, maps::Maps, monotonic_ns, port_table::PortTable, sweep::count_out};
use crate::packet::Sender;

/// Why flows were ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Their backend is down, and another is healthy.
    BackendDown,
    /// Their backend was drained or left the config, and `drain_timeout` is over.
    Drained,
    /// Neither end spoke for `idle_timeout`.
    Idle,
    /// The operator's `reset`.
    Operator,
    /// The operator's `rebalance`.
    Rebalance,
    /// Their client is on this node, at an address that the node which takes over cannot reach.
    Unreachable,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::BackendDown, Self::Drained, Self::Idle, Self::Operator, Self::Rebalance, Self::Unreachable];

    /// The label of the metrics and the word of the flow log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BackendDown => "backend_down",
            Self::Drained => "drain_timeout",
            Self::Idle => "idle",
            Self::Operator => "command",
            Self::Rebalance => "rebalance",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A NAT port and whose it is.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) backend: u16,
    pub(super) service: u16,
    pub(super) port: u16,
}

/// A flow that was ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) backend: u16,
    pub(super) port: u16,
    pub(super) generation: u32,
    pub(super) client: Addr,
    pub(super) client_port: Port,
    pub(super) reason: Reason,
    pub(super) at_ns: u64,
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Resets {
    pub(super) schedule: Schedule<Ended>,
    pub(super) sender: Sender,
    /// Why a backend's epoch was raised last.
    reasons: BTreeMap<u16, Reason>,
    /// Established flows ended, by backend and reason, since this process began.
    counted: BTreeMap<(u16, Reason), u64>,
}

impl DataPlane {
    /// Ends every flow of a backend, at both ends; how many were established.
    pub fn reset_flows(&mut self, number: u16, reason: Reason) -> u32 {
        self.reset_flows_at(number, reason, monotonic_ns())
    }

    pub(super) fn reset_flows_at(&mut self, number: u16, reason: Reason, now_ns: u64) -> u32 {
        leaving::raise_epoch(&self.maps, &mut self.actual, number);
        self.resets.because(number, reason);
        self.end_stale(number, now_ns)
    }

    /// As [`Self::reset_flows`], if the backend has flows that were not reset yet; `None` if it has none.
    pub fn reset_flows_if_any(&mut self, number: u16, reason: Reason) -> Option<u32> {
        let (table, backend) = (self.tables.get(&number)?, self.actual.backends.get(&number)?);
        let lives = |claim: Claim| claim.is(State::Established) || claim.is(State::HalfOpen);
        let any = table.ports().any(|port| lives(table.claim(port)) && table.epoch(port) == backend.epoch);
        any.then(|| self.reset_flows(number, reason))
    }

    /// Ends every established flow of a client, at both ends; how many there were.
    pub fn reset_client(&mut self, client: IpAddr, reason: Reason) -> u32 {
        let client = Addr::from(client);
        let numbers: Vec<u16> = self.tables.keys().copied().collect();
        let of_client = |record: &Record| record.client == client;
        numbers.into_iter().map(|number| self.end_chosen(number, usize::MAX, reason, of_client)).sum()
    }

    /// Ends `count` established flows of a backend, those first on which it was silent longest; how many.
    pub fn reset_some(&mut self, number: u16, count: u32, reason: Reason) -> u32 {
        self.end_chosen(number, count as usize, reason, |_| true)
    }

    /// When [`Self::tell_ended`] or [`Self::end_drained`] has something to do, ns; `None`: not before more flows are
    /// ended or drained.
    pub fn resets_due_ns(&self) -> Option<u64> {
        [self.resets.schedule.due_ns(), self.sweeper.leaving.due_ns()].into_iter().flatten().min()
    }

    /// Established flows of a backend's number that were ended for a reason, since this process began.
    pub fn ended_flows(&self, number: u16, reason: Reason) -> u64 {
        self.resets.counted.get(&(number, reason)).copied().unwrap_or_default()
    }

    /// Ends the established flows whose epoch is not their backend's any more; how many.
    pub(super) fn end_stale(&mut self, number: u16, now_ns: u64) -> u32 {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return 0;
        };
        let reason = self.resets.reason(number);
        let mut count = 0;
        for port in table.ports() {
            let claim = table.claim(port);
            if is_stale(table, port, claim, Some(backend.epoch)) {
                let slot = Slot { backend: number, service: backend.service, port };
                count += u32::from(self.resets.end(&mut self.maps, table, slot, claim, reason, now_ns));
            }
        }
        count
    }

    fn end_chosen(
        &mut self,
        number: u16,
        count: usize,
        reason: Reason,
        chosen: impl Fn(&Record) -> bool,
    ) -> u32 {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return 0;
        };
        let now_ns = monotonic_ns();
        let established = |port: &u16| table.claim(*port).is(State::Established);
        let mut found: Vec<_> = table
            .ports()
            .filter(established)
            .filter_map(|port| Some((port, table.flow(port).filter(&chosen)?)))
            .map(|(port, record)| (record.last_seen, port, record.claim()))
            .collect();
        found.sort_unstable_by_key(|(last_seen, port, _)| (*last_seen, *port));
        let ended = found.into_iter().take(count).filter(|(_, port, claim)| {
            let slot = Slot { backend: number, service: backend.service, port: *port };
            self.resets.end(&mut self.maps, table, slot, *claim, reason, now_ns)
        });
        ended.count() as u32
    }
}

impl Resets {
    /// Ends a flow if it still is the one whose claim was read, and established, and has both ends told; whether it was.
    pub(super) fn end(
        &mut self,
        maps: &mut Maps,
        table: &PortTable,
        slot: Slot,
        claim: Claim,
        reason: Reason,
        now_ns: u64,
    ) -> bool {
        let mut held = claim;
        // Each turn loses to a step that the flow took, and a flow has few to take.
        let record = loop {
            // Its identity stands as long as its claim does.
            let Some(record) = table.flow(slot.port) else { return false };
            if held.generation() != claim.generation() || !held.is(State::Established) {
                return false;
            }
            if table.change(slot.port, held, held.after(ENDED)) {
                break record;
            }
            held = table.claim(slot.port);
        };
        table.close_gate(slot.port, claim.generation());
        table.rest_from(slot.port, now_ns);
        count_out(maps, slot.backend, slot.service);
        if let Err(error) = clients::leave(maps, record.client, slot.service) {
            debug!(%error, "a client's count is left to the sweep");
        }
        *self.counted.entry((slot.backend, reason)).or_default() += 1;
        self.schedule.add(Ended {
            backend: slot.backend,
            port: slot.port,
            generation: claim.generation(),
            client: record.client,
            client_port: record.client_port,
            reason,
            at_ns: now_ns,
        });
        true
    }

    /// A backend has left: its number may be another's from now on.
    pub(super) fn forget(&mut self, number: u16) {
        self.reasons.remove(&number);
        self.counted.retain(|(backend, _), _| *backend != number);
    }

    /// Why the backend's epoch is raised.
    pub(super) fn because(&mut self, number: u16, reason: Reason) {
        self.reasons.insert(number, reason);
    }

    /// Why the backend's epoch was raised last.
    pub(super) fn reason(&self, number: u16) -> Reason {
        self.reasons.get(&number).copied().unwrap_or(Reason::BackendDown)
    }

    /// Backends of the flows that are being told.
    pub(super) fn backends(&self) -> BTreeSet<u16> {
        self.schedule.waiting().map(|ended| ended.backend).collect()
    }
}

/// Whether a flow is to be ended because its backend's epoch was raised.
pub(super) fn is_stale(table: &PortTable, port: u16, claim: Claim, epoch: Option<u32>) -> bool {
    claim.is(State::Established) && epoch.is_some_and(|epoch| table.epoch(port) != epoch)
}
