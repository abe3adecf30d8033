//! What goes through each backend, as rates over the last second or so.

use std::{collections::BTreeMap, time::Instant};

use lb_common::{counters::BackendCounters, maps::Handshakes};

use super::state::Agent;
use crate::api::status::Traffic;

/// The backends' counters when they were last looked at, and what followed.
#[derive(Debug, Default)]
pub(super) struct Samples {
    at: Option<Instant>,
    of: BTreeMap<u16, Sample>,
}

#[derive(Debug, Default)]
struct Sample {
    counters: BackendCounters,
    handshakes: Handshakes,
    traffic: Traffic,
}

impl Samples {
    /// The rates of a backend's number, beside its totals of now.
    pub(super) fn of(&self, number: u16, now: &BackendCounters) -> Traffic {
        let rates = self.of.get(&number).map(|sample| sample.traffic).unwrap_or_default();
        Traffic {
            connections: now.connections,
            packets_in: now.packets_in,
            packets_out: now.packets_out,
            bytes_in: now.bytes_in,
            bytes_out: now.bytes_out,
            ..rates
        }
    }
}

impl Agent {
    /// Looks at the counters of every backend.
    pub(super) fn sample_traffic(&mut self) {
        let now = Instant::now();
        let seconds = self.traffic.at.map(|at| (now - at).as_secs_f64());
        let mut before = std::mem::take(&mut self.traffic.of);
        for number in self.plane.table_numbers() {
            let (Ok(counters), Ok(handshakes)) =
                (self.plane.backend_counters(number), self.plane.handshakes(number))
            else {
                continue;
            };
            let before = before.remove(&number).unwrap_or_default();
            let traffic = traffic(&before, &counters, &handshakes, seconds);
            self.traffic.of.insert(number, Sample { counters, handshakes, traffic });
        }
        self.traffic.at = Some(now);
    }
}

fn traffic(
    before: &Sample,
    counters: &BackendCounters,
    handshakes: &Handshakes,
    seconds: Option<f64>,
) -> Traffic {
    let then = &before.counters;
    let rate = |now: u64, then: u64| match seconds {
        // Another's number before this one.
        _ if now < then => 0.0,
        Some(seconds) if seconds > 0.0 => ((now - then) as f64 / seconds * 10.0).round() / 10.0,
        _ => 0.0,
    };
    let begun = handshakes.buckets.iter().sum::<u64>().saturating_sub(before.handshakes.buckets.iter().sum());
    let took = handshakes.sum.saturating_sub(before.handshakes.sum);
    Traffic {
        connections: counters.connections,
        packets_in: counters.packets_in,
        packets_out: counters.packets_out,
        bytes_in: counters.bytes_in,
        bytes_out: counters.bytes_out,
        connections_per_second: rate(counters.connections, then.connections),
        packets_in_per_second: rate(counters.packets_in, then.packets_in),
        packets_out_per_second: rate(counters.packets_out, then.packets_out),
        bytes_in_per_second: rate(counters.bytes_in, then.bytes_in),
        bytes_out_per_second: rate(counters.bytes_out, then.bytes_out),
        // Where none began, what is known stands.
        handshake_us: match took.checked_div(begun) {
            Some(ns) => Some(ns / 1000),
            None => before.traffic.handshake_us,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_time_between_two_looks() {
        let counters = |packets: u64, connections: u64| BackendCounters {
            packets_in: packets,
            connections,
            ..BackendCounters::default()
        };
        let times = |count: u64, sum: u64| {
            let mut times = Handshakes { sum, ..Handshakes::default() };
            times.buckets[0] = count;
            times
        };
        let first = traffic(&Sample::default(), &counters(1000, 10), &times(0, 0), None);
        assert_eq!((first.packets_in_per_second, first.handshake_us), (0.0, None));
        let before = Sample { counters: counters(1000, 10), handshakes: times(0, 0), traffic: first };
        let then = traffic(&before, &counters(1500, 12), &times(2, 500_000), Some(2.0));
        assert_eq!((then.packets_in_per_second, then.connections_per_second), (250.0, 1.0));
        assert_eq!(then.handshake_us, Some(250));
        let before = Sample { counters: counters(1500, 12), handshakes: times(2, 500_000), traffic: then };
        let quiet = traffic(&before, &counters(1500, 12), &times(2, 500_000), Some(1.0));
        assert_eq!((quiet.packets_in_per_second, quiet.handshake_us), (0.0, Some(250)));
        let anew = traffic(&before, &counters(3, 1), &times(0, 0), Some(1.0));
        assert_eq!(anew.packets_in_per_second, 0.0, "the number is another backend's");
    }
}
