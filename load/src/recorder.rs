//! Counts what becomes of requests. All times are since the start of the run.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

use crate::{
    Operation,
    failure::{Failure, Kind},
    gap::{Gap, Stretch},
};

/// Longest latency that is told apart, in µs: an hour. Far more than any timeout.
const LONGEST_US: u64 = 3_600_000_000;
/// Significant decimal digits of latencies.
const DIGITS: u8 = 3;

/// Counts of one run. What was due within the window is counted; what was due before or after it is not.
#[derive(Debug)]
pub struct Recorder {
    window: Range<Duration>,
    operations: [Tally; 3],
    send_delay: Histogram<u64>,
    gap: Gap,
    errors: BTreeMap<&'static str, Counted>,
    connections: Connections,
    wrong: Option<Counted>,
    backlog: usize,
}

/// One operation.
#[derive(Debug)]
pub struct Tally {
    /// Successful answers' times since they were due, in µs.
    pub latency: Histogram<u64>,
    /// Successful answers that arrived within the window, whenever they were due.
    pub arrived: u64,
    /// Failures.
    pub failed: u64,
}

/// Failures of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

/// What became of connections within the window.
#[derive(Debug, Default)]
pub struct Connections {
    /// Why connections that were there broke.
    pub broken: BTreeMap<&'static str, Counted>,
    /// Why attempts to connect again failed.
    pub refused: BTreeMap<&'static str, Counted>,
    /// The longest time from a break to a connection that was proven good.
    pub longest_outage: Duration,
}

impl Recorder {
    /// Counts what is due from the window's begin to before its end.
    ///
    /// # Errors
    ///
    /// If there is no room for the histograms.
    pub fn new(window: Range<Duration>) -> Result<Self> {
        let tally = || Ok::<_, anyhow::Error>(Tally { latency: histogram()?, arrived: 0, failed: 0 });
        Ok(Self {
            operations: [tally()?, tally()?, tally()?],
            send_delay: histogram()?,
            gap: Gap::new(window.start, window.end),
            window,
            errors: BTreeMap::new(),
            connections: Connections::default(),
            wrong: None,
            backlog: 0,
        })
    }

    /// A request that was due at `due` is sent at `sent`.
    pub fn sent(&mut self, due: Duration, sent: Duration) {
        if self.window.contains(&due) {
            self.send_delay.saturating_record(micros(sent.saturating_sub(due)));
        }
    }

    /// What was asked for at `due` was there at `at`.
    pub fn answered(&mut self, operation: Operation, due: Duration, at: Duration) {
        self.gap.answered(at);
        let tally = &mut self.operations[operation.index()];
        tally.arrived += u64::from(self.window.contains(&at));
        if self.window.contains(&due) {
            tally.latency.saturating_record(micros(at.saturating_sub(due)));
        }
    }

    /// What was due at `due` failed.
    pub fn failed(&mut self, operation: Operation, due: Duration, failure: &Failure) {
        if failure.kind == Kind::Wrong {
            self.wrong(&failure.text);
        }
        if self.window.contains(&due) {
            self.operations[operation.index()].failed += 1;
            count(&mut self.errors, failure);
        }
    }

    /// An answer or an event is wrong; that counts at any time.
    pub fn wrong(&mut self, text: &str) {
        self.wrong.get_or_insert_with(|| Counted { count: 0, example: text.to_owned() }).count += 1;
    }

    /// A connection broke.
    pub fn broken(&mut self, at: Duration, failure: &Failure) {
        if self.window.contains(&at) {
            count(&mut self.connections.broken, failure);
        }
    }

    /// An attempt to connect again failed. It may be for a wrong answer: that counts as any other.
    pub fn not_connected(&mut self, at: Duration, failure: &Failure) {
        if failure.kind == Kind::Wrong {
            self.wrong(&failure.text);
        }
        if self.window.contains(&at) {
            count(&mut self.connections.refused, failure);
        }
    }

    /// A connection that broke at `since` was not there until `at`: only what lies within the window counts.
    pub fn outage(&mut self, since: Duration, at: Duration) {
        let outage = at.min(self.window.end).saturating_sub(since.max(self.window.start));
        self.connections.longest_outage = self.connections.longest_outage.max(outage);
    }

    /// This many requests are under way.
    pub fn backlog(&mut self, requests: usize) {
        self.backlog = self.backlog.max(requests);
    }

    /// What was counted for an operation.
    pub fn tally(&self, operation: Operation) -> &Tally {
        &self.operations[operation.index()]
    }

    /// All operations together.
    ///
    /// # Errors
    ///
    /// If there is no room for the histogram.
    pub fn total(&self) -> Result<Tally> {
        let mut total = Tally { latency: histogram()?, arrived: 0, failed: 0 };
        for tally in &self.operations {
            total.latency.add(&tally.latency).context("adding histograms of the same bounds")?;
            total.arrived += tally.arrived;
            total.failed += tally.failed;
        }
        Ok(total)
    }

    /// How long after they were due requests were sent, in µs.
    pub fn send_delay(&self) -> &Histogram<u64> {
        &self.send_delay
    }

    /// The longest time within the window without a successful answer.
    pub fn gap(&self) -> Stretch {
        self.gap.clone().longest()
    }

    /// Failures by kind.
    pub fn errors(&self) -> &BTreeMap<&'static str, Counted> {
        &self.errors
    }

    /// What became of connections.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Wrong answers and events, those of the warm-up included.
    pub fn wrong_answers(&self) -> Option<&Counted> {
        self.wrong.as_ref()
    }

    /// Most requests that were under way at once.
    pub fn highest_backlog(&self) -> usize {
        self.backlog
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).context("making a histogram")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn count(counts: &mut BTreeMap<&'static str, Counted>, failure: &Failure) {
    counts
        .entry(failure.kind.name())
        .or_insert_with(|| Counted { count: 0, example: failure.text.clone() })
        .count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn recorder() -> Recorder {
        Recorder::new(ms(1000)..ms(2000)).unwrap()
    }

    #[test]
    fn what_was_due_within_the_window_counts_whenever_it_was_answered() {
        let mut recorder = recorder();
        for (due, at) in [(999, 1200), (1000, 1001), (1999, 2900), (2000, 2001)] {
            recorder.sent(ms(due), ms(due + 1));
            recorder.answered(Operation::Get, ms(due), ms(at));
        }
        let tally = recorder.tally(Operation::Get);
        assert_eq!((tally.latency.len(), tally.arrived), (2, 2));
        assert!((900_500..=901_500).contains(&tally.latency.max()), "{}", tally.latency.max());
        assert_eq!(recorder.send_delay().len(), 2);
        assert_eq!(recorder.gap(), Stretch { began: ms(1200), length: ms(800) });
        assert_eq!(recorder.total().unwrap().latency.len(), 2);
    }

    #[test]
    fn failures_are_counted_by_kind_with_an_example() {
        let mut recorder = recorder();
        for (due, kind, text) in [
            (1500, Kind::Timeout, "first"),
            (1501, Kind::Timeout, "second"),
            (1502, Kind::Wrong, "a value whose checksum is wrong"),
            (1, Kind::Wrong, "in the warm-up"),
            (1, Kind::Reset, "in the warm-up"),
        ] {
            recorder.failed(Operation::Put, ms(due), &Failure::new(kind, text));
        }
        recorder.wrong("an event");
        recorder.not_connected(ms(1500), &Failure::wrong("another cluster"));
        assert_eq!(recorder.tally(Operation::Put).failed, 3);
        assert_eq!(recorder.errors().keys().copied().collect::<Vec<_>>(), ["timeout", "wrong"]);
        assert_eq!(recorder.errors()["timeout"], Counted { count: 2, example: "first".into() });
        let wrong = Counted { count: 4, example: "a value whose checksum is wrong".into() };
        assert_eq!(recorder.wrong_answers(), Some(&wrong));
        assert_eq!(recorder.gap().length, ms(1000));
    }

    #[test]
    fn an_outage_counts_as_far_as_it_lies_within_the_window() {
        let mut recorder = recorder();
        recorder.outage(ms(0), ms(1100));
        assert_eq!(recorder.connections().longest_outage, ms(100));
        recorder.outage(ms(1700), ms(9000));
        assert_eq!(recorder.connections().longest_outage, ms(300));
        recorder.outage(ms(2100), ms(9000));
        assert_eq!(recorder.connections().longest_outage, ms(300));
    }

    #[test]
    fn an_endless_latency_is_the_longest() {
        let mut recorder = recorder();
        recorder.answered(Operation::Put, ms(1000), Duration::MAX);
        assert!(recorder.tally(Operation::Put).latency.max() >= LONGEST_US);
    }
}
