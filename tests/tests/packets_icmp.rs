//! ICMP errors about flows in the real program under `BPF_PROG_TEST_RUN`: each goes to the other end, in its words.

use std::net::{Ipv4Addr, Ipv6Addr};

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::Mac,
    claim::State,
    tcp::{ACK, PSH, SYN},
};

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const ROUTER_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0x44]);

/// The IP packets that the balancer sends in the middle of a connection: to the backend and to the client.
fn sent(program: &mut Program) -> [Vec<u8>; 2] {
    [client(ACK | PSH).numbers(1001, 5001).payload(200), backend(ACK | PSH).numbers(5001, 1201).payload(300)]
        .map(|frame| {
            let ran = program.run(&frame.build());
            assert_eq!(ran.action, TX);
            ran.frame[14..].to_vec()
        })
}

fn sent_v6(program: &mut Program) -> [Vec<u8>; 2] {
    [
        client_v6(ACK | PSH).numbers(1001, 5001).payload(200),
        backend_v6(ACK | PSH).numbers(5001, 1201).payload(300),
    ]
    .map(|frame| {
        let ran = program.run(&frame.build());
        assert_eq!(ran.action, TX);
        ran.frame[14..].to_vec()
    })
}

#[test]
fn an_error_about_a_packet_goes_to_the_end_that_sent_it() {
    let mut program = setup();
    handshake(&mut program);
    let [to_backend, to_client] = sent(&mut program);
    for (kind, code, rest) in [(3, 4, 1400), (3, 1, 0), (3, 13, 0), (11, 0, 0)] {
        for octets in [28, 60, 500] {
            for (quoted, to, to_mac, from, destination) in [
                (&to_backend, CLIENT.0, CLIENT_MAC, CLIENT, SERVICE),
                (&to_client, BACKEND.0, BACKEND_MAC, BACKEND, (VIP, CLIENT.1)),
            ] {
                let quoted = &quoted[..quoted.len().min(octets)];
                let frame = icmp_error((ROUTER_MAC, ROUTER), VIP, (kind, code, rest), quoted);
                let context = format!("type {kind} code {code}, {octets} octets, to {to}");
                let before = program.counters();
                let ran = program.run(&frame);
                assert_eq!(changed(&before, &program.counters()), ["icmp_translated"], "{context}");
                assert_eq!((ran.action, ran.frame.len()), (TX, frame.len()), "{context}");
                assert_eq!(ran.frame[..12], [*to_mac.octets(), *OWN_MAC.octets()].concat(), "{context}");
                let ip = &ran.frame[14..];
                assert_eq!(internet_sum(&ip[..20]), 0, "{context}: IP checksum");
                assert_eq!((&ip[12..16], &ip[16..20]), (&ROUTER.octets()[..], &to.octets()[..]), "{context}");
                assert_eq!(ip[8], frame[22] - 1, "TTL");
                let icmp = &ip[20..];
                assert_eq!(internet_sum(icmp), 0, "{context}: ICMP checksum");
                assert_eq!(icmp[..2], [kind, code]);
                assert_eq!(icmp[4..8], frame[38..42], "the MTU is as it was");
                let inner = &icmp[8..];
                assert_eq!(internet_sum(&inner[..20]), 0, "{context}: the quoted packet's IP checksum");
                assert_eq!(ends(inner), (from, destination), "{context}");
                assert_eq!(inner[24..], quoted[24..], "{context}: the rest is as it was");
            }
        }
    }
    assert!(program.record(3, CLIENT.1).claim().is(State::Established), "they never change a flow");
}

fn ends(ip: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("4 octets"));
    let port = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    ((address(12), port(20)), (address(16), port(22)))
}

#[test]
fn an_error_goes_on_while_the_vip_is_not_ours() {
    let mut program = setup();
    handshake(&mut program);
    let [to_backend, _] = sent(&mut program);
    program.set_lease(lb_common::maps::Lease { granted_at: 1, deadline: 2, ..lb_common::maps::Lease::NONE });
    let frame = icmp_error((ROUTER_MAC, ROUTER), VIP, (3, 4, 1400), &to_backend[..28]);
    let (ran, counters) = run_icmp(&mut program, &frame);
    assert_eq!((ran.action, counters), (TX, vec!["icmp_translated"]), "known flows move when fenced, too");
}

#[test]
fn an_error_about_a_half_open_flow_goes_on_too() {
    let mut program = setup();
    let ran = program.run(&client(SYN).build());
    let frame = icmp_error((ROUTER_MAC, ROUTER), VIP, (3, 1, 0), &ran.frame[14..42]);
    assert_eq!(run_icmp(&mut program, &frame).1, ["icmp_translated"], "host unreachable");
}

#[test]
fn an_error_about_nothing_of_ours_is_dropped() {
    let mut program = setup();
    handshake(&mut program);
    let [to_backend, to_client] = sent(&mut program);
    let edit = |at: usize, value: u8| {
        let mut quoted = to_backend[..28].to_vec();
        quoted[at] = value;
        quoted
    };
    let unknown_client = {
        let mut quoted = to_client[..28].to_vec();
        quoted[23] ^= 1;
        quoted
    };
    for (name, quoted) in [
        ("another NAT port", edit(21, 0x77)),
        ("another backend", edit(19, 0x77)),
        ("another source", edit(15, 0x77)),
        ("UDP", edit(9, 17)),
        ("a later fragment", edit(7, 1)),
        ("version 6", edit(0, 0x65)),
        ("a header of 16 octets", edit(0, 0x44)),
        ("another client", unknown_client),
    ] {
        let frame = icmp_error((ROUTER_MAC, ROUTER), VIP, (3, 4, 1400), &quoted);
        let (ran, counters) = run_icmp(&mut program, &frame);
        assert_eq!((ran.action, counters), (DROP, vec!["icmp"]), "{name}");
    }
    for octets in 0..24 {
        let frame = icmp_error((ROUTER_MAC, ROUTER), VIP, (3, 4, 1400), &to_backend[..octets]);
        let (ran, counters) = run_icmp(&mut program, &frame);
        assert_eq!(ran.action, DROP, "{octets} octets: {counters:?}");
    }
    let (ran, counters) =
        run_icmp(&mut program, &icmp_error((ROUTER_MAC, ROUTER), VIP, (5, 1, 0), &to_backend[..28]));
    assert_eq!((ran.action, counters), (DROP, vec!["icmp"]), "a redirect");
}

#[test]
fn an_error_of_icmpv6_goes_to_the_end_that_sent_the_packet() {
    let mut program = setup_v6();
    handshake_v6(&mut program);
    let [to_backend, to_client] = sent_v6(&mut program);
    for (kind, code, rest) in [(2, 0, 1400), (1, 3, 0), (3, 0, 0)] {
        for octets in [48, 60, 1000] {
            for (quoted, to, to_mac, from, destination) in [
                (&to_backend, CLIENT6.0, CLIENT_MAC, CLIENT6, (VIP6, 2379)),
                (&to_client, BACKEND6.0, BACKEND_MAC, BACKEND6, (VIP6, CLIENT6.1)),
            ] {
                let quoted = &quoted[..quoted.len().min(octets)];
                let frame = icmp_error_v6((ROUTER_MAC, ROUTER6), VIP6, (kind, code, rest), quoted);
                let context = format!("type {kind} code {code}, {octets} octets, to {to}");
                let (ran, counters) = run_icmp(&mut program, &frame);
                assert_eq!((ran.action, counters), (TX, vec!["icmp_translated"]), "{context}");
                assert_eq!(ran.frame[..6], to_mac.octets()[..], "{context}");
                let ip = &ran.frame[14..];
                assert_eq!((&ip[8..24], &ip[24..40]), (&ROUTER6.octets()[..], &to.octets()[..]), "{context}");
                let icmp = &ip[40..];
                let pseudo = [&ip[8..40], &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, 58], icmp].concat();
                assert_eq!(internet_sum(&pseudo), 0, "{context}: ICMPv6 checksum");
                assert_eq!(icmp[4..8], frame[58..62], "the MTU is as it was");
                let inner = &icmp[8..];
                let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
                assert_eq!((&inner[8..24], port(40)), (&from.0.octets()[..], from.1), "{context}");
                assert_eq!(
                    (&inner[24..40], port(42)),
                    (&destination.0.octets()[..], destination.1),
                    "{context}"
                );
                assert_eq!(inner[44..], quoted[44..], "{context}: the rest is as it was");
            }
        }
    }
    for octets in 0..44 {
        let frame = icmp_error_v6((ROUTER_MAC, ROUTER6), VIP6, (2, 0, 1400), &to_backend[..octets]);
        let (ran, counters) = run_icmp(&mut program, &frame);
        assert_eq!(ran.action, DROP, "{octets} octets: {counters:?}");
    }
}

fn run_icmp(program: &mut Program, frame: &[u8]) -> (Ran, Vec<&'static str>) {
    let before = program.counters();
    let ran = program.run(frame);
    (ran, changed(&before, &program.counters()))
}
