//! What a run is to do.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    Arrivals, Endpoint, Mix,
    payload::{MIN_KEY_SIZE, MIN_VALUE_SIZE},
};

/// Most connections of a run: more than one address has ports for.
const MAX_CONNECTIONS: usize = 60_000;
/// Most shared keys: what is known of each takes 16 octets.
const MAX_KEYS: usize = 10_000_000;
/// Longest key, in octets.
const MAX_KEY_SIZE: usize = 4096;
/// Longest value, in octets: etcd itself refuses requests of more than 1.5 MiB, unless it is told otherwise.
const MAX_VALUE_SIZE: usize = 1 << 20;
/// Most requests under way, of which each takes a few KiB and its value.
const MAX_BACKLOG: usize = 1_000_000;
/// Fastest rate, per second: far more than one etcd takes.
const MAX_RATE: f64 = 1e6;
/// Longest time for a request.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest run.
const MAX_DURATION: Duration = Duration::from_secs(7 * 86_400);

/// A run. Begin with [`Plan::new`] and change what is to differ; [`run`](crate::run()) checks it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where etcd is: connections are spread over them in turn.
    pub endpoints: Vec<Endpoint>,
    /// For `https` endpoints.
    pub tls: Option<TlsFiles>,
    /// Connections, each with HTTP/2 of its own; at least one.
    pub connections: usize,
    /// When requests are made.
    pub pace: Pace,
    /// How long is measured.
    pub duration: Duration,
    /// How long the same is done before, without being measured.
    pub warmup: Duration,
    /// What the requests are.
    pub mix: Mix,
    /// Keys that puts and gets use; at least one.
    pub keys: usize,
    /// Length of a key in octets; at least 26.
    pub key_size: usize,
    /// Length of a value in octets; at least 32.
    pub value_size: usize,
    /// What all random choices follow from.
    pub seed: u64,
    /// Time for a request, from when it was due; also for a connection to be made.
    pub timeout: Duration,
    /// Requests of an open loop that may be under way; further ones fail without being sent.
    pub backlog: usize,
    /// Threads that do the work; at least one.
    pub threads: usize,
}

/// When requests are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Open loop: at this rate per second, whatever becomes of them.
    Open {
        /// Per second, over all connections.
        rate: f64,
        /// How they lie in time.
        arrivals: Arrivals,
    },
    /// Closed loop: each connection has this many requests under way all the time.
    Closed {
        /// Per connection; at least one.
        in_flight: usize,
    },
}

/// Files for TLS, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign the servers' certificates.
    pub ca: PathBuf,
    /// The client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// What the servers' certificates must be valid for; by default the host of each endpoint.
    pub server_name: Option<String>,
}

impl Plan {
    /// One connection that does the default mix in a closed loop, for ten seconds after two of warm-up.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            tls: None,
            connections: 1,
            pace: Pace::Closed { in_flight: 1 },
            duration: Duration::from_secs(10),
            warmup: Duration::from_secs(2),
            mix: Mix::default(),
            keys: 1000,
            key_size: 32,
            value_size: 256,
            seed: 1,
            timeout: Duration::from_secs(5),
            backlog: 50_000,
            threads: 1,
        }
    }

    /// Whether it can be done.
    ///
    /// # Errors
    ///
    /// What is out of its range, and which it is.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.endpoints.is_empty(), "no endpoint is given");
        let tls = self.endpoints.iter().find(|endpoint| endpoint.is_tls());
        if let (Some(endpoint), None) = (tls, &self.tls) {
            anyhow::bail!("{endpoint} needs the certificate of its authority: give --cacert");
        }
        within("connections", self.connections, 1, MAX_CONNECTIONS)?;
        within("keys", self.keys, 1, MAX_KEYS)?;
        within("key-size", self.key_size, MIN_KEY_SIZE, MAX_KEY_SIZE)?;
        within("value-size", self.value_size, MIN_VALUE_SIZE, MAX_VALUE_SIZE)?;
        within("backlog", self.backlog, 1, MAX_BACKLOG)?;
        within("threads", self.threads, 1, 256)?;
        let millisecond = Duration::from_millis(1);
        ensure!(
            (millisecond..=MAX_DURATION).contains(&self.duration),
            "duration is {:?}: it may be 1 ms to 7 days",
            self.duration
        );
        ensure!(self.warmup <= MAX_DURATION, "warmup is {:?}: it may be up to 7 days", self.warmup);
        ensure!(
            (millisecond..=MAX_TIMEOUT).contains(&self.timeout),
            "timeout is {:?}: it may be 1 ms to 10 min",
            self.timeout
        );
        match self.pace {
            Pace::Open { rate, .. } => ensure!(
                rate > 0.0 && rate <= MAX_RATE,
                "rate is {rate}: it may be more than 0 and up to {MAX_RATE} per second"
            ),
            Pace::Closed { in_flight } => {
                within("in-flight", in_flight, 1, 10_000)?;
                let all = in_flight * self.connections;
                ensure!(
                    all <= MAX_BACKLOG,
                    "connections × in-flight is {all}: it may be up to {MAX_BACKLOG}"
                );
            }
        }
        Ok(())
    }
}

fn within(name: &str, value: usize, least: usize, most: usize) -> Result<()> {
    ensure!((least..=most).contains(&value), "{name} is {value}: it may be {least} to {most}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan::new(vec!["http://127.0.0.1".parse().unwrap()])
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        plan().check().unwrap();
        let open = |rate| Pace::Open { rate, arrivals: Arrivals::Constant };
        let https = vec!["https://127.0.0.1".parse().unwrap()];
        for (plan, said) in [
            (Plan { endpoints: vec![], ..plan() }, "no endpoint is given"),
            (Plan { endpoints: https, ..plan() }, "https://127.0.0.1:2379 needs the certificate"),
            (Plan { connections: 0, ..plan() }, "connections is 0: it may be 1 to 60000"),
            (Plan { key_size: 25, ..plan() }, "key-size is 25: it may be 26 to 4096"),
            (Plan { value_size: 31, ..plan() }, "value-size is 31"),
            (Plan { duration: Duration::ZERO, ..plan() }, "duration is 0ns"),
            (Plan { timeout: Duration::MAX, ..plan() }, "timeout is "),
            (Plan { pace: open(0.0), ..plan() }, "rate is 0"),
            (Plan { pace: open(f64::NAN), ..plan() }, "rate is NaN"),
            (Plan { pace: open(f64::INFINITY), ..plan() }, "rate is inf"),
            (Plan { pace: Pace::Closed { in_flight: 0 }, ..plan() }, "in-flight is 0"),
        ] {
            let error = plan.check().unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
