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

use super::{census::Census, maps::Maps};

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

impl Leaving {
    /// Begins the time of the backends that leave from now on, and forgets those that stay after all.
    pub(super) fn follow(&mut self, actual: &Actual, desired: Option<&Desired>, now_ns: u64) {
        let leaving = || actual.used_backends().filter(|(_, backend)| leaves(backend));
        self.0.retain(|number, _| leaving().any(|(other, _)| other == *number));
        for (number, backend) in leaving() {
            self.0.entry(number).or_insert_with(|| {
                let timeout = drain_timeout(actual, desired, backend).as_nanos();
                let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
                Farewell { begun_ns: now_ns, deadline_ns: now_ns.saturating_add(timeout), reset: false }
            });
        }
    }

    /// When [`Self::expire`] has something to do, ns; `None`: not before another backend leaves.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.0.values().filter(|farewell| !farewell.reset).map(|farewell| farewell.deadline_ns).min()
    }

    /// Backends whose `drain_timeout` is over, each once, and how long they were given.
    pub(super) fn expire(&mut self, now_ns: u64) -> Vec<(u16, Duration)> {
        let over = self.0.iter_mut().filter(|(_, f)| !f.reset && now_ns >= f.deadline_ns);
        over.map(|(number, farewell)| {
            farewell.reset = true;
            (*number, Duration::from_nanos(now_ns - farewell.begun_ns))
        })
        .collect()
    }

    /// Backends that have left for good: none of those whose flows `are_being_told`.
    pub(super) fn gone(
        &self,
        actual: &Actual,
        census: &Census,
        are_being_told: &BTreeSet<u16>,
        now_ns: u64,
    ) -> Vec<u16> {
        let is_gone = |number: u16, farewell: &Farewell| {
            let flows = census.of(number);
            let given_up = farewell.reset && now_ns >= farewell.deadline_ns.saturating_add(RESET_TIME_NS);
            (flows.established + flows.half_open == 0 || given_up) && !are_being_told.contains(&number)
        };
        let left = |number: u16| {
            actual.backends.get(&number).is_some_and(|backend| backend.flags & BACKEND_LEAVING != 0)
        };
        let gone = self.0.iter().filter(|(number, farewell)| left(**number) && is_gone(**number, farewell));
        gone.map(|(number, _)| *number).collect()
    }
}

const fn leaves(backend: &Backend) -> bool {
    backend.flags & (BACKEND_LEAVING | BACKEND_DRAINED) != 0
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
