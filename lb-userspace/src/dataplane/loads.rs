//! Correcting `loads`: the data plane counts established flows by atomic adds, the agent knows the truth from the port
//! tables, but not at the same instant.
//!
//! A flow that begins or ends during the count makes a difference that is gone with the next one. A real error stays, so
//! only what all of the last few counts agree on is corrected.

use std::{collections::BTreeMap, mem::offset_of, sync::atomic::Ordering};

use lb_common::maps::{self, Load};
use lb_core::reconcile::Actual;

use super::{census::Census, maps::Maps};

/// Counts that must agree.
pub(super) const AGREE: usize = 4;

/// The last differences of each slot, newest last.
#[derive(Debug, Default)]
pub(super) struct Drift(BTreeMap<u32, Vec<i64>>);

impl Drift {
    /// Compares `loads` with a census, and corrects what stays different; how many slots.
    pub(super) fn correct(&mut self, maps: &Maps, actual: &Actual, census: &Census) -> usize {
        let mut truth: BTreeMap<u32, i64> = BTreeMap::from([(maps::LOAD_TOTAL, 0)]);
        truth.extend(actual.services.keys().map(|&service| (maps::load_of_service(service), 0)));
        for (&number, line) in &census.backends {
            let service = actual.backends.get(&number).map(|backend| maps::load_of_service(backend.service));
            let slots = [Some(maps::load_of_backend(number)), service, Some(maps::LOAD_TOTAL)];
            for slot in slots.into_iter().flatten() {
                *truth.entry(slot).or_default() += i64::from(line.established);
            }
        }
        self.0.retain(|slot, _| truth.contains_key(slot));
        truth.into_iter().filter(|&(slot, truth)| self.correct_slot(maps, slot, truth)).count()
    }

    fn correct_slot(&mut self, maps: &Maps, slot: u32, truth: i64) -> bool {
        let load = maps.loads.i64(slot as usize, offset_of!(Load, established));
        let history = self.0.entry(slot).or_default();
        history.push(load.load(Ordering::Relaxed) - truth);
        let error = if history.len() < AGREE { 0 } else { lasting(history) };
        if error != 0 {
            load.fetch_sub(error, Ordering::Relaxed);
            history.clear();
        } else if history.len() >= AGREE {
            history.remove(0);
        }
        error != 0
    }
}

/// What all the differences have in common.
pub(super) fn lasting(differences: &[i64]) -> i64 {
    let least = differences.iter().copied().min_by_key(|difference| difference.abs()).unwrap_or(0);
    let agree = differences.iter().all(|difference| difference.signum() == least.signum());
    if agree { least } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_is_an_error() {
        assert_eq!(lasting(&[3, 5, 3, 4]), 3);
        assert_eq!(lasting(&[-2, -1, -7, -1]), -1);
        assert_eq!(lasting(&[3, -1, 2, 2]), 0);
        assert_eq!(lasting(&[3, 0, 2, 2]), 0);
    }
}
