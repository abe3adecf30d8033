//! Logic of the agent.
#![forbid(unsafe_code)]
