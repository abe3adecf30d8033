//! Names of the pinned maps and programs, under `pin_dir`.

/// Array of one [`super::Layout`]: which version of these layouts the pinned maps have.
pub const LAYOUT: &str = "layout";
/// Array of one text: where this version's layouts keep their fields (`lb_core::layout`). The agent's own: no program reads it.
pub const FIELDS: &str = "fields";
/// Array of one [`super::Filter`].
pub const FILTER: &str = "filter";
/// Array of [`super::Interface`], indexed by ifindex modulo [`super::MAX_INTERFACES`].
pub const INTERFACES: &str = "interfaces";
/// Hash [`super::VipOnInterface`] → [`super::VipClaim`]: where a VIP is answered for.
pub const VIPS: &str = "vips";
/// Hash [`super::ServiceKey`] → service number.
pub const SERVICE_PORTS: &str = "service_ports";
/// Array of [`super::Service`], indexed by service number.
pub const SERVICES: &str = "services";
/// LPM trie [`super::AllowData`] with its prefix length → 1.
pub const ALLOW: &str = "allow";
/// LPM trie of clients' addresses → [`super::ClientRoute`].
pub const CLIENT_ROUTES: &str = "client_routes";
/// Array of [`super::Backend`], indexed by backend number.
pub const BACKENDS: &str = "backends";
/// Hash [`super::ReturnKey`] → backend number.
pub const RETURNS: &str = "returns";
/// Array of maps: service number → array of two [`super::Maglev`]; [`super::Load::table`] says which one counts.
pub const MAGLEV: &str = "maglev";
/// Hash [`super::FlowKey`] → [`super::Flow`]: forward entries of established flows.
pub const FLOWS: &str = "flows";
/// LRU hash [`super::FlowKey`] → [`super::Flow`]: forward entries of half-open and closed flows.
pub const HALF_OPEN: &str = "half_open";
/// Array of [`crate::shortcut::Bucket`]: guesses of which backend has a client's flow.
pub const SHORTCUTS: &str = "shortcuts";
/// Array of maps: backend number → array of [`super::PORT_TABLE_SLOTS`] [`super::Record`], then as many [`super::Forward`],
/// memory-mapped by the agent.
pub const PORTS: &str = "ports";
/// Array of [`super::Load`]; see [`super::load_of_backend`] and [`super::LOAD_TOTAL`].
pub const LOADS: &str = "loads";
/// Hash [`super::ClientKey`] → [`super::ClientLoad`]: clients of services with `max_flows_per_client`.
pub const CLIENTS: &str = "clients";
/// Array of one [`super::Lease`].
pub const LEASE: &str = "lease";
/// Array of [`crate::election::Election`], IPv4 and IPv6.
pub const ELECTIONS: &str = "elections";
/// Per-CPU array of one [`crate::counters::Counters`].
pub const COUNTERS: &str = "counters";
/// Per-CPU array of [`crate::counters::BackendCounters`], indexed by backend number.
pub const BACKEND_COUNTERS: &str = "backend_counters";
/// Ring buffer of [`super::Signal`].
pub const SIGNALS: &str = "signals";
/// Ring buffer of [`super::FlowEvent`].
pub const EVENTS: &str = "events";
/// Array of [`super::Suspect`], indexed by backend number; see [`super::SUSPECT_TABLE_FULL`].
pub const SUSPECTS: &str = "suspects";
/// Per-CPU array of [`super::Handshakes`], indexed by backend number.
pub const HANDSHAKES: &str = "handshakes";
/// Array of one [`super::Ticks`]: each load of the program has its own.
pub const TICKS: &str = "ticks";
/// The tail-called programs of the version that is attached.
pub const PROGRAMS: &str = "programs";
/// The program that is attached.
pub const XDP: &str = "xdp";

/// Maps that keep their contents across a restart and an upgrade of the agent.
pub const KEPT: &[&str] = &[
    LAYOUT,
    FILTER,
    INTERFACES,
    VIPS,
    SERVICE_PORTS,
    SERVICES,
    ALLOW,
    CLIENT_ROUTES,
    BACKENDS,
    RETURNS,
    MAGLEV,
    FLOWS,
    HALF_OPEN,
    SHORTCUTS,
    PORTS,
    LOADS,
    CLIENTS,
    LEASE,
    ELECTIONS,
    COUNTERS,
    BACKEND_COUNTERS,
    SIGNALS,
    EVENTS,
    SUSPECTS,
    HANDSHAKES,
];
