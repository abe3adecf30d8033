//! What `capture` asks of the agent. The packets themselves do not go this way: they lie in a pinned ring buffer.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A capture lasts so long from when it was begun or last extended, milliseconds: one whose reader has died ends.
pub const LEASE_MS: u64 = 3000;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CaptureRequest {
    /// Begin to capture.
    Begin(CaptureFilter),
    /// Go on.
    Extend {
        /// The answer's.
        id: u64,
    },
    /// End it.
    End {
        /// The answer's.
        id: u64,
    },
}

/// Which packets to capture; what is absent does not restrict.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureFilter {
    /// The client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// The backend's name, or its address `IP:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Octets kept of each packet.
    pub snap: u32,
    /// Also packets that XDP passes on as they came.
    pub passed: bool,
}

/// A capture under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaptureAnswer {
    /// Which: to be named to extend or end it.
    pub id: u64,
    /// Where its ring buffer is pinned.
    pub pin_dir: PathBuf,
    /// The interfaces whose packets are captured.
    pub interfaces: Vec<String>,
}
