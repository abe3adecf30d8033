//! When requests are due, in an open loop: decided by the rate alone, whatever becomes of the requests.
//!
//! A generator that sends a request only when an earlier one was answered asks nothing while the server stalls, and so
//! counts one slow request where users would have had a thousand: *coordinated omission*. Here the n-th arrival is due at
//! its time whether or not anybody looked; one that is taken late is still due at its own time, and counts from there.

use std::time::Duration;

use crate::random::Random;

/// How arrivals lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// The same time between any two.
    Constant,
    /// As of many users that know nothing of each other: exponentially distributed times between two.
    Poisson,
}

/// The due times of one run, from the first to the last, each once.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Arrivals per second.
    rate: f64,
    spacing: Spacing,
    /// Those that were taken.
    taken: u64,
    /// When the next one is due, in seconds since the start.
    next: f64,
}

#[derive(Debug, Clone)]
enum Spacing {
    Constant,
    Poisson(Random),
}

impl Schedule {
    /// Arrivals at `rate` per second, which is positive and finite. The seed matters to Poisson arrivals only.
    pub fn new(rate: f64, arrivals: Arrivals, seed: u64) -> Self {
        let spacing = match arrivals {
            Arrivals::Constant => Spacing::Constant,
            Arrivals::Poisson => Spacing::Poisson(Random::new(seed)),
        };
        let mut schedule = Self { rate, spacing, taken: 0, next: 0.0 };
        if let Spacing::Poisson(random) = &mut schedule.spacing {
            schedule.next = exponential(random, rate);
        }
        schedule
    }

    /// When the next arrival is due, since the start.
    pub fn next_at(&self) -> Duration {
        // A time that no clock reaches if the rate is absurdly small.
        Duration::try_from_secs_f64(self.next).unwrap_or(Duration::MAX)
    }

    /// Takes the next arrival if it is due at `elapsed` since the start: the time at which it was.
    pub fn take_due(&mut self, elapsed: Duration) -> Option<Duration> {
        let due = self.next_at();
        if due > elapsed {
            return None;
        }
        self.taken += 1;
        self.next = match &mut self.spacing {
            // From the count, so that no error adds up.
            Spacing::Constant => self.taken as f64 / self.rate,
            Spacing::Poisson(random) => self.next + exponential(random, self.rate),
        };
        Some(due)
    }
}

/// Seconds to the next event of a Poisson process, by inversion.
fn exponential(random: &mut Random, rate: f64) -> f64 {
    // 1 - [0, 1) is never 0, whose logarithm is none.
    -(1.0 - random.fraction()).ln() / rate
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(schedule: &mut Schedule, until: Duration) -> Vec<Duration> {
        std::iter::from_fn(|| schedule.take_due(until)).collect()
    }

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let mut schedule = Schedule::new(1000.0, Arrivals::Constant, 0);
        let due = all(&mut schedule, Duration::from_micros(3500));
        assert_eq!(due, [0, 1, 2, 3].map(Duration::from_millis));
        assert_eq!(schedule.next_at(), Duration::from_millis(4));
    }

    #[test]
    fn a_stall_neither_skips_nor_merges_arrivals() {
        let mut schedule = Schedule::new(100.0, Arrivals::Constant, 0);
        all(&mut schedule, Duration::from_secs(1));
        // Nobody looks for half a second: 50 arrivals are due, each at its own time.
        let late = all(&mut schedule, Duration::from_millis(1500));
        assert_eq!(late.len(), 50);
        assert_eq!(late[0], Duration::from_millis(1010));
        assert_eq!(late[49], Duration::from_millis(1500));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_kind() {
        let mut schedule = Schedule::new(10_000.0, Arrivals::Poisson, 7);
        let due = all(&mut schedule, Duration::from_secs(10));
        // 100,000 ± 5 standard deviations.
        assert!((98_400..101_600).contains(&due.len()), "{}", due.len());
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Mean and standard deviation of an exponential distribution are the same.
        assert!((0.97..1.03).contains(&(variance.sqrt() / mean)), "{}", variance.sqrt() / mean);
    }

    #[test]
    fn an_absurdly_small_rate_is_due_never() {
        let mut schedule = Schedule::new(1e-300, Arrivals::Constant, 0);
        assert_eq!(schedule.take_due(Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(schedule.next_at(), Duration::MAX);
    }

    fn arrivals() -> impl Strategy<Value = Arrivals> {
        prop_oneof![Just(Arrivals::Constant), Just(Arrivals::Poisson)]
    }

    proptest! {
        /// Whenever one looks, and however often: the due times are the same.
        #[test]
        fn due_times_do_not_depend_on_who_looks(
            rate in 0.5f64..50_000.0,
            arrivals in arrivals(),
            seed: u64,
            mut looks in prop::collection::vec(0u64..200_000, 0..40),
        ) {
            let end = Duration::from_micros(200_000);
            let at_once = all(&mut Schedule::new(rate, arrivals, seed), end);
            looks.sort_unstable();
            let mut schedule = Schedule::new(rate, arrivals, seed);
            let mut piecemeal = Vec::new();
            for look in looks {
                let now = Duration::from_micros(look);
                let due = all(&mut schedule, now);
                prop_assert!(due.iter().all(|due| *due <= now));
                prop_assert!(schedule.next_at() > now);
                piecemeal.extend(due);
            }
            piecemeal.extend(all(&mut schedule, end));
            prop_assert_eq!(&at_once, &piecemeal);
            prop_assert!(at_once.is_sorted());
        }

        #[test]
        fn constant_arrivals_are_as_many_as_the_rate_says(rate in 0.5f64..50_000.0, ms in 1u64..400) {
            let end = Duration::from_millis(ms);
            let due = all(&mut Schedule::new(rate, Arrivals::Constant, 0), end);
            let expected = rate * end.as_secs_f64();
            prop_assert!((due.len() as f64 - expected).abs() <= 1.01, "{} of {expected}", due.len());
        }
    }
}
