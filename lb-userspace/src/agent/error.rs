//! Why the agent cannot start, and whose fault that is.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{dataplane, netlink};

/// The agent cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config does not parse, or does not fit this machine.
    #[error("{0}")]
    Config(String),
    /// Another agent has the socket or the pin directory.
    #[error("{0}")]
    Locked(#[from] super::lock::Error),
    /// Another host has a VIP.
    #[error(
        "{vip} is answered for by {mac} on {interface}: another host owns the VIP; \
         take it away there, or change `vip`; until then nothing is attached for it"
    )]
    VipInUse {
        /// The VIP.
        vip: std::net::IpAddr,
        /// Who answered.
        mac: lb_common::addr::Mac,
        /// Where.
        interface: String,
    },
    /// Neither ARP nor neighbour discovery can be spoken.
    #[error("cannot ask on {interface} who has {vip}: {source} (CAP_NET_RAW is needed)")]
    VipProbe {
        /// The VIP.
        vip: std::net::IpAddr,
        /// Where.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Netlink fails.
    #[error("{0}")]
    Network(#[from] netlink::Error),
    /// The data plane fails.
    #[error("{0}")]
    DataPlane(#[from] dataplane::Error),
    /// The API socket cannot be made.
    #[error("cannot listen on {}: {source}", socket.display())]
    Socket {
        /// The path.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The HTTP listener cannot be made.
    #[error(
        "cannot listen on http_listen {address}: {source}; is the port in use, or the address not this host's?"
    )]
    Http {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The runtime or a signal handler cannot be made.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

impl Error {
    /// Whether the config is to be changed.
    pub fn is_config(&self) -> bool {
        matches!(self, Self::Config(_))
    }
}
