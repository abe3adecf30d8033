//! What the maps will hold once everything desired is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::{Addr, Port},
    maps::{self, AllowData, Backend, ReturnKey, Service, ServiceKey, VipClaim, VipOnInterface},
};

use super::{
    Actual, Affinity, AllowKey, Desired, DesiredAddress, DesiredBackend, DesiredService, FilterBits, Lan,
    Member, NoBackend, Prefix, RouteKey, Table,
    actual::{cleared, is_used, return_key, service_key},
};
use crate::{maglev, ways};

/// Why the maps cannot hold what is desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More services than numbers, those that still drain included.
    #[error("more than {} services, those that still drain included: remove some", maps::MAX_SERVICES)]
    TooManyServices,
    /// More backends than numbers, those that still drain included.
    #[error("more than {} backends, those that still drain included: remove some", maps::MAX_BACKENDS)]
    TooManyBackends,
    /// More prefixes than `allow` holds.
    #[error("{0} prefixes in the `allow` lists, at most {max} fit: join neighbouring ones", max = maps::MAX_ALLOW)]
    TooManyPrefixes(usize),
    /// More routes than `client_routes` holds.
    #[error("{0} routes toward clients, at most {max} fit", max = maps::MAX_CLIENT_ROUTES)]
    TooManyRoutes(usize),
    /// More addresses than `vips` holds.
    #[error("{0} pairs of address and interface, at most {max} fit: use fewer VIPs or interfaces", max = maps::MAX_VIPS)]
    TooManyAddresses(usize),
    /// Two interfaces fall into one slot.
    #[error(
        "interfaces {0} and {1} cannot be used together: their numbers agree modulo {max}; recreate one of them",
        max = maps::MAX_INTERFACES
    )]
    Interfaces(u32, u32),
    /// Two services on one VIP and port.
    #[error("two services on {vip} port {port}: give one of them another port")]
    SameService {
        /// The VIP.
        vip: IpAddr,
        /// The port.
        port: u16,
    },
    /// One backend twice behind one source address: its answers could not be told apart.
    #[error(
        "backend {backend} is used twice with source address {source_address}, so that its answers could not be told \
         apart: give one of the services another `source_address`"
    )]
    SameBackend {
        /// The backend.
        backend: SocketAddr,
        /// The source address of both.
        source_address: IpAddr,
    },
}

/// The Maglev tables built last, by service, with what they were built from: filling one takes milliseconds.
#[derive(Debug, Default)]
pub(super) struct TableCache(BTreeMap<u16, (Vec<Share>, Table)>);

/// What a table depends on, a backend each.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    number: u16,
    key: String,
    weight: u32,
    max_connections: u32,
    live: bool,
}

pub(super) fn target(desired: &Desired, actual: &Actual, tables: &mut TableCache) -> Result<Actual, Error> {
    let lease = desired.lease.unwrap_or(actual.lease);
    let mut target = Actual { lease, elections: desired.elections, ..Actual::default() };
    stay(actual, &mut target);
    for service in &desired.services {
        let number = add_service(service, actual, &mut target)?;
        add_backends(service, number, actual, &mut target)?;
    }
    leave(actual, &mut target);
    for service in &desired.services {
        add_table(service, &mut target, tables);
    }
    let used = target.services.keys().copied().collect::<BTreeSet<_>>();
    tables.0.retain(|service, _| used.contains(service));
    for &service in &used {
        target.maglev.entry(service).or_insert_with(empty_table);
    }
    derive(&mut target);
    add_addresses(&desired.addresses, actual, &mut target)?;
    add_interfaces(desired, &mut target)?;
    let routes = desired.client_routes.iter().map(|(prefix, route)| (route_key(prefix), *route));
    target.client_routes = routes.collect();
    if target.client_routes.len() > maps::MAX_CLIENT_ROUTES {
        return Err(Error::TooManyRoutes(target.client_routes.len()));
    }
    if target.allow.len() > maps::MAX_ALLOW {
        return Err(Error::TooManyPrefixes(target.allow.len()));
    }
    Ok(target)
}

/// Numbers that nobody has keep their epoch.
fn stay(actual: &Actual, target: &mut Actual) {
    for (&number, backend) in &actual.backends {
        if !is_used(backend) {
            target.backends.insert(number, *backend);
        }
    }
}

fn add_service(service: &DesiredService, actual: &Actual, target: &mut Actual) -> Result<u16, Error> {
    let key = ServiceKey::new(service.vip.into(), Port::new(service.port));
    if target.service_ports.contains_key(&key) {
        return Err(Error::SameService { vip: service.vip, port: service.port });
    }
    let taken = |number: &u16| actual.services.contains_key(number) || target.services.contains_key(number);
    let number = actual
        .service_number(&key)
        .or_else(|| (0..maps::MAX_SERVICES as u16).find(|number| !taken(number)))
        .ok_or(Error::TooManyServices)?;
    let mut flags = maps::SERVICE_USED | service.algorithm.flags();
    if service.affinity == Affinity::ClientIp {
        flags |= maps::SERVICE_AFFINITY;
    }
    if !service.allow.is_empty() {
        flags |= maps::SERVICE_ALLOW;
    }
    if service.no_backend == NoBackend::Drop {
        flags |= maps::SERVICE_DROP;
    }
    if service.dsr {
        flags |= maps::SERVICE_DSR;
    }
    let entry = Service {
        seed: service.seed,
        vip: key.vip,
        port: key.port,
        flags,
        max_flows_per_client: service.max_flows_per_client,
        nat: service.nat,
        near: 0,
    };
    target.services.insert(number, entry);
    target.service_ports.insert(key, number);
    target.allow.extend(service.allow.iter().map(|prefix| allow_key(number, prefix)));
    Ok(number)
}

fn add_backends(
    service: &DesiredService,
    service_number: u16,
    actual: &Actual,
    target: &mut Actual,
) -> Result<(), Error> {
    for backend in &service.backends {
        let key = key_of(backend);
        if target.returns.contains_key(&key) {
            return Err(Error::SameBackend { backend: backend.address, source_address: backend.source });
        }
        let number = match actual.backend_number(&key) {
            Some(number) => number,
            None => free_backend(actual, target).ok_or(Error::TooManyBackends)?,
        };
        let entry = backend_entry(backend, &key, service_number, actual.backends.get(&number));
        target.backends.insert(number, entry);
        target.returns.insert(key, number);
        if service.near == Some(backend.address)
            && let Some(service) = target.services.get_mut(&service_number)
        {
            service.near = u32::from(number) + 1;
        }
    }
    Ok(())
}

/// The lowest number that nobody has.
fn free_backend(actual: &Actual, target: &Actual) -> Option<u16> {
    let has_owner = |state: &Actual, number: &u16| state.backends.get(number).is_some_and(is_used);
    (0..maps::MAX_BACKENDS as u16).find(|number| !has_owner(actual, number) && !has_owner(target, number))
}

fn backend_entry(
    backend: &DesiredBackend,
    key: &ReturnKey,
    service: u16,
    before: Option<&Backend>,
) -> Backend {
    let mut flags = maps::BACKEND_USED;
    if backend.drained {
        flags |= maps::BACKEND_DRAINED;
    }
    if backend.healthy {
        flags |= maps::BACKEND_HEALTHY;
    }
    let epoch = match before {
        Some(before) if is_used(before) && before.service == service => before.epoch,
        // Another service's flows, or a former owner's: none of them fits this one.
        Some(before) => before.epoch.wrapping_add(1),
        None => 0,
    };
    let last_hop = before.filter(|before| is_used(before)).map(|before| before.hop);
    Backend {
        address: key.backend,
        source: key.source,
        port: key.port,
        service,
        epoch,
        hop: backend.hop.or(last_hop).unwrap_or(maps::NextHop::UNKNOWN),
        flags,
    }
}

/// What is no longer desired stays until its flows have ended.
fn leave(actual: &Actual, target: &mut Actual) {
    for (number, backend) in actual.used_backends() {
        if target.backends.contains_key(&number) {
            continue;
        }
        if actual.ended.contains(&number) {
            target.backends.insert(number, cleared(backend.epoch));
            continue;
        }
        target.backends.insert(number, Backend { flags: backend.flags | maps::BACKEND_LEAVING, ..*backend });
        target.returns.insert(return_key(backend), number);
        if target.services.contains_key(&backend.service) {
            continue;
        }
        let Some(service) = actual.services.get(&backend.service) else { continue };
        target.services.insert(backend.service, *service);
        target.service_ports.insert(service_key(service), backend.service);
        let prefix = u32::from(backend.service).to_be_bytes();
        target.allow.extend(actual.allow.iter().filter(|(_, data)| data.service == prefix));
    }
}

fn add_table(service: &DesiredService, target: &mut Actual, tables: &mut TableCache) {
    let key = ServiceKey::new(service.vip.into(), Port::new(service.port));
    let Some(&number) = target.service_ports.get(&key) else { return };
    let share = |backend: &DesiredBackend| {
        let number = target.returns.get(&key_of(backend)).copied()?;
        let key = backend.address.to_string();
        let live = backend.usable && !backend.drained;
        let (weight, max_connections) = (backend.weight, backend.max_connections);
        Some(Share { number, key, weight, max_connections, live })
    };
    let shares: Vec<Share> = service.backends.iter().filter_map(share).collect();
    let table = match tables.0.get(&number) {
        Some((built_from, table)) if *built_from == shares => table.clone(),
        _ => build(&shares),
    };
    target.maglev.insert(number, table.clone());
    tables.0.insert(number, (shares, table));
}

fn build(shares: &[Share]) -> Table {
    // Maglev's worst case is the one without a choice: no walk meets anybody.
    if !shares.iter().any(|share| share.live && share.weight > 0) {
        return empty_table();
    }
    let members: Vec<maglev::Member<'_>> = shares
        .iter()
        .map(|share| maglev::Member { key: share.key.as_bytes(), weight: share.weight, live: share.live })
        .collect();
    let number = |owner: u16| shares.get(usize::from(owner)).map_or(maps::NO_BACKEND, |share| share.number);
    let live = shares.iter().filter(|share| share.live && share.weight > 0).map(|share| Member {
        number: share.number,
        weight: share.weight,
        max_connections: share.max_connections,
    });
    Table::new(maglev::build(&members).into_iter().map(number), live)
}

fn empty_table() -> Table {
    Table::new(std::iter::repeat_n(maps::NO_BACKEND, maps::MAGLEV_SLOTS as usize), [])
}

/// What follows from services and backends alone: reserved ports.
fn derive(target: &mut Actual) {
    let numbers: Vec<(u16, Addr)> = target.used_backends().map(|(number, b)| (number, b.source)).collect();
    for (number, source) in numbers {
        let here = target.services.values().filter(|service| service.vip == source);
        let ports: BTreeSet<u16> = here.map(|service| service.port.get()).collect();
        target.reserved.insert(number, ports);
    }
}

fn add_addresses(desired: &[DesiredAddress], actual: &Actual, target: &mut Actual) -> Result<(), Error> {
    let mut ours: BTreeSet<Addr> = desired.iter().map(|desired| desired.address.into()).collect();
    let in_use = target.services.values().map(|service| service.vip);
    let in_use = in_use.chain(target.used_backends().map(|(_, backend)| backend.source));
    for address in in_use.collect::<BTreeSet<_>>() {
        if ours.insert(address) {
            // Only flows that leave need this address: it is answered where it was until they have ended.
            target.vips.extend(actual.vips.iter().filter(|(key, _)| key.address == address));
        }
    }
    for &address in &ours {
        target.vips.insert(VipOnInterface::anywhere(address), VipClaim { answered: 0 });
    }
    for address in desired {
        let key = |lan: &Lan| VipOnInterface {
            address: address.address.into(),
            ifindex: lan.ifindex,
            vlan: lan.vlan,
        };
        target.vips.extend(address.answered_on.iter().map(|lan| (key(lan), VipClaim { answered: 1 })));
    }
    if target.vips.len() > maps::MAX_VIPS {
        return Err(Error::TooManyAddresses(target.vips.len()));
    }
    let heard = target.elections.iter().filter(|election| election.priority != 0);
    let looked_at = ours.iter().chain(heard.map(|election| &election.destination));
    target.filter = FilterBits::new(looked_at, &target.service_ports, &target.returns);
    Ok(())
}

fn add_interfaces(desired: &Desired, target: &mut Actual) -> Result<(), Error> {
    for interface in &desired.interfaces {
        let slot = maps::interface_slot(interface.ifindex);
        match target.interfaces.insert(slot, *interface) {
            Some(other) if other.ifindex != interface.ifindex => {
                return Err(Error::Interfaces(other.ifindex, interface.ifindex));
            }
            _ => {}
        }
    }
    Ok(())
}

fn key_of(backend: &DesiredBackend) -> ReturnKey {
    ReturnKey::new(backend.source.into(), backend.address.ip().into(), Port::new(backend.address.port()))
}

/// The key of a service's prefix.
fn allow_key(service: u16, prefix: &Prefix) -> AllowKey {
    let (length, address) = route_key(prefix);
    (maps::ALLOW_SERVICE_BITS + length, AllowData { service: u32::from(service).to_be_bytes(), address })
}

/// The key of a prefix, bits beyond its length cleared, so that one prefix has one key.
pub fn route_key(prefix: &Prefix) -> RouteKey {
    let length = match prefix.address {
        IpAddr::V4(_) => 96 + u32::from(prefix.length.min(32)),
        IpAddr::V6(_) => u32::from(prefix.length.min(128)),
    };
    (length, ways::cut(prefix.address.into(), length))
}
