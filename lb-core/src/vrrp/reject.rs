//! Why an advertisement is not heeded, and what is to be done about it.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Why an advertisement is not heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error(
        "this node's own advertisement came back: a loop in the network, or another node has its address"
    )]
    Own,
    #[error("VRID {0} is not this pair's")]
    OtherRouter(u8),
    #[error("{0} octets do not make an advertisement")]
    Length(usize),
    #[error("type {0} is no advertisement")]
    Type(u8),
    #[error(
        "{from} sends VRRP version {theirs} for this VRID and this node version {ours}: write the same `version` on both, \
         or another `router_id` if it is another pair"
    )]
    Version { from: IpAddr, theirs: u8, ours: u8 },
    #[error(
        "{from} sends to {destination}, this node listens to {}: set `unicast_peers` on both nodes or on none",
        if *is_multicast { "the group" } else { "its own address" }
    )]
    Destination { from: IpAddr, destination: IpAddr, is_multicast: bool },
    #[error(
        "from {from} by a TTL of {hop_limit}, not 255: it came over a router; set `unicast_peers` if that is meant"
    )]
    HopLimit { from: IpAddr, hop_limit: u8 },
    #[error("{0} is not among `unicast_peers`: add it, or find out who it is")]
    UnknownPeer(IpAddr),
    #[error("the checksum of an advertisement from {0} is wrong in every known way")]
    Checksum(IpAddr),
    #[error(
        "{from} uses authentication type {theirs} and this node {ours}: set the same `auth_pass` on both, or none"
    )]
    AuthType { from: IpAddr, theirs: u8, ours: u8 },
    #[error(
        "the password of {0} is another one: set the same `auth_pass` on both, or another `router_id` for another pair"
    )]
    Password(IpAddr),
    #[error(
        "{from} announces an interval of {theirs:?}, this node {ours:?}: version 2 needs the same `advert_interval` on both"
    )]
    Interval { from: IpAddr, theirs: Duration, ours: Duration },
    #[error("{0} announces an interval of 0, which nobody can keep")]
    NoInterval(IpAddr),
    #[error(
        "{from} advertises other addresses under this VRID{}{}: both nodes need the same VIPs and source addresses (with \
         keepalived in `virtual_ipaddress`), or another `router_id` if it is another pair",
        Named("; it lacks", *missing), Named("; this node has not", *foreign)
    )]
    List { from: IpAddr, missing: Option<IpAddr>, foreign: Option<IpAddr> },
    #[error(
        "{from} lists {first} first, which is not link-local: with keepalived put `link_local` at the head of the list"
    )]
    NotLinkLocal { from: IpAddr, first: Ipv6Addr },
}

struct Named(&'static str, Option<IpAddr>);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.1.map_or(Ok(()), |address| write!(f, "{} {address}", self.0))
    }
}

impl Reject {
    /// All reasons, for metrics.
    pub const REASONS: [&'static str; 15] = [
        "own",
        "other_router",
        "length",
        "type",
        "version",
        "destination",
        "hop_limit",
        "unknown_peer",
        "checksum",
        "auth_type",
        "password",
        "interval",
        "interval_zero",
        "address_list",
        "link_local",
    ];

    /// The `reason` label of `etcd_lb_vrrp_rejected_total`, one of [`Self::REASONS`].
    pub fn reason(&self) -> &'static str {
        Self::REASONS[self.number()]
    }

    /// Its place in [`Self::REASONS`].
    pub fn number(&self) -> usize {
        match self {
            Self::Own => 0,
            Self::OtherRouter(_) => 1,
            Self::Length(_) => 2,
            Self::Type(_) => 3,
            Self::Version { .. } => 4,
            Self::Destination { .. } => 5,
            Self::HopLimit { .. } => 6,
            Self::UnknownPeer(_) => 7,
            Self::Checksum(_) => 8,
            Self::AuthType { .. } => 9,
            Self::Password(_) => 10,
            Self::Interval { .. } => 11,
            Self::NoInterval(_) => 12,
            Self::List { .. } => 13,
            Self::NotLinkLocal { .. } => 14,
        }
    }

    /// Another pair's, as many LANs have them: counted, not logged.
    pub fn is_usual(&self) -> bool {
        matches!(self, Self::OtherRouter(_))
    }
}
