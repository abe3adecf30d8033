//! What is cleaned up about once a second: NAT ports that nobody uses any more, flows that were silent for too long,
//! backends that have left. One pass over the port tables, which is also a census.

use std::collections::BTreeMap;

use lb_common::{
    claim::{Claim, FREE_AT_ONCE, RESET, SYN_ACKED, State},
    maps::{self, Load},
    nat::TIME_WAIT_NS,
};
use tracing::info;

use super::{
    DataPlane,
    census::{BackendCensus, Census},
    clients::{self, Clients},
    error::Error,
    forward::Forward,
    leaving::Leaving,
    loads::Drift,
    maps::Maps,
    port_table::PortTable,
    resets::{self, Reason, Slot},
};

/// A handshake that made no progress for so long has failed: a Linux client's SYN retries have reached an interval of a
/// minute by then (`tcp_syn_retries` 6). Nanoseconds.
const HALF_OPEN_NS: u64 = 60_000_000_000;
/// How long a closed flow whose port is free at once still forwards what is under way, nanoseconds.
const LAST_PACKETS_NS: u64 = 2_000_000_000;
/// A claim is made in microseconds; one that takes so long has lost its owner. Nanoseconds.
const STUCK_NS: u64 = 10_000_000_000;
/// `idle_timeout`'s default (RFC 5382 REQ-5), for a service that no config of this process named. Nanoseconds.
const DEFAULT_IDLE_NS: u64 = 124 * 60 * 1_000_000_000;

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// The flows, as they were before.
    pub census: Census,
    /// NAT ports freed: handshakes that failed, flows that closed, claims that lost their owner.
    pub ports_freed: u32,
    /// Established flows ended, having been silent for `idle_timeout`.
    pub idle_ended: u32,
    /// Forward entries removed that had outlived their flow.
    pub forward_removed: usize,
    /// Load counts corrected, those of clients included.
    pub loads_corrected: usize,
    /// Backends given up, their flows having ended.
    pub given_up: Vec<u16>,
}

/// What sweeps remember.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// Claims under way, and when they were first seen, by backend and port.
    claiming: BTreeMap<(u16, u16), (Claim, u64)>,
    forward: Forward,
    drift: Drift,
    clients: Clients,
    pub(super) leaving: Leaving,
    /// SYNs that a backend never answered, by its number, since this process began.
    pub(super) unanswered: BTreeMap<u16, u64>,
}

/// What a pass over a table found besides.
#[derive(Debug, Default)]
struct Pass {
    freed: u32,
    unanswered: u64,
    /// Established flows whose backend was silent for too long.
    silent: Vec<(u16, Claim)>,
    claiming: Vec<(u16, Claim)>,
    /// Established flows whose backend's epoch was raised.
    stale: Vec<(u16, Claim)>,
}

impl DataPlane {
    /// Cleans up; meant to be called about once a second.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::MapCall`]: the rest is done by the next sweep. [`Error::Plan`]: see [`Self::reconcile`].
    pub fn sweep(&mut self, now_ns: u64) -> Result<SweepReport, Error> {
        let mut report = SweepReport::default();
        let mut claiming = BTreeMap::new();
        for (&number, table) in &mut self.tables {
            table.retry();
            let idle_ns = idle_timeout(&self.actual, self.desired.as_ref(), number);
            let epoch = self.actual.backends.get(&number).map(|backend| backend.epoch);
            let (line, pass) = pass(table, now_ns, idle_ns, epoch);
            report.census.insert(number, line);
            report.ports_freed += pass.freed;
            let service = self.actual.backends.get(&number).map_or(0, |backend| backend.service);
            for (port, claim) in pass.stale {
                let slot = Slot { backend: number, service, port };
                let reason = self.resets.reason(number);
                self.resets.end(&mut self.maps, table, slot, claim, reason, now_ns);
            }
            *self.sweeper.unanswered.entry(number).or_default() += pass.unanswered;
            for (port, claim) in pass.silent.into_iter().filter(|_| self.is_owner) {
                let slot = Slot { backend: number, service, port };
                let since_ns = now_ns.saturating_sub(idle_ns);
                // The client was silent too.
                let silent = table.client_last_seen(port, claim.generation()) <= since_ns;
                let ended =
                    silent && self.resets.end(&mut self.maps, table, slot, claim, Reason::Idle, now_ns);
                report.idle_ended += u32::from(ended);
            }
            claiming.extend(pass.claiming.into_iter().map(|(port, claim)| ((number, port), (claim, now_ns))));
        }
        // Those that were made by an old route while it changed.
        self.follow_client_routes();
        report.ports_freed += self.free_stuck(claiming, now_ns);
        report.forward_removed = self.sweeper.forward.step(&mut self.maps, &self.tables, now_ns)?;
        report.loads_corrected = self.sweeper.drift.correct(&self.maps, &self.actual, &report.census);
        report.loads_corrected += self.sweeper.clients.correct(&mut self.maps, &self.tables, &self.actual)?;
        report.given_up = self.give_up(&report.census, now_ns)?;
        Ok(report)
    }

    /// Frees claims that are under way since long ago.
    fn free_stuck(&mut self, now: BTreeMap<(u16, u16), (Claim, u64)>, now_ns: u64) -> u32 {
        let before = std::mem::take(&mut self.sweeper.claiming);
        let mut freed = 0;
        for (at, (claim, seen_ns)) in now {
            let since = before.get(&at).filter(|(old, _)| *old == claim).map_or(seen_ns, |(_, since)| *since);
            let stuck = now_ns.saturating_sub(since) > STUCK_NS;
            match self.tables.get(&at.0) {
                Some(table) if stuck => freed += u32::from(table.free(at.1, claim)),
                _ => drop(self.sweeper.claiming.insert(at, (claim, since))),
            }
        }
        freed
    }

    /// Ends the flows of the backends whose `drain_timeout` is over; how many there were.
    pub fn end_drained(&mut self, now_ns: u64) -> u32 {
        if !self.is_owner {
            return 0;
        }
        let mut ended = 0;
        for (number, waited) in self.sweeper.leaving.expire(now_ns) {
            let flows = self.reset_flows_at(number, Reason::Drained, now_ns);
            if let Some(place) = self.place_of(number) {
                info!(backend = %place.backend, flows, ?waited, "drain timeout: flows reset");
            }
            ended += flows;
        }
        ended
    }

    fn give_up(&mut self, census: &Census, now_ns: u64) -> Result<Vec<u16>, Error> {
        self.sweeper.leaving.follow(&self.actual, self.desired.as_ref(), now_ns);
        self.end_drained(now_ns);
        let told = self.resets.backends();
        let left = self.sweeper.leaving.gone(&self.actual, census, &told, now_ns);
        if left.is_empty() {
            return Ok(left);
        }
        for &number in &left {
            self.end_all(number)?;
            self.resets.forget(number);
        }
        self.actual.ended.extend(&left);
        if let Some(desired) = &self.desired {
            let plan = self.planner.plan(desired, &self.actual)?;
            self.write(&plan)?;
        }
        Ok(left)
    }

    /// Ends the established flows that a backend still has; the counts follow.
    fn end_all(&mut self, number: u16) -> Result<(), Error> {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return Ok(());
        };
        for port in table.ports() {
            let claim = table.claim(port);
            let record = table.flow(port);
            if claim.is(State::Established) && table.change(port, claim, claim.after(RESET)) {
                table.close_gate(port, claim.generation());
                count_out(&self.maps, number, backend.service);
                if let Some(record) = record {
                    clients::leave(&mut self.maps, record.client, backend.service)?;
                }
            }
        }
        Ok(())
    }
}

fn pass(table: &PortTable, now_ns: u64, idle_ns: u64, epoch: Option<u32>) -> (BackendCensus, Pass) {
    let mut line = BackendCensus::default();
    let mut pass = Pass::default();
    for port in table.ports() {
        let claim = table.claim(port);
        line.count(claim);
        let silent_ns = || now_ns.saturating_sub(table.last_seen(port));
        if resets::is_stale(table, port, claim, epoch) {
            pass.stale.push((port, claim));
        } else if claim.is(State::Claiming) {
            pass.claiming.push((port, claim));
        } else if claim.is(State::Established) {
            if silent_ns() > idle_ns {
                pass.silent.push((port, claim));
            }
        } else if rest_ns(claim).is_some_and(|rest| silent_ns() > rest) {
            let freed = table.free(port, claim);
            pass.freed += u32::from(freed);
            pass.unanswered += u64::from(freed && claim.is(State::HalfOpen) && !claim.has(SYN_ACKED));
        }
    }
    (line, pass)
}

/// How long a claim that is not established stays after its last packet.
const fn rest_ns(claim: Claim) -> Option<u64> {
    if claim.is(State::HalfOpen) {
        Some(HALF_OPEN_NS)
    } else if claim.is(State::Closed) {
        Some(if claim.has(FREE_AT_ONCE) { LAST_PACKETS_NS } else { TIME_WAIT_NS })
    } else {
        None
    }
}

/// An established flow was ended by the agent: the counts that the data plane keeps go down.
pub(super) fn count_out(maps: &Maps, backend: u16, service: u16) {
    count(maps, backend, service, -1);
}

/// The agent changes how many flows are established.
pub(super) fn count(maps: &Maps, backend: u16, service: u16, by: i64) {
    let slots = [maps::load_of_backend(backend), maps::load_of_service(service), maps::LOAD_TOTAL];
    for slot in slots {
        let load = maps.loads.i64(slot as usize, std::mem::offset_of!(Load, established));
        load.fetch_add(by, std::sync::atomic::Ordering::Relaxed);
    }
}

fn idle_timeout(
    actual: &lb_core::reconcile::Actual,
    desired: Option<&lb_core::reconcile::Desired>,
    number: u16,
) -> u64 {
    let timeout = || {
        let backend = actual.backends.get(&number)?;
        let service = actual.services.get(&backend.service)?;
        let mut services = desired?.services.iter();
        let found = services.find(|s| (s.vip, s.port) == (service.vip.to_ip(), service.port.get()))?;
        u64::try_from(found.idle_timeout.as_nanos()).ok()
    };
    timeout().unwrap_or(DEFAULT_IDLE_NS)
}
