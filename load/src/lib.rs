//! A load generator for etcd: operations per second, latencies, and what an outage costs.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use etcd_lb_load::{Arrivals, Pace, Plan, run};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut plan = Plan::new(vec!["http://10.0.1.100:2379".parse().map_err(anyhow::Error::msg)?]);
//! plan.connections = 100;
//! plan.pace = Pace::Open { rate: 2000.0, arrivals: Arrivals::Poisson };
//! plan.duration = Duration::from_secs(30);
//! let report = run(&plan)?;
//! println!("{report}");
//! assert_eq!(report.wrong.count, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What is measured
//!
//! **Latency** counts from when a request was *due*. In an open loop ([`Pace::Open`]) that is decided by the rate alone
//! ([`schedule`]): while etcd stalls, requests become due all the same, each is made and none twice, and each counts its own
//! wait. In a closed loop ([`Pace::Closed`]) a request is due when the one before it ended; there a stall is one slow request
//! for each under way, so a closed loop finds throughput, and its latencies say little about outages.
//!
//! **Operations** are chosen by the shares of the [`Mix`]. A *put* writes a random one of the run's keys, a *get* reads one
//! linearizably. A *watch* is a put of the key that its own connection watches, and the event of it: each connection has one
//! watch stream, open all the time, on one key; the operation is done when both the put's answer and its event were
//! received, and its latency is from when it was due to the event's arrival. So a mix of `put=10,get=85,watch=5` writes with
//! 15 of 100 requests. A stream that broke goes on behind the last event it brought, as etcd's own client does.
//!
//! **Failures** are counted by kind, never hidden by a second try. A request that finds its connection broken waits for the
//! attempt that is under way; if that fails, a request of an open loop fails with it, and one of a closed loop waits for the
//! next. A connection is made again at once, after an attempt that failed or one that did not last half a second with a
//! backoff from 10 to 500 ms. It counts as there when etcd has answered a read on it. If a request times out, and nothing at
//! all came by its connection meanwhile, the connection is given up (`silent`).
//!
//! **The gap** is the longest time without any successful answer, and the longest *outage* the longest time a single
//! connection took from its break to the first answer on its successor.
//!
//! **Every answer is checked.** Values carry run, key, put and a checksum; etcd is linearizable, so whatever is asked after
//! an answer was there must not know less than it, by whichever connection it comes; events come in order, each once, and
//! none is left out. What contradicts that is counted as `wrong`.
//!
//! What was due within the measured time is counted, after the warm-up; requests that are under way at its end are waited
//! for.
//!
//! # The modules
//!
//! Without IO, time being a parameter: `schedule` (when requests are due), `mix` (what they are), `payload` (keys and values),
//! `truth` and `events` (what answers may say), `backoff`, `gap`, `recorder`, `report`, `table`. With IO: `timer`, `stream`,
//! `client` (one HTTP/2 connection), `connection` (one that is kept), `request` (one request), `run`.

mod args;
mod backoff;
mod client;
mod connection;
mod endpoint;
mod events;
mod failure;
mod gap;
mod limits;
mod messages;
mod mix;
mod payload;
mod plan;
mod random;
mod recorder;
pub mod report;
mod request;
mod run;
pub mod schedule;
mod site;
mod stream;
mod table;
mod timer;
mod tls;
mod truth;

pub use args::Args;
pub use endpoint::Endpoint;
pub use mix::{Mix, Operation};
pub use plan::{Pace, Plan, TlsFiles};
pub use report::Report;
pub use run::{run, run_with};
pub use schedule::Arrivals;
