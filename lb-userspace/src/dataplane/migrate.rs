//! From the maps of another version, or of another `max_flows`, to new ones, while packets flow.
//!
//! | when | what |
//! | --- | --- |
//! | at the start | the pins of the old maps are set aside (`old/`); new maps are made; services and backends keep their numbers |
//! | right before the new program is attached | all flows are copied, from maps that the old program still writes to |
//! | attaching | connections that nobody knows are left unanswered from here on (the lease's grace), not reset |
//! | right after | what was established or ended since it was copied is brought up to date; the old maps are let go |
//!
//! A process that is killed before the new program is attached leaves the old maps complete, to which the next one goes back.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Instant};

use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use lb_common::{
    claim::{Claim, State},
    maps::{
        self, BACKEND_USED, Backend, ClientKey, ClientLoad, Flow, FlowKey, Forward, Gate, LOAD_SLOTS, Load,
        MAX_BACKENDS, PORT_TABLE_LEN, PORT_TABLE_SLOTS, Record, SERVICE_USED, Service, fields::FIELDS_LEN,
        name,
    },
};
use lb_core::layout::{Layouts, Mapping};
use tracing::{info, warn};
use zerocopy::{FromBytes, FromZeros as _, IntoBytes};

use super::{
    DataPlane,
    error::Error,
    layout,
    maps::{Maps, is_absent},
    monotonic_ns,
    pins::PinDir,
    port_table::PortTable,
    raw_map::RawMap,
    sweep::count,
};

/// How long connections that nobody knows are left unanswered: bringing the flows up to date takes a fraction of it.
const GRACE_NS: u64 = 2_000_000_000;

/// Maps of other layouts, which can be carried over.
pub(super) struct Plan {
    there: Layouts,
}

/// A migration under way.
pub(super) struct Migration {
    there: Layouts,
    services: RawMap,
    backends: RawMap,
    flows: RawMap,
    half_open: RawMap,
    clients: RawMap,
    loads: RawMap,
    lease: RawMap,
    tables: BTreeMap<u16, RawMap>,
    /// Each slot's claim as it was copied.
    copied: BTreeMap<u16, Vec<u64>>,
}

impl Plan {
    /// Whether pinned maps can be carried over; if not, what is in the way.
    pub(super) fn of(pins: &PinDir, max_flows: u32) -> Result<Self, Vec<String>> {
        let layout = layout::read(pins).ok_or_else(|| vec!["their layout cannot be read".to_owned()])?;
        if layout.version != maps::LAYOUT_VERSION {
            // Said already by whoever compared.
            return Err(vec![]);
        }
        let there =
            read_fields(pins).ok_or_else(|| vec!["they do not say where their fields are".to_owned()])?;
        let plan = Self { there };
        let mut obstacles: Vec<String> = maps::fields::SHAPES
            .iter()
            .filter_map(|shape| Layouts::current().mapping_from(&plan.there, shape.name).err())
            .collect();
        for (map, key, value) in [
            (name::SERVICES, None, "Service"),
            (name::BACKENDS, None, "Backend"),
            (name::FLOWS, Some("FlowKey"), "Flow"),
            (name::HALF_OPEN, Some("FlowKey"), "Flow"),
            (name::CLIENTS, Some("ClientKey"), "ClientLoad"),
            (name::LOADS, None, "Load"),
            (name::LEASE, None, "Lease"),
        ] {
            match RawMap::open(pins, map) {
                Ok(raw) => {
                    let said = (key.map_or(Some(4), |key| plan.there.size(key)), plan.there.size(value));
                    if said != (Some(raw.key), Some(raw.value)) {
                        obstacles.push(format!("map `{map}` is not what its layout says"));
                    }
                }
                Err(error) => obstacles.push(error.to_string()),
            }
        }
        if obstacles.is_empty() {
            let flows = plan.established(pins).map_err(|error| vec![error.to_string()])?;
            if flows > i64::from(max_flows) {
                obstacles
                    .push(format!("max_flows = {max_flows} is less than the {flows} flows that there are"));
            }
        }
        if obstacles.is_empty() { Ok(plan) } else { Err(obstacles) }
    }

    fn established(&self, pins: &PinDir) -> Result<i64, Error> {
        let (loads, mapping) = (RawMap::open(pins, name::LOADS)?, self.mapping("Load")?);
        let mut established = 0;
        loads.each(name::LOADS, |slot, load| {
            if slot == maps::LOAD_TOTAL.to_ne_bytes() {
                established = convert::<Load>(&mapping, load).established;
            }
            Ok(())
        })?;
        Ok(established)
    }

    fn mapping(&self, layout: &str) -> Result<Mapping, Error> {
        mapping(&self.there, layout)
    }

    /// Sets the old maps aside.
    pub(super) fn begin(self, pins: &PinDir) -> Result<Migration, Error> {
        let old = pins.set_aside()?;
        Migration::open(self.there, &old)
    }
}

impl Migration {
    fn open(there: Layouts, old: &PinDir) -> Result<Self, Error> {
        let mut tables = BTreeMap::new();
        let outer = MapData::from_pin(old.path(name::PORTS)).and_then(Map::from_map_data);
        let ports: ArrayOfMaps<MapData, MapData> =
            outer.and_then(TryFrom::try_from).map_err(Error::map(name::PORTS))?;
        for number in 0..MAX_BACKENDS as u16 {
            match ports.get(&u32::from(number), 0) {
                Ok(inner) => {
                    let table = RawMap::of(inner, name::PORTS)?;
                    if Some(table.value) != there.size("Record") || Some(table.value) != there.size("Forward")
                    {
                        return Err(Error::Object {
                            what: format!("port table {number} of the size its layout says"),
                        });
                    }
                    tables.insert(number, table);
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(Error::map(name::PORTS)(error)),
            }
        }
        Ok(Self {
            services: RawMap::open(old, name::SERVICES)?,
            backends: RawMap::open(old, name::BACKENDS)?,
            flows: RawMap::open(old, name::FLOWS)?,
            half_open: RawMap::open(old, name::HALF_OPEN)?,
            clients: RawMap::open(old, name::CLIENTS)?,
            loads: RawMap::open(old, name::LOADS)?,
            lease: RawMap::open(old, name::LEASE)?,
            tables,
            copied: BTreeMap::new(),
            there,
        })
    }

    /// Services and backends, by their numbers, into new maps, their port tables, empty, and the lease, within which a node of
    /// a pair may restart.
    pub(super) fn carry_policy(&self, to: &mut Maps) -> Result<(), Error> {
        to.lease.set(0, self.lease()?, 0).map_err(Error::map(name::LEASE))?;
        let (service, backend) = (mapping(&self.there, "Service")?, mapping(&self.there, "Backend")?);
        self.services.each(name::SERVICES, |number, value| {
            let value: Service = convert(&service, value);
            let used = value.flags & SERVICE_USED != 0;
            if used {
                to.services.set(word(number), value, 0).map_err(Error::map(name::SERVICES))
            } else {
                Ok(())
            }
        })?;
        self.backends.each(name::BACKENDS, |number, value| {
            let value: Backend = convert(&backend, value);
            let used = value.flags & BACKEND_USED != 0 || value.epoch != 0;
            if used {
                to.backends.set(word(number), value, 0).map_err(Error::map(name::BACKENDS))
            } else {
                Ok(())
            }
        })?;
        let record = mapping(&self.there, "Record")?;
        for (&number, table) in &self.tables {
            let mut reserved = std::collections::BTreeSet::new();
            table.each_of(name::PORTS, 0..PORT_TABLE_SLOTS, |port, value| {
                if is_unused(value) {
                    return Ok(());
                }
                let value: Record = convert(&record, value);
                if value.claim().is(State::Reserved) {
                    reserved.insert(word(port) as u16);
                }
                Ok(())
            })?;
            let (map, _) = PortTable::create(&reserved)?;
            to.ports.set(number.into(), &map, 0).map_err(Error::map(name::PORTS))?;
        }
        Ok(())
    }

    /// The lease as the old program has it.
    fn lease(&self) -> Result<maps::Lease, Error> {
        let mapping = mapping(&self.there, "Lease")?;
        let mut lease = maps::Lease::NONE;
        self.lease.each(name::LEASE, |_, value| {
            lease = convert(&mapping, value);
            Ok(())
        })?;
        Ok(lease)
    }

    /// All flows as they are now.
    fn carry_flows(&mut self, to: &mut Maps, tables: &BTreeMap<u16, PortTable>) -> Result<usize, Error> {
        let (record, forward) = (mapping(&self.there, "Record")?, mapping(&self.there, "Forward")?);
        for (number, old) in &self.tables {
            let Some(new) = tables.get(number) else { continue };
            let mut claims = vec![0; PORT_TABLE_SLOTS as usize];
            let mut records: BTreeMap<u16, Record> = BTreeMap::new();
            old.each_of(name::PORTS, 0..PORT_TABLE_SLOTS, |port, value| {
                if !is_unused(value) {
                    let value: Record = convert(&record, value);
                    // A slot that is free keeps the number of its owners. What is being claimed just now is by the next pass, if
                    // something comes of it; what is reserved is so already.
                    if value.claim().is_live() || value.claim().is(State::Free) {
                        records.insert(word(port) as u16, value);
                    }
                }
                Ok(())
            })?;
            // The forward halves after the claims: what changes between the two has another claim in the next pass.
            old.each_of(name::PORTS, PORT_TABLE_SLOTS..PORT_TABLE_LEN, |index, value| {
                let port = (word(index) - PORT_TABLE_SLOTS) as u16;
                if let Some(record) = records.get(&port) {
                    new.fill(port, record, &in_step(record.claim(), convert(&forward, value)));
                    new.change(port, new.claim(port), record.claim());
                    claims[usize::from(port)] = record.claim;
                }
                Ok(())
            })?;
            new.close();
            self.copied.insert(*number, claims);
        }
        let (key, flow) = (mapping(&self.there, "FlowKey")?, mapping(&self.there, "Flow")?);
        let mut carried = 0;
        for (old, map) in [(&self.flows, name::FLOWS), (&self.half_open, name::HALF_OPEN)] {
            let into = if map == name::FLOWS { &mut to.flows } else { &mut to.half_open };
            old.each(map, |k, value| {
                carried += 1;
                let (k, value): (FlowKey, Flow) = (convert(&key, k), convert(&flow, value));
                into.insert(k, value, 0).map_err(Error::map(map))
            })?;
        }
        let (key, load) = (mapping(&self.there, "ClientKey")?, mapping(&self.there, "ClientLoad")?);
        self.clients.each(name::CLIENTS, |k, value| {
            let (k, value): (ClientKey, ClientLoad) = (convert(&key, k), convert(&load, value));
            to.clients.insert(k, value, 0).map_err(Error::map(name::CLIENTS))
        })?;
        let load = mapping(&self.there, "Load")?;
        self.loads.each(name::LOADS, |slot, value| {
            let (slot, value): (usize, Load) = (word(slot) as usize, convert(&load, value));
            if slot < LOAD_SLOTS {
                let field = |offset| to.loads.i64(slot, offset);
                field(std::mem::offset_of!(Load, established)).store(value.established, Ordering::Relaxed);
                field(std::mem::offset_of!(Load, turn)).store(value.turn, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(carried)
    }
}

impl DataPlane {
    /// Whether maps of another layout are being carried over: their flows are not all here yet.
    pub fn migrates(&self) -> bool {
        self.migration.is_some()
    }

    /// Before the new program is attached: where maps of another layout are carried over, copies their flows.
    ///
    /// # Errors
    ///
    /// The kernel's; the old program goes on with the old maps.
    pub fn carry_flows(&mut self) -> Result<(), Error> {
        let Some(mut migration) = self.migration.take() else { return Ok(()) };
        let begun = Instant::now();
        let carried = migration.carry_flows(&mut self.maps, &self.tables);
        self.migration = Some(migration);
        let flows = carried?;
        let lease = self.maps.lease.get(&0, 0).map_err(Error::map(name::LEASE))?;
        // A stronger advertisement may have ended it meanwhile.
        let revoked_at = lease.revoked_at.max(self.revoked_at()?);
        let grace = maps::Lease { grace_until: monotonic_ns() + GRACE_NS, revoked_at, ..lease };
        self.maps.lease.set(0, grace, 0).map_err(Error::map(name::LEASE))?;
        info!(flows, took = ?begun.elapsed(), "flows are carried over to maps of this version's layout");
        Ok(())
    }

    fn revoked_at(&self) -> Result<u64, Error> {
        self.migration.as_ref().map_or(Ok(0), |migration| Ok(migration.lease()?.revoked_at))
    }

    /// After the new program is attached: brings up to date what has changed since, and lets the old maps go.
    ///
    /// # Errors
    ///
    /// The kernel's; what is not brought up to date ends.
    pub fn carry_rest(&mut self) -> Result<(), Error> {
        let Some(migration) = self.migration.take() else { return Ok(()) };
        // From here on the new maps are the ones that count.
        self.pins.pin_layout(&mut self.layout)?;
        self.pins.give_up_aside()?;
        let begun = Instant::now();
        let changed = self.bring_up_to_date(&migration);
        let lease = self.maps.lease.get(&0, 0).map_err(Error::map(name::LEASE))?;
        let lease = maps::Lease { grace_until: 0, ..lease };
        self.maps.lease.set(0, lease, 0).map_err(Error::map(name::LEASE))?;
        self.pins.remove_aside()?;
        info!(flows = changed?, took = ?begun.elapsed(), "flows are as they were under the program before");
        Ok(())
    }

    fn bring_up_to_date(&mut self, migration: &Migration) -> Result<usize, Error> {
        let mapping_of = |layout| mapping(&migration.there, layout);
        let (record, half) = (mapping_of("Record")?, mapping_of("Forward")?);
        let (key, flow) = (mapping_of("FlowKey")?, mapping_of("Flow")?);
        let mut moved: Vec<(u16, u16, u64, Record, Forward)> = Vec::new();
        for (&number, old) in &migration.tables {
            let Some(copied) = migration.copied.get(&number) else { continue };
            old.each_of(name::PORTS, 0..PORT_TABLE_SLOTS, |port, value| {
                // Packets wait for this, and a slot that was ever used is not all zero again.
                if is_unused(value) {
                    return Ok(());
                }
                let (port, value): (u16, Record) = (word(port) as u16, convert(&record, value));
                let before = copied[usize::from(port)];
                let concerns = |claim: Claim| claim.is(State::Established);
                if value.claim != before && (concerns(value.claim()) || concerns(Claim(before))) {
                    let mut forward = Forward::new_zeroed();
                    let index = PORT_TABLE_SLOTS + u32::from(port);
                    old.each_of(name::PORTS, index..index + 1, |_, value| {
                        forward = convert(&half, value);
                        Ok(())
                    })?;
                    moved.push((number, port, before, value, forward));
                }
                Ok(())
            })?;
        }
        if moved.is_empty() {
            return Ok(0);
        }
        let mut entries = BTreeMap::new();
        migration.flows.each(name::FLOWS, |k, value| {
            entries.insert(convert::<FlowKey>(&key, k), convert::<Flow>(&flow, value));
            Ok(())
        })?;
        let mut changed = 0;
        for (number, port, before, value, forward) in moved {
            let before = Claim(before);
            // A packet that came since has moved it on: then that is so.
            let untouched = self.tables.get(&number).is_some_and(|table| table.claim(port) == before);
            if !untouched {
                continue;
            }
            if value.claim().is(State::Established) {
                let halves = (&value, &forward);
                changed += usize::from(self.establish(number, port, before, halves, &entries)?);
            } else if before.is(State::Established) {
                changed += usize::from(self.take_out(number, port)?);
            }
        }
        Ok(changed)
    }

    /// A flow that was established after it was copied, or came after.
    fn establish(
        &mut self,
        number: u16,
        port: u16,
        before: Claim,
        (record, forward): (&Record, &Forward),
        entries: &BTreeMap<FlowKey, Flow>,
    ) -> Result<bool, Error> {
        let Some(service) = self.actual.backends.get(&number).map(|backend| backend.service) else {
            return Ok(false);
        };
        let key = FlowKey { client: record.client, port: record.client_port, service };
        let claim = record.claim();
        let of_slot = |flow: &&Flow| flow.is_of(number, lb_common::addr::Port::new(port), claim.generation());
        let Some(flow) = entries.get(&key).filter(of_slot) else { return Ok(false) };
        let Some(table) = self.tables.get(&number) else { return Ok(false) };
        let claiming = Claim::new(State::Claiming, claim.generation());
        if !table.change(port, before, claiming) {
            return Ok(false);
        }
        table.fill(port, record, &in_step(claim, *forward));
        if let Err(error) = self.maps.flows.insert(key, flow, 0) {
            table.free(port, claiming);
            return Err(Error::map(name::FLOWS)(error));
        }
        // Whoever sees the claim established finds the entry.
        table.change(port, claiming, claim);
        if !before.is(State::Established) {
            count(&self.maps, number, service, 1);
        }
        Ok(true)
    }

    /// Goes back to the maps that were there, if a migration was under way: nothing runs on the new ones.
    pub(super) fn take_back_maps(&mut self) -> bool {
        if self.migration.take().is_none() {
            return false;
        }
        if let Err(error) = self.pins.settle_aside() {
            warn!(%error, "the maps of the former agent stay set aside: the next start goes back to them");
        }
        true
    }
}

/// A forward half whose gate is that of a claim.
fn in_step(claim: Claim, forward: Forward) -> Forward {
    let is_same = forward.gate().generation() == claim.generation();
    let gate = if is_same && claim.is_plain_established() { Gate::open } else { Gate::closed };
    Forward { gate: gate(claim.generation()).0, ..forward }
}

/// Where the pinned maps keep their fields.
fn read_fields(pins: &PinDir) -> Option<Layouts> {
    let map = Map::from_map_data(MapData::from_pin(pins.path(name::FIELDS)).ok()?).ok()?;
    let fields: Array<MapData, [u8; FIELDS_LEN]> = map.try_into().ok()?;
    Layouts::parse(&fields.get(&0, 0).ok()?)
}

fn mapping(there: &Layouts, layout: &str) -> Result<Mapping, Error> {
    Layouts::current().mapping_from(there, layout).map_err(|what| Error::Object { what })
}

fn convert<T: FromBytes + IntoBytes>(mapping: &Mapping, from: &[u8]) -> T {
    let mut value = T::new_zeroed();
    mapping.apply(from, value.as_mut_bytes());
    value
}

/// A slot that nobody ever had: most are.
fn is_unused(value: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    ZEROS.get(..value.len()).is_some_and(|zeros| value == zeros)
}

fn word(key: &[u8]) -> u32 {
    let mut octets = [0; 4];
    octets.copy_from_slice(&key[..4]);
    u32::from_ne_bytes(octets)
}
