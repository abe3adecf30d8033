//! The document of `status --json` and `/status.json`.

use serde::{Deserialize, Serialize};

use crate::units;

/// The state of this node and all it balances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// What this node is.
    pub role: Role,
    /// The lease is over: the VIPs are not claimed.
    pub fenced: bool,
    /// Where the program is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// The way of clients and members on this node; null if there is none.
    #[serde(default)]
    pub node: Option<NodeStatus>,
    /// In the config's order.
    pub services: Vec<ServiceStatus>,
    /// The flow table.
    pub flow_table: FlowTableStatus,
    /// The other node of the pair, the worst of several; null on a standalone node.
    pub peer: Option<PeerStatus>,
}

/// Roles of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It owns the VIPs.
    Active,
    /// It waits to take over.
    Backup,
    /// It has no peer and owns the VIPs.
    Standalone,
    /// It cannot serve.
    Fault,
}

impl Role {
    /// All of them, as the metric `role` lists them.
    pub const ALL: [Self; 4] = [Self::Active, Self::Backup, Self::Standalone, Self::Fault];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Backup => "backup",
            Self::Standalone => "standalone",
            Self::Fault => "fault",
        }
    }
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; null while it is not attached (the interface is gone).
    pub xdp_mode: Option<String>,
}

/// The veth pair by which clients and members on this node are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeStatus {
    /// Its near end's name.
    pub interface: String,
    /// As of an interface: of its far end.
    pub xdp_mode: Option<String>,
    /// Addresses that this node's own routes lead into it: none while another node has the VIPs.
    pub led: Vec<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub vip: String,
    /// Its port.
    pub port: u16,
    /// `nat` or `dsr`.
    pub mode: String,
    /// How a backend is chosen.
    pub algorithm: String,
    /// No backend is healthy, and others are used in their place, now.
    pub fail_open: bool,
    /// Established flows.
    pub flows: u64,
    /// Half-open flows.
    pub half_open: u64,
    /// In the config's order.
    pub backends: Vec<BackendStatus>,
}

impl ServiceStatus {
    /// `10.0.1.100:2379`, `[fd00::100]:2379`
    pub fn endpoint(&self) -> String {
        let Self { vip, port, .. } = self;
        if vip.contains(':') { format!("[{vip}]:{port}") } else { format!("{vip}:{port}") }
    }
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// `IP:port`.
    pub address: String,
    /// `healthy`, `down`, `draining`, `starting` or `learner`.
    pub state: String,
    /// What the last check said.
    pub reason: String,
    /// Its share of new flows relative to the others.
    pub weight: u32,
    /// Established flows.
    pub flows: u64,
    /// Slots of the service's Maglev table.
    pub slots: u64,
    /// Whether it leads the etcd cluster, where known.
    pub leader: Option<bool>,
    /// Its etcd version, where known.
    pub version: Option<String>,
    /// Its etcd cluster's id, where known.
    pub cluster_id: Option<String>,
    /// It was found by the service's discovery.
    #[serde(default)]
    pub discovered: bool,
    /// Whether it is a learner, where known.
    #[serde(default)]
    pub learner: Option<bool>,
    /// Alarms of its etcd cluster: `NOSPACE`, `CORRUPT`.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Size of its etcd database in octets, where known.
    #[serde(default)]
    pub db_size: Option<u64>,
    /// When its certificate ends, RFC 3339, UTC, where known.
    #[serde(default)]
    pub tls_not_after: Option<String>,
    /// How long the last check took, milliseconds.
    #[serde(default)]
    pub check_ms: Option<u64>,
    /// The step of the last check that failed: `connect`, `TLS`, `health`, `range`, `status`, and for HTTP `request`,
    /// `response` and `body`.
    #[serde(default)]
    pub failed_step: Option<String>,
    /// How long that step took, milliseconds.
    #[serde(default)]
    pub failed_step_ms: Option<u64>,
    /// What goes through it.
    #[serde(default)]
    pub traffic: Traffic,
    /// Milliseconds since the last check ended; null before the first.
    pub last_check_ms: Option<u64>,
    /// Since when the state stands, RFC 3339, UTC.
    pub since: String,
}

/// What goes through a backend: totals, and rates over the last second or so. *In* is toward the backend, octets are those of IP
/// packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Traffic {
    /// Connections begun.
    pub connections: u64,
    /// Packets toward the backend.
    pub packets_in: u64,
    /// Packets toward clients.
    pub packets_out: u64,
    /// Octets toward the backend.
    pub bytes_in: u64,
    /// Octets toward clients.
    pub bytes_out: u64,
    /// Connections begun, a second.
    pub connections_per_second: f64,
    /// Packets toward the backend, a second.
    pub packets_in_per_second: f64,
    /// Packets toward clients, a second.
    pub packets_out_per_second: f64,
    /// Octets toward the backend, a second.
    pub bytes_in_per_second: f64,
    /// Octets toward clients, a second.
    pub bytes_out_per_second: f64,
    /// From SYN to SYN-ACK, microseconds: the mean of the last second in which connections began; null before the first.
    pub handshake_us: Option<u64>,
}

/// Words for [`BackendStatus::state`], as the metric `backend_state` lists them.
pub const BACKEND_STATES: [&str; 5] = ["healthy", "down", "draining", "starting", "learner"];

/// How full the flow table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FlowTableStatus {
    /// Established flows.
    pub used: u64,
    /// Established flows at most.
    pub capacity: u64,
}

/// The other node of the pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PeerStatus {
    /// Where it listens.
    pub address: String,
    /// The stream to it is up.
    pub connected: bool,
    /// It has all of this node's flows.
    pub synced: bool,
    /// How far it lags behind.
    pub lag_ms: Option<u64>,
}

/// How a peer is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// There is no stream: a takeover would break connections.
    Apart,
    /// It has not all flows yet.
    Syncing,
    /// It has.
    Synced,
}

impl PeerStatus {
    /// How it is.
    pub const fn state(&self) -> PeerState {
        match (self.connected, self.synced) {
            (false, _) => PeerState::Apart,
            (true, false) => PeerState::Syncing,
            (true, true) => PeerState::Synced,
        }
    }

    /// How it is, in words.
    pub fn words(&self) -> String {
        let behind =
            self.lag_ms.map(|ms| format!(", {} behind", units::milliseconds(ms))).unwrap_or_default();
        match self.state() {
            PeerState::Apart => "NOT CONNECTED: a takeover would break connections".into(),
            PeerState::Syncing => format!("not in sync yet{behind}"),
            PeerState::Synced => format!("in sync{behind}"),
        }
    }
}
