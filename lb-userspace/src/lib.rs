//! Agent.

pub mod dataplane;
pub mod object;
