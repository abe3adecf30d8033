//! Discovery: what a source says of a service's backends, and what of that is believed.
//!
//! ```text
//! source ── Answer ──▶ judge ──▶ Found ──▶ effective ──▶ the config in force
//! ```
//!
//! What is found stands beside what is written, and from there on is a backend like any other: it is probed before it is
//! used, and one that a source no longer names drains as one that a reload removed. So an answer that is wrong must not get
//! that far: the guards are here, the sources (sockets, resolvers) are the agent's.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::config::{Backend, Config, Service, limits};

/// Backends found for a service, at most: each has a port table of 4 MiB.
pub const MAX_FOUND: usize = 64;

/// What identifies a service: its VIP and port.
pub type ServiceKey = (IpAddr, u16);

/// What a source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The cluster that says it, where it is etcd itself.
    pub cluster_id: Option<u64>,
    /// In no order that matters.
    pub candidates: Vec<Candidate>,
}

/// Somebody who may be a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// As the source has it; empty: none, or a member that has not been started yet.
    pub name: String,
    /// All that it is said to listen on; the first that may be used is taken.
    pub addresses: Vec<SocketAddr>,
    /// It gets no connections until it is promoted.
    pub learner: bool,
}

/// A backend that is believed to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address, where the source has no name.
    pub name: String,
    pub address: SocketAddr,
    /// It gets no connections until it is promoted, whatever its check says.
    pub learner: bool,
}

/// Why a candidate is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    NoAddress,
    Loopback,
    NotUnicast,
    OwnVip,
    OwnHost,
    OtherFamily,
    PeerPort,
    OtherService,
}

/// Why a whole answer is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It names nobody, or nobody who may be used.
    Empty,
    TooMany(usize),
    /// Another cluster says it.
    OtherCluster {
        says: u64,
        pool: u64,
    },
}

/// The `reason`s of `etcd_lb_discovery_ignored_total`, those of single candidates first.
pub const REASONS: [&str; 11] = [
    "no_address",
    "loopback",
    "not_unicast",
    "own_vip",
    "own_host",
    "other_family",
    "peer_port",
    "other_service",
    "empty",
    "too_many",
    "other_cluster",
];

/// The place of `other_cluster` in [`REASONS`], also of a single backend that says so itself.
pub const OTHER_CLUSTER: usize = 10;

impl Ignored {
    /// Its place in [`REASONS`].
    pub const fn number(self) -> usize {
        self as usize
    }
}

impl Refused {
    /// Its place in [`REASONS`].
    pub const fn number(&self) -> usize {
        match self {
            Self::Empty => 8,
            Self::TooMany(_) => 9,
            Self::OtherCluster { .. } => OTHER_CLUSTER,
        }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "it is said to listen on no IP address and port",
            Self::Loopback => "a loopback address is another host's own everywhere else: set --advertise-client-urls",
            Self::NotUnicast => "not the address of one host",
            Self::OwnVip => "the VIP itself: connections would go in a circle",
            Self::OwnHost => "an address of this host, which cannot be a backend of its own balancer yet",
            Self::OtherFamily => "not of the VIP's family",
            Self::PeerPort => "port 2380 is etcd's peer port",
            Self::OtherService => {
                "another service has it as a backend from the same source address: give one of them a `source_address`"
            }
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it names no backend that could be used; those known stay"),
            Self::TooMany(count) => {
                write!(f, "it names {count} backends, more than {MAX_FOUND}; those known stay")
            }
            Self::OtherCluster { says, pool } => write!(
                f,
                "it comes from cluster {says:x}, and the backends are of cluster {pool:x}; those known stay"
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// What is believed, sorted by address, and who is left out and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub found: Vec<Found>,
    pub ignored: Vec<(Candidate, Ignored)>,
}

/// What of an answer is believed. `pool`: the cluster of the backends that are known; `is_own`: whether an address is this
/// host's.
///
/// # Errors
/// Nothing of it.
pub fn judge(
    config: &Config,
    service: &Service,
    pool: Option<u64>,
    is_own: impl Fn(IpAddr) -> bool,
    answer: Answer,
) -> Result<Judged, Refused> {
    if let (Some(says), Some(pool)) = (answer.cluster_id, pool)
        && says != pool
    {
        return Err(Refused::OtherCluster { says, pool });
    }
    let vips: BTreeSet<IpAddr> = config.addresses().into_iter().collect();
    let others =
        config.services.iter().filter(|other| (other.vip, other.port) != (service.vip, service.port));
    let others = others.filter(|other| other.source_address == service.source_address);
    let others: BTreeSet<SocketAddr> = others.flat_map(|other| &other.backends).map(|b| b.address).collect();
    let mut judged = Judged::default();
    let mut taken = BTreeSet::new();
    for candidate in answer.candidates {
        let may_be_used = |address: &SocketAddr| {
            if others.contains(address) {
                return Err(Ignored::OtherService);
            }
            judge_address(service, &vips, &is_own, *address)
        };
        let mut verdicts = candidate.addresses.iter().map(|address| (*address, may_be_used(address)));
        let first = verdicts.clone().next();
        match verdicts.find(|(_, verdict)| verdict.is_ok()).or(first) {
            // Named twice, by two addresses of one source perhaps.
            Some((address, Ok(()))) if !taken.insert(address) => {}
            Some((address, Ok(()))) => judged.found.push(Found {
                name: if candidate.name.is_empty() { address.to_string() } else { candidate.name },
                address,
                learner: candidate.learner,
            }),
            Some((_, Err(reason))) => judged.ignored.push((candidate, reason)),
            None => judged.ignored.push((candidate, Ignored::NoAddress)),
        }
    }
    if judged.found.is_empty() {
        return Err(Refused::Empty);
    }
    if judged.found.len() > MAX_FOUND {
        return Err(Refused::TooMany(judged.found.len()));
    }
    judged.found.sort_unstable_by_key(|found| found.address);
    Ok(judged)
}

fn judge_address(
    service: &Service,
    vips: &BTreeSet<IpAddr>,
    is_own: impl Fn(IpAddr) -> bool,
    address: SocketAddr,
) -> Result<(), Ignored> {
    let ip = address.ip();
    if address.port() == 0 {
        Err(Ignored::NoAddress)
    } else if ip.is_loopback() {
        Err(Ignored::Loopback)
    } else if ip.is_unspecified() || ip.is_multicast() || is_broadcast_or_link_local(ip) {
        Err(Ignored::NotUnicast)
    } else if vips.contains(&ip) {
        Err(Ignored::OwnVip)
    } else if is_own(ip) {
        Err(Ignored::OwnHost)
    } else if ip.is_ipv4() != service.vip.is_ipv4() {
        Err(Ignored::OtherFamily)
    } else if address.port() == limits::ETCD_PEER_PORT {
        Err(Ignored::PeerPort)
    } else {
        Ok(())
    }
}

/// Nobody's, or meaningless without an interface.
const fn is_broadcast_or_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The config in force: what is written, and after that what was found beside it. What is written wins where both name one
/// address; a name that is in use already gives way to the address.
pub fn effective(written: &Config, found: &BTreeMap<ServiceKey, Vec<Found>>) -> Config {
    let mut config = written.clone();
    for service in &mut config.services {
        let Some(found) = found.get(&(service.vip, service.port)) else { continue };
        if service.discovery.is_none() {
            continue;
        }
        for found in found {
            if service.backends.iter().any(|backend| backend.address == found.address) {
                continue;
            }
            let is_taken = service.backends.iter().any(|backend| backend.name == found.name);
            let name = if is_taken { found.address.to_string() } else { found.name.clone() };
            service.backends.push(Backend { name, address: found.address, weight: 1, max_connections: 0 });
        }
    }
    config
}
