//! Maps of another `max_flows` or layout are carried over; whoever dies or gives up meanwhile, they are there.

use std::fs;

use aya::maps::{Array, Map, MapData};
use etcd_lb::dataplane::monotonic_ns;
use lb_common::{
    claim::{CLIENT_FIN, Claim, SYN_ACKED, State},
    maps::{Gate, LOAD_TOTAL, Lease, Load, load_of_backend, load_of_service, name},
};

use super::{
    flows::{Maps, key, pinned},
    sandbox::{MAX_FLOWS, PORT, Sandbox, VIP, address, complete_without_links, desired, map_id, run},
};

/// Two flows on the first backend and one on the second, and one that is closed.
fn leave_flows(sandbox: &Sandbox) -> Maps {
    sandbox.leave_behind(&desired(&[1, 2]));
    let mut maps = pinned(sandbox);
    let now = monotonic_ns();
    for (backend, port) in [(0, 2000), (0, 2001), (1, 3000)] {
        establish(&mut maps, backend, port, now);
    }
    maps.claim(1, 3001, Claim::new(State::Closed, 7), now);
    maps.claim(0, 4000, Claim::new(State::Free, 9), now);
    maps
}

fn establish(maps: &mut Maps, backend: u16, port: u16, now: u64) {
    maps.flow(backend, port, State::Established, now);
    maps.forward(backend, port, now);
    change_loads(maps, backend, 1);
}

fn change_loads(maps: &mut Maps, backend: u16, by: i64) {
    for slot in [load_of_backend(backend), load_of_service(0), LOAD_TOTAL] {
        let load: Load = maps.loads.get(&slot, 0).unwrap();
        maps.loads.set(slot, Load { established: load.established + by, ..load }, 0).unwrap();
    }
}

fn loads(maps: &Maps) -> [i64; 4] {
    [load_of_backend(0), load_of_backend(1), load_of_service(0), LOAD_TOTAL]
        .map(|slot| maps.loads.get(&slot, 0).unwrap().established)
}

fn assert_flows(maps: &Maps, flows: &[(u16, u16)]) {
    for &(backend, port) in flows {
        let record = maps.record(backend, port);
        assert!(record.claim().is(State::Established), "{backend} {port}: {record:?}");
        let flow = maps.flows.get(&key(port), 0).unwrap();
        assert!(flow.is_of(backend, record.client_port, record.claim().generation()), "{flow:?}");
        let half = maps.forward_of(backend, port);
        assert_eq!((half.gate, half.client_port), (Gate::open(1).0, record.client_port));
    }
    assert_eq!(maps.flows.keys().count(), flows.len());
}

#[test]
fn flows_numbers_and_loads_are_carried_over() {
    run(|sandbox| {
        let old = leave_flows(sandbox);
        let (flows, before) = (map_id(&sandbox.pin(name::FLOWS)), old.record(0, 2000));
        let mut plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        assert!(plane.adopted());
        assert_eq!(plane.restored_health(VIP, PORT, address(1)), Some(true));
        assert_eq!(plane.backend_number(VIP, PORT, address(2)), Some(1));
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        plane.carry_rest().unwrap();
        plane.keep();
        let new = pinned(sandbox);
        assert_ne!(map_id(&sandbox.pin(name::FLOWS)), flows);
        assert_flows(&new, &[(0, 2000), (0, 2001), (1, 3000)]);
        assert_eq!(new.record(0, 2000), before);
        // Who had a slot before is not forgotten.
        assert_eq!(new.record(1, 3001).claim(), Claim::new(State::Closed, 7));
        assert_eq!(new.record(0, 4000).claim(), Claim::new(State::Free, 9));
        assert_eq!(loads(&new), [2, 1, 3, 3]);
        assert!(complete_without_links(&sandbox.pinned()), "{:?}", sandbox.pinned());
        drop(plane);
        // And the next one finds them as they are.
        let plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        assert_eq!(plane.census().total.established, 3);
    });
}

#[test]
fn a_node_of_a_pair_may_restart_within_its_lease() {
    run(|sandbox| {
        leave_flows(sandbox);
        let pin = || Map::from_map_data(MapData::from_pin(sandbox.pin(name::LEASE)).unwrap()).unwrap();
        let mut old: Array<_, Lease> = pin().try_into().unwrap();
        let now = monotonic_ns();
        let granted = Lease { granted_at: now, deadline: now + 3_600_000_000_000, ..Lease::NONE };
        old.set(0, granted, 0).unwrap();
        let mut plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        let new: Array<_, Lease> = pin().try_into().unwrap();
        assert_eq!(new.get(&0, 0).unwrap(), granted);
        // A stronger node speaks up before the new program is attached.
        old.set(0, Lease { revoked_at: now + 1, ..granted }, 0).unwrap();
        plane.carry_flows().unwrap();
        assert!(!new.get(&0, 0).unwrap().holds(monotonic_ns()));
        plane.carry_rest().unwrap();
        assert_eq!(new.get(&0, 0).unwrap(), Lease { revoked_at: now + 1, ..granted });
    });
}

#[test]
fn what_happens_while_they_are_copied_is_brought_up_to_date() {
    run(|sandbox| {
        let mut old = leave_flows(sandbox);
        let mut plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        let now = monotonic_ns();
        // Under the old program: one comes, one ends, one ends and another has its port; then the new one takes over.
        establish(&mut old, 1, 3500, now);
        old.claim(0, 2001, Claim::new(State::Closed, 1), now);
        old.flows.remove(&key(2001)).unwrap();
        change_loads(&mut old, 0, -1);
        // Under the new program one moves on by itself.
        let mut new = pinned(sandbox);
        new.claim(1, 3000, Claim::new(State::Closed, 1), now);
        new.flows.remove(&key(3000)).unwrap();
        change_loads(&mut new, 1, -1);
        plane.carry_rest().unwrap();
        assert_flows(&new, &[(0, 2000), (1, 3500)]);
        assert_eq!(loads(&new), [1, 1, 2, 2]);
        assert!(new.record(0, 2001).claim().is(State::Closed));
    });
}

/// A claim may be read before, and its slot's other half after, a step of the old program.
#[test]
fn halves_that_were_read_at_different_times_are_put_in_step() {
    run(|sandbox| {
        let old = leave_flows(sandbox);
        let now = monotonic_ns();
        // Begun to close when the claim was read before, its gate after; and the other way round.
        old.set_gate(0, 2000, Gate::closed(1));
        let closing = Claim::new(State::Established, 1).with(CLIENT_FIN);
        old.claim(0, 2001, closing, now);
        // The slot's earlier owner's, when the claim was read; the next pass finds another one.
        old.set_gate(1, 3000, Gate::open(0));
        let mut plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        let new = pinned(sandbox);
        assert_eq!(new.forward_of(0, 2000).gate(), Gate::open(1));
        assert_eq!(new.forward_of(0, 2001).gate(), Gate::closed(1));
        assert_eq!(new.forward_of(1, 3000).gate(), Gate::closed(1));
        old.claim(0, 2000, closing, now);
        old.claim(1, 3000, Claim::new(State::Established, 1).with(SYN_ACKED), now);
        old.set_gate(1, 3000, Gate::open(1));
        plane.carry_rest().unwrap();
        assert_eq!(new.forward_of(0, 2000).gate(), Gate::closed(1));
        assert_eq!(new.forward_of(1, 3000).gate(), Gate::open(1));
        assert_eq!(plane.census().total.established, 3);
    });
}

#[test]
fn an_agent_that_gives_up_leaves_the_old_maps_as_they_were() {
    run(|sandbox| {
        let old = leave_flows(sandbox);
        let state = || -> Vec<_> {
            let id = |name: &str| if name::KEPT.contains(&name) { map_id(&sandbox.pin(name)) } else { 0 };
            sandbox.pinned().into_iter().map(|name| (id(&name), name)).collect()
        };
        let before = state();
        let mut plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        assert_ne!(state(), before);
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        drop(plane);
        assert_eq!(state(), before);
        assert_flows(&old, &[(0, 2000), (0, 2001), (1, 3000)]);
    });
}

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_maps_that_the_next_one_carries_over() {
    run(|sandbox| {
        let _old = leave_flows(sandbox);
        let aside = sandbox.pin("old");
        // While they are set aside.
        fs::create_dir(&aside).unwrap();
        for name in [name::FLOWS, name::PORTS, name::BACKENDS] {
            fs::rename(sandbox.pin(name), aside.join(name)).unwrap();
        }
        let plane = sandbox.open_for(MAX_FLOWS * 2).unwrap();
        // When all are, and new ones are made: what `forget` leaves is what a kill leaves.
        std::mem::forget(plane);
        assert!(aside.join(name::LAYOUT).exists() && !sandbox.pin(name::LAYOUT).exists());
        let mut plane = sandbox.open_for(MAX_FLOWS * 4).unwrap();
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        std::mem::forget(plane);
        let mut plane = sandbox.open_for(MAX_FLOWS * 8).unwrap();
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.carry_flows().unwrap();
        plane.carry_rest().unwrap();
        plane.keep();
        drop(plane);
        // While the old ones are let go.
        fs::create_dir(&aside).unwrap();
        let plane = sandbox.open_for(MAX_FLOWS * 8).unwrap();
        assert!(!aside.exists() && plane.adopted());
        assert_flows(&pinned(sandbox), &[(0, 2000), (0, 2001), (1, 3000)]);
        assert_eq!(plane.census().total.established, 3);
    });
}

#[test]
fn more_flows_than_there_is_room_for_are_not_carried_over() {
    run(|sandbox| {
        let _old = leave_flows(sandbox);
        let error = sandbox.open_for(2).unwrap_err().to_string();
        assert!(error.contains("max_flows = 2 is less than the 3 flows that there are"), "{error}");
        assert_eq!(sandbox.open().unwrap().census().total.established, 3);
    });
}
