//! The document of `explain --json`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::command::FlowEntry;

/// What to explain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// The client's address.
    pub client: IpAddr,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Only this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// An explanation for each service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExplainAnswer {
    /// In the config's order.
    pub services: Vec<ServiceExplanation>,
}

/// Where a client's connection to a service goes, or would go now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceExplanation {
    /// The service.
    pub service: String,
    /// What the client connects to, `IP:port`.
    pub vip: String,
    /// The client, `IP` or `IP:port`.
    pub client: String,
    /// How the service chooses.
    pub algorithm: String,
    /// `none` or `client-ip`.
    pub affinity: String,
    /// No backend is healthy, and others are used in their place.
    pub fail_open: bool,
    /// The connection that the client has, with this port if one was given; then `backend` is its backend.
    pub flow: Option<FlowEntry>,
    /// The backend's name; null: none, or it depends on a port that was not given.
    pub backend: Option<String>,
    /// The reason of the counter that a new connection would be refused or dropped under.
    pub refused: Option<String>,
    /// Why, in a sentence.
    pub why: String,
    /// The client's hash, 16 hexadecimal digits, where it decides.
    pub hash: Option<String>,
    /// Its slot of the Maglev table, where it decides.
    pub slot: Option<u32>,
    /// The service's flows with this one, handshakes under way included.
    pub k: u64,
    /// The backends that were asked before, in order.
    pub passed_over: Vec<PassedOver>,
    /// All backends of the service.
    pub backends: Vec<ExplainedBackend>,
}

/// A backend that was asked and passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PassedOver {
    /// Its name.
    pub backend: String,
    /// Why.
    pub reason: String,
}

/// A backend, as a choice sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExplainedBackend {
    /// Its name.
    pub backend: String,
    /// `IP:port`.
    pub address: String,
    /// `healthy`, `down`, `draining`, `starting` or `learner`.
    pub state: String,
    /// It takes new connections, but for its limits.
    pub live: bool,
    /// Its weight.
    pub weight: u32,
    /// Established flows.
    pub flows: u64,
    /// Handshakes under way.
    pub pending: u64,
    /// Flows that the bound allows it now; null where the algorithm has none, or the backend is not live.
    pub bound: Option<u64>,
    /// Flows past which it is passed over; 0: no limit.
    pub max_connections: u32,
}
