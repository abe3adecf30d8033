//! A flow's life, packet by packet, in the real program under `BPF_PROG_TEST_RUN`.

use std::net::Ipv4Addr;

use etcd_lb::dataplane::{monotonic_ns, tick_ns};
use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{
    addr::{Addr, Mac, Port},
    claim::{self, State},
    hash,
    maps::*,
    nat,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

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
fn a_node_that_is_alone_picks_changed_ports_from_its_own_part() {
    for number in 0..2 {
        let range = nat::Range::part(number, 2);
        let mut program = setup();
        program.change_service(0, |service| service.nat = range);
        let (ran, _) = run(&mut program, &client(SYN).build(), "first");
        assert_eq!(tcp_of(&ran.frame).0.1, CLIENT.1, "its own port, whichever part that is in");
        for host in 8..40 {
            let mut other = client(SYN);
            other.source.0 = Ipv4Addr::new(10, 0, 2, host);
            let (ran, _) = run(&mut program, &other.build(), "the same port from another host");
            let port = tcp_of(&ran.frame).0.1;
            assert!(port >= range.first && port - range.first < range.ports, "{port}: {range:?}");
        }
        // Better one that another node may use too than none.
        let record = program.record(3, CLIENT.1);
        let taken = Record { claim: claim::Claim::new(State::Established, 5).0, ..record };
        let mut other = client(SYN);
        other.source.0 = Ipv4Addr::new(10, 0, 2, 99);
        let hash = hash::client(&SEED, &Addr::from(other.source.0), Some(KEY_PORT));
        let hash = nat::hash(hash, KEY_PORT.get());
        let candidate = |attempt| nat::candidate(CLIENT.1, hash, attempt, range);
        let own: Vec<u16> = (0..=nat::TRIES).map(candidate).collect();
        own.iter().for_each(|port| program.set_record(3, *port, taken));
        let of_all = (nat::TRIES + 1..nat::tries(range)).map(candidate).find(|port| !own.contains(port));
        let (ran, _) = run(&mut program, &other.build(), "its part is full");
        assert_eq!(Some(tcp_of(&ran.frame).0.1), of_all);
    }
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
    let hash = hash::client(&SEED, &Addr::from(CLIENT.0), Some(KEY_PORT));
    let hash = nat::hash(hash, KEY_PORT.get());
    let candidates: Vec<u16> =
        (0..=nat::TRIES).map(|n| nat::candidate(CLIENT.1, hash, n, nat::Range::ALL)).collect();
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

    // The backend first.
    let mut program = setup();
    handshake(&mut program);
    program.set_backend(3, raised);
    let (ran, _) = run(&mut program, &backend(ACK).numbers(5001, 1001).build(), "backend");
    assert_eq!((ran.action, reset_of(&ran.frame)), (TX, (1001, None)));
    let (ran, _) = run(&mut program, &client(ACK).numbers(1001, 5001).build(), "client");
    assert_eq!((ran.action, reset_of(&ran.frame)), (TX, (5001, None)));
}

#[test]
fn a_flow_that_the_agent_ended_is_reset_and_a_syn_begins_anew() {
    for raise in [false, true] {
        let mut program = setup();
        handshake(&mut program);
        if raise {
            let mut backend = program.get_backend(3);
            backend.epoch += 1;
            program.set_backend(3, backend);
        } else {
            let mut record = program.record(3, CLIENT.1);
            record.claim = record.claim().after(claim::ENDED).0;
            program.set_record(3, CLIENT.1, record);
            let (ran, counters) = run(&mut program, &backend(ACK).numbers(5001, 1001).build(), "backend");
            assert_eq!((counters, reset_of(&ran.frame)), (vec!["flow_reset"], (1001, None)));
        }
        // The forward entry is still in `flows`.
        assert!(program.flow(&key()).is_some());
        let (ran, counters) = run(&mut program, &client(SYN).numbers(9000, 0).build(), "SYN");
        assert_eq!((ran.action, counters), (TX, vec!["flow_new"]), "raised: {raise}");
        assert!(program.flow(&key()).is_none(), "the old entry does not hide the new one");
        let new = program.half_open(&key()).expect("a new flow");
        assert_ne!(new.nat_port.get(), CLIENT.1, "the old port rests");
        let record = program.record(3, new.nat_port.get());
        assert!(record.claim().is(State::HalfOpen) && record.epoch == program.get_backend(3).epoch);
    }
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
fn packets_are_stamped_with_the_time_to_a_tick_also_where_ticks_got_lost() {
    let (tick, second) = (tick_ns(), 1_000_000_000);
    let stamp = |program: &mut Program| {
        let slot = (program.record(3, CLIENT.1).last_seen, program.forward(3, CLIENT.1).last_seen);
        let now = monotonic_ns();
        (now - slot.0, now - slot.1)
    };
    for (case, lost) in [("as it was set", 0), ("an hour ahead", 3600 * second), ("never set", u64::MAX)] {
        let mut program = setup();
        let right = program.clock_offset();
        program.set_clock_offset(if lost == u64::MAX { 0 } else { right.wrapping_add(lost) });
        handshake(&mut program);
        let (request, response) = (client(ACK | PSH).numbers(1001, 5001), backend(ACK).numbers(5001, 1001));
        for frame in [request, response] {
            run(&mut program, &frame.build(), case);
        }
        let off = program.clock_offset().abs_diff(right);
        assert!(off <= 2 * tick, "{case}: {off} ns off, of {tick} a tick");
        let (back, forward) = stamp(&mut program);
        // What else the machine does may come between the packet and this.
        assert!(back < second && forward < second, "{case}: {back} and {forward} ns ago");
    }
}
