//! The map writes between two states, in an order that is safe while packets flow.
//!
//! What is added is written from the inside out: a backend and its port table stand before a table names them, a service
//! stands before its port leads to it, and the filter opens last. What is removed goes the other way. In between the
//! filter, one value, is swapped once. Of the routes to clients a longer prefix comes before the shorter one that it is an
//! exception to, and goes after it. Where an `allow` list begins or ends, the service's entry is written after its
//! prefixes are there and before they go, so that nobody is let in, or kept out, for a moment.

use std::collections::BTreeMap;

use lb_common::maps::Backend;

use super::{
    Actual, Change, Desired,
    actual::is_used,
    target::{self, Error, TableCache},
};

/// Compares desired and actual state. Remembers the Maglev tables it has built, and nothing else.
#[derive(Debug, Default)]
pub struct Planner {
    tables: TableCache,
}

impl Planner {
    /// The map writes that turn `actual` into what is desired, in order; none where they agree.
    ///
    /// A backend that is no longer desired stays, marked as leaving, until it is in [`Actual::ended`]; so do its service and
    /// the addresses that its flows need.
    ///
    /// # Errors
    ///
    /// What is desired does not fit into the maps. Nothing is to be written then.
    pub fn plan(&mut self, desired: &Desired, actual: &Actual) -> Result<Vec<Change>, Error> {
        let target = target::target(desired, actual, &mut self.tables)?;
        Ok(difference(actual, &target))
    }
}

fn difference(from: &Actual, to: &Actual) -> Vec<Change> {
    let mut changes = Vec::new();
    add(from, to, &mut changes);
    if from.filter != to.filter {
        changes.push(Change::Filter(to.filter.clone()));
    }
    remove(from, to, &mut changes);
    changes
}

fn add(from: &Actual, to: &Actual, changes: &mut Vec<Change>) {
    if from.lease != to.lease {
        changes.push(Change::Lease(to.lease));
    }
    for (family, (from, to)) in (0..).zip(from.elections.iter().zip(&to.elections)) {
        if from != to {
            changes.push(Change::Election(family, *to));
        }
    }
    changes
        .extend(set(&from.interfaces, &to.interfaces).map(|(&slot, &value)| Change::Interface(slot, value)));
    let routes: Vec<_> = set(&from.client_routes, &to.client_routes).collect();
    changes.extend(routes.into_iter().rev().map(|(&key, &route)| Change::ClientRoute(key, route)));
    let used = |(_, backend): &(&u16, &Backend)| is_used(backend);
    changes.extend(
        set(&from.backends, &to.backends)
            .filter(used)
            .map(|(&number, &value)| Change::Backend(number, value)),
    );
    for (&number, ports) in set(&from.reserved, &to.reserved) {
        changes.push(if from.reserved.contains_key(&number) {
            Change::Reserve(number, ports.clone())
        } else {
            Change::PortTable(number, ports.clone())
        });
    }
    changes.extend(set(&from.returns, &to.returns).map(|(&key, &number)| Change::Return(key, number)));
    changes.extend(to.allow.difference(&from.allow).map(|&key| Change::Allow(key)));
    changes.extend(
        set(&from.maglev, &to.maglev).map(|(&service, table)| Change::Maglev(service, table.clone())),
    );
    changes.extend(set(&from.services, &to.services).map(|(&number, &value)| Change::Service(number, value)));
    changes.extend(set(&from.service_ports, &to.service_ports).map(|(&key, &n)| Change::ServicePort(key, n)));
    changes.extend(set(&from.vips, &to.vips).map(|(&key, &claim)| Change::Vip(key, claim)));
}

fn remove(from: &Actual, to: &Actual, changes: &mut Vec<Change>) {
    changes.extend(gone(&from.vips, &to.vips).map(|&key| Change::RemoveVip(key)));
    changes.extend(gone(&from.service_ports, &to.service_ports).map(|&key| Change::RemoveServicePort(key)));
    changes.extend(gone(&from.services, &to.services).map(|&number| Change::ClearService(number)));
    changes.extend(gone(&from.maglev, &to.maglev).map(|&service| Change::RemoveMaglev(service)));
    changes.extend(from.allow.difference(&to.allow).map(|&key| Change::RemoveAllow(key)));
    changes.extend(gone(&from.returns, &to.returns).map(|&key| Change::RemoveReturn(key)));
    changes.extend(gone(&from.reserved, &to.reserved).map(|&number| Change::RemovePortTable(number)));
    let given_up = from.used_backends().map(|(number, _)| number);
    let given_up = given_up.filter(|number| to.backends.get(number).is_none_or(|b| !is_used(b)));
    changes.extend(given_up.map(Change::ClearBackend));
    changes.extend(gone(&from.client_routes, &to.client_routes).map(|&key| Change::RemoveClientRoute(key)));
    changes.extend(gone(&from.interfaces, &to.interfaces).map(|&slot| Change::ClearInterface(slot)));
}

/// Entries that are new or have another value.
fn set<'a, K: Ord, V: PartialEq>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    to.iter().filter(|(key, value)| from.get(key) != Some(value))
}

/// Keys that are no longer there.
fn gone<'a, K: Ord, V>(from: &'a BTreeMap<K, V>, to: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    from.keys().filter(|key| !to.contains_key(key))
}
