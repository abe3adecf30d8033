//! What is for a VIP and no established flow, and what is for nobody here, in the real program under
//! `BPF_PROG_TEST_RUN`.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{
    addr::Mac,
    maps::*,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

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
    /// SEQ, and ACK if set, of the RST that answers.
    type Reset = Option<(u32, Option<u32>)>;
    let table: &[(&str, TcpFrame, u32, &str, Reset)] = &[
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
    let over = Lease { granted_at: 1, deadline: 2, ..Lease::NONE };
    let revoked = Lease { granted_at: 1, deadline: u64::MAX, revoked_at: 1, ..Lease::NONE };
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
        assert_eq!(run(&mut program, &frame.build(), "for the VIP").0.action, TX);
        frame.destination.0 = Ipv4Addr::new(10, 0, 1, 1);
        assert_eq!(run(&mut program, &frame.build(), "not for the VIP").0.action, PASS);
    }
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
