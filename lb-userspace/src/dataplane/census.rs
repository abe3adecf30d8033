//! How many flows there are: one pass over the claims in the port tables, at memory speed.

use std::collections::BTreeMap;

use lb_common::claim::{Claim, State};

use super::{DataPlane, port_table::PortTable};

/// Flows by backend number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// A line for every number in use.
    pub backends: BTreeMap<u16, BackendCensus>,
    /// All of them together.
    pub total: BackendCensus,
}

/// Flows of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCensus {
    /// Established flows.
    pub established: u32,
    /// Half-open flows.
    pub half_open: u32,
    /// Closed flows whose NAT port was not taken again yet.
    pub closed: u32,
}

impl BackendCensus {
    /// NAT ports in use.
    pub const fn nat_ports_used(&self) -> u32 {
        self.established + self.half_open + self.closed
    }

    /// Counts a port.
    pub(super) const fn count(&mut self, claim: Claim) {
        self.established += claim.is(State::Established) as u32;
        self.half_open += claim.is(State::HalfOpen) as u32;
        self.closed += claim.is(State::Closed) as u32;
    }

    const fn add(&mut self, other: &Self) {
        self.established += other.established;
        self.half_open += other.half_open;
        self.closed += other.closed;
    }
}

impl Census {
    /// Adds a backend's line.
    pub(super) fn insert(&mut self, number: u16, line: BackendCensus) {
        self.total.add(&line);
        self.backends.insert(number, line);
    }

    /// The line of a backend; all zero if the number is not in use.
    pub fn of(&self, number: u16) -> BackendCensus {
        self.backends.get(&number).copied().unwrap_or_default()
    }
}

impl DataPlane {
    /// Counts the flows.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for (&number, table) in &self.tables {
            census.insert(number, count(table));
        }
        census
    }
}

fn count(table: &PortTable) -> BackendCensus {
    let mut line = BackendCensus::default();
    table.ports().for_each(|port| line.count(table.claim(port)));
    line
}
