use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    addr::{Addr, Mac, Port},
    election::Election,
    hash::Seed,
    maps::{
        self, AllowData, Backend, ClientRoute, Filter, Interface, Lease, ReturnKey, Service, ServiceKey,
        VipClaim, VipOnInterface,
    },
    nat,
};

use super::Table;

/// Key of `allow`: prefix length, the service number's 32 bits included, and data.
pub type AllowKey = (u32, AllowData);

/// Key of `client_routes`: prefix length, and the address without the bits beyond it.
pub type RouteKey = (u32, Addr);

/// What the policy maps hold; entries that are all zero are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual {
    /// `services` by number.
    pub services: BTreeMap<u16, Service>,
    /// `service_ports`.
    pub service_ports: BTreeMap<ServiceKey, u16>,
    /// `backends` by number. Those without [`maps::BACKEND_USED`] are given-up numbers, whose last epoch is remembered.
    pub backends: BTreeMap<u16, Backend>,
    /// Leaving backends whose flows have ended: their numbers may be given up.
    pub ended: BTreeSet<u16>,
    /// Port tables by backend number: the NAT ports that are, or will be as soon as they are free, kept from flows.
    pub reserved: BTreeMap<u16, BTreeSet<u16>>,
    /// `returns`.
    pub returns: BTreeMap<ReturnKey, u16>,
    /// `allow`.
    pub allow: BTreeSet<AllowKey>,
    /// `client_routes`.
    pub client_routes: BTreeMap<RouteKey, ClientRoute>,
    /// `vips`: [`VipClaim::answered`] by address and interface.
    pub vips: BTreeMap<VipOnInterface, VipClaim>,
    /// `interfaces` by slot.
    pub interfaces: BTreeMap<u32, Interface>,
    /// `filter`.
    pub filter: FilterBits,
    /// What choices are made by, by service number.
    pub maglev: BTreeMap<u16, Table>,
    /// `lease`.
    pub lease: Lease,
    /// `elections`.
    pub elections: [Election; 2],
}

/// What is not 0 in a [`Filter`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterBits {
    /// Bits of addresses, see [`maps::filter_bit_of_address`].
    pub addresses: BTreeSet<u16>,
    /// [`Filter::services`], by place.
    pub services: BTreeMap<usize, u16>,
    /// [`Filter::returns`], by place.
    pub returns: BTreeMap<usize, u16>,
}

/// One map write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes the lease.
    Lease(Lease),
    /// Writes an entry of `elections`.
    Election(u32, Election),
    /// Sets a slot of `interfaces`.
    Interface(u32, Interface),
    /// Clears a slot of `interfaces`.
    ClearInterface(u32),
    /// Writes a backend's entry.
    Backend(u16, Backend),
    /// Clears a backend's entry and load; the epoch stays, so that no forward entry of the old owner fits the next one.
    ClearBackend(u16),
    /// Makes a port table with these ports reserved.
    PortTable(u16, BTreeSet<u16>),
    /// Changes which ports of a port table are reserved: exactly these.
    Reserve(u16, BTreeSet<u16>),
    /// Takes a port table away, and the forward entries that refer to it.
    RemovePortTable(u16),
    /// Sets an entry of `returns`.
    Return(ReturnKey, u16),
    /// Removes an entry of `returns`.
    RemoveReturn(ReturnKey),
    /// Adds a prefix to `allow`.
    Allow(AllowKey),
    /// Removes a prefix from `allow`.
    RemoveAllow(AllowKey),
    /// Sets an entry of `client_routes`.
    ClientRoute(RouteKey, ClientRoute),
    /// Removes an entry of `client_routes`.
    RemoveClientRoute(RouteKey),
    /// Swaps a service's Maglev table.
    Maglev(u16, Table),
    /// Takes a service's Maglev table away.
    RemoveMaglev(u16),
    /// Writes a service's entry.
    Service(u16, Service),
    /// Clears a service's entry.
    ClearService(u16),
    /// Sets an entry of `service_ports`.
    ServicePort(ServiceKey, u16),
    /// Removes an entry of `service_ports`.
    RemoveServicePort(ServiceKey),
    /// Sets an entry of `vips`.
    Vip(VipOnInterface, VipClaim),
    /// Removes an entry of `vips`.
    RemoveVip(VipOnInterface),
    /// Writes the filter.
    Filter(FilterBits),
}

impl Default for Actual {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            service_ports: BTreeMap::new(),
            backends: BTreeMap::new(),
            ended: BTreeSet::new(),
            reserved: BTreeMap::new(),
            returns: BTreeMap::new(),
            allow: BTreeSet::new(),
            client_routes: BTreeMap::new(),
            vips: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            filter: FilterBits::default(),
            maglev: BTreeMap::new(),
            lease: NO_LEASE,
            elections: [Election::NONE; 2],
        }
    }
}

impl Actual {
    /// What the maps hold after a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Lease(lease) => self.lease = *lease,
            Change::Election(family, election) => self.elections[*family as usize] = *election,
            Change::Interface(slot, interface) => drop(self.interfaces.insert(*slot, *interface)),
            Change::ClearInterface(slot) => drop(self.interfaces.remove(slot)),
            Change::Backend(number, backend) => {
                self.ended.remove(number);
                self.backends.insert(*number, *backend);
            }
            Change::ClearBackend(number) => {
                self.ended.remove(number);
                if let Some(backend) = self.backends.get_mut(number) {
                    *backend = cleared(backend.epoch);
                }
            }
            Change::PortTable(number, ports) | Change::Reserve(number, ports) => {
                self.reserved.insert(*number, ports.clone());
            }
            Change::RemovePortTable(number) => drop(self.reserved.remove(number)),
            Change::Return(key, number) => drop(self.returns.insert(*key, *number)),
            Change::RemoveReturn(key) => drop(self.returns.remove(key)),
            Change::Allow(key) => drop(self.allow.insert(*key)),
            Change::RemoveAllow(key) => drop(self.allow.remove(key)),
            Change::ClientRoute(key, route) => drop(self.client_routes.insert(*key, *route)),
            Change::RemoveClientRoute(key) => drop(self.client_routes.remove(key)),
            Change::Maglev(service, table) => drop(self.maglev.insert(*service, table.clone())),
            Change::RemoveMaglev(service) => drop(self.maglev.remove(service)),
            Change::Service(number, service) => drop(self.services.insert(*number, *service)),
            Change::ClearService(number) => drop(self.services.remove(number)),
            Change::ServicePort(key, number) => drop(self.service_ports.insert(*key, *number)),
            Change::RemoveServicePort(key) => drop(self.service_ports.remove(key)),
            Change::Vip(key, claim) => drop(self.vips.insert(*key, *claim)),
            Change::RemoveVip(key) => drop(self.vips.remove(key)),
            Change::Filter(bits) => self.filter = bits.clone(),
        }
    }

    /// The number of a backend by what identifies it, leaving ones included.
    pub fn backend_number(&self, key: &ReturnKey) -> Option<u16> {
        self.used_backends().find(|(_, backend)| return_key(backend) == *key).map(|(number, _)| number)
    }

    /// The number of a service.
    pub fn service_number(&self, key: &ServiceKey) -> Option<u16> {
        self.services.iter().find(|(_, service)| service_key(service) == *key).map(|(&number, _)| number)
    }

    /// The backends in use by number, leaving ones included.
    pub fn used_backends(&self) -> impl Iterator<Item = (u16, &Backend)> {
        let used = |(_, backend): &(&u16, &Backend)| is_used(backend);
        self.backends.iter().filter(used).map(|(&number, backend)| (number, backend))
    }
}

impl FilterBits {
    /// With these addresses, services and backends.
    pub fn new<'a>(
        addresses: impl Iterator<Item = &'a Addr>,
        services: &BTreeMap<ServiceKey, u16>,
        returns: &BTreeMap<ReturnKey, u16>,
    ) -> Self {
        let mut filter = Box::new(Filter::EMPTY);
        services.iter().for_each(|(key, number)| filter.add_service(key, *number));
        returns.iter().for_each(|(key, number)| filter.add_return(key, *number));
        Self {
            addresses: addresses.map(maps::filter_bit_of_address).collect(),
            services: taken(&filter.services),
            returns: taken(&filter.returns),
        }
    }

    /// What a map's value says.
    pub fn of(filter: &Filter) -> Self {
        Self {
            addresses: set_bits(&filter.addresses),
            services: taken(&filter.services),
            returns: taken(&filter.returns),
        }
    }

    /// The map's value.
    pub fn to_filter(&self) -> Box<Filter> {
        let mut filter = Box::new(Filter::EMPTY);
        for &bit in &self.addresses {
            filter.addresses[usize::from(bit / 64)] |= 1 << (bit % 64);
        }
        self.services.iter().for_each(|(&place, &number)| filter.services[place] = number);
        self.returns.iter().for_each(|(&place, &number)| filter.returns[place] = number);
        filter
    }
}

/// Whether somebody has the number.
pub(super) const fn is_used(backend: &Backend) -> bool {
    backend.flags & maps::BACKEND_USED != 0
}

/// What identifies a backend.
pub(super) const fn return_key(backend: &Backend) -> ReturnKey {
    ReturnKey::new(backend.source, backend.address, backend.port)
}

/// What identifies a service.
pub(super) const fn service_key(service: &Service) -> ServiceKey {
    ServiceKey::new(service.vip, service.port)
}

/// The entry of a number that nobody has.
pub const fn cleared(epoch: u32) -> Backend {
    Backend {
        address: Addr::UNSPECIFIED,
        source: Addr::UNSPECIFIED,
        port: Port::new(0),
        service: 0,
        epoch,
        hop: maps::NextHop::UNKNOWN,
        flags: 0,
    }
}

/// The entry of an unused service number.
pub const NO_SERVICE: Service = Service {
    seed: Seed { key: [0, 0] },
    vip: Addr::UNSPECIFIED,
    port: Port::new(0),
    flags: 0,
    max_flows_per_client: 0,
    nat: nat::Range { first: 0, ports: 0 },
    near: 0,
};

/// The entry of an unused slot of `interfaces`.
pub const NO_INTERFACE: Interface = Interface { ifindex: 0, mtu: 0, mac: Mac::UNKNOWN, flags: 0 };

/// Nothing was ever granted.
pub const NO_LEASE: Lease = Lease::NONE;

fn taken(places: &[u16]) -> BTreeMap<usize, u16> {
    places.iter().copied().enumerate().filter(|(_, number)| *number != 0).collect()
}

fn set_bits(words: &[u64; 1024]) -> BTreeSet<u16> {
    let bit = |index: &u16| words[usize::from(index / 64)] & (1 << (index % 64)) != 0;
    (0..=u16::MAX).filter(bit).collect()
}
