//! Desired state: what config, health, the operator's drains and the network make of the maps.

mod policy;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{choose::Algorithm, election::Election, hash::Seed, maps, nat};

pub use policy::{Policy, Standing, choose};

use crate::{
    config::{self, Config, Service},
    health::State,
    reconcile::{Affinity, Desired, DesiredAddress, DesiredBackend, DesiredService, Lan, NoBackend, Prefix},
};

/// What identifies a backend for the agent: a reload that keeps it keeps its health and drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The service's VIP.
    pub vip: IpAddr,
    /// The service's port.
    pub port: u16,
    /// The backend's address.
    pub address: SocketAddr,
}

impl BackendKey {
    /// The key of a service's backend.
    pub fn new(service: &Service, backend: &config::Backend) -> Self {
        Self { vip: service.vip, port: service.port, address: backend.address }
    }
}

/// What is known besides the config.
pub trait World {
    /// Health and drain of a backend.
    fn standing(&self, backend: &BackendKey) -> Standing;
    /// Where packets to an address are sent; `None` while it is not known.
    fn hop(&self, destination: IpAddr) -> Option<maps::NextHop>;
    /// The same, if no router lies between.
    fn direct_hop(&self, destination: IpAddr) -> Option<maps::NextHop>;
    /// Whether an address is this node's own.
    fn is_own(&self, address: IpAddr) -> bool;
    /// The interfaces that the program is attached to.
    fn interfaces(&self) -> Vec<maps::Interface>;
    /// Those of them, and of their VLANs, with a prefix that holds an address.
    fn answered_on(&self, address: IpAddr) -> Vec<Lan>;
    /// The routers toward clients.
    fn client_routes(&self) -> BTreeMap<Prefix, maps::ClientRoute>;
    /// What the node advertises over IPv4 and over IPv6.
    fn elections(&self) -> [Election; 2];
    /// NAT ports for flows that cannot have their client's own.
    fn nat_ports(&self) -> nat::Range;
    /// Key of a service's flow hash.
    fn seed(&self, service: &Service) -> Seed;
}

/// What [`desired`] decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the maps should hold.
    pub desired: Desired,
    /// For each service: no backend is healthy, and others are used in their place.
    pub failing_open: Vec<bool>,
}

/// Desired state of a node, alone or of a pair.
pub fn desired(config: &Config, world: &impl World) -> Decision {
    let (services, failing_open) = config.services.iter().map(|service| of_service(service, world)).unzip();
    Decision {
        desired: Desired {
            services,
            addresses: addresses(config, world),
            interfaces: world.interfaces(),
            client_routes: world.client_routes(),
            lease: config.vrrp.is_none().then_some(maps::Lease::STANDALONE),
            elections: world.elections(),
        },
        failing_open,
    }
}

fn of_service(service: &Service, world: &impl World) -> (DesiredService, bool) {
    let standings: Vec<_> =
        service.backends.iter().map(|backend| world.standing(&BackendKey::new(service, backend))).collect();
    let policy = choose(&standings, service.fail_open);
    let backends = service.backends.iter().zip(&standings).zip(&policy.usable);
    let backends: Vec<_> = backends
        .map(|((backend, standing), usable)| {
            let hop = match service.mode {
                config::Mode::Nat => world.hop(backend.address.ip()),
                config::Mode::Dsr => world.direct_hop(backend.address.ip()),
            };
            DesiredBackend {
                address: backend.address,
                source: service.source_address,
                weight: backend.weight,
                max_connections: backend.max_connections,
                // Its check needs no way of ours, a connection does.
                usable: *usable && (hop.is_some() || !world.is_own(backend.address.ip())),
                healthy: standing.state == State::Healthy,
                drained: standing.drained,
                hop,
            }
        })
        .collect();
    let near = |backend: &&DesiredBackend| {
        backend.usable && backend.healthy && !backend.drained && world.is_own(backend.address.ip())
    };
    let desired = DesiredService {
        vip: service.vip,
        port: service.port,
        dsr: service.mode == config::Mode::Dsr,
        seed: world.seed(service),
        algorithm: algorithm(service.algorithm),
        max_flows_per_client: service.max_flows_per_client,
        nat: world.nat_ports(),
        affinity: match service.affinity {
            config::Affinity::None => Affinity::None,
            config::Affinity::ClientIp => Affinity::ClientIp,
        },
        allow: service
            .allow
            .iter()
            .map(|prefix| Prefix { address: prefix.address(), length: prefix.length() })
            .collect(),
        no_backend: match service.no_backend {
            config::NoBackend::Reset => NoBackend::Reset,
            config::NoBackend::Drop => NoBackend::Drop,
        },
        drain_timeout: service.drain_timeout,
        idle_timeout: service.idle_timeout,
        near: backends.iter().find(near).filter(|_| service.prefer_local).map(|backend| backend.address),
        backends,
    };
    (desired, policy.failing_open)
}

const fn algorithm(algorithm: config::Algorithm) -> Algorithm {
    match algorithm {
        config::Algorithm::Bounded => Algorithm::Bounded,
        config::Algorithm::Maglev => Algorithm::Maglev,
        config::Algorithm::LeastConn => Algorithm::LeastConn,
        config::Algorithm::RoundRobin => Algorithm::RoundRobin,
    }
}

/// Where each of the node's addresses is answered for.
fn addresses(config: &Config, world: &impl World) -> Vec<DesiredAddress> {
    let addresses = config.addresses().into_iter();
    addresses.map(|address| DesiredAddress { address, answered_on: world.answered_on(address) }).collect()
}
