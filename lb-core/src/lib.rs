//! The agent's logic without IO: what a config means, which backend a slot belongs to, what a probe result
//! changes.
//!
//! Nothing here reads a file, a clock or a socket. Time and randomness are parameters, results are values, so
//! that every rule can be tested without waiting and without a network.
#![forbid(unsafe_code)]

pub mod choice;
pub mod config;
pub mod desired;
pub mod discovery;
pub mod etcd;
pub mod health;
pub mod import;
pub mod layout;
pub mod maglev;
pub mod rebalance;
pub mod reconcile;
pub mod resets;
pub mod seed;
pub mod segment;
pub mod sync;
pub mod vrrp;
pub mod ways;
