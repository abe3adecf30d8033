use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData};
use etcd_lb::dataplane::{DataPlane, FlowFilter, FlowState, Reason, monotonic_ns};
use lb_common::{
    addr::{Addr, Mac, Port},
    claim::{self, Claim, FREE_AT_ONCE, State},
    maps::{
        self, BACKEND_LEAVING, Backend, ClientRoute, Flow, FlowKey, Forward, Gate, LOAD_TOTAL, Load,
        PORT_TABLE_SLOTS, Record, load_of_backend, name,
    },
};
use lb_core::reconcile::Prefix;

use super::sandbox::{PORT, Sandbox, VIP, address, desired, run};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 3, 7));
const SECOND: u64 = 1_000_000_000;

#[test]
fn flows_are_counted_and_listed() {
    run(|sandbox| {
        let (plane, maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(0, 40_000, State::Established, now - 5 * SECOND);
        maps.flow(1, 40_001, State::HalfOpen, now);
        maps.flow(1, 40_002, State::Closed, now);

        let census = plane.census();
        assert_eq!((census.of(0).established, census.of(1).half_open, census.of(1).closed), (1, 1, 1));
        assert_eq!(census.total.nat_ports_used(), 3);

        let all = plane.flows(&FlowFilter::default(), 10);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].client, SocketAddr::new(CLIENT, 40_000));
        assert_eq!((all[0].service, all[0].backend), (SocketAddr::new(VIP, PORT), address(1)));
        assert_eq!((all[0].nat_port, all[0].state), (40_000, FlowState::Established));
        assert!((4..8).contains(&all[0].idle.as_secs()), "{:?}", all[0].idle);
        let filter = FlowFilter { backend: Some(1), nat_port: Some(40_002), client: Some(CLIENT) };
        assert_eq!(plane.flows(&filter, 10).len(), 1);
        assert_eq!(plane.flows(&FlowFilter { client: Some(VIP), ..filter }, 10), []);
        assert_eq!(plane.flows(&FlowFilter::default(), 2).len(), 2);
    });
}

#[test]
fn an_adopted_data_plane_keeps_its_flows() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        maps.flow(0, 40_000, State::Established, monotonic_ns());
        plane.keep();
        drop(plane);
        let plane = sandbox.open().unwrap();
        assert_eq!(plane.census().of(0).established, 1);
    });
}

#[test]
fn a_sweep_frees_what_is_over_and_leaves_the_rest() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        let now = monotonic_ns() + 10_000 * SECOND;
        let ago = |seconds: u64| now - seconds * SECOND;
        maps.flow(0, 2000, State::HalfOpen, ago(61));
        maps.flow(0, 2001, State::HalfOpen, ago(59));
        maps.flow(0, 2002, State::Closed, ago(61));
        maps.flow(0, 2003, State::Closed, ago(59));
        maps.claim(0, 2004, Claim::new(State::Closed, 1).with(FREE_AT_ONCE), ago(3));
        maps.flow(0, 2005, State::Established, ago(7000));
        maps.claim(0, 2006, Claim::new(State::Claiming, 1), ago(3));
        // Whoever closed it was killed before it closed the gate too.
        maps.set_gate(0, 2002, Gate::open(1));

        assert_eq!(plane.sweep(now).unwrap().ports_freed, 3);
        assert_eq!(maps.forward_of(0, 2002).gate(), Gate::closed(1));
        let states = |port| maps.record(0, port).claim();
        for port in [2000, 2002, 2004] {
            assert_eq!(states(port), Claim::new(State::Free, 1), "{port}: free, in the same generation");
        }
        assert!(states(2001).is(State::HalfOpen) && states(2003).is(State::Closed));
        assert!(states(2005).is(State::Established) && states(2006).is(State::Claiming));
        // A claim whose owner is lost.
        assert_eq!(plane.sweep(now + 9 * SECOND).unwrap().ports_freed, 2);
        assert_eq!(plane.sweep(now + 11 * SECOND).unwrap().ports_freed, 1);
        assert!(states(2006).is(State::Free));
    });
}

#[test]
fn live_flows_follow_the_route_to_their_client() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        let now = monotonic_ns();
        let way = |port| (maps.record(0, port).ifindex, maps.record(0, port).client_mac);
        let by = |last| ClientRoute::by(1, Mac::new([2, 0, 0, 0, 0, last]));
        let prefix = |length| Prefix { address: CLIENT, length };
        let mut desired = desired(&[1, 2]);
        for (port, state) in
            [(2000, State::Established), (2001, State::HalfOpen), (2002, State::Closed), (2003, State::Free)]
        {
            maps.flow(0, port, state, now);
        }
        let before = way(2000);

        desired.client_routes.insert(prefix(0), by(7));
        assert_eq!(plane.reconcile(&desired).unwrap().changes, 1);
        for port in [2000, 2001, 2002] {
            assert_eq!(way(port), (1, by(7).mac), "{port}");
            assert!(maps.record(0, port).client == Addr::from(CLIENT));
        }
        assert_eq!(way(2003), before, "nobody's");

        // Made by the route as it was, while that changed: the sweep sees to it.
        maps.flow(0, 2004, State::Established, now);
        plane.sweep(now).unwrap();
        assert_eq!(way(2004), (1, by(7).mac));

        // What has no router any more stays as it is until its client's packets say otherwise.
        desired.client_routes.insert(prefix(24), ClientRoute::THE_WAY_THEY_COME);
        desired.client_routes.insert(prefix(0), by(8));
        plane.reconcile(&desired).unwrap();
        assert_eq!(way(2000), (1, by(7).mac));

        // The next agent finds the routes, and has nothing to write.
        plane.keep();
        drop(plane);
        let mut plane = sandbox.open().unwrap();
        assert_eq!(plane.reconcile(&desired).unwrap().changes, 0);
        desired.client_routes.clear();
        assert_eq!(plane.reconcile(&desired).unwrap().changes, 2);
    });
}

#[test]
fn a_silent_flow_is_ended_once_and_counted_out() {
    run(|sandbox| {
        let (mut plane, mut maps) = open(sandbox);
        let now = monotonic_ns() + 10_000 * SECOND;
        let long_ago = now - 7441 * SECOND;
        maps.flow(0, 2000, State::Established, long_ago);
        // Its client speaks.
        maps.flow(0, 2001, State::Established, long_ago);
        maps.forward(0, 2000, long_ago);
        maps.forward(0, 2001, now);
        for slot in [load_of_backend(0), maps::load_of_service(0), LOAD_TOTAL] {
            maps.loads.set(slot, Load { established: 2, ..Load::default() }, 0).unwrap();
        }
        let report = plane.sweep(now).unwrap();
        assert_eq!(report.idle_ended, 1);
        assert!(maps.record(0, 2000).claim().is(State::Closed));
        assert!(maps.flows.get(&key(2000), 0).is_err());
        assert!(maps.flows.get(&key(2001), 0).is_ok());
        for slot in [load_of_backend(0), maps::load_of_service(0), LOAD_TOTAL] {
            assert_eq!(maps.loads.get(&slot, 0).unwrap().established, 1);
        }
        assert_eq!(plane.sweep(now).unwrap().idle_ended, 0);
    });
}

#[test]
fn forward_entries_without_flow_are_removed() {
    run(|sandbox| {
        let (mut plane, mut maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(0, 2000, State::Established, now);
        maps.forward(0, 2000, now);
        maps.forward(0, 2001, now);
        assert_eq!(plane.sweep(now).unwrap().forward_removed, 1);
        assert!(maps.flows.get(&key(2000), 0).is_ok());
    });
}

#[test]
fn loads_that_stay_wrong_are_corrected() {
    run(|sandbox| {
        let (mut plane, mut maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(0, 2000, State::Established, now);
        maps.loads.set(load_of_backend(0), Load { established: 9, ..Load::default() }, 0).unwrap();
        for _ in 0..3 {
            assert_eq!(plane.sweep(now).unwrap().loads_corrected, 0);
        }
        assert_eq!(plane.sweep(now).unwrap().loads_corrected, 3);
        for slot in [load_of_backend(0), maps::load_of_service(0), LOAD_TOTAL] {
            assert_eq!(maps.loads.get(&slot, 0).unwrap().established, 1);
        }
    });
}

#[test]
fn a_removed_backend_goes_when_its_last_flow_has_ended() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(1, 2000, State::Established, now);
        plane.reconcile(&desired(&[1])).unwrap();
        assert_eq!(maps.backend(1).flags & BACKEND_LEAVING, BACKEND_LEAVING);
        assert!(plane.sweep(now).unwrap().given_up.is_empty());

        maps.claim(1, 2000, Claim::new(State::Closed, 1), now);
        assert_eq!(plane.sweep(now + SECOND).unwrap().given_up, [1]);
        assert_eq!(maps.backend(1).flags, 0);
        assert_eq!(plane.backend_number(VIP, PORT, address(2)), None);
    });
}

#[test]
fn flows_of_a_removed_backend_are_reset_at_the_drain_timeout() {
    run(|sandbox| {
        let (mut plane, mut maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(1, 2000, State::Established, now);
        maps.forward(1, 2000, now);
        maps.loads.set(LOAD_TOTAL, Load { established: 1, ..Load::default() }, 0).unwrap();
        plane.reconcile(&desired(&[1])).unwrap();
        let since = monotonic_ns();
        assert!((now + 30 * SECOND..=since + 30 * SECOND).contains(&plane.resets_due_ns().unwrap()));
        let (now, epoch) = (since, maps.backend(1).epoch);
        plane.sweep(now).unwrap();
        assert!(plane.sweep(now + 29 * SECOND).unwrap().given_up.is_empty());
        assert_eq!(maps.backend(1).epoch, epoch);
        assert!(plane.sweep(now + 30 * SECOND).unwrap().given_up.is_empty());
        assert_eq!(maps.backend(1).epoch, epoch + 1, "each is reset on its next packet");
        assert_eq!(maps.loads.get(&LOAD_TOTAL, 0).unwrap().established, 0, "it counts no longer");
        assert!(maps.record(1, 2000).claim().has(claim::ENDED));
        assert!(maps.flows.get(&key(2000), 0).is_ok());
        let told = plane.tell_ended(now + 30 * SECOND);
        let told: Vec<_> = told.iter().map(|flow| (flow.nat_port, flow.reason, flow.at_ns)).collect();
        assert_eq!(told, [(2000, Reason::Drained, now + 30 * SECOND)]);
        assert_eq!(plane.ended_flows(1, Reason::Drained), 1);
        assert!(maps.flows.get(&key(2000), 0).is_err(), "off the established path");
        assert!(
            plane.sweep(now + 32 * SECOND).unwrap().given_up.is_empty(),
            "both ends are still being told"
        );
        for second in [31, 33] {
            assert_eq!(plane.tell_ended(now + second * SECOND), [], "a flow ends once");
        }
        assert_eq!(plane.resets_due_ns(), None);
        assert_eq!(plane.sweep(now + 34 * SECOND).unwrap().given_up, [1]);
        assert!(maps.flows.get(&key(2000), 0).is_err());
        assert_eq!(maps.loads.get(&LOAD_TOTAL, 0).unwrap().established, 0);

        // The number's next owner does not match what the old one left.
        plane.reconcile(&desired(&[1, 9])).unwrap();
        assert_eq!(plane.backend_number(VIP, PORT, address(9)), Some(1));
        assert_eq!(maps.backend(1).epoch, epoch + 2);
        assert_eq!(plane.ended_flows(1, Reason::Drained), 0, "nor is counted with them");
    });
}

#[test]
fn a_backend_that_comes_back_in_time_keeps_its_flows() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(1, 2000, State::Established, now);
        plane.reconcile(&desired(&[1])).unwrap();
        plane.sweep(now).unwrap();
        plane.reconcile(&desired(&[1, 2])).unwrap();
        plane.sweep(now + 100 * SECOND).unwrap();
        assert_eq!(plane.backend_number(VIP, PORT, address(2)), Some(1));
        assert_eq!(plane.census().of(1).established, 1);
    });
}

#[test]
fn a_services_port_is_kept_from_flows_once_it_is_free() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        assert!(maps.record(0, PORT).claim().is(State::Reserved));
        let now = monotonic_ns();
        maps.flow(0, 6443, State::Established, now);
        let mut both = desired(&[1, 2]);
        both.services.push(both.services[0].clone());
        both.services[1].port = 6443;
        both.services[1].backends.clear();
        plane.reconcile(&both).unwrap();
        assert!(maps.record(0, 6443).claim().is(State::Established), "a flow is not disturbed");
        assert!(maps.record(1, 6443).claim().is(State::Reserved));

        maps.claim(0, 6443, Claim::new(State::Free, 1), now);
        plane.sweep(now).unwrap();
        assert!(maps.record(0, 6443).claim().is(State::Reserved));

        plane.reconcile(&desired(&[1, 2])).unwrap();
        assert!(maps.record(0, 6443).claim().is(State::Free));
    });
}

#[test]
fn a_drained_backends_flows_are_reset_at_the_drain_timeout_and_its_number_stays() {
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        let now = monotonic_ns();
        maps.flow(1, 2000, State::Established, now);
        let mut drained = desired(&[1, 2]);
        drained.services[0].backends[1].drained = true;
        drained.services[0].drain_timeout = Duration::from_secs(5);
        plane.reconcile(&drained).unwrap();
        plane.sweep(now).unwrap();
        let epoch = maps.backend(1).epoch;
        plane.sweep(now + 5 * SECOND).unwrap();
        plane.sweep(now + 50 * SECOND).unwrap();
        assert_eq!(maps.backend(1).epoch, epoch + 1, "raised once");
        assert_eq!(plane.backend_number(VIP, PORT, address(2)), Some(1));
    });
}

/// The maps, as the data plane would write them.
pub(super) struct Maps {
    ports: ArrayOfMaps<MapData, Array<MapData, Record>>,
    forwards: ArrayOfMaps<MapData, Array<MapData, Forward>>,
    pub(super) flows: HashMap<MapData, FlowKey, Flow>,
    pub(super) loads: Array<MapData, Load>,
    backends: Array<MapData, Backend>,
}

fn open(sandbox: &Sandbox) -> (DataPlane, Maps) {
    let mut plane = sandbox.open().unwrap();
    plane.reconcile(&desired(&[1, 2])).unwrap();
    (plane, pinned(sandbox))
}

pub(super) fn pinned(sandbox: &Sandbox) -> Maps {
    let map = |name| Map::from_map_data(MapData::from_pin(sandbox.pin(name)).unwrap()).unwrap();
    Maps {
        ports: map(name::PORTS).try_into().unwrap(),
        forwards: map(name::PORTS).try_into().unwrap(),
        flows: map(name::FLOWS).try_into().unwrap(),
        loads: map(name::LOADS).try_into().unwrap(),
        backends: map(name::BACKENDS).try_into().unwrap(),
    }
}

impl Maps {
    /// Writes a flow whose client port is its NAT port.
    pub(super) fn flow(&self, backend: u16, port: u16, state: State, last_seen: u64) {
        self.claim(backend, port, Claim::new(state, 1), last_seen);
    }

    pub(super) fn claim(&self, backend: u16, port: u16, claim: Claim, last_seen: u64) {
        let record = Record {
            claim: claim.0,
            last_seen,
            client: CLIENT.into(),
            client_port: Port::new(port),
            ..self.record(backend, port)
        };
        self.table(backend).set(port.into(), record, 0).unwrap();
    }

    pub(super) fn record(&self, backend: u16, port: u16) -> Record {
        self.table(backend).get(&port.into(), 0).unwrap()
    }

    /// Writes the forward half of a flow's slot, and its forward entry.
    pub(super) fn forward(&mut self, backend: u16, port: u16, last_seen: u64) {
        let forward = Forward {
            gate: Gate::open(1).0,
            last_seen,
            client: CLIENT.into(),
            client_port: Port::new(port),
            service: 0,
            epoch: 0,
            last_ack: 0,
            edge: 0,
            since: 0,
            client_mac: Mac::UNKNOWN,
            flags: 0,
            reserved: 0,
        };
        self.forwards.get(&backend.into(), 0).unwrap().set(half(port), forward, 0).unwrap();
        self.flows.insert(key(port), Flow::new(backend, Port::new(port), 1, 0), 0).unwrap();
    }

    pub(super) fn forward_of(&self, backend: u16, port: u16) -> Forward {
        self.forwards.get(&backend.into(), 0).unwrap().get(&half(port), 0).unwrap()
    }

    pub(super) fn set_gate(&self, backend: u16, port: u16, gate: Gate) {
        let forward = Forward { gate: gate.0, ..self.forward_of(backend, port) };
        self.forwards.get(&backend.into(), 0).unwrap().set(half(port), forward, 0).unwrap();
    }

    fn backend(&self, number: u32) -> Backend {
        self.backends.get(&number, 0).unwrap()
    }

    fn table(&self, backend: u16) -> Array<MapData, Record> {
        self.ports.get(&backend.into(), 0).unwrap()
    }
}

/// Where the forward half of a slot lies.
fn half(port: u16) -> u32 {
    PORT_TABLE_SLOTS + u32::from(port)
}

pub(super) fn key(port: u16) -> FlowKey {
    FlowKey { client: Addr::from(CLIENT), port: Port::new(port), service: 0 }
}
