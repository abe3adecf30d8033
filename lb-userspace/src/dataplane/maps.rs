//! The maps, typed, and reading from them what a former agent left.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use lb_common::{
    addr::Addr,
    counters::{BackendCounters, Counters},
    election::Election,
    maps::{
        self, AllowData, Backend, ClientKey, ClientLoad, ClientRoute, Filter, Flow, FlowKey, Handshakes,
        Interface, Lease, Load, Maglev, ReturnKey, Service, ServiceKey, VipClaim, VipOnInterface, name,
    },
};
use lb_core::reconcile::{Actual, FilterBits, Table};

use super::{bpf, error::Error, pins::PinDir, port_table::PortTable, shared::Shared};

/// Every map that the agent reads or writes.
pub(super) struct Maps {
    pub(super) filter: Array<MapData, Filter>,
    pub(super) interfaces: Array<MapData, Interface>,
    pub(super) vips: HashMap<MapData, VipOnInterface, VipClaim>,
    pub(super) service_ports: HashMap<MapData, ServiceKey, u32>,
    pub(super) services: Array<MapData, Service>,
    pub(super) allow: LpmTrie<MapData, AllowData, u32>,
    pub(super) client_routes: LpmTrie<MapData, Addr, ClientRoute>,
    pub(super) backends: Array<MapData, Backend>,
    pub(super) returns: HashMap<MapData, ReturnKey, u32>,
    pub(super) maglev: ArrayOfMaps<MapData, MapData>,
    pub(super) flows: HashMap<MapData, FlowKey, Flow>,
    pub(super) half_open: HashMap<MapData, FlowKey, Flow>,
    pub(super) ports: ArrayOfMaps<MapData, MapData>,
    pub(super) clients: HashMap<MapData, ClientKey, ClientLoad>,
    pub(super) lease: Array<MapData, Lease>,
    pub(super) elections: Array<MapData, Election>,
    pub(super) counters: PerCpuArray<MapData, Counters>,
    pub(super) backend_counters: PerCpuArray<MapData, BackendCounters>,
    pub(super) handshakes: PerCpuArray<MapData, Handshakes>,
    /// Until the agent reads them.
    pub(super) signals: Option<RingBuf<MapData>>,
    /// The same.
    pub(super) events: Option<RingBuf<MapData>>,
    /// `loads`, in memory.
    pub(super) loads: Shared<Load>,
    /// `backends`, in memory: where a single field is to change.
    pub(super) backend_fields: Shared<Backend>,
    /// Descriptors, for calls that aya does not make.
    pub(super) raw: Raw,
}

/// Second descriptors of maps.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) flows: MapData,
    pub(super) maglev: MapData,
    pub(super) ports: MapData,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn open(pins: &PinDir, ebpf: &mut Ebpf) -> Result<Self, Error> {
        let pinned = |map| MapData::from_pin(pins.path(map)).map_err(Error::map(map));
        Ok(Self {
            filter: take(ebpf, name::FILTER)?,
            interfaces: take(ebpf, name::INTERFACES)?,
            vips: take(ebpf, name::VIPS)?,
            service_ports: take(ebpf, name::SERVICE_PORTS)?,
            services: take(ebpf, name::SERVICES)?,
            allow: take(ebpf, name::ALLOW)?,
            client_routes: take(ebpf, name::CLIENT_ROUTES)?,
            backends: take(ebpf, name::BACKENDS)?,
            returns: take(ebpf, name::RETURNS)?,
            maglev: take(ebpf, name::MAGLEV)?,
            flows: take(ebpf, name::FLOWS)?,
            half_open: take(ebpf, name::HALF_OPEN)?,
            ports: take(ebpf, name::PORTS)?,
            clients: take(ebpf, name::CLIENTS)?,
            lease: take(ebpf, name::LEASE)?,
            elections: take(ebpf, name::ELECTIONS)?,
            counters: take(ebpf, name::COUNTERS)?,
            backend_counters: take(ebpf, name::BACKEND_COUNTERS)?,
            handshakes: take(ebpf, name::HANDSHAKES)?,
            signals: Some(take(ebpf, name::SIGNALS)?),
            events: Some(take(ebpf, name::EVENTS)?),
            loads: shared(&pinned(name::LOADS)?, name::LOADS, maps::LOAD_SLOTS)?,
            backend_fields: shared(&pinned(name::BACKENDS)?, name::BACKENDS, maps::MAX_BACKENDS)?,
            raw: Raw {
                flows: pinned(name::FLOWS)?,
                maglev: pinned(name::MAGLEV)?,
                ports: pinned(name::PORTS)?,
            },
        })
    }

    /// What the policy maps hold, but for the port tables.
    pub(super) fn read(&self) -> Result<Actual, Error> {
        let filter = self.filter.get(&0, 0).map_err(Error::map(name::FILTER))?;
        let services =
            numbered(&self.services, name::SERVICES, |service| service.flags & maps::SERVICE_USED != 0)?;
        let mut actual = Actual {
            services: narrow(services),
            service_ports: numbers_by_key(&self.service_ports, name::SERVICE_PORTS)?,
            backends: narrow(numbered(&self.backends, name::BACKENDS, |backend| {
                backend.flags & maps::BACKEND_USED != 0 || backend.epoch != 0
            })?),
            returns: numbers_by_key(&self.returns, name::RETURNS)?,
            vips: self.vips.iter().collect::<Result<_, _>>().map_err(Error::map(name::VIPS))?,
            interfaces: numbered(&self.interfaces, name::INTERFACES, |interface| interface.ifindex != 0)?,
            filter: FilterBits::of(&filter),
            lease: self.lease.get(&0, 0).map_err(Error::map(name::LEASE))?,
            elections: [self.election(0)?, self.election(1)?],
            ..Actual::default()
        };
        for key in self.allow.keys() {
            let key = key.map_err(Error::map(name::ALLOW))?;
            actual.allow.insert((key.prefix_len(), key.data()));
        }
        for entry in &self.client_routes {
            let (key, route) = entry.map_err(Error::map(name::CLIENT_ROUTES))?;
            actual.client_routes.insert((key.prefix_len(), key.data()), route);
        }
        for service in 0..maps::MAX_SERVICES as u16 {
            if let Some(table) = self.read_maglev(service)? {
                actual.maglev.insert(service, table);
            }
        }
        Ok(actual)
    }

    fn election(&self, family: u32) -> Result<Election, Error> {
        self.elections.get(&family, 0).map_err(Error::map(name::ELECTIONS))
    }

    /// The port tables that exist, by backend number.
    pub(super) fn port_tables(&self) -> Result<BTreeMap<u16, PortTable>, Error> {
        let mut tables = BTreeMap::new();
        for number in 0..maps::MAX_BACKENDS as u16 {
            match self.ports.get(&u32::from(number), 0) {
                Ok(map) => drop(tables.insert(number, PortTable::open(&map)?)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(Error::map(name::PORTS)(error)),
            }
        }
        Ok(tables)
    }

    fn read_maglev(&self, service: u16) -> Result<Option<Table>, Error> {
        let Some(inner) = self.maglev_of(service)? else { return Ok(None) };
        let counts = self.table_in_use(service).load(Ordering::Relaxed) as u32;
        let mut table = boxed_maglev();
        // SAFETY: the kernel holds an inner map to the value size of the first, and `layout::check` the hash over the
        // sizes of all layouts.
        unsafe { bpf::read(inner.fd().as_fd(), counts, &mut *table) }
            .map_err(Error::call("read", name::MAGLEV))?;
        Ok(Some(Table::read(&table)))
    }

    /// The map with a service's tables.
    pub(super) fn maglev_of(&self, service: u16) -> Result<Option<MapData>, Error> {
        match self.maglev.get(&u32::from(service), 0) {
            Ok(inner) => Ok(Some(inner)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::map(name::MAGLEV)(error)),
        }
    }

    /// Which of them counts.
    pub(super) fn table_in_use(&self, service: u16) -> &AtomicU64 {
        self.loads.u64(maps::load_of_service(service) as usize, std::mem::offset_of!(Load, table))
    }
}

/// A value that is all zero, on the heap: it has 149 kB.
pub(super) fn boxed_maglev() -> Box<Maglev> {
    const WORD: usize = size_of::<u32>();
    const { assert!(size_of::<Maglev>().is_multiple_of(WORD) && align_of::<Maglev>() == align_of::<u32>()) };
    let words: Box<[u32]> = vec![0; size_of::<Maglev>() / WORD].into();
    // SAFETY: size and alignment of the allocation are those of `Maglev`, which is `repr(C)` and `FromBytes`: every bit
    // pattern is a value.
    unsafe { Box::from_raw(Box::into_raw(words).cast::<Maglev>()) }
}

/// Whether a lookup found nothing.
pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, map: &'static str) -> Result<M, Error> {
    let taken = ebpf.take_map(map).ok_or_else(|| Error::Object { what: format!("map `{map}`") })?;
    taken.try_into().map_err(Error::map(map))
}

pub(super) fn shared<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    map: &MapData,
    name: &'static str,
    len: usize,
) -> Result<Shared<T>, Error> {
    Shared::new(map.fd().as_fd(), len).map_err(Error::call("map into memory", name))
}

/// The entries of an array that are in use.
fn numbered<V: aya::Pod>(
    array: &Array<MapData, V>,
    name: &'static str,
    in_use: impl Fn(&V) -> bool,
) -> Result<BTreeMap<u32, V>, Error> {
    let mut found = BTreeMap::new();
    for number in 0..array.len() {
        let value = array.get(&number, 0).map_err(Error::map(name))?;
        if in_use(&value) {
            found.insert(number, value);
        }
    }
    Ok(found)
}

/// Numbers of services and backends are below 65,536: those of [`maps::MAX_SERVICES`] and [`maps::MAX_BACKENDS`].
fn narrow<V>(numbered: BTreeMap<u32, V>) -> BTreeMap<u16, V> {
    numbered.into_iter().map(|(number, value)| (number as u16, value)).collect()
}

fn numbers_by_key<K: aya::Pod + Ord>(
    found: &HashMap<MapData, K, u32>,
    map: &'static str,
) -> Result<BTreeMap<K, u16>, Error> {
    let narrowed = found.iter().map(|entry| entry.map(|(key, number)| (key, number as u16)));
    narrowed.collect::<Result<_, _>>().map_err(Error::map(map))
}
