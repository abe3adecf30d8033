//! Flows of other nodes: put into the live tables, taken out of them, and this node's own, as the others are to have them.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::{Addr, Mac, Port},
    claim::{BACKEND_FIN, BACKEND_FIN_ACKED, CLIENT_FIN, CLIENT_FIN_ACKED, RESET, SYN_ACKED, State},
    maps::{
        FLOW_COPIED, FLOW_DSR, Flow, FlowKey, Forward, Gate, Record, ReturnKey, SERVICE_DSR, age_ns,
        age_stamp, name,
    },
};
use lb_core::sync::{FlowState, Place, Source};
use tracing::debug;

use super::{
    BackendPlace, DataPlane, clients, error::Error, forward, maps::is_absent, monotonic_ns, sweep::count,
};

/// Flags of a claim that another node is told.
const TOLD: u64 = SYN_ACKED | CLIENT_FIN | BACKEND_FIN | CLIENT_FIN_ACKED | BACKEND_FIN_ACKED;
/// Any of these: the flow has begun to close.
const FINS: u64 = CLIENT_FIN | BACKEND_FIN;

/// The way toward a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface's number.
    pub ifindex: u32,
    /// As in [`Record`], network order.
    pub tags: [u16; 2],
    /// [`Mac::UNKNOWN`] where it is not known.
    pub mac: Mac,
}

/// What became of another node's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It is here now, in this backend's table.
    New(u16),
    /// It was here already.
    Known(u16),
    /// A flow of this node has its slot or its client's port, and stays.
    Conflict,
    /// This node has no such backend.
    NotHere,
}

impl Source for DataPlane {
    fn place(&self, table: u16) -> Option<Place> {
        let BackendPlace { service, backend, source } = self.place_of(table)?;
        self.tables.contains_key(&table).then_some(Place { service, backend, source })
    }

    fn flow(&self, table: u16, port: u16) -> Option<FlowState> {
        let record = self.tables.get(&table)?.flow(port)?;
        if !record.claim().is(State::Established) {
            return None;
        }
        let forward = self.tables.get(&table)?.forward(port, record.claim().generation())?;
        Some(FlowState {
            client: SocketAddr::new(record.client.to_ip(), record.client_port.get()),
            nat_port: port,
            flags: (record.claim & TOLD) as u16,
            by_client: (forward.last_ack, forward.edge),
            by_backend: (record.last_ack, record.edge),
            client_edge: record.client_edge,
            age_ms: age_ns(forward.since, monotonic_ns()) / 1_000_000,
        })
    }
}

impl DataPlane {
    /// Every slot with an established flow: table and port.
    pub fn established(&self) -> Vec<(u16, u16)> {
        let of_table = |&table: &u16| self.established_in(table).into_iter().map(move |port| (table, port));
        self.tables.keys().flat_map(of_table).collect()
    }

    /// Every slot of a table with an established flow.
    pub fn established_in(&self, table: u16) -> Vec<u16> {
        let Some(table) = self.tables.get(&table) else { return vec![] };
        table.ports().filter(|port| table.claim(*port).is(State::Established)).collect()
    }

    /// The table of another node's place.
    pub fn table_at(&self, place: &Place) -> Option<u16> {
        let key =
            ReturnKey::new(place.source.into(), place.backend.ip().into(), Port::new(place.backend.port()));
        let number = *self.actual.returns.get(&key)?;
        let is_same = self.place_of(number)?.service == place.service;
        (is_same && self.tables.contains_key(&number)).then_some(number)
    }

    /// Puts another node's flow into this node's tables. `wins`: over a flow of this node that is in its way.
    ///
    /// # Errors
    /// [`Error::Map`]: the flow is not here then.
    pub fn install(
        &mut self,
        place: &Place,
        flow: &FlowState,
        way: Way,
        wins: bool,
    ) -> Result<Installed, Error> {
        let Some(number) = self.table_at(place) else { return Ok(Installed::NotHere) };
        let Some(backend) = self.actual.backends.get(&number).copied() else { return Ok(Installed::NotHere) };
        let is_dsr = self.actual.services.get(&backend.service).is_some_and(|s| s.flags & SERVICE_DSR != 0);
        let client = (Addr::from(flow.client.ip()), Port::new(flow.client.port()));
        let key = FlowKey { client: client.0, port: client.1, service: backend.service };
        if let Some(record) = self.tables.get(&number).and_then(|table| table.flow(flow.nat_port))
            && record.claim().is(State::Established)
        {
            if (record.client, record.client_port) == client {
                return Ok(Installed::Known(number));
            }
            if !wins {
                return Ok(Installed::Conflict);
            }
            self.take_out(number, flow.nat_port)?;
        }
        if let Some(other) = self.forward_entry(&key)? {
            let (table, port) = (other.backend, other.nat_port.get());
            let lives = self.tables.get(&table).is_some_and(|table| table.claim(port).is(State::Established));
            if lives && !wins {
                return Ok(Installed::Conflict);
            }
            self.take_out(table, port)?;
        }
        let Some(table) = self.tables.get(&number) else { return Ok(Installed::NotHere) };
        let before = table.claim(flow.nat_port);
        let claim = before.next_owner();
        let is_bare = before.is(State::Reserved) || before.is(State::Claiming);
        if is_bare || !table.change(flow.nat_port, before, claim) {
            return Ok(Installed::Conflict);
        }
        let now = monotonic_ns();
        let flags = u64::from(flow.flags) & TOLD;
        let begun = now.saturating_sub(flow.age_ms.saturating_mul(1_000_000));
        let generation = claim.generation();
        let gate = if flags & FINS == 0 { Gate::open(generation) } else { Gate::closed(generation) };
        table.fill(
            flow.nat_port,
            &Record {
                claim: 0,
                last_seen: now,
                client: client.0,
                client_port: client.1,
                inner_tag: way.tags[1],
                ifindex: way.ifindex,
                client_mac: way.mac,
                outer_tag: way.tags[0],
                last_ack: flow.by_backend.0,
                epoch: backend.epoch,
                edge: flow.by_backend.1,
                client_edge: flow.client_edge,
            },
            &Forward {
                gate: gate.0,
                last_seen: now,
                client: client.0,
                client_port: client.1,
                service: backend.service,
                epoch: backend.epoch,
                last_ack: flow.by_client.0,
                edge: flow.by_client.1,
                since: age_stamp(begun),
                // The first packet's is learned.
                client_mac: Mac::UNKNOWN,
                flags: FLOW_COPIED | if is_dsr { FLOW_DSR } else { 0 },
                reserved: 0,
            },
        );
        let entry = Flow::new(number, Port::new(flow.nat_port), generation, 0);
        if let Err(error) = self.maps.flows.insert(key, entry, 0) {
            table.free(flow.nat_port, claim);
            return Err(Error::map(name::FLOWS)(error));
        }
        // Whoever sees the claim established finds the entry, as in the data plane.
        table.change(flow.nat_port, claim, claim.to(State::Established).with(flags));
        count(&self.maps, number, backend.service, 1);
        // A client's own count is brought up to date by the sweep.
        Ok(Installed::New(number))
    }

    /// Takes a flow out of this node's tables without a word to its ends: another node has it, or had it. Whether it was
    /// here.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn take_out(&mut self, number: u16, port: u16) -> Result<bool, Error> {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return Ok(false);
        };
        let service = backend.service;
        let Some(record) = table.flow(port) else { return Ok(false) };
        let claim = record.claim();
        if !claim.is(State::Established) || !table.change(port, claim, claim.after(RESET)) {
            return Ok(false);
        }
        table.close_gate(port, claim.generation());
        count(&self.maps, number, service, -1);
        let key = FlowKey { client: record.client, port: record.client_port, service };
        if let Some(forward) = self.forward_entry(&key)?
            && forward.is_of(number, Port::new(port), claim.generation())
        {
            forward::remove(&mut self.maps, &key, &forward)?;
        }
        if let Err(error) = clients::leave(&mut self.maps, record.client, service) {
            debug!(%error, "a client's count is left to the sweep");
        }
        Ok(true)
    }

    /// Says whether this node owns the VIPs. One that does not ends no flow by itself: it does not see their packets.
    pub fn set_owner(&mut self, is_owner: bool) {
        self.is_owner = is_owner;
    }

    /// Port tables that there are.
    pub fn table_numbers(&self) -> Vec<u16> {
        self.tables.keys().copied().collect()
    }

    /// Flows were silent here because another node had their packets: they are idle from now on.
    pub fn wake_flows(&mut self) {
        let now = monotonic_ns();
        for table in self.tables.values() {
            for port in table.ports().filter(|port| table.claim(*port).is(State::Established)) {
                table.rest_from(port, now);
            }
        }
    }

    /// Clients whose flows go by an interface.
    pub fn clients_by(&self, ifindex: u32) -> std::collections::BTreeSet<IpAddr> {
        let flows = self.tables.values().flat_map(|table| table.ports().filter_map(|port| table.flow(port)));
        let here = flows.filter(|record| record.claim().is(State::Established) && record.ifindex == ifindex);
        here.map(|record| record.client.to_ip()).collect()
    }

    /// Clients toward whom no MAC is known, with the interfaces that their flows go by.
    pub fn unreachable_clients(&self) -> Vec<(u32, IpAddr)> {
        let mut found: Vec<_> = self
            .tables
            .values()
            .flat_map(|table| table.ports().filter_map(|port| table.flow(port)))
            .filter(|record| record.claim().is(State::Established) && record.client_mac.is_unknown())
            .map(|record| (record.ifindex, record.client.to_ip()))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Gives flows whose client's MAC is not known the one that is known now; how many.
    pub fn reach_clients(&mut self, mac: impl Fn(u32, IpAddr) -> Option<Mac>) -> usize {
        let mut reached = 0;
        for table in self.tables.values() {
            for port in table.ports().filter(|port| table.claim(*port).is(State::Established)) {
                let Some(record) = table.flow(port).filter(|record| record.client_mac.is_unknown()) else {
                    continue;
                };
                if let Some(mac) = mac(record.ifindex, record.client.to_ip()) {
                    let route = lb_common::maps::ClientRoute::by(record.ifindex, mac);
                    reached += usize::from(table.reroute(port, &record, &route));
                }
            }
        }
        reached
    }

    fn forward_entry(&self, key: &FlowKey) -> Result<Option<Flow>, Error> {
        match self.maps.flows.get(key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::map(name::FLOWS)(error)),
        }
    }
}
