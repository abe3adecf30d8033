//! What the thread counts, for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lb_core::vrrp::Reject;

use crate::api::metrics::PairFigures;

/// Upper bounds of the heartbeat's lateness, seconds: a late heartbeat matters when it comes near the interval.
pub const LATENESS_BOUNDS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5];

/// Counters of one thread.
#[derive(Debug, Default)]
pub struct Figures {
    /// By the places of [`Reject::REASONS`].
    pub rejected: [AtomicU64; Reject::REASONS.len()],
    /// Advertisements sent, and heeded.
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Advertisements that did not go out to every peer.
    pub not_sent: AtomicU64,
    /// By the places of [`LATENESS_BOUNDS`]; the last one: later than all.
    pub lateness: [AtomicU64; LATENESS_BOUNDS.len() + 1],
    /// The sum, ns.
    pub lateness_ns: AtomicU64,
}

impl Figures {
    /// All of them now.
    pub fn read(&self) -> PairFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PairFigures {
            transitions: Default::default(),
            rejected: std::array::from_fn(|place| load(&self.rejected[place])),
            sent: load(&self.sent),
            received: load(&self.received),
            not_sent: load(&self.not_sent),
            lateness: std::array::from_fn(|place| load(&self.lateness[place])),
            lateness_sum: Duration::from_nanos(load(&self.lateness_ns)),
        }
    }

    pub(super) fn count_late(&self, late: Duration) {
        let seconds = late.as_secs_f64();
        let place = LATENESS_BOUNDS.iter().position(|bound| seconds <= *bound);
        self.lateness[place.unwrap_or(LATENESS_BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.lateness_ns.fetch_add(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
