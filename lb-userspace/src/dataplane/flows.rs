//! Listing flows, from the port tables.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    claim::State,
    maps::{Backend, Record, Service},
};

use super::{DataPlane, address_of, monotonic_ns};

/// Which flows to list; `None` and the default: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Only this client's.
    pub client: Option<IpAddr>,
    /// Only those of the backend with this number.
    pub backend: Option<u16>,
    /// Only those with this source port toward the backend.
    pub nat_port: Option<u16>,
}

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// The client.
    pub client: SocketAddr,
    /// VIP and port it connected to.
    pub service: SocketAddr,
    /// Where it is balanced to.
    pub backend: SocketAddr,
    /// The backend's number.
    pub backend_number: u16,
    /// The source address toward the backend.
    pub source: IpAddr,
    /// The source port toward the backend.
    pub nat_port: u16,
    /// How far the connection has come.
    pub state: FlowState,
    /// Time since the last packet from either end.
    pub idle: Duration,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// The handshake is not complete.
    HalfOpen,
    /// The handshake is complete.
    Established,
    /// Both ends have closed, or one has reset.
    Closed,
}

impl DataPlane {
    /// The flows that match, at most `limit`, by backend number and NAT port.
    pub fn flows(&self, filter: &FlowFilter, limit: usize) -> Vec<FlowView> {
        let mut found = Vec::new();
        let now = monotonic_ns();
        let tables = self.tables.iter().filter(|(number, _)| filter.backend.is_none_or(|b| b == **number));
        for (&number, table) in tables {
            let Some((backend, service)) = self.owner(number) else { continue };
            for port in table.ports().filter(|&port| filter.nat_port.is_none_or(|p| p == port)) {
                if found.len() == limit {
                    return found;
                }
                let Some(record) = table.flow(port) else { continue };
                if filter.client.is_some_and(|client| record.client.to_ip() != client) {
                    continue;
                }
                let by_client = table.client_last_seen(port, record.claim().generation());
                let last_seen = record.last_seen.max(by_client);
                found.push(FlowView {
                    client: SocketAddr::new(record.client.to_ip(), record.client_port.get()),
                    service: SocketAddr::new(service.vip.to_ip(), service.port.get()),
                    backend: address_of(backend),
                    backend_number: number,
                    source: backend.source.to_ip(),
                    nat_port: port,
                    state: state_of(&record),
                    idle: Duration::from_nanos(now.saturating_sub(last_seen)),
                });
            }
        }
        found
    }

    pub(super) fn owner(&self, number: u16) -> Option<(&Backend, &Service)> {
        let backend = self.actual.backends.get(&number)?;
        Some((backend, self.actual.services.get(&backend.service)?))
    }
}

fn state_of(record: &Record) -> FlowState {
    match record.claim() {
        claim if claim.is(State::Established) => FlowState::Established,
        claim if claim.is(State::HalfOpen) => FlowState::HalfOpen,
        _ => FlowState::Closed,
    }
}
