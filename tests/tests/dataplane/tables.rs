use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use lb_common::maps::{Load, Maglev, load_of_service, name};
use lb_core::reconcile::Table;

use super::sandbox::{PORT, Sandbox, VIP, address, desired, run};

#[test]
fn a_table_is_put_in_force_beside_the_one_that_counted() {
    run(|sandbox| {
        let mut plane = sandbox.open().unwrap();
        let both = desired(&[1, 2]);
        let mut one = both.clone();
        one.services[0].backends[1].usable = false;
        plane.reconcile(&both).unwrap();
        let before = tables(sandbox);
        plane.reconcile(&one).unwrap();
        let after = tables(sandbox);
        assert_eq!(after.map, before.map, "a new map would let the agent wait for the kernel");
        assert_ne!(after.counts, before.counts);
        assert_eq!(after.names(after.counts), [0]);
        assert_eq!(after.names(before.counts), [0, 1], "whoever still reads it has it whole");

        plane.keep();
        drop(plane);
        let mut next = sandbox.open().unwrap();
        let number = next.backend_number(VIP, PORT, address(2)).unwrap();
        assert_eq!(next.maglev_slots(number), 0, "it reads the one that counts");
        next.reconcile(&one).unwrap();
        assert_eq!(tables(sandbox).counts, after.counts, "nothing to be written");
        next.reconcile(&both).unwrap();
        let again = tables(sandbox);
        assert_eq!((again.map, again.counts), (before.map, before.counts));
        assert_eq!(again.names(again.counts), [0, 1]);
    });
}

/// What the maps have of the first service.
struct Tables {
    /// The kernel's number of its map.
    map: u32,
    counts: u64,
    tables: [Table; 2],
}

fn tables(sandbox: &Sandbox) -> Tables {
    let pinned = |name| Map::from_map_data(MapData::from_pin(sandbox.pin(name)).unwrap()).unwrap();
    let loads: Array<MapData, Load> = pinned(name::LOADS).try_into().unwrap();
    let untyped: ArrayOfMaps<MapData, MapData> = pinned(name::MAGLEV).try_into().unwrap();
    let typed: ArrayOfMaps<MapData, Array<MapData, Maglev>> = pinned(name::MAGLEV).try_into().unwrap();
    let inner = typed.get(&0, 0).unwrap();
    Tables {
        map: untyped.get(&0, 0).unwrap().info().unwrap().id(),
        counts: loads.get(&load_of_service(0), 0).unwrap().table,
        tables: [0, 1].map(|number| Table::read(&inner.get(&number, 0).unwrap())),
    }
}

impl Tables {
    /// The backends that have slots of a table, in order.
    fn names(&self, table: u64) -> Vec<u16> {
        let mut numbers = self.tables[table as usize].to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}
