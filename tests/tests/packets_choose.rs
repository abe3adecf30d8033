//! Which backend takes a new flow, with loads set by hand.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{
    addr::{Addr, Port},
    choose::{Algorithm, Flows},
    claim::State,
    hash,
    maps::*,
    tcp::{ACK, RST, SYN},
};
use lb_core::{
    choice, maglev,
    reconcile::{Member, Table},
};

/// Numbers that are not those of the places in the table.
const NUMBERS: [u16; 3] = [3, 9, 4];

fn member(number: u16, weight: u32, max_connections: u32) -> Member {
    Member { number, weight, max_connections }
}

fn equal() -> Vec<Member> {
    NUMBERS.iter().map(|&number| member(number, 1, 0)).collect()
}

/// A service with these live backends, their slots as the agent fills them.
fn pool(algorithm: Algorithm, members: &[Member]) -> Program {
    let mut program = Program::load(4096);
    program.service(0, VIP, 2379, algorithm.flags());
    for (place, member) in (0u8..).zip(members) {
        program.backend(member.number, 0, VIP, (Ipv4Addr::new(10, 0, 1, 11 + place), 2379));
    }
    program.table(0, &table(members));
    program
}

fn table(members: &[Member]) -> Table {
    let keys: Vec<String> = (0..members.len()).map(|place| format!("10.0.1.{}:2379", 11 + place)).collect();
    let shares: Vec<_> = members
        .iter()
        .zip(&keys)
        .map(|(member, key)| maglev::Member { key: key.as_bytes(), weight: member.weight, live: true })
        .collect();
    let slots = maglev::build(&shares).into_iter().map(|owner| members[usize::from(owner)].number);
    Table::new(slots, members.iter().copied())
}

fn set_loads(program: &mut Program, loads: &[(u16, i64)]) {
    for &(number, load) in loads {
        program.set_load(load_of_backend(number), load);
    }
    program.set_load(load_of_service(0), loads.iter().map(|(_, load)| load).sum());
}

fn syn(port: u16) -> TcpFrame {
    TcpFrame::new((CLIENT.0, port), SERVICE, SYN).numbers(1000, 0)
}

/// Sends a SYN; the backend that it went to, or the counter.
fn open(program: &mut Program, port: u16) -> Result<u16, &'static str> {
    let before = program.counters();
    let ran = program.run(&syn(port).build());
    let after = program.counters();
    if after.flow_new == before.flow_new {
        return Err(changed(&before, &after)[0]);
    }
    let ((_, nat_port), (address, _), _) = tcp_of(&ran.frame);
    assert_eq!(nat_port, port, "the client's own port was free");
    let place = usize::from(address.octets()[3] - 11);
    Ok(NUMBERS[place])
}

/// The whole handshake.
fn connect(program: &mut Program, port: u16) -> Result<u16, &'static str> {
    let number = open(program, port)?;
    let backend = program.get_backend(number);
    let address = match backend.address.to_ip() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => unreachable!("the pool is IPv4"),
    };
    let answer =
        TcpFrame::new((address, 2379), (VIP, port), SYN | ACK).from_mac(BACKEND_MAC).numbers(5000, 1001);
    assert_eq!(program.run(&answer.build()).action, TX);
    let before = program.counters();
    program.run(&TcpFrame::new((CLIENT.0, port), SERVICE, ACK).numbers(1001, 5001).build());
    let after = program.counters();
    if after.flow_established == before.flow_established {
        return Err(changed(&before, &after)[0]);
    }
    Ok(number)
}

fn spread(program: &mut Program, ports: impl Iterator<Item = u16>) -> Vec<u16> {
    ports.map(|port| open(program, port).expect("a backend")).collect()
}

fn count(taken: &[u16]) -> Vec<usize> {
    NUMBERS.iter().map(|number| taken.iter().filter(|&taken| taken == number).count()).collect()
}

#[test]
fn six_connections_one_after_the_other_are_two_by_two_by_two() {
    for first in [40_000, 41_000, 50_000, 1_024] {
        let mut program = pool(Algorithm::Bounded, &equal());
        let taken: Vec<u16> = (first..first + 6).map(|port| connect(&mut program, port).unwrap()).collect();
        assert_eq!(count(&taken), [2, 2, 2], "{taken:?}");
        let loads = NUMBERS.map(|number| program.whole_load(load_of_backend(number)).established);
        assert_eq!((loads, program.whole_load(load_of_service(0)).established), ([2, 2, 2], 6));
    }
}

/// No handshake is complete when the last SYN comes, as when six clients notice the end of an outage together.
#[test]
fn six_connections_at_once_are_two_by_two_by_two() {
    for first in [40_000, 41_000, 50_000, 1_024] {
        let mut program = pool(Algorithm::Bounded, &equal());
        let taken = spread(&mut program, first..first + 6);
        assert_eq!(count(&taken), [2, 2, 2], "{taken:?}");
    }
    let mut program = pool(Algorithm::Bounded, &equal());
    let taken = spread(&mut program, 40_000..40_600);
    assert!(count(&taken).iter().all(|&n| n <= 250), "within 1.25 of 200: {:?}", count(&taken));
}

/// Slot and owner of the client's port.
fn home(table: &Table, port: u16) -> (usize, u16) {
    let hash = hash::client(&SEED, &Addr::from(CLIENT.0), Some(Port::new(port)));
    let slot = hash::slot(hash, MAGLEV_SLOTS) as usize;
    (slot, table[slot])
}

#[test]
fn a_flow_goes_to_its_slot_unless_that_is_over_the_bound() {
    let table = table(&equal());
    let mut bounded = pool(Algorithm::Bounded, &equal());
    let mut maglev = pool(Algorithm::Maglev, &equal());
    let others = |owner: u16| NUMBERS.into_iter().filter(move |&number| number != owner);
    let loads = |owner: u16, loads: [i64; 3]| -> Vec<(u16, i64)> {
        [owner].into_iter().chain(others(owner)).zip(loads).collect()
    };
    for port in 40_000..40_050u16 {
        // 30 flows and this one: at most max(⌈31/3⌉, ⌊1.25 × 31/3⌋) = 12.
        let (_, owner) = home(&table, port);
        set_loads(&mut bounded, &loads(owner, [11, 10, 9]));
        assert_eq!(open(&mut bounded, port), Ok(owner), "room for one");
        let (slot, owner) = home(&table, port + 1000);
        set_loads(&mut bounded, &loads(owner, [12, 9, 9]));
        let next = (1..).map(|step| table[(slot + step) % table.len()]).find(|&next| next != owner);
        assert_eq!(open(&mut bounded, port + 1000).ok(), next, "the next slot's");
        let (_, owner) = home(&table, port);
        set_loads(&mut maglev, &loads(owner, [1200, 0, 0]));
        assert_eq!(open(&mut maglev, port), Ok(owner), "maglev knows no load");
    }
}

/// What `explain` computes is what the data plane does, for any loads and limits.
#[test]
fn explain_computes_what_the_data_plane_does() {
    let members = [member(3, 2, 0), member(9, 1, 40), member(4, 3, 60)];
    let table = table(&members);
    for algorithm in [Algorithm::Bounded, Algorithm::Maglev, Algorithm::LeastConn, Algorithm::RoundRobin] {
        let mut program = pool(algorithm, &members);
        for step in 0..60u16 {
            let port = 40_000 + step;
            let random = u64::from(step).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let loads: Vec<_> = NUMBERS
                .into_iter()
                .zip([random >> 3, random >> 20, random >> 41].map(|r| (r % 70) as i64))
                .collect();
            let turn = program.whole_load(load_of_service(0)).turn;
            set_loads(&mut program, &loads);
            program.set_turn(load_of_service(0), turn);
            let start = match algorithm {
                Algorithm::LeastConn | Algorithm::RoundRobin => turn as u64,
                _ => home(&table, port).0 as u64,
            };
            let k = loads.iter().map(|(_, load)| *load as u64).sum::<u64>() + 1;
            let flows = |number: u16| {
                let load = loads.iter().find(|(other, _)| *other == number).map_or(0, |(_, load)| *load);
                Flows { established: load as u64, pending: 0 }
            };
            let choice = choice::choose(&table, algorithm, start, k, flows);
            assert_eq!(open(&mut program, port).ok(), choice.chosen, "{algorithm:?} {loads:?} {choice:?}");
        }
    }
}

#[test]
fn the_bound_is_of_the_weighted_share() {
    let members = [member(3, 2, 0), member(9, 1, 0), member(4, 1, 0)];
    let mut program = pool(Algorithm::Bounded, &members);
    let taken: Vec<u16> = (0..8).map(|n| connect(&mut program, 40_000 + n).unwrap()).collect();
    assert_eq!(count(&taken), [4, 2, 2]);
}

#[test]
fn affinity_wins_over_the_bound() {
    let mut program = pool(Algorithm::Bounded, &equal());
    program.change_service(0, |service| service.flags |= SERVICE_AFFINITY);
    let taken = spread(&mut program, 40_000..40_020);
    assert!(taken.windows(2).all(|pair| pair[0] == pair[1]), "{taken:?}");
    let hash = hash::client(&SEED, &Addr::from(CLIENT.0), None);
    assert_eq!(taken[0], table(&equal())[hash::slot(hash, MAGLEV_SLOTS) as usize]);
}

#[test]
fn where_no_asked_slot_takes_it_the_least_loaded_does() {
    let mut program = pool(Algorithm::Bounded, &equal());
    // Every slot is of a backend that is over the bound.
    let slots = std::iter::repeat_n(NUMBERS[0], MAGLEV_SLOTS as usize);
    program.table(0, &Table::new(slots, equal()));
    set_loads(&mut program, &[(NUMBERS[0], 50), (NUMBERS[1], 8), (NUMBERS[2], 7)]);
    assert_eq!(open(&mut program, 40_000), Ok(NUMBERS[2]));
}

#[test]
fn a_full_backend_is_passed_over_and_all_full_is_a_reset() {
    for algorithm in [Algorithm::Bounded, Algorithm::Maglev, Algorithm::LeastConn, Algorithm::RoundRobin] {
        let members = [member(3, 1, 2), member(9, 1, 3), member(4, 1, 1)];
        let mut program = pool(algorithm, &members);
        let taken: Vec<u16> = (0..6).map(|n| connect(&mut program, 40_000 + n).unwrap()).collect();
        assert_eq!(count(&taken), [2, 3, 1], "{algorithm:?}");
        assert_eq!(connect(&mut program, 41_000), Err("backends_full"), "{algorithm:?}");
        program.set_load(load_of_backend(9), 2);
        assert_eq!(open(&mut program, 41_001), Ok(9), "{algorithm:?}: room again");
    }
}

#[test]
fn handshakes_that_nobody_completes_do_not_fill_a_backend() {
    let members = [member(3, 1, 2), member(9, 1, 2), member(4, 1, 2)];
    let mut program = pool(Algorithm::Bounded, &members);
    let taken = spread(&mut program, 40_000..40_030);
    assert_eq!(count(&taken[..6]), [2, 2, 2], "while there is room, those under way count");
    assert!(connect(&mut program, 41_000).is_ok());
}

#[test]
fn least_conn_takes_the_least_loaded_for_its_weight_and_equals_take_turns() {
    let mut program = pool(Algorithm::LeastConn, &[member(3, 1, 0), member(9, 2, 0), member(4, 1, 0)]);
    set_loads(&mut program, &[(3, 3), (9, 5), (4, 3)]);
    assert_eq!(open(&mut program, 40_000), Ok(9), "6/2 < 4/1");
    let mut program = pool(Algorithm::LeastConn, &equal());
    for round in 0..4 {
        let mut taken: Vec<u16> =
            (0..3).map(|n| connect(&mut program, 40_000 + round * 3 + n).unwrap()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [3, 4, 9]);
    }
    set_loads(&mut program, &[(3, 7), (9, 4), (4, 5)]);
    assert_eq!(open(&mut program, 45_000), Ok(9));
}

#[test]
fn round_robin_takes_turns_by_weight() {
    let mut program = pool(Algorithm::RoundRobin, &[member(3, 2, 0), member(9, 1, 0), member(4, 1, 0)]);
    set_loads(&mut program, &[(3, 900), (9, 0), (4, 5)]);
    let taken = spread(&mut program, 40_000..40_008);
    assert_eq!(taken[..4], taken[4..]);
    assert_eq!(count(&taken), [4, 2, 2]);
}

#[test]
fn a_handshake_that_is_complete_counts_once() {
    let mut program = pool(Algorithm::Bounded, &equal());
    let number = connect(&mut program, 40_000).unwrap();
    let now = lb_common::pending::Window::at(etcd_lb::dataplane::monotonic_ns());
    for slot in [load_of_backend(number), load_of_service(0)] {
        let flows = program.whole_load(slot).flows(now);
        assert_eq!((flows.established, flows.pending), (1, 0));
    }
}

#[test]
fn a_client_has_at_most_its_flows() {
    let mut program = pool(Algorithm::Bounded, &equal());
    program.change_service(0, |service| service.max_flows_per_client = 3);
    // Many begun before the first is complete: what is too much is refused at the end of the handshake.
    let ports: Vec<u16> = (40_000..40_006).collect();
    let numbers: Vec<u16> = ports.iter().map(|&port| open(&mut program, port).unwrap()).collect();
    let mut refused = 0;
    for (&port, &number) in ports.iter().zip(&numbers) {
        let place = NUMBERS.iter().position(|n| *n == number).unwrap() as u8;
        let answer = TcpFrame::new((Ipv4Addr::new(10, 0, 1, 11 + place), 2379), (VIP, port), SYN | ACK);
        program.run(&answer.from_mac(BACKEND_MAC).numbers(5000, 1001).build());
        let ack = TcpFrame::new((CLIENT.0, port), SERVICE, ACK).numbers(1001, 5001);
        let (ran, counters) = run(&mut program, &ack.build(), "ACK");
        if counters == ["client_limit"] {
            refused += 1;
            assert_eq!((ran.action, reset_of(&ran.frame)), (TX, (5001, None)));
            assert!(program.record(number, port).claim().is(State::Closed));
        }
    }
    assert_eq!((refused, program.client_load(0, CLIENT.0)), (3, Some(3)));
    assert_eq!(program.whole_load(load_of_service(0)).established, 3);
    assert_eq!(open(&mut program, 41_000), Err("client_limit"), "the next is refused at its SYN");
    let other = TcpFrame::new((Ipv4Addr::new(10, 0, 2, 8), 40_000), SERVICE, SYN).numbers(1000, 0);
    assert_eq!(run(&mut program, &other.build(), "another client").1, ["flow_new"]);
    // Churn: each that ends makes room for one.
    for round in 0..10 {
        let port = if round == 0 { 40_000 } else { 42_000 + round - 1 };
        program.run(&TcpFrame::new((CLIENT.0, port), SERVICE, RST).numbers(1001, 0).build());
        assert_eq!(program.client_load(0, CLIENT.0), Some(2));
        assert!(connect(&mut program, 42_000 + round).is_ok());
        assert_eq!(open(&mut program, 43_000 + round), Err("client_limit"));
    }
    for port in [40_001, 40_002, 42_009] {
        program.run(&TcpFrame::new((CLIENT.0, port), SERVICE, RST).numbers(1001, 0).build());
    }
    assert_eq!(program.client_load(0, CLIENT.0), None, "the entry goes with the last flow");
}

#[test]
fn without_a_limit_nothing_is_counted_by_client() {
    let mut program = pool(Algorithm::Bounded, &equal());
    connect(&mut program, 40_000).unwrap();
    assert_eq!(program.client_load(0, CLIENT.0), None);
}
