//! Agent.

pub mod object;
