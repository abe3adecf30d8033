//! What can be asked of the agent, and its answers.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{
    capture::{CaptureAnswer, CaptureRequest},
    events::{Event, EventQuery},
    explain::{ExplainAnswer, ExplainQuery},
    status::Status,
};

/// A request to the agent's loop, with the way back.
#[derive(Debug)]
pub enum Command {
    /// What `status` shows.
    Status(oneshot::Sender<Status>),
    /// The text for Prometheus.
    Metrics(oneshot::Sender<String>),
    /// What `flows` shows.
    Flows(FlowQuery, oneshot::Sender<Result<FlowList, String>>),
    /// What `explain` shows.
    Explain(ExplainQuery, oneshot::Sender<Result<ExplainAnswer, String>>),
    /// Begin or end draining.
    Drain(DrainRequest, Draining, oneshot::Sender<Result<DrainAnswer, String>>),
    /// Reset flows.
    Reset(ResetRequest, oneshot::Sender<Result<ResetAnswer, String>>),
    /// Reset flows of backends that have too many; or only tell which (true).
    Rebalance(bool, oneshot::Sender<RebalanceAnswer>),
    /// Apply the config file.
    Reload(oneshot::Sender<Result<ReloadAnswer, String>>),
    /// Hand the VIPs over; answered when this node has given them up.
    FailOver(oneshot::Sender<Result<(), String>>),
    /// Begin, extend or end a capture.
    Capture(CaptureRequest, oneshot::Sender<Result<CaptureAnswer, String>>),
    /// What `events` shows.
    Events(EventQuery, oneshot::Sender<Vec<Event>>),
    /// Keep the VIPs through a restart that takes so long; answered with how long they stay, ms.
    Hold(Duration, oneshot::Sender<Result<u64, String>>),
    /// Whether traffic is served.
    Ready(oneshot::Sender<Result<(), String>>),
}

/// Where commands go.
#[derive(Clone, Debug)]
pub struct Commands(mpsc::Sender<Command>);

/// The agent's loop did not answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Gone;

impl Commands {
    /// A queue for commands, and its other end. It is short: who asks, waits.
    pub fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// For how long to keep the VIPs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// Milliseconds.
    pub ms: u64,
}

/// Begin or end draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    /// No new flows.
    Begin,
    /// New flows again.
    End,
}

/// Which backends to drain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Its name, or its address `IP:port`.
    pub backend: String,
    /// Only in this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// What a drain or undrain did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainAnswer {
    /// Each service that holds the backend.
    pub backends: Vec<DrainedBackend>,
}

/// A backend of a service after a drain or undrain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainedBackend {
    /// The service.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// Its address.
    pub address: String,
    /// Established flows it still has.
    pub flows: u64,
    /// Whether this request changed anything.
    pub changed: bool,
}

/// Whose flows to reset: exactly one is set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// A backend's name, or its address `IP:port`; in every service that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// A client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
}

/// What a reset did.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResetAnswer {
    /// Established flows that were reset.
    pub flows: u64,
}

/// Whether to rebalance, or only to tell what that would do.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceRequest {
    /// Reset nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a rebalance did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RebalanceAnswer {
    /// Nothing was reset.
    pub dry_run: bool,
    /// Each backend of each service, in the config's order.
    pub backends: Vec<RebalancedBackend>,
}

/// A backend of a service, rebalanced.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RebalancedBackend {
    /// The service.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// Its address.
    pub address: String,
    /// Established flows it had.
    pub flows: u64,
    /// Flows it should have at most; absent if it takes no new flows, and is therefore left alone.
    pub bound: Option<u64>,
    /// Flows that were, or would be, reset.
    pub reset: u64,
}

/// What a reload did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// The file.
    pub config: String,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What `check-config` found.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckReport {
    /// The config can be used.
    pub ok: bool,
    /// All that is wrong with it, each with its place; null: nothing.
    pub error: Option<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Which flows to list; what is absent does not restrict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The backend's name or address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The source port toward the backend, as etcd's log shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_port: Option<u16>,
}

/// Flows, at most [`FLOW_LIMIT`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FlowList {
    /// The flows, by backend and NAT port.
    pub flows: Vec<FlowEntry>,
    /// There are more than are listed.
    pub truncated: bool,
}

/// Flows listed at most: what the agent can gather without keeping probes waiting.
pub const FLOW_LIMIT: usize = 10_000;

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FlowEntry {
    /// The client, `IP:port`.
    pub client: String,
    /// The service.
    pub service: String,
    /// What the client connected to, `IP:port`.
    pub vip: String,
    /// The backend's name.
    pub backend: String,
    /// The backend, `IP:port`.
    pub address: String,
    /// The source port toward the backend.
    pub nat_port: u16,
    /// `half-open`, `established` or `closed`.
    pub state: String,
    /// Milliseconds since the last packet.
    pub idle_ms: u64,
}
