//! What a run found, as it is written with `--json`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    Arrivals, Mix, Operation, Pace, Plan,
    limits::CpuTime,
    recorder::{Counted, Recorder, Tally},
};

/// A run's result. What was *due* within the measured time is counted, without the warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was done.
    pub load: Load,
    /// Puts.
    pub put: Figures,
    /// Gets.
    pub get: Figures,
    /// Watches: a put and its event, which the latency is that of.
    pub watch: Figures,
    /// All of them.
    pub total: Figures,
    /// How long after they were due requests were sent. Long ones mean that there was no connection, or that the generator
    /// itself was too slow; they are part of the latencies.
    pub send_delay: Latency,
    /// Requests that failed, by kind.
    pub errors: BTreeMap<String, Errors>,
    /// Answers and events that contradict what was written or read before, those of the warm-up included; none if all is
    /// well.
    pub wrong: Errors,
    /// The longest time without a successful answer.
    pub gap: Gap,
    /// What became of connections.
    pub connections: Connections,
    /// Requests under way at once, at the most, when one was due; 0 in a closed loop.
    pub highest_backlog: usize,
    /// CPU time of this process while it was measured.
    pub cpu: Cpu,
    /// Whether the run's keys were removed at its end.
    pub keys_removed: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Client URLs.
    pub endpoints: Vec<String>,
    /// Connections over all of them.
    pub connections: usize,
    /// Threads that made the requests.
    pub threads: usize,
    /// When requests were made.
    pub pace: Loop,
    /// Shares of the operations.
    pub mix: Mix,
    /// Keys that puts and gets used.
    pub keys: usize,
    /// Octets of a key.
    pub key_size: usize,
    /// Octets of a value.
    pub value_size: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// Seconds that were measured.
    pub seconds: f64,
    /// Seconds of warm-up before.
    pub warmup_seconds: f64,
    /// Seconds that a request had from when it was due.
    pub timeout_seconds: f64,
    /// Requests of an open loop that could be under way.
    pub backlog: usize,
}

/// When requests were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loop {
    /// At a rate.
    Open {
        /// Requests per second.
        rate: f64,
        /// How they lay in time.
        arrivals: Arrivals,
    },
    /// One after the other.
    Closed {
        /// Requests under way on each connection.
        in_flight: usize,
    },
}

/// One operation, or all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Successful answers to requests that were due.
    pub answers: u64,
    /// Failures of requests that were due. With `answers`, these are all that were.
    pub errors: u64,
    /// Successful answers that *arrived* within the measured time, per second of it.
    pub per_second: f64,
    /// From when they were due to the successful answers.
    pub latency: Latency,
}

/// A distribution of times, in µs with three significant digits; all 0 of nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half of them took at most this.
    pub p50_us: u64,
    /// Nine of ten.
    pub p90_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p99_9_us: u64,
    /// All of them.
    pub max_us: u64,
    /// How many took longer than 10 ms.
    pub slower_than_10_ms: u64,
    /// How many took longer than 100 ms.
    pub slower_than_100_ms: u64,
    /// How many took longer than 1 s.
    pub slower_than_1_s: u64,
}

/// Failures of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// How many.
    pub count: u64,
    /// What the first of them said.
    pub example: Option<String>,
}

/// A time without a successful answer on any connection. At a low rate it is at least the time between two requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// How long, in µs.
    pub us: u64,
    /// When it began, in µs since the begin of what is measured.
    pub began_us: u64,
}

/// What became of connections while it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// Connections that broke, by why.
    pub broken: BTreeMap<String, Errors>,
    /// Attempts to connect again that failed, by why.
    pub failed_attempts: BTreeMap<String, Errors>,
    /// The longest time from the break of a connection to the first answer on the one in its place, in µs. One that did not
    /// come back counts up to its last attempt.
    pub longest_outage_us: u64,
}

/// CPU time of the process, all its threads together. In a process that does more than this run, that counts too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// In user mode, in µs.
    pub user_us: u64,
    /// In the kernel, in µs.
    pub system_us: u64,
}

impl Report {
    /// From the counts of a run that is over.
    ///
    /// # Errors
    ///
    /// If there is no room, or requests are unaccounted for: a fault of the generator's.
    pub(crate) fn new(
        plan: &Plan,
        recorder: &Recorder,
        sent: u64,
        cpu: CpuTime,
        keys_removed: bool,
    ) -> Result<Self> {
        let total = recorder.total()?;
        let accounted = total.latency.len() + total.failed;
        ensure!(accounted == sent, "{sent} requests were due, and {accounted} are accounted for");
        let figures = |tally: &Tally| Figures::new(tally, plan.duration);
        let [put, get, watch] = Operation::ALL.map(|operation| figures(recorder.tally(operation)));
        let gap = recorder.gap();
        let connections = recorder.connections();
        Ok(Self {
            load: Load::new(plan),
            put,
            get,
            watch,
            total: figures(&total),
            send_delay: Latency::new(recorder.send_delay()),
            errors: by_kind(recorder.errors()),
            wrong: recorder.wrong_answers().map(Errors::from).unwrap_or_default(),
            gap: Gap { us: micros(gap.length), began_us: micros(gap.began.saturating_sub(plan.warmup)) },
            connections: Connections {
                broken: by_kind(&connections.broken),
                failed_attempts: by_kind(&connections.refused),
                longest_outage_us: micros(connections.longest_outage),
            },
            highest_backlog: recorder.highest_backlog(),
            cpu: Cpu { user_us: cpu.user, system_us: cpu.system },
            keys_removed,
        })
    }
}

impl Load {
    fn new(plan: &Plan) -> Self {
        Self {
            endpoints: plan.endpoints.iter().map(ToString::to_string).collect(),
            connections: plan.connections,
            threads: plan.threads,
            pace: match plan.pace {
                Pace::Open { rate, arrivals } => Loop::Open { rate, arrivals },
                Pace::Closed { in_flight } => Loop::Closed { in_flight },
            },
            mix: plan.mix,
            keys: plan.keys,
            key_size: plan.key_size,
            value_size: plan.value_size,
            seed: plan.seed,
            seconds: plan.duration.as_secs_f64(),
            warmup_seconds: plan.warmup.as_secs_f64(),
            timeout_seconds: plan.timeout.as_secs_f64(),
            backlog: plan.backlog,
        }
    }
}

impl Figures {
    fn new(tally: &Tally, measured: Duration) -> Self {
        Self {
            answers: tally.latency.len(),
            errors: tally.failed,
            per_second: tally.arrived as f64 / measured.as_secs_f64(),
            latency: Latency::new(&tally.latency),
        }
    }
}

impl Latency {
    fn new(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        // What lies in one cell with the limit is not longer.
        let slower = |us: u64| histogram.count_between(histogram.next_non_equivalent(us), u64::MAX);
        Self {
            count: histogram.len(),
            mean_us: histogram.mean(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: histogram.max(),
            slower_than_10_ms: slower(10_000),
            slower_than_100_ms: slower(100_000),
            slower_than_1_s: slower(1_000_000),
        }
    }
}

impl From<&Counted> for Errors {
    fn from(counted: &Counted) -> Self {
        Self { count: counted.count, example: Some(counted.example.clone()) }
    }
}

fn by_kind(counts: &BTreeMap<&'static str, Counted>) -> BTreeMap<String, Errors> {
    counts.iter().map(|(kind, counted)| ((*kind).to_owned(), counted.into())).collect()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::{Failure, Kind};

    fn plan() -> Plan {
        Plan::new(vec!["http://127.0.0.1".parse().unwrap()])
    }

    fn recorder(plan: &Plan) -> Recorder {
        Recorder::new(plan.warmup..plan.warmup + plan.duration).unwrap()
    }

    #[test]
    fn a_request_that_is_unaccounted_for_is_an_error() {
        let (plan, cpu) = (plan(), CpuTime::default());
        let error = Report::new(&plan, &recorder(&plan), 1, cpu, true).unwrap_err().to_string();
        assert_eq!(error, "1 requests were due, and 0 are accounted for");
    }

    #[test]
    fn a_run_without_answers_is_reported() {
        let plan = plan();
        let mut recorder = recorder(&plan);
        recorder.failed(Operation::Put, plan.warmup, &Failure::new(Kind::Timeout, "no answer within 5s"));
        let report = Report::new(&plan, &recorder, 1, CpuTime::default(), false).unwrap();
        assert_eq!(report.total.latency, Latency::default());
        assert_eq!(report.total.errors, 1);
        assert_eq!(report.gap, Gap { us: 10_000_000, began_us: 0 });
        assert_eq!(report.errors["timeout"].example.as_deref(), Some("no answer within 5s"));
    }

    proptest! {
        /// Against the latencies sorted: to three digits, and exact counts.
        #[test]
        fn latencies_are_what_they_are(mut latencies in prop::collection::vec(1u64..5_000_000, 1..300)) {
            let plan = plan();
            let mut recorder = recorder(&plan);
            for us in &latencies {
                let due = plan.warmup;
                recorder.answered(Operation::Get, due, due + Duration::from_micros(*us));
            }
            let report =
                Report::new(&plan, &recorder, latencies.len() as u64, CpuTime::default(), true).unwrap();
            latencies.sort_unstable();
            let found = &report.get.latency;
            for (quantile, us) in [(0.5, found.p50_us), (0.9, found.p90_us), (0.99, found.p99_us)] {
                let rank = (quantile * latencies.len() as f64).ceil() as usize;
                let exact = latencies[rank.max(1) - 1];
                prop_assert!(us.abs_diff(exact) as f64 <= 1.0 + exact as f64 / 1000.0, "{us} for {exact}");
            }
            let max = *latencies.last().unwrap();
            prop_assert!(found.max_us >= max && found.max_us <= max + max / 1000 + 1);
            prop_assert_eq!(&report.get.latency, &report.total.latency);
            let text = serde_json::to_string(&report).unwrap();
            let read: Report = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.get.latency.p99_us, report.get.latency.p99_us);
            prop_assert_eq!(read.load.mix, report.load.mix);
        }
    }
}
