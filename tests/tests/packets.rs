//! The real program under `BPF_PROG_TEST_RUN`: frames and map state in; action, frame and counters out.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::*;
use lb_common::{
    addr::{Addr, Mac, Port},
    claim::{self, State},
    counters::{Counter, Counters},
    maps::*,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 7), 40_000);
const SERVICE: (Ipv4Addr, u16) = (VIP, 2379);
const BACKEND: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 11), 2379);
const KEY_PORT: Port = Port::new(CLIENT.1);

fn key() -> FlowKey {
    FlowKey { client: Addr::from(CLIENT.0), port: KEY_PORT, service: 0 }
}

/// One service with one backend, number 3, so that a zero somewhere does not pass for it.
fn setup() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP, 2379, 0);
    program.backend(3, 0, VIP, BACKEND);
    program.maglev(0, 3);
    program
}

fn client(flags: u8) -> TcpFrame {
    TcpFrame::new(CLIENT, SERVICE, flags)
}

fn backend(flags: u8) -> TcpFrame {
    TcpFrame::new(BACKEND, (VIP, CLIENT.1), flags).from_mac(BACKEND_MAC)
}

/// Client's ISN 1000, backend's 5000.
fn handshake(program: &mut Program) {
    for frame in [
        client(SYN).numbers(1000, 0),
        backend(SYN | ACK).numbers(5000, 1001),
        client(ACK).numbers(1001, 5001),
    ] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    let claim = program.record(3, CLIENT.1).claim();
    assert!(claim.is(State::Established), "{claim:?}");
}

/// Runs a frame, checks what is transmitted, and names the counters that changed.
fn run(program: &mut Program, frame: &[u8], context: &str) -> (Ran, Vec<&'static str>) {
    let before = program.counters();
    let ran = program.run(frame);
    if ran.action == TX {
        assert_sound(&ran.frame, context);
    }
    if ran.action == PASS {
        assert_eq!(ran.frame, frame, "{context}: a frame that is passed is changed");
    }
    (ran, changed(&before, &program.counters()))
}

fn changed(before: &Counters, after: &Counters) -> Vec<&'static str> {
    Counter::ALL
        .iter()
        .filter(|counter| counter.of(after) != counter.of(before))
        .map(|counter| counter.name())
        .collect()
}

#[test]
fn the_object_holds_every_map_and_program_that_the_agent_knows() {
    let object = aya::EbpfLoader::new().load(etcd_lb::object::XDP_OBJECT).expect("loads");
    for name in name::KEPT.iter().chain([&name::PROGRAMS]) {
        assert!(object.map(name).is_some(), "no map `{name}`");
    }
    for (name, _) in program::TAIL_CALLED.into_iter().chain([(program::ENTRY, 0), (program::PASS, 0)]) {
        assert!(object.program(name).is_some(), "no program `{name}`");
    }
}

#[test]
fn instructions_and_memory_are_within_the_budget() {
    let mut program = Program::load(DEFAULT_MAX_FLOWS);
    program.service(0, VIP, 2379, 0);
    for number in 0..4 {
        program.backend(number, 0, VIP, (Ipv4Addr::new(10, 0, 1, 11 + number as u8), 2379));
    }
    program.maglev(0, 0);
    let sizes = program.sizes();
    for (name, verified, octets) in &sizes {
        println!("program {name:<6} {verified:>6} verified instructions, {:>6} instructions", octets / 8);
    }
    let total: u32 = sizes.iter().map(|(_, verified, _)| verified).sum();
    println!("programs together {total} verified instructions (budget 40,000)");
    assert!(sizes[0].1 <= 15_000, "the established path takes {} verified instructions", sizes[0].1);
    assert!(total <= 40_000, "{total} verified instructions");

    let memory = program.memory();
    for (name, octets) in &memory {
        println!("map {name:<18} {:>9.1} KiB", *octets as f64 / 1024.0);
    }
    let total: u64 = memory.iter().map(|(_, octets)| octets).sum();
    println!("maps together {:.1} MiB (budget 64 MiB)", total as f64 / 1048576.0);
    assert!(total <= 64 << 20, "{total} octets of maps");
}

#[test]
fn a_connection_lives_and_ends_step_by_step() {
    let mut program = setup();
    let steps: &[(&str, TcpFrame, State, u64)] = &[
        ("SYN", client(SYN).numbers(1000, 0), State::HalfOpen, 0),
        ("SYN again", client(SYN).numbers(1000, 0), State::HalfOpen, 0),
        ("SYN-ACK", backend(SYN | ACK).numbers(5000, 1001), State::HalfOpen, claim::SYN_ACKED),
        ("ACK that is one too low", client(ACK).numbers(1001, 5000), State::HalfOpen, claim::SYN_ACKED),
        ("ACK that is one too high", client(ACK).numbers(1001, 5002), State::HalfOpen, claim::SYN_ACKED),
        ("ACK of the handshake", client(ACK).numbers(1001, 5001), State::Established, claim::SYN_ACKED),
        ("request", client(ACK | PSH).numbers(1001, 5001).payload(100), State::Established, claim::SYN_ACKED),
        (
            "response",
            backend(ACK | PSH).numbers(5001, 1101).payload(300),
            State::Established,
            claim::SYN_ACKED,
        ),
        ("client's FIN", client(ACK | FIN).numbers(1101, 5301), State::Established, claim::CLIENT_FIN),
        (
            "more data",
            backend(ACK).numbers(5301, 1102).payload(10),
            State::Established,
            claim::CLIENT_FIN_ACKED,
        ),
        ("ACK of it", client(ACK).numbers(1102, 5311), State::Established, claim::CLIENT_FIN_ACKED),
        ("backend's FIN", backend(ACK | FIN).numbers(5311, 1102), State::Established, claim::BACKEND_FIN),
        (
            "last ACK",
            client(ACK).numbers(1102, 5312),
            State::Closed,
            claim::BACKEND_FIN_ACKED | claim::FREE_AT_ONCE,
        ),
        (
            "backend's FIN again",
            backend(ACK | FIN).numbers(5311, 1102),
            State::Closed,
            claim::BACKEND_FIN_ACKED,
        ),
        ("last ACK again", client(ACK).numbers(1102, 5312), State::Closed, claim::BACKEND_FIN_ACKED),
    ];
    for (step, frame, state, flags) in steps {
        let (ran, counters) = run(&mut program, &frame.build(), step);
        assert_eq!(ran.action, TX, "{step}: {counters:?}");
        let (from, to, tcp) = tcp_of(&ran.frame);
        let sent = if frame.source == CLIENT { ((VIP, CLIENT.1), BACKEND) } else { (SERVICE, CLIENT) };
        assert_eq!((from, to), sent, "{step}");
        assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (frame.seq, frame.ack), "{step}");
        assert_eq!(ran.frame.len(), frame.build().len(), "{step}");
        assert_eq!(ran.frame[22], 63, "{step}: TTL");
        let mac = if frame.source == CLIENT { BACKEND_MAC } else { CLIENT_MAC };
        assert_eq!(
            (&ran.frame[..6], &ran.frame[6..12]),
            (&mac.octets()[..], &OWN_MAC.octets()[..]),
            "{step}: MACs"
        );
        assert_eq!(ran.frame[54..], frame.build()[54..], "{step}: payload");
        let claim = program.record(3, CLIENT.1).claim();
        assert!(claim.is(*state) && claim.has(*flags), "{step}: {claim:x?}");
        let established = i64::from(*state == State::Established);
        for slot in [load_of_backend(3), load_of_service(0), LOAD_TOTAL] {
            assert_eq!(program.load_of(slot), established, "{step}: load {slot}");
        }
        assert_eq!(
            program.flow(&key()).is_some(),
            *state == State::Established,
            "{step}: forward entry in `flows`"
        );
    }
    let counters = program.counters();
    assert_eq!((counters.flow_new, counters.flow_established, counters.flow_closed), (1, 1, 1));
    let backend = program.backend_counters(3);
    assert_eq!((backend.connections, backend.packets_in, backend.packets_out), (1, 10, 5));
}

#[test]
fn a_refused_connection_is_counted_and_its_port_free_at_once() {
    let mut program = setup();
    run(&mut program, &client(SYN).numbers(1000, 0).build(), "SYN");
    let (ran, _) = run(&mut program, &backend(RST | ACK).numbers(0, 1000).build(), "RST with a wrong ACK");
    assert_eq!(ran.action, TX);
    assert!(program.record(3, CLIENT.1).claim().is(State::HalfOpen));
    let (ran, _) = run(&mut program, &backend(RST | ACK).numbers(0, 1001).build(), "RST");
    assert_eq!(ran.action, TX);
    assert_eq!(tcp_of(&ran.frame).1, CLIENT);
    assert!(program.record(3, CLIENT.1).claim().has(claim::FREE_AT_ONCE));
    assert_eq!(program.backend_counters(3).refused, 1);
}

#[test]
fn only_an_exact_rst_ends_a_flow() {
    // (who, SEQ, ends the flow); the client's next SEQ is 1101, the backend's 5301, and each has acknowledged the other.
    let cases = [
        ("client, exact", true, 1101, true),
        ("client, old", true, 1100, false),
        ("client, ahead", true, 1102, false),
        ("client, far", true, 0x8000_0000, false),
        ("backend, exact", false, 5301, true),
        ("backend, old", false, 5300, false),
        ("backend, ahead", false, 5302, false),
    ];
    for (case, from_client, seq, ends) in cases {
        let mut program = setup();
        handshake(&mut program);
        run(&mut program, &client(ACK | PSH).numbers(1001, 5001).payload(100).build(), case);
        run(&mut program, &backend(ACK | PSH).numbers(5001, 1101).payload(300).build(), case);
        run(&mut program, &client(ACK).numbers(1101, 5301).build(), case);
        let rst = if from_client { client(RST).numbers(seq, 0) } else { backend(RST).numbers(seq, 0) };
        let (ran, counters) = run(&mut program, &rst.build(), case);
        assert_eq!(ran.action, TX, "{case}: every RST is forwarded");
        assert_eq!(counters, [if ends { "flow_closed" } else { "rst_not_exact" }], "{case}");
        assert_eq!(program.record(3, CLIENT.1).claim().is(State::Closed), ends, "{case}");
        assert_eq!(program.flow(&key()).is_none(), ends, "{case}");
        assert_eq!(program.half_open(&key()).is_some(), ends, "{case}");
        assert_eq!(program.load_of(LOAD_TOTAL), i64::from(!ends), "{case}");
    }
}

#[test]
fn a_syn_on_the_tuple_of_a_closed_flow_starts_a_new_one() {
    let mut program = setup();
    handshake(&mut program);
    run(&mut program, &client(RST).numbers(1001, 0).build(), "RST");
    let generation = program.record(3, CLIENT.1).claim().generation();
    let (ran, counters) = run(&mut program, &client(SYN).numbers(9000, 0).build(), "SYN");
    assert_eq!((ran.action, counters), (TX, vec!["flow_new"]));
    let claim = program.record(3, CLIENT.1).claim();
    assert!(claim.is(State::HalfOpen) && claim.generation() == generation + 1);
}

#[test]
fn a_port_that_the_backend_closed_first_rests_for_time_wait() {
    let mut program = setup();
    handshake(&mut program);
    for frame in [
        backend(ACK | FIN).numbers(5001, 1001),
        client(ACK | FIN).numbers(1001, 5002),
        backend(ACK).numbers(5002, 1002),
    ] {
        run(&mut program, &frame.build(), "FIN");
    }
    assert!(program.record(3, CLIENT.1).claim().is(State::Closed));
    assert!(!program.record(3, CLIENT.1).claim().has(claim::FREE_AT_ONCE));
    let (ran, _) = run(&mut program, &client(SYN).numbers(9000, 0).build(), "SYN");
    let ((_, port), _, _) = tcp_of(&ran.frame);
    assert_ne!(port, CLIENT.1, "the backend still holds TIME_WAIT for the old port");
}

#[test]
fn two_clients_with_one_port_get_two_nat_ports() {
    let mut program = setup();
    run(&mut program, &client(SYN).build(), "first");
    let mut other = client(SYN);
    other.source.0 = Ipv4Addr::new(10, 0, 2, 8);
    let (ran, _) = run(&mut program, &other.build(), "second");
    let ((from, port), to, _) = tcp_of(&ran.frame);
    assert_eq!((from, to), (VIP, BACKEND));
    assert_ne!(port, CLIENT.1);
    assert_eq!(program.record(3, port).client, Addr::from(other.source.0));
    let mut answer = backend(SYN | ACK).numbers(5000, 1001);
    answer.destination.1 = port;
    let (ran, _) = run(&mut program, &answer.build(), "answer");
    assert_eq!(tcp_of(&ran.frame).1, other.source);
}

#[test]
fn a_stale_forward_entry_heals_itself() {
    let mut program = setup();
    run(&mut program, &client(SYN).build(), "SYN");
    // Another flow takes the slot.
    let record = program.record(3, CLIENT.1);
    let taken = record.claim().next_owner().to(State::Established);
    let other = Addr::from(Ipv4Addr::new(10, 0, 2, 99));
    program.set_record(3, CLIENT.1, Record { claim: taken.0, client: other, ..record });
    let (ran, counters) = run(&mut program, &client(ACK).numbers(1001, 5001).build(), "ACK of the old flow");
    assert_eq!((ran.action, counters), (TX, vec!["unknown_flow"]));
    assert_eq!(reset_of(&ran.frame), (5001, None));
    assert!(program.half_open(&key()).is_none(), "the stale entry is gone");
    let (ran, _) = run(&mut program, &client(SYN).build(), "SYN again");
    assert_ne!(tcp_of(&ran.frame).0.1, CLIENT.1);
    assert_eq!(program.record(3, CLIENT.1).client, other, "the other flow is untouched");
}

#[test]
fn an_evicted_half_open_flow_finds_its_slot_again() {
    let mut program = setup();
    run(&mut program, &client(SYN).build(), "SYN");
    program.forget_half_open(&key());
    let (ran, _) = run(&mut program, &client(SYN).build(), "SYN again");
    assert_eq!(tcp_of(&ran.frame).0.1, CLIENT.1);
}

#[test]
fn half_open_slots_are_taken_under_pressure_and_established_ones_never() {
    let mut program = setup();
    let hash = lb_common::hash::client(
        &lb_common::hash::Seed { key: [7, 9] },
        &Addr::from(CLIENT.0),
        Some(KEY_PORT),
    );
    let candidates: Vec<u16> =
        (0..=lb_common::nat::TRIES).map(|n| lb_common::nat::candidate(CLIENT.1, hash, n)).collect();
    let occupied = |state: State, last_seen: u64| Record {
        claim: claim::Claim::new(state, 5).0,
        last_seen,
        client: Addr::from(Ipv4Addr::new(192, 0, 2, 1)),
        client_port: Port::new(1),
        inner_tag: 0,
        ifindex: 1,
        client_mac: CLIENT_MAC,
        outer_tag: 0,
        last_ack: 0,
        epoch: 1,
        edge: 0,
        client_edge: 0,
    };
    for &port in &candidates {
        program.set_record(3, port, occupied(State::Established, 10));
    }
    let (ran, counters) = run(&mut program, &client(SYN).build(), "all established");
    assert_eq!((ran.action, counters), (TX, vec!["nat_ports_exhausted"]));
    assert_eq!(reset_of(&ran.frame), (0, Some(1001)));
    for state in [State::Reserved, State::Claiming] {
        program.set_record(3, candidates[4], occupied(state, 1));
        assert_eq!(run(&mut program, &client(SYN).build(), "reserved").1, ["nat_ports_exhausted"]);
    }
    program.set_record(3, candidates[9], occupied(State::HalfOpen, u64::MAX / 2));
    program.set_record(3, candidates[12], occupied(State::HalfOpen, u64::MAX / 2 - 1));
    let (ran, counters) = run(&mut program, &client(SYN).build(), "two half-open");
    assert_eq!((ran.action, tcp_of(&ran.frame).0.1), (TX, candidates[12]), "the one that was silent longest");
    assert_eq!(counters, ["flow_new", "half_open_taken"]);
}

#[test]
fn a_full_table_refuses_and_recovers() {
    let mut program = setup();
    program.set_load(LOAD_TOTAL, 1024);
    let (ran, counters) = run(&mut program, &client(SYN).numbers(1000, 0).build(), "full");
    assert_eq!((ran.action, counters), (TX, vec!["table_full"]));
    assert_eq!(reset_of(&ran.frame), (0, Some(1001)));
    program.set_load(LOAD_TOTAL, 1023);
    assert_eq!(run(&mut program, &client(SYN).build(), "room").1, ["flow_new"]);
}

#[test]
fn without_a_backend_a_new_connection_is_reset_or_dropped() {
    for (flags, action, counter) in [(0, TX, "no_backend_reset"), (SERVICE_DROP, DROP, "no_backend_drop")] {
        let mut program = Program::load(1024);
        program.service(0, VIP, 2379, flags);
        for maglev in [false, true] {
            if maglev {
                program.maglev(0, NO_BACKEND);
            }
            let (ran, counters) = run(&mut program, &client(SYN).numbers(1000, 0).build(), counter);
            assert_eq!((ran.action, counters), (action, vec![counter]));
            if action == TX {
                assert_eq!(reset_of(&ran.frame), (0, Some(1001)));
            }
        }
    }
}

#[test]
fn only_allowed_clients_connect() {
    let mut program = setup();
    program.service(0, VIP, 2379, SERVICE_ALLOW);
    assert_eq!(run(&mut program, &client(SYN).build(), "nobody allowed").1, ["not_allowed"]);
    program.allow(1, Ipv4Addr::new(10, 0, 2, 0), 24);
    assert_eq!(run(&mut program, &client(SYN).build(), "another service's prefix").1, ["not_allowed"]);
    program.allow(0, Ipv4Addr::new(10, 0, 2, 0), 29);
    assert_eq!(run(&mut program, &client(SYN).build(), "10.0.2.7 in 10.0.2.0/29").1, ["flow_new"]);
    let mut outside = client(SYN);
    outside.source.0 = Ipv4Addr::new(10, 0, 2, 8);
    assert_eq!(run(&mut program, &outside.build(), "10.0.2.8 not in 10.0.2.0/29").1, ["not_allowed"]);
}

#[test]
fn what_no_table_knows_is_answered_exactly() {
    let mut program = setup();
    let table: &[(&str, TcpFrame, u32, &str, Option<(u32, Option<u32>)>)] = &[
        (
            "data from a client",
            client(ACK | PSH).numbers(77, 5001).payload(9),
            TX,
            "unknown_flow",
            Some((5001, None)),
        ),
        ("FIN from a client", client(ACK | FIN).numbers(77, 5001), TX, "unknown_flow", Some((5001, None))),
        (
            "SYN-ACK from a client",
            client(SYN | ACK).numbers(77, 5001),
            TX,
            "unknown_flow",
            Some((5001, None)),
        ),
        ("no flags", client(0).numbers(77, 0).payload(3), TX, "unknown_flow", Some((0, Some(80)))),
        ("RST from a client", client(RST).numbers(77, 0), DROP, "unknown_rst", None),
        (
            "data from a backend",
            backend(ACK).numbers(5, 1001).payload(3),
            TX,
            "unknown_return",
            Some((1001, None)),
        ),
        (
            "SYN-ACK from a backend",
            backend(SYN | ACK).numbers(5, 1001),
            TX,
            "stale_handshake",
            Some((1001, None)),
        ),
        ("RST from a backend", backend(RST).numbers(5, 0), DROP, "unknown_rst", None),
    ];
    for (case, frame, action, counter, reset) in table {
        let (ran, counters) = run(&mut program, &frame.build(), case);
        assert_eq!((ran.action, counters), (*action, vec![*counter]), "{case}");
        if let Some(reset) = reset {
            assert_eq!(reset_of(&ran.frame), *reset, "{case}");
            let (from, to, _) = tcp_of(&ran.frame);
            assert_eq!((from, to), (frame.destination, frame.source), "{case}");
            assert_eq!(ran.frame[..6], *frame.from_mac.octets(), "{case}");
            assert_eq!(ran.frame[54..], [0; 6], "{case}: padding leaks nothing");
        }
    }
}

#[test]
fn closed_ports_are_answered_with_rst_of_any_size() {
    let mut program = setup();
    for payload in [0, 1, 6, 100, 1400] {
        for options in [0, 4, 40] {
            let mut frame = TcpFrame::new(CLIENT, (VIP, 8080), SYN).payload(payload);
            frame.tcp_options = vec![1; options];
            frame.ip_options = vec![1; options];
            frame.padding = 46usize.saturating_sub(frame.build().len() - 14);
            let (ran, counters) = run(&mut program, &frame.build(), "closed port");
            assert_eq!((ran.action, counters), (TX, vec!["closed_port"]));
            assert_eq!(reset_of(&ran.frame), (0, Some(1001 + payload as u32)));
            assert_eq!(ran.frame.len(), 60);
        }
    }
}

#[test]
fn a_fenced_node_is_silent_but_forwards_what_it_knows() {
    let mut program = setup();
    handshake(&mut program);
    let over = Lease { granted_at: 1, deadline: 2, revoked_at: 0 };
    let revoked = Lease { granted_at: 1, deadline: u64::MAX, revoked_at: 1 };
    for lease in [over, revoked] {
        program.set_lease(lease);
        let mut syn = client(SYN);
        syn.source.1 += 1;
        assert_eq!(run(&mut program, &syn.build(), "SYN").1, ["fenced"]);
        let closed = TcpFrame::new(CLIENT, (VIP, 80), SYN).build();
        assert_eq!(run(&mut program, &closed, "closed port").1, ["fenced"]);
        assert_eq!(run(&mut program, &ping(CLIENT.0, VIP, 56), "ping").1, ["fenced"]);
        let arp = arp_request(Mac::new([0xff; 6]), (CLIENT_MAC, CLIENT.0), VIP);
        assert_eq!(run(&mut program, &arp, "ARP").1, ["fenced"]);
        let (ran, counters) =
            run(&mut program, &client(ACK).numbers(1001, 5001).payload(1).build(), "known flow");
        assert_eq!((ran.action, counters.len()), (TX, 0));
        let (ran, _) = run(&mut program, &backend(ACK).numbers(5001, 1002).payload(1).build(), "known flow");
        assert_eq!(ran.action, TX);
    }
}

#[test]
fn arp_is_answered_for_the_vip_only() {
    let mut program = setup();
    let ask = |to: Mac, sender: Ipv4Addr, target: Ipv4Addr| arp_request(to, (CLIENT_MAC, sender), target);
    let broadcast = Mac::new([0xff; 6]);
    for (case, frame) in [
        ("broadcast", ask(broadcast, CLIENT.0, VIP)),
        ("unicast", ask(OWN_MAC, CLIENT.0, VIP)),
        ("address probe", ask(broadcast, Ipv4Addr::UNSPECIFIED, VIP)),
    ] {
        let (ran, counters) = run(&mut program, &frame, case);
        assert_eq!((ran.action, counters), (TX, vec!["arp_reply"]), "{case}");
        let mut want = frame.clone();
        want[..6].copy_from_slice(CLIENT_MAC.octets());
        want[6..12].copy_from_slice(OWN_MAC.octets());
        want[21] = 2;
        want[22..28].copy_from_slice(OWN_MAC.octets());
        want[28..32].copy_from_slice(&VIP.octets());
        want[32..38].copy_from_slice(CLIENT_MAC.octets());
        want[38..42].copy_from_slice(&frame[28..32]);
        assert_eq!(ran.frame, want, "{case}");
    }
    let near = Ipv4Addr::new(10, 9, 1, 100);
    for (case, frame) in [
        ("another address", ask(broadcast, CLIENT.0, Ipv4Addr::new(10, 0, 1, 101))),
        ("an address with the VIP's last octets", ask(broadcast, CLIENT.0, near)),
    ] {
        let (ran, counters) = run(&mut program, &frame, case);
        assert_eq!((ran.action, counters.len()), (PASS, 0), "{case}");
    }
    let (ran, counters) = run(&mut program, &ask(broadcast, VIP, VIP), "another host announces the VIP");
    assert_eq!((ran.action, counters), (DROP, vec!["arp_other", "vip_conflict"]));
    for (at, name) in
        [(15, "hardware type"), (17, "protocol type"), (18, "hardware length"), (19, "protocol length")]
    {
        let mut frame = ask(broadcast, CLIENT.0, VIP);
        frame[at] ^= 0x40;
        assert_eq!(run(&mut program, &frame, name).0.action, PASS, "{name}");
    }
}

#[test]
fn ping_is_answered_for_the_vip_only() {
    let mut program = setup();
    for data in [0, 1, 56, 1400] {
        let (ran, counters) = run(&mut program, &ping(CLIENT.0, VIP, data), "ping");
        assert_eq!((ran.action, counters), (TX, vec!["echo_reply"]));
        let sent = ping(CLIENT.0, VIP, data);
        assert_eq!(ran.frame[26..34], [&sent[30..34], &sent[26..30]].concat(), "addresses");
        assert_eq!((ran.frame[34], &ran.frame[38..]), (0, &sent[38..]), "type and data");
    }
    let (ran, _) = run(&mut program, &ping(CLIENT.0, Ipv4Addr::new(10, 0, 1, 1), 56), "the node itself");
    assert_eq!(ran.action, PASS);
    let mut unreachable = ping(CLIENT.0, VIP, 56);
    unreachable[34] = 3;
    assert_eq!(run(&mut program, &unreachable, "unreachable").1, ["icmp"]);
}

#[test]
fn a_packet_for_the_vip_never_reaches_the_kernel_however_it_deviates() {
    let mut program = setup();
    handshake(&mut program);
    let mut with_options = client(ACK).numbers(1001, 5001).payload(20);
    with_options.ip_options = vec![1; 8];
    let bases = [
        client(SYN).payload(20),
        client(ACK).numbers(1001, 5001).payload(20),
        backend(ACK).numbers(5001, 1001).payload(20),
        TcpFrame::new(CLIENT, (VIP, 80), ACK).payload(20),
        with_options,
    ];
    for base in bases {
        for deviation in deviations(&base) {
            let (ran, counters) = run(&mut program, &deviation.frame, &deviation.name);
            if deviation.names_vip {
                assert_eq!((ran.action, counters.len()), (DROP, 1), "{}: {counters:?}", deviation.name);
            } else {
                assert_eq!((ran.action, counters.len()), (PASS, 0), "{}: {counters:?}", deviation.name);
            }
        }
    }
}

#[test]
fn ip_options_are_never_misread() {
    let mut program = setup();
    for words in 0..=10 {
        let mut frame = client(SYN);
        frame.source.1 = 41_000 + words;
        frame.ip_options = vec![1; usize::from(words) * 4];
        frame.tcp_options = vec![2, 4, 5, 0xb4];
        let (ran, counters) = run(&mut program, &frame.build(), "options");
        assert_eq!((ran.action, counters), (TX, vec!["flow_new"]), "{words} words of options");
        assert_eq!(tcp_of(&ran.frame).1, BACKEND);
        assert_eq!(ran.frame[34..frame.l4()], frame.build()[34..frame.l4()], "the options are as they were");
    }
}

#[test]
fn vlan_tags_are_never_misread() {
    let mut program = setup();
    for tags in [vec![(0x8100, 7)], vec![(0x88a8, 7), (0x8100, 8)]] {
        let mut frame = client(SYN);
        frame.tags = tags.clone();
        let (ran, counters) = run(&mut program, &frame.build(), "for the VIP");
        assert_eq!((ran.action, counters), (DROP, vec!["vlan"]), "the backend is not behind these tags");
        frame.destination.0 = Ipv4Addr::new(10, 0, 1, 1);
        assert_eq!(run(&mut program, &frame.build(), "not for the VIP").0.action, PASS);
    }
    let mut backend = program.get_backend(3);
    backend.hop.tags = [7u16.to_be(), 0];
    program.set_backend(3, backend);
    let mut frame = client(SYN);
    frame.tags = vec![(0x8100, 7)];
    let (ran, counters) = run(&mut program, &frame.build(), "same tag");
    assert_eq!((ran.action, counters), (TX, vec!["flow_new"]));
    assert_eq!((tcp_of(&ran.frame).1, &ran.frame[12..16]), (BACKEND, &[0x81, 0, 0, 7][..]));
    let three = {
        let mut frame = client(SYN);
        frame.tags = vec![(0x88a8, 1), (0x8100, 2), (0x8100, 3)];
        frame.build()
    };
    assert_eq!(run(&mut program, &three, "three tags are nobody's").0.action, PASS);
}

#[test]
fn frames_for_other_hosts_are_not_touched() {
    let mut program = setup();
    handshake(&mut program);
    for base in [client(SYN), client(ACK).numbers(1001, 5001), backend(ACK).numbers(5001, 1001)] {
        let mut flooded = base.clone();
        flooded.to_mac = Mac::new([2, 0, 0, 0, 0, 0x77]);
        assert_eq!(run(&mut program, &flooded.build(), "flooded by a switch").0.action, PASS);
        let mut group = base.clone();
        group.to_mac = Mac::new([0xff; 6]);
        assert_eq!(run(&mut program, &group.build(), "broadcast").1, ["group_mac"]);
    }
}

#[test]
fn ttl_is_used_up_or_one_less() {
    let mut program = setup();
    handshake(&mut program);
    for (ttl, action) in [(0, DROP), (1, DROP), (2, TX), (255, TX)] {
        for mut frame in [client(ACK).numbers(1001, 5001), backend(ACK).numbers(5001, 1001)] {
            frame.ttl = ttl;
            let (ran, counters) = run(&mut program, &frame.build(), "TTL");
            assert_eq!(ran.action, action, "TTL {ttl}");
            if action == DROP {
                assert_eq!(counters, ["ttl_expired"]);
            } else {
                assert_eq!(ran.frame[22], ttl - 1);
            }
        }
    }
}

#[test]
fn a_corrupted_packet_is_not_made_whole() {
    let mut program = setup();
    handshake(&mut program);
    let mut frame = client(ACK).numbers(1001, 5001).payload(10).build();
    let last = frame.len() - 1;
    frame[last] ^= 0x55;
    let ran = program.run(&frame);
    assert_eq!(ran.action, TX);
    let sound = std::panic::catch_unwind(|| assert_sound(&ran.frame, "corrupted"));
    assert!(sound.is_err(), "the checksum must stay wrong");
}

#[test]
fn the_clients_mac_follows_a_plausible_packet_only() {
    let mut program = setup();
    handshake(&mut program);
    let other = Mac::new([2, 0, 0, 0, 0, 0x44]);
    run(&mut program, &client(ACK).numbers(1001, 0x9000_0000).from_mac(other).build(), "implausible");
    assert_eq!(program.record(3, CLIENT.1).client_mac, CLIENT_MAC);
    run(&mut program, &client(ACK).numbers(1001, 5001).from_mac(other).build(), "plausible");
    assert_eq!(program.record(3, CLIENT.1).client_mac, other);
    let (ran, _) = run(&mut program, &backend(ACK).numbers(5001, 1001).build(), "return");
    assert_eq!(ran.frame[..6], *other.octets());
}

#[test]
fn a_raised_epoch_resets_both_ends() {
    let mut program = setup();
    handshake(&mut program);
    let mut raised = program.get_backend(3);
    raised.epoch += 1;
    program.set_backend(3, raised);
    let (ran, counters) = run(&mut program, &client(ACK).numbers(1001, 5001).payload(3).build(), "client");
    assert_eq!((ran.action, counters, reset_of(&ran.frame)), (TX, vec!["flow_reset"], (5001, None)));
    let (ran, counters) = run(&mut program, &backend(ACK).numbers(5001, 1001).payload(3).build(), "backend");
    assert_eq!((ran.action, counters, reset_of(&ran.frame)), (TX, vec!["flow_reset"], (1001, None)));
    assert_eq!(
        run(&mut program, &backend(RST).numbers(5001, 0).build(), "no RST answers a RST").0.action,
        DROP
    );
}

#[test]
fn without_a_next_hop_nothing_is_sent_and_no_port_claimed() {
    let mut program = setup();
    let mut unresolved = program.get_backend(3);
    unresolved.hop = NextHop::UNKNOWN;
    program.set_backend(3, unresolved);
    assert_eq!(run(&mut program, &client(SYN).build(), "SYN").1, ["no_next_hop"]);
    assert!(program.record(3, CLIENT.1).claim().is(State::Free));
}

#[test]
fn one_vip_with_two_services() {
    let mut program = setup();
    program.service(1, VIP, 6443, 0);
    program.backend(4, 1, VIP, (BACKEND.0, 6443));
    program.maglev(1, 4);
    run(&mut program, &client(SYN).build(), "etcd");
    let (ran, _) = run(&mut program, &TcpFrame::new(CLIENT, (VIP, 6443), SYN).build(), "apiserver");
    assert_eq!(tcp_of(&ran.frame).1, (BACKEND.0, 6443));
    let answer =
        TcpFrame::new((BACKEND.0, 6443), (VIP, CLIENT.1), SYN | ACK).from_mac(BACKEND_MAC).numbers(1, 1001);
    let (ran, _) = run(&mut program, &answer.build(), "answer");
    assert_eq!(tcp_of(&ran.frame).0, (VIP, 6443));
}

#[test]
fn the_docs_have_a_row_for_each_counter() {
    let docs = include_str!("../../docs/counters.md");
    for counter in Counter::ALL {
        assert!(
            docs.contains(&format!("`{}`", counter.name())),
            "docs/counters.md lacks `{}`",
            counter.name()
        );
    }
    for name in docs.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()) {
        assert!(
            Counter::ALL.iter().any(|counter| counter.name() == name),
            "docs/counters.md knows `{name}` alone"
        );
    }
}
