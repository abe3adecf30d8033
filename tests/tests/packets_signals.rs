//! What the data plane tells by itself, and whom new flows pass over, in the real program under `BPF_PROG_TEST_RUN`.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{
    addr::Mac,
    maps::*,
    tcp::{ACK, FIN, RST, SYN},
};

const OTHER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 12), 2379);

/// Backends 3, which has every even slot, and 4, which has the others.
fn two_backends() -> Program {
    let mut program = setup();
    program.backend(4, 0, VIP, OTHER);
    program.maglev_of(0, |slot| if slot % 2 == 0 { 3 } else { 4 });
    program
}

fn syn(port: u16) -> Vec<u8> {
    TcpFrame::new((CLIENT.0, port), SERVICE, SYN).numbers(1000, 0).build()
}

fn from(backend: (Ipv4Addr, u16), port: u16, flags: u8) -> TcpFrame {
    TcpFrame::new(backend, (VIP, port), flags).from_mac(BACKEND_MAC)
}

/// Sends a SYN from each port; how many backend 3 got, and how many backend 4.
fn spread(program: &mut Program, ports: std::ops::Range<u16>) -> (usize, usize) {
    let (mut first, mut second) = (0, 0);
    for port in ports {
        let ran = program.run(&syn(port));
        assert_eq!(ran.action, TX);
        match tcp_of(&ran.frame).1 {
            BACKEND => first += 1,
            OTHER => second += 1,
            other => panic!("to {other:?}"),
        }
    }
    (first, second)
}

#[test]
fn a_backend_that_refuses_is_passed_over_for_200_ms() {
    let mut program = two_backends();
    let (first, second) = spread(&mut program, 10_000..10_100);
    assert!(first > 20 && second > 20, "{first} and {second}");
    // A port whose SYN backend 3 got.
    let port = (10_000..10_100).find(|port| program.record(3, *port).claim().is_live()).expect("one");
    let refusal = from(BACKEND, port, RST | ACK).numbers(0, 1001).build();
    assert_eq!(program.run(&refusal).action, TX, "the client is told");
    assert_eq!(spread(&mut program, 20_000..20_100), (0, 100));
    assert!(program.counters().suspect_passed_over > 20);
    let signals = program.signals();
    assert_eq!(signals.len(), 1, "{signals:?}");
    assert_eq!((signals[0].kind, signals[0].backend), (SIGNAL_REFUSED, 3));
    sleep(Duration::from_millis(210));
    let (first, _) = spread(&mut program, 30_000..30_100);
    assert!(first > 20, "{first}");
}

#[test]
fn with_only_suspects_the_chosen_one_is_used() {
    let mut program = setup();
    for port in [10_000, 10_001] {
        assert_eq!(program.run(&syn(port)).action, TX);
        assert_eq!(program.run(&from(BACKEND, port, RST | ACK).numbers(0, 1001).build()).action, TX);
    }
    assert_eq!(program.run(&syn(10_002)).action, TX);
    assert_eq!(program.backend_counters(3).refused, 2);
    assert_eq!(program.signals().len(), 1, "one signal in 10 ms");
    sleep(Duration::from_millis(12));
    assert_eq!(program.run(&from(BACKEND, 10_002, RST | ACK).numbers(0, 1001).build()).action, TX);
    assert_eq!(program.signals().len(), 1);
}

fn establish(program: &mut Program, port: u16) {
    let client = |flags| TcpFrame::new((CLIENT.0, port), SERVICE, flags);
    for frame in [
        client(SYN).numbers(1000, 0),
        from(BACKEND, port, SYN | ACK).numbers(5000, 1001),
        client(ACK).numbers(1001, 5001),
    ] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
}

#[test]
fn ends_of_established_flows_make_a_suspect_only_two_at_once() {
    for (first, second, pause_ms, suspect) in [
        (RST, RST, 0, true),
        (FIN | ACK, RST, 0, true),
        (FIN | ACK, FIN | ACK, 0, true),
        (FIN | ACK, FIN | ACK, 15, false),
    ] {
        let mut program = two_backends();
        program.maglev(0, 3);
        for port in [10_000, 10_001] {
            establish(&mut program, port);
        }
        program.maglev_of(0, |slot| if slot % 2 == 0 { 3 } else { 4 });
        for (port, flags) in [(10_000, first), (10_001, second)] {
            assert!(program.signals().is_empty(), "one end says nothing");
            assert_eq!(program.run(&from(BACKEND, port, flags).numbers(5001, 1001).build()).action, TX);
            sleep(Duration::from_millis(pause_ms));
        }
        let (got, _) = spread(&mut program, 20_000..20_050);
        assert_eq!(got == 0, suspect, "{first:x} {second:x} {pause_ms}: {got}");
        let kinds: Vec<u16> = program.signals().iter().map(|signal| signal.kind).collect();
        assert_eq!(kinds, if suspect { vec![SIGNAL_ENDED] } else { vec![] });
    }
}

#[test]
fn clients_that_close_make_no_suspect() {
    let mut program = setup();
    for port in [10_000, 10_001, 10_002] {
        establish(&mut program, port);
        let client = TcpFrame::new((CLIENT.0, port), SERVICE, FIN | ACK).numbers(1001, 5001).build();
        assert_eq!(program.run(&client).action, TX);
        assert_eq!(program.run(&from(BACKEND, port, FIN | ACK).numbers(5001, 1002).build()).action, TX);
    }
    assert!(program.signals().is_empty());
}

#[test]
fn a_flows_history_is_told() {
    let cases: [(&str, Vec<TcpFrame>, u16); 4] = [
        (
            "client first",
            vec![
                client(FIN | ACK).numbers(1001, 5001),
                backend(FIN | ACK).numbers(5001, 1002),
                client(ACK).numbers(1002, 5002),
            ],
            CLOSED_BY_CLIENT,
        ),
        (
            "backend first",
            vec![
                backend(FIN | ACK).numbers(5001, 1001),
                client(FIN | ACK).numbers(1001, 5002),
                backend(ACK).numbers(5002, 1002),
            ],
            CLOSED_BY_BACKEND,
        ),
        ("client's RST", vec![client(RST).numbers(1001, 0)], CLOSED_RESET_BY_CLIENT),
        ("backend's RST", vec![backend(RST).numbers(5001, 0)], CLOSED_RESET_BY_BACKEND),
    ];
    for (case, end, why) in cases {
        let mut program = setup();
        handshake(&mut program);
        let begun = program.events();
        assert_eq!(begun.len(), 1, "{case}");
        sleep(Duration::from_millis(40));
        for frame in end {
            assert_eq!(program.run(&frame.build()).action, TX, "{case}");
        }
        let ended = program.events();
        assert_eq!(ended.len(), 1, "{case}: {ended:?}");
        let (begun, ended) = (begun[0], ended[0]);
        assert_eq!((begun.kind, ended.kind, ended.why), (EVENT_ESTABLISHED, EVENT_CLOSED, why), "{case}");
        for event in [begun, ended] {
            assert_eq!(event.client.to_ip(), CLIENT.0, "{case}");
            assert_eq!((event.client_port, event.nat_port), (KEY_PORT, KEY_PORT), "{case}");
            assert_eq!((event.backend, event.service), (3, 0), "{case}");
        }
        let lasted = age_ns(ended.established, ended.at) / 1_000_000;
        assert!((20..500).contains(&lasted), "{case}: {lasted} ms");
        let counters = program.backend_counters(3);
        assert_eq!(
            (counters.reset_by_client, counters.reset_by_backend),
            (u64::from(why == CLOSED_RESET_BY_CLIENT), u64::from(why == CLOSED_RESET_BY_BACKEND)),
            "{case}"
        );
        assert!(program.events().is_empty(), "{case}");
    }
}

#[test]
fn events_that_find_no_room_are_counted() {
    let mut program = Program::load(131_072);
    program.service(0, VIP, 2379, 0);
    program.backend(3, 0, VIP, BACKEND);
    program.maglev(0, 3);
    let fits = EVENTS_LEN / (size_of::<FlowEvent>() + 8);
    for port in 0..fits as u16 + 100 {
        establish(&mut program, 10_000 + port);
    }
    let lost = program.counters().events_lost;
    let told = program.events().len();
    println!("{told} events told, {lost} lost");
    assert_eq!(told as u64 + lost, fits as u64 + 100);
    assert!(lost > 0 && told + 2 >= fits);
}

#[test]
fn how_long_a_backend_took_to_answer_is_counted_once() {
    let mut program = setup();
    assert_eq!(program.run(&client(SYN).numbers(1000, 0).build()).action, TX);
    sleep(Duration::from_millis(6));
    let answer = backend(SYN | ACK).numbers(5000, 1001).build();
    for _ in 0..2 {
        assert_eq!(program.run(&answer).action, TX);
    }
    let times = program.handshakes(3);
    let took: Vec<usize> = (0..times.buckets.len()).filter(|bucket| times.buckets[*bucket] > 0).collect();
    assert_eq!(times.buckets.iter().sum::<u64>(), 1);
    assert!(took[0] >= handshake_bucket(6_000_000), "{times:?}");
    assert!((6_000_000..1_000_000_000).contains(&times.sum), "{times:?}");
}

#[test]
fn a_foreign_claim_is_told_with_its_mac_and_once_in_10_ms() {
    let mut program = setup();
    let foreign = Mac::new([2, 0, 0, 0, 0, 0x66]);
    let claim = arp_request(Mac::new([0xff; 6]), (foreign, VIP), VIP);
    for _ in 0..5 {
        assert_eq!(program.run(&claim).action, DROP);
    }
    let signals = program.signals();
    assert_eq!(signals.len(), 1, "{signals:?}");
    assert_eq!((signals[0].kind, signals[0].mac), (SIGNAL_VIP_CONFLICT, foreign));
    assert_eq!(signals[0].address.to_ip(), VIP);
    assert_eq!(program.counters().vip_conflict, 5);
}

#[test]
fn a_full_table_is_told() {
    let mut program = setup();
    program.set_load(LOAD_TOTAL, 1024);
    for port in 10_000..10_005 {
        program.run(&syn(port));
    }
    let signals = program.signals();
    assert!(!signals.is_empty() && signals.iter().all(|signal| signal.kind == SIGNAL_TABLE_FULL));
    // One in 10 ms, however slow the machine is.
    assert!(signals.windows(2).all(|two| two[1].at - two[0].at >= SIGNAL_GAP_NS), "{signals:?}");
}
