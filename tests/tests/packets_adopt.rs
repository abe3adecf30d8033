//! Soon after a takeover: connections that the other node had and could not tell of any more.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::{Addr, Port},
    claim::{self, State},
    maps::*,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

const NUMBERS: [u16; 3] = [3, 9, 4];

/// The VIP was taken over just now.
fn grace() -> Lease {
    Lease { granted_at: 1, deadline: u64::MAX, grace_until: u64::MAX - 1, ..Lease::NONE }
}

fn address_of(place: usize) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(10, 0, 1, 11 + place as u8), 2379)
}

/// One service with three backends.
fn taken_over() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP, 2379, 0);
    for (place, number) in NUMBERS.into_iter().enumerate() {
        program.backend(number, 0, VIP, address_of(place));
    }
    program.maglev_of(0, |slot| NUMBERS[slot % NUMBERS.len()]);
    program.set_lease(grace());
    program
}

/// What the client says over and over: its numbers are 1001, the backend's 5001.
fn spoken() -> TcpFrame {
    client(ACK | PSH).numbers(1001, 5001).payload(10)
}

fn answer(from: (Ipv4Addr, u16), flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    TcpFrame::new(from, (VIP, CLIENT.1), flags).from_mac(BACKEND_MAC).numbers(seq, ack).build()
}

/// Sends what the client says; which backend is asked.
fn ask(program: &mut Program) -> (Ipv4Addr, u16) {
    let (ran, counters) = run(program, &spoken().build(), "asked");
    assert_eq!((ran.action, counters), (TX, vec!["adoption_asked"]));
    let (from, to, tcp) = tcp_of(&ran.frame);
    assert_eq!(from, (VIP, CLIENT.1), "the client's own port, as the other node will have used it");
    assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (1001, 5001));
    to
}

fn number_of(address: (Ipv4Addr, u16)) -> u16 {
    let place = (0..3).find(|&place| address_of(place) == address).expect("one of the backends");
    NUMBERS[place]
}

#[test]
fn the_backend_that_knows_a_connection_is_found() {
    let mut program = taken_over();
    let first = ask(&mut program);
    let (ran, counters) = run(&mut program, &spoken().build(), "the client again, before the answer");
    assert_eq!((tcp_of(&ran.frame).1, counters.len()), (first, 0), "{counters:?}");
    let (ran, counters) = run(&mut program, &answer(first, RST, 5001, 0), "it does not know it");
    assert_eq!((ran.action, counters), (DROP, vec!["adoption_refused"]), "the client is not told");

    let second = ask(&mut program);
    assert_ne!(second, first);
    // It has another connection on this port, and answers what is out of its window.
    let (ran, counters) = run(&mut program, &answer(second, ACK, 0x7000_0000, 0x1234_5678), "another's");
    assert_eq!((ran.action, counters), (DROP, vec!["adoption_refused"]));

    let third = ask(&mut program);
    assert!(third != first && third != second);
    let number = number_of(third);
    assert_eq!(program.load_of(LOAD_TOTAL), 0, "not established before the backend has spoken");
    let (ran, counters) = run(&mut program, &answer(third, ACK, 5001, 1011), "it knows it");
    assert_eq!((ran.action, counters), (TX, vec!["flow_adopted", "flow_established"]));
    let (from, to, _) = tcp_of(&ran.frame);
    assert_eq!((from, to), (SERVICE, CLIENT));
    let flow = program.flow(&key()).expect("it is established");
    assert_eq!((flow.backend, flow.nat_port, flow.asked), (number, KEY_PORT, 0));
    assert!(program.record(number, CLIENT.1).claim().is_plain_established());
    for slot in [load_of_backend(number), load_of_service(0), LOAD_TOTAL] {
        assert_eq!(program.load_of(slot), 1);
    }
    assert_eq!(program.backend_counters(number).connections, 0, "it began elsewhere");

    // From here on it is like any other.
    program.set_lease(Lease::STANDALONE);
    for (packet, step) in [
        (client(ACK).numbers(1011, 5001).build(), "client"),
        (answer(third, ACK | PSH, 5001, 1011), "backend"),
        (client(ACK | FIN).numbers(1011, 5001).build(), "client's FIN"),
        (answer(third, ACK | FIN, 5001, 1012), "backend's FIN"),
        (client(ACK).numbers(1012, 5002).build(), "the last ACK"),
    ] {
        assert_eq!(run(&mut program, &packet, step).0.action, TX, "{step}");
    }
    assert!(program.record(number, CLIENT.1).claim().is(State::Closed));
    assert_eq!(program.load_of(LOAD_TOTAL), 0);
}

#[test]
fn what_no_backend_knows_is_reset_after_the_grace_time() {
    let mut program = taken_over();
    for _ in 0..3 {
        let asked = ask(&mut program);
        run(&mut program, &answer(asked, RST, 5001, 0), "refused");
        let (ran, _) = run(&mut program, &answer(asked, RST, 5001, 0), "refused again");
        assert_ne!(ran.action, PASS);
    }
    assert_eq!(run(&mut program, &spoken().build(), "all were asked").1, ["takeover_grace"]);
    program.set_lease(Lease::STANDALONE);
    let (ran, counters) = run(&mut program, &spoken().build(), "later");
    assert_eq!((ran.action, counters, reset_of(&ran.frame)), (TX, vec!["unknown_flow"], (5001, None)));
    assert_eq!(program.load_of(LOAD_TOTAL), 0);
}

#[test]
fn a_backend_where_the_port_is_anothers_is_not_asked() {
    let mut program = taken_over();
    let first = number_of(ask(&mut taken_over()));
    let other = Record {
        claim: claim::Claim::new(State::Established, 5).0,
        client: Addr::from(Ipv4Addr::new(10, 0, 2, 99)),
        client_port: Port::new(CLIENT.1),
        ..program.record(first, CLIENT.1)
    };
    program.set_record(first, CLIENT.1, other);
    let asked = number_of(ask(&mut program));
    assert_ne!(asked, first);
    assert_eq!(program.record(first, CLIENT.1), other, "the other flow is untouched");
}

#[test]
fn a_new_connection_on_the_same_ports_begins_at_once() {
    let mut program = taken_over();
    let asked = ask(&mut program);
    let (ran, counters) = run(&mut program, &client(SYN).numbers(9000, 0).build(), "SYN");
    assert_eq!((ran.action, counters), (TX, vec!["flow_new"]));
    let (_, to, _) = tcp_of(&ran.frame);
    assert_eq!(to, asked, "the first slot's");
    let answer = answer(to, SYN | ACK, 7000, 9001);
    assert_eq!(run(&mut program, &answer, "SYN-ACK").0.action, TX);
    let ack = client(ACK).numbers(9001, 7001).build();
    assert_eq!(run(&mut program, &ack, "ACK").1, ["flow_established"]);
}

#[test]
fn a_fin_waits_until_the_backend_is_known_and_may_be_its_first_answer() {
    let mut program = taken_over();
    let fin = client(ACK | FIN).numbers(1011, 5001).build();
    assert_eq!(run(&mut program, &fin, "nobody was asked").1, ["takeover_grace"]);
    let asked = ask(&mut program);
    assert_eq!(run(&mut program, &fin, "nobody has answered").1, ["takeover_grace"]);
    let (ran, counters) = run(&mut program, &answer(asked, ACK | FIN, 5001, 1011), "the backend's FIN");
    assert_eq!((ran.action, counters), (TX, vec!["flow_adopted", "flow_established"]));
    for packet in [client(ACK | FIN).numbers(1011, 5002).build(), answer(asked, ACK, 5002, 1012)] {
        assert_eq!(run(&mut program, &packet, "the rest of its end").0.action, TX);
    }
    assert!(program.record(number_of(asked), CLIENT.1).claim().is(State::Closed));
    assert!(program.flow(&key()).is_none() && program.load_of(LOAD_TOTAL) == 0);
}

#[test]
fn what_cannot_or_may_not_be_adopted_is_left_unanswered() {
    let dropped = |program: &mut Program, frame: TcpFrame, reason: &str| {
        let (ran, counters) = run(program, &frame.build(), reason);
        assert_eq!((ran.action, counters), (DROP, vec![reason]));
    };
    dropped(&mut taken_over(), client(SYN | ACK).numbers(1001, 5001), "takeover_grace");
    dropped(&mut taken_over(), client(PSH).numbers(1001, 5001), "takeover_grace");
    dropped(&mut taken_over(), client(RST).numbers(1001, 0), "unknown_rst");
    let mut system_port = spoken();
    system_port.source.1 = 1023;
    dropped(&mut taken_over(), system_port, "takeover_grace");

    let mut program = taken_over();
    program.set_load(LOAD_TOTAL, 1024);
    dropped(&mut program, spoken(), "takeover_grace");
    let mut program = taken_over();
    program.change_service(0, |service| service.flags |= SERVICE_DSR);
    dropped(&mut program, spoken(), "takeover_grace");
    let mut program = taken_over();
    program.change_service(0, |service| service.flags |= SERVICE_ALLOW);
    dropped(&mut program, spoken(), "not_allowed");
    let mut program = taken_over();
    for number in NUMBERS {
        let unknown = Backend { hop: NextHop::UNKNOWN, ..program.get_backend(number) };
        program.set_backend(number, unknown);
    }
    dropped(&mut program, spoken(), "no_next_hop");
    // What a backend says first cannot be: whose it is only the client's packet tells.
    let mut program = taken_over();
    assert_eq!(run(&mut program, &answer(address_of(0), ACK, 5001, 1011), "backend").1, ["takeover_grace"]);
}

#[test]
fn at_the_clients_limit_it_is_refused() {
    let mut program = taken_over();
    program.change_service(0, |service| service.max_flows_per_client = 1);
    let asked = ask(&mut program);
    assert_eq!(run(&mut program, &answer(asked, ACK, 5001, 1011), "first").0.action, TX);
    let mut second = spoken();
    second.source.1 += 1;
    let (ran, _) = run(&mut program, &second.build(), "second");
    let to = tcp_of(&ran.frame).1;
    let answer = TcpFrame::new(to, (VIP, CLIENT.1 + 1), ACK).from_mac(BACKEND_MAC).numbers(5001, 1011);
    let (_, counters) = run(&mut program, &answer.build(), "over the limit");
    assert!(counters.contains(&"client_limit"), "{counters:?}");
    assert_eq!(program.load_of(LOAD_TOTAL), 1);
}

#[test]
fn over_ipv6() {
    let mut program = setup_v6();
    program.set_lease(grace());
    let spoken = client_v6(ACK | PSH).numbers(1001, 5001).payload(10).build();
    assert_eq!(run(&mut program, &spoken, "asked").1, ["adoption_asked"]);
    let back = backend_v6(ACK).numbers(5001, 1011).build();
    let (ran, counters) = run(&mut program, &back, "it knows it");
    assert_eq!((ran.action, counters), (TX, vec!["flow_adopted", "flow_established"]));
    assert_eq!(run(&mut program, &spoken, "known").1, [] as [&str; 0]);
}
