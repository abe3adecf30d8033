//! One planned change, written to its map.

use std::{collections::BTreeMap, os::fd::AsFd as _, sync::atomic::Ordering};

use aya::maps::{HashMap, MapData, MapError, lpm_trie::Key};
use aya_obj::generated::bpf_map_type;
use lb_common::maps::{self, FlowKey, Maglev, name};
use lb_core::reconcile::{Change, NO_INTERFACE, NO_SERVICE, Table, cleared};

use super::{
    bpf,
    error::Error,
    maps::{Maps, boxed_maglev, is_absent},
    port_table::PortTable,
};

/// Every entry's own rules: what is there is overwritten, what is not is made.
const ANY: u64 = 0;

pub(super) fn apply(
    maps: &mut Maps,
    tables: &mut BTreeMap<u16, PortTable>,
    change: &Change,
) -> Result<(), Error> {
    match change {
        Change::Lease(lease) => maps.lease.set(0, lease, ANY).map_err(Error::map(name::LEASE)),
        Change::Election(family, election) => {
            maps.elections.set(*family, election, ANY).map_err(Error::map(name::ELECTIONS))
        }
        Change::Interface(slot, interface) => {
            maps.interfaces.set(*slot, interface, ANY).map_err(Error::map(name::INTERFACES))
        }
        Change::ClearInterface(slot) => {
            maps.interfaces.set(*slot, NO_INTERFACE, ANY).map_err(Error::map(name::INTERFACES))
        }
        Change::Backend(number, backend) => {
            maps.backends.set((*number).into(), backend, ANY).map_err(Error::map(name::BACKENDS))
        }
        Change::ClearBackend(number) => clear_backend(maps, *number),
        Change::PortTable(number, ports) => {
            let (map, table) = PortTable::create(ports)?;
            maps.ports.set((*number).into(), &map, ANY).map_err(Error::map(name::PORTS))?;
            tables.insert(*number, table);
            Ok(())
        }
        Change::Reserve(number, ports) => {
            if let Some(table) = tables.get_mut(number) {
                table.reserve(ports.clone());
            }
            Ok(())
        }
        Change::RemovePortTable(number) => remove_port_table(maps, tables, *number),
        Change::Return(key, number) => {
            maps.returns.insert(key, u32::from(*number), ANY).map_err(Error::map(name::RETURNS))
        }
        Change::RemoveReturn(key) => removed(maps.returns.remove(key), name::RETURNS),
        Change::Allow((length, data)) => {
            maps.allow.insert(&Key::new(*length, *data), 1, ANY).map_err(Error::map(name::ALLOW))
        }
        Change::RemoveAllow((length, data)) => {
            removed(maps.allow.remove(&Key::new(*length, *data)), name::ALLOW)
        }
        Change::ClientRoute((length, address), route) => {
            let key = Key::new(*length, *address);
            maps.client_routes.insert(&key, *route, ANY).map_err(Error::map(name::CLIENT_ROUTES))
        }
        Change::RemoveClientRoute((length, address)) => {
            removed(maps.client_routes.remove(&Key::new(*length, *address)), name::CLIENT_ROUTES)
        }
        Change::Maglev(service, table) => swap_maglev(maps, *service, table),
        Change::RemoveMaglev(service) => empty_slot(&maps.raw.maglev, *service, name::MAGLEV),
        Change::Service(number, service) => {
            maps.services.set((*number).into(), service, ANY).map_err(Error::map(name::SERVICES))
        }
        Change::ClearService(number) => {
            maps.services.set((*number).into(), NO_SERVICE, ANY).map_err(Error::map(name::SERVICES))
        }
        Change::ServicePort(key, number) => {
            maps.service_ports.insert(key, u32::from(*number), ANY).map_err(Error::map(name::SERVICE_PORTS))
        }
        Change::RemoveServicePort(key) => removed(maps.service_ports.remove(key), name::SERVICE_PORTS),
        Change::Vip(key, claim) => maps.vips.insert(key, claim, ANY).map_err(Error::map(name::VIPS)),
        Change::RemoveVip(key) => removed(maps.vips.remove(key), name::VIPS),
        Change::Filter(bits) => maps.filter.set(0, *bits.to_filter(), ANY).map_err(Error::map(name::FILTER)),
    }
}

/// Writes the table that does not count, then says that it does: readers have either, whole. A new inner map in the place of
/// the old one would do the same, but there the kernel waits for an RCU grace period: milliseconds, on a machine under load
/// seconds, in which nobody would reset the flows of the backend that is down.
fn swap_maglev(maps: &mut Maps, service: u16, table: &Table) -> Result<(), Error> {
    let mut value = boxed_maglev();
    table.write(&mut value);
    match maps.maglev_of(service)? {
        Some(inner) => {
            let counts = maps.table_in_use(service);
            let other = (counts.load(Ordering::Relaxed) + 1) % maps::MAGLEV_TABLES as u64;
            write_table(&inner, other as u32, &value)?;
            counts.store(other, Ordering::Release);
            Ok(())
        }
        None => add_maglev(maps, service, &value),
    }
}

/// A service's first table. Whatever its [`maps::Load::table`] says, it counts.
fn add_maglev(maps: &mut Maps, service: u16, value: &Maglev) -> Result<(), Error> {
    let definition = aya_obj::Map::new_from_params(
        bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        size_of::<u32>() as u32,
        size_of::<Maglev>() as u32,
        maps::MAGLEV_TABLES as u32,
        0,
    );
    let inner = MapData::create(definition, "maglev_table", None).map_err(Error::map(name::MAGLEV))?;
    for number in 0..maps::MAGLEV_TABLES as u32 {
        write_table(&inner, number, value)?;
    }
    maps.maglev.set(service.into(), &inner, ANY).map_err(Error::map(name::MAGLEV))
}

fn write_table(inner: &MapData, number: u32, value: &Maglev) -> Result<(), Error> {
    // SAFETY: each inner map was made with this value size, by `add_maglev` of an agent with the same layouts.
    unsafe { bpf::write(inner.fd().as_fd(), number, value) }.map_err(Error::call("write", name::MAGLEV))
}

/// The epoch stays, so that no forward entry of the old owner fits the next one.
fn clear_backend(maps: &mut Maps, number: u16) -> Result<(), Error> {
    let index = u32::from(number);
    let epoch = maps.backends.get(&index, ANY).map_err(Error::map(name::BACKENDS))?.epoch;
    maps.backends.set(index, cleared(epoch), ANY).map_err(Error::map(name::BACKENDS))?;
    let slot = maps::load_of_backend(number) as usize;
    maps.loads.i64(slot, std::mem::offset_of!(maps::Load, established)).store(0, Ordering::Relaxed);
    let zero = aya::maps::PerCpuValues::try_from(vec![Default::default(); cpus()?])
        .map_err(Error::call("size", name::BACKEND_COUNTERS))?;
    maps.backend_counters.set(index, zero, ANY).map_err(Error::map(name::BACKEND_COUNTERS))
}

fn cpus() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(_, error)| Error::call("count the CPUs of", name::BACKEND_COUNTERS)(error))
}

/// Takes the table away, and the forward entries of the clients that it still names.
fn remove_port_table(
    maps: &mut Maps,
    tables: &mut BTreeMap<u16, PortTable>,
    number: u16,
) -> Result<(), Error> {
    empty_slot(&maps.raw.ports, number, name::PORTS)?;
    let Some(table) = tables.remove(&number) else { return Ok(()) };
    let service = maps.backends.get(&number.into(), ANY).map_err(Error::map(name::BACKENDS))?.service;
    for port in table.ports() {
        if let Some(record) = table.flow(port) {
            let key = FlowKey { client: record.client, port: record.client_port, service };
            forget(&mut maps.flows, &key, number, name::FLOWS)?;
            forget(&mut maps.half_open, &key, number, name::HALF_OPEN)?;
        }
    }
    Ok(())
}

/// Removes a forward entry if it leads to this backend.
fn forget(
    entries: &mut HashMap<MapData, FlowKey, maps::Flow>,
    key: &FlowKey,
    backend: u16,
    map: &'static str,
) -> Result<(), Error> {
    match entries.get(key, ANY) {
        Ok(flow) if flow.backend == backend => removed(entries.remove(key), map),
        Ok(_) => Ok(()),
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(Error::map(map)(error)),
    }
}

fn empty_slot(map: &MapData, slot: u16, name: &'static str) -> Result<(), Error> {
    match bpf::delete(map.fd().as_fd(), slot.into()) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(Error::call("empty a slot of", name)(error))
        }
        _ => Ok(()),
    }
}

/// What is gone already is as good as removed.
pub(super) fn removed(outcome: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
    match outcome {
        Err(error) if !is_absent(&error) => Err(Error::map(map)(error)),
        _ => Ok(()),
    }
}
