//! The agent's half of the data plane against the real kernel: pins, links, maps, flows. Needs root; each test has its own
//! mount and network namespace, which go with it.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod cpus;
mod flows;
mod links;
mod migrate;
mod pins;
mod sandbox;
mod sync;
mod tables;
