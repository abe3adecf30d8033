//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use crate::{Arrivals, Endpoint, Mix, Pace, Plan, TlsFiles};

/// Puts load on etcd, and says how long it takes to answer.
///
/// With --rate, requests are due at that rate whatever becomes of the earlier ones, and their latency counts from when they
/// were due: what a stall costs is seen in full. With --closed-loop, each connection sends a request when one was answered,
/// which finds the highest throughput.
#[derive(Debug, Parser)]
#[command(name = "etcd-lb-load", version)]
pub struct Args {
    /// Client URLs of etcd; connections are spread over them in turn
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    endpoints: Vec<Endpoint>,
    /// Connections, each with HTTP/2 of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,
    /// Open loop: requests per second over all connections
    #[arg(long, value_name = "OPS_PER_S", required_unless_present = "closed_loop")]
    rate: Option<f64>,
    /// How the requests of an open loop lie in time
    #[arg(long, value_enum, default_value_t = Arrivals::Constant, conflicts_with = "closed_loop")]
    arrivals: Arrivals,
    /// Requests of an open loop that may be under way; further ones fail, as `backlog`
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    backlog: usize,
    /// Closed loop: the next request when one was answered
    #[arg(long, conflicts_with = "rate")]
    closed_loop: bool,
    /// Requests that each connection has under way in a closed loop
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "rate")]
    in_flight: usize,
    /// How long to measure
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    duration: Duration,
    /// How long to do the same before
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2s")]
    warmup: Duration,
    /// Shares of the operations
    ///
    /// put: writes a random key of the run. get: reads one, linearizably. watch: writes the key that its connection watches,
    /// and is done when the event came by that connection's watch stream; each connection has one stream if the share is
    /// not 0.
    #[arg(long, value_name = "SHARES", default_value_t = Mix::default())]
    mix: Mix,
    /// Keys that puts and gets use; they are written before, and removed afterwards
    #[arg(long, value_name = "N", default_value_t = 1000)]
    keys: usize,
    /// Length of a key in octets
    #[arg(long, value_name = "N", default_value_t = 32)]
    key_size: usize,
    /// Length of a value in octets
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_size: usize,
    /// What all random choices follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Time for a request from when it was due, and for a connection to be made
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    timeout: Duration,
    /// Threads that make the requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Certificates of the authorities that sign the servers' ones, in PEM
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Client certificate, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["key", "cacert"])]
    cert: Option<PathBuf>,
    /// Key of the client certificate, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["cert", "cacert"])]
    key: Option<PathBuf>,
    /// What the servers' certificates must be valid for, if not the endpoints' hosts
    #[arg(long, value_name = "NAME", requires = "cacert")]
    server_name: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether the report is to be JSON.
    pub fn json(&self) -> bool {
        self.json
    }
}

impl From<Args> for Plan {
    fn from(args: Args) -> Self {
        let client = args.cert.zip(args.key);
        let tls = args.cacert.map(|ca| TlsFiles { ca, client, server_name: args.server_name });
        let pace = match args.rate {
            Some(rate) => Pace::Open { rate, arrivals: args.arrivals },
            None => Pace::Closed { in_flight: args.in_flight },
        };
        Self {
            endpoints: args.endpoints,
            tls,
            connections: args.connections,
            pace,
            duration: args.duration,
            warmup: args.warmup,
            mix: args.mix,
            keys: args.keys,
            key_size: args.key_size,
            value_size: args.value_size,
            seed: args.seed,
            timeout: args.timeout,
            backlog: args.backlog,
            threads: args.threads,
        }
    }
}

/// `500ms`, `10s`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is not a duration: write 500ms, 10s or 2m");
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().map_err(|_| problem())?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(problem()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        let args = Args::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        Ok(args.into())
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn lines_become_plans() {
        let plan = plan(
            "load --endpoints http://a,http://b:1 --rate 1.5 --arrivals poisson --mix get=1 --duration 1.5s \
             --timeout 250ms --cacert ca --cert c --key k",
        )
        .unwrap();
        assert_eq!(plan.endpoints[1].port(), 1);
        assert_eq!(plan.pace, Pace::Open { rate: 1.5, arrivals: Arrivals::Poisson });
        assert_eq!((plan.duration, plan.timeout), (Duration::from_millis(1500), Duration::from_millis(250)));
        assert_eq!(plan.tls.unwrap().client, Some(("c".into(), "k".into())));
    }

    #[test]
    fn a_pace_is_chosen() {
        assert!(plan("load --endpoints http://a").unwrap_err().contains("--rate"));
        assert!(plan("load --endpoints http://a --rate 1 --closed-loop").is_err());
        assert!(plan("load --endpoints http://a --rate 1 --in-flight 4").is_err());
        assert!(plan("load --endpoints http://a --closed-loop --arrivals poisson").is_err());
        assert!(plan("load --endpoints http://a --closed-loop --cert c --cacert ca").is_err());
        let closed = plan("load --endpoints http://a --closed-loop --in-flight 4").unwrap();
        assert_eq!(closed.pace, Pace::Closed { in_flight: 4 });
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "10", "s", "-1s", "1.2.3s", "1e9h", "5 s", "NaNs"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
