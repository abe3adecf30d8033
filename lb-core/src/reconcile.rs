//! What the maps should hold, what they hold, and the map writes between the two.
//!
//! [`Desired`] is a pure value made of config, discovery, health, the operator's commands and the role. [`Actual`] mirrors
//! the policy maps. [`Planner::plan`] compares them and answers with [`Change`]s, one map write each, in an order that is
//! safe while packets flow. Nothing else decides what is written to a policy map.
//!
//! Numbers are kept: a service or backend that stays has the number it had, also across a restart of the agent, because
//! forward entries and port tables refer to it.

mod actual;
mod plan;
mod table;
mod target;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{choose::Algorithm, election::Election, hash::Seed, maps, nat};

pub use self::{
    actual::{Actual, AllowKey, Change, FilterBits, NO_INTERFACE, NO_LEASE, NO_SERVICE, RouteKey, cleared},
    plan::Planner,
    table::{Member, Table},
    target::{Error, route_key},
};

/// What the maps should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// In the config's order; at most [`maps::MAX_SERVICES`].
    pub services: Vec<DesiredService>,
    /// Every VIP and every source address.
    pub addresses: Vec<DesiredAddress>,
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<maps::Interface>,
    /// The routers toward clients: see [`crate::ways`]; at most [`maps::MAX_CLIENT_ROUTES`].
    pub client_routes: BTreeMap<Prefix, maps::ClientRoute>,
    /// [`maps::Lease::STANDALONE`] on a node without a peer; `None` on one of a pair, where the election has it.
    pub lease: Option<maps::Lease>,
    /// What the node advertises over IPv4 and over IPv6.
    pub elections: [Election; 2],
}

/// A VIP or a source address toward backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredAddress {
    /// The address.
    pub address: IpAddr,
    /// Where ARP and ND are answered: where a prefix holds the address.
    pub answered_on: Vec<Lan>,
}

/// A LAN that the node is on: an interface with the program, and a VLAN there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lan {
    /// The interface's number.
    pub ifindex: u32,
    /// As [`maps::NextHop::tags`]; 0: untagged.
    pub vlan: [u16; 2],
}

impl Lan {
    /// What an interface carries without tags.
    pub const fn untagged(ifindex: u32) -> Self {
        Self { ifindex, vlan: [0; 2] }
    }
}

/// A service as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// The VIP; with `port` what identifies the service.
    pub vip: IpAddr,
    /// The port.
    pub port: u16,
    /// Backends hold the VIP and answer clients directly (`mode = "dsr"`).
    pub dsr: bool,
    /// Key of the flow hash.
    pub seed: Seed,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// What of a client is hashed.
    pub affinity: Affinity,
    /// Established flows that one client's address may have; 0: no limit.
    pub max_flows_per_client: u32,
    /// NAT ports for flows that cannot have their client's own.
    pub nat: nat::Range,
    /// Who may connect; empty: everyone.
    pub allow: Vec<Prefix>,
    /// The backend on this node, if clients on this node are to be sent to it.
    pub near: Option<SocketAddr>,
    /// What a new connection meets while no backend is usable.
    pub no_backend: NoBackend,
    /// How long flows of a drained or removed backend go on before they are reset.
    pub drain_timeout: Duration,
    /// How long an established flow may be silent before it is ended.
    pub idle_timeout: Duration,
    /// In the config's order. One (source, address) belongs to one service only.
    pub backends: Vec<DesiredBackend>,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Address and port; with `source` what identifies the backend.
    pub address: SocketAddr,
    /// The source address toward it: the service's VIP, or its `source_address`.
    pub source: IpAddr,
    /// Share of new flows relative to the service's other backends; 0: none.
    pub weight: u32,
    /// Established flows past which it is passed over; 0: no limit.
    pub max_connections: u32,
    /// Takes new flows now.
    pub usable: bool,
    /// The last verdict of the health check; kept in the map for a restarted agent.
    pub healthy: bool,
    /// Drained by the operator; kept in the map for a restarted agent.
    pub drained: bool,
    /// Where its packets are sent. `None` while it is not known: the last known one is kept.
    pub hop: Option<maps::NextHop>,
}

/// What of a client is hashed (`affinity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Address and port: each connection is placed by itself.
    None,
    /// The address: all connections of a client meet the same backend.
    ClientIp,
}

/// What a new connection meets while no backend is usable (`no_backend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBackend {
    /// A RST.
    Reset,
    /// Silence.
    Drop,
}

/// An address prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address; bits beyond the length do not matter.
    pub address: IpAddr,
    /// Leading bits that count: 0 to 32, or to 128.
    pub length: u8,
}
