//! Correcting `clients`, what `max_flows_per_client` is held to. The data plane counts while a flow is established and
//! when it ends; the agent counts out what it ends itself, counts in what was there before a limit was set, and corrects
//! what a race has lost. Where no service has a limit this costs one look at an empty map.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::MapData;
use lb_common::{
    addr::Addr,
    claim::State,
    maps::{ClientKey, ClientLoad, name},
};
use lb_core::reconcile::Actual;

use super::{apply, error::Error, loads, maps::Maps, port_table::PortTable};

type Map = aya::maps::HashMap<MapData, ClientKey, ClientLoad>;

/// The last differences of each client, newest last.
#[derive(Debug, Default)]
pub(super) struct Clients(BTreeMap<ClientKey, Vec<i64>>);

impl Clients {
    /// Compares `clients` with the port tables, and corrects what stays different; how many entries.
    pub(super) fn correct(
        &mut self,
        maps: &mut Maps,
        tables: &BTreeMap<u16, PortTable>,
        actual: &Actual,
    ) -> Result<usize, Error> {
        let limited = limited(actual);
        let counted = read(&maps.clients)?;
        if limited.is_empty() && counted.is_empty() {
            self.0.clear();
            return Ok(0);
        }
        let truth = truth(tables, actual, &limited);
        let keys: BTreeSet<ClientKey> = truth.keys().chain(counted.keys()).copied().collect();
        self.0.retain(|key, _| keys.contains(key));
        let mut corrected = 0;
        for key in keys {
            if !limited.contains(&key.service) {
                apply::removed(maps.clients.remove(&key), name::CLIENTS)?;
                continue;
            }
            let of = |counts: &BTreeMap<ClientKey, i64>| counts.get(&key).copied().unwrap_or(0);
            let history = self.0.entry(key).or_default();
            history.push(of(&counted) - of(&truth));
            if history.len() < loads::AGREE {
                continue;
            }
            let error = loads::lasting(history);
            history.remove(0);
            if error != 0 {
                self.0.remove(&key);
                add(&mut maps.clients, key, -error)?;
                corrected += 1;
            }
        }
        Ok(corrected)
    }
}

/// A flow that was counted was ended by the agent.
pub(super) fn leave(maps: &mut Maps, client: Addr, service: u16) -> Result<(), Error> {
    let key = ClientKey { client, service: service.into() };
    if maps.clients.get(&key, 0).is_ok() { add(&mut maps.clients, key, -1) } else { Ok(()) }
}

/// Services with a limit.
fn limited(actual: &Actual) -> BTreeSet<u32> {
    let limited = actual.services.iter().filter(|(_, service)| service.max_flows_per_client != 0);
    limited.map(|(&number, _)| number.into()).collect()
}

fn truth(
    tables: &BTreeMap<u16, PortTable>,
    actual: &Actual,
    limited: &BTreeSet<u32>,
) -> BTreeMap<ClientKey, i64> {
    let mut truth = BTreeMap::new();
    for (number, table) in tables {
        let Some(service) = actual.backends.get(number).map(|backend| u32::from(backend.service)) else {
            continue;
        };
        if !limited.contains(&service) {
            continue;
        }
        for port in table.ports().filter(|&port| table.claim(port).is(State::Established)) {
            if let Some(record) = table.flow(port) {
                *truth.entry(ClientKey { client: record.client, service }).or_default() += 1;
            }
        }
    }
    truth
}

fn read(clients: &Map) -> Result<BTreeMap<ClientKey, i64>, Error> {
    let counted = clients.iter().map(|entry| entry.map(|(key, load)| (key, load.established)));
    counted.collect::<Result<_, _>>().map_err(Error::map(name::CLIENTS))
}

fn add(clients: &mut Map, key: ClientKey, change: i64) -> Result<(), Error> {
    let before = clients.get(&key, 0).map_or(0, |load| load.established);
    let established = before + change;
    if established <= 0 {
        return apply::removed(clients.remove(&key), name::CLIENTS);
    }
    clients.insert(key, ClientLoad { established }, 0).map_err(Error::map(name::CLIENTS))
}
