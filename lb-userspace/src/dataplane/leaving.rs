//! Backends whose flows are to end: those that the operator drains, and those that left the config.
//!
//! Their flows go on until `drain_timeout` is over. Then the epoch is raised, which ends them (see [`super::resets`]). A
//! backend that left is given up once it has no flow and both ends of those that it had were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    sync::atomic::Ordering,
    time::Duration,
};

use lb_common::maps::{BACKEND_DRAINED, BACKEND_LEAVING, Backend};
use lb_core::reconcile::{Actual, Desired};
use tracing::info;

use super::{address_of, census::Census, maps::Maps};

/// `drain_timeout`'s default, for a backend of a service that no config of this process named.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// From the raised epoch to giving up the number of a backend that still has half-open flows: time for a packet of each.
const RESET_TIME_NS: u64 = 3_000_000_000;

/// Since when backends leave.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<u16, Farewell>);

#[derive(Clone, Copy, Debug)]
struct Farewell {
    begun_ns: u64,
    /// When its flows are reset, ns.
    deadline_ns: u64,
    reset: bool,
}

/// What became due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Backends whose epoch was raised.
    pub(super) raised: Vec<u16>,
    /// Backends that have left for good.
    pub(super) left: Vec<u16>,
}

impl Leaving {
    /// Raises the epochs that are due, and names the backends that have left for good: none of those that
    /// `are_being_told`.
    pub(super) fn step(
        &mut self,
        maps: &Maps,
        actual: &mut Actual,
        desired: Option<&Desired>,
        census: &Census,
        are_being_told: &BTreeSet<u16>,
        now_ns: u64,
    ) -> Due {
        let leaves = |backend: &Backend| backend.flags & (BACKEND_LEAVING | BACKEND_DRAINED) != 0;
        let leaving: Vec<(u16, Backend)> =
            actual.used_backends().filter(|(_, b)| leaves(b)).map(|(number, b)| (number, *b)).collect();
        self.0.retain(|number, _| leaving.iter().any(|(n, _)| n == number));
        let mut due = Due::default();
        for (number, backend) in leaving {
            let farewell = self.0.entry(number).or_insert_with(|| {
                let timeout = drain_timeout(actual, desired, &backend).as_nanos();
                let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
                Farewell { begun_ns: now_ns, deadline_ns: now_ns.saturating_add(timeout), reset: false }
            });
            let flows = census.of(number);
            if now_ns >= farewell.deadline_ns && !farewell.reset {
                farewell.reset = true;
                raise_epoch(maps, actual, number);
                due.raised.push(number);
                let waited = Duration::from_nanos(now_ns - farewell.begun_ns);
                info!(backend = %address_of(&backend), flows = flows.established, ?waited, "drain timeout: flows reset");
            }
            let gone = flows.established + flows.half_open == 0
                || now_ns >= farewell.deadline_ns.saturating_add(RESET_TIME_NS);
            // Those that are ended just now are told from now on.
            let told = !are_being_told.contains(&number) && !due.raised.contains(&number);
            if gone && told && backend.flags & BACKEND_LEAVING != 0 {
                due.left.push(number);
            }
        }
        due
    }
}

/// From now on every flow of a backend that was made until now is answered with a RST.
pub(super) fn raise_epoch(maps: &Maps, actual: &mut Actual, number: u16) {
    if let Some(backend) = actual.backends.get_mut(&number) {
        backend.epoch = backend.epoch.wrapping_add(1);
        let epoch = maps.backend_fields.u32(usize::from(number), offset_of!(Backend, epoch));
        epoch.store(backend.epoch, Ordering::Release);
    }
}

fn drain_timeout(actual: &Actual, desired: Option<&Desired>, backend: &Backend) -> Duration {
    let service = actual.services.get(&backend.service);
    let timeout = service.and_then(|service| {
        let desired = desired?
            .services
            .iter()
            .find(|desired| (desired.vip, desired.port) == (service.vip.to_ip(), service.port.get()))?;
        Some(desired.drain_timeout)
    });
    timeout.unwrap_or(DEFAULT_DRAIN)
}
