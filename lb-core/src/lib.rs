//! Logic of the agent.
#![forbid(unsafe_code)]

pub mod reconcile;
