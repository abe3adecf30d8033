//! IPv6 in the real program under `BPF_PROG_TEST_RUN`: what is for a VIP and what is for nobody here.

use std::net::{Ipv4Addr, Ipv6Addr};

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::{Addr, Mac},
    claim::State,
    maps::*,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

#[test]
fn a_connection_lives_and_ends_step_by_step() {
    let mut program = setup_v6();
    let steps = [
        ("SYN", client_v6(SYN).numbers(1000, 0), State::HalfOpen),
        ("SYN-ACK", backend_v6(SYN | ACK).numbers(5000, 1001), State::HalfOpen),
        ("ACK", client_v6(ACK).numbers(1001, 5001), State::Established),
        ("request", client_v6(ACK | PSH).numbers(1001, 5001).payload(101), State::Established),
        ("response", backend_v6(ACK | PSH).numbers(5001, 1102).payload(300), State::Established),
        ("client's FIN", client_v6(ACK | FIN).numbers(1102, 5301), State::Established),
        ("backend's FIN", backend_v6(ACK | FIN).numbers(5301, 1103), State::Established),
        ("last ACK", client_v6(ACK).numbers(1103, 5302), State::Closed),
    ];
    for (step, frame, state) in steps {
        let (ran, counters) = run(&mut program, &frame.build(), step);
        assert_eq!(ran.action, TX, "{step}: {counters:?}");
        let from_client = frame.source == CLIENT6;
        let want = if from_client {
            ((VIP6, CLIENT6.1), BACKEND6, BACKEND_MAC)
        } else {
            ((VIP6, 2379), CLIENT6, CLIENT_MAC)
        };
        let (from, to, tcp) = tcp_v6_of(&ran.frame);
        assert_eq!((from, to), (want.0, want.1), "{step}");
        assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (frame.seq, frame.ack), "{step}");
        assert_eq!((&ran.frame[..6], ran.frame[21]), (&want.2.octets()[..], 63), "{step}: MAC, hop limit");
        assert_eq!(ran.frame[74..], frame.build()[74..], "{step}: payload");
        assert!(program.record(3, CLIENT6.1).claim().is(state), "{step}");
    }
    let backend = program.backend_counters(3);
    assert_eq!((backend.packets_in, backend.packets_out), (5, 3));
}

#[test]
fn both_families_live_side_by_side() {
    let mut program = setup_v6();
    program.service(1, VIP, 2379, 0);
    program.backend(4, 1, VIP, BACKEND);
    program.maglev(1, 4);
    for (frame, to) in [(client(SYN).build(), false), (client_v6(SYN).build(), true)] {
        let (ran, counters) = run(&mut program, &frame, "SYN");
        assert_eq!((ran.action, counters), (TX, vec!["flow_new"]));
        if to {
            assert_eq!(tcp_v6_of(&ran.frame).1, BACKEND6);
        } else {
            assert_eq!(tcp_of(&ran.frame).1, BACKEND);
        }
    }
    // IPv4-mapped addresses in an IPv6 packet mean nothing.
    let mut mapped = client_v6(SYN);
    mapped.destination.0 = VIP.to_ipv6_mapped();
    assert_eq!(run(&mut program, &mapped.build(), "to the mapped VIP").0.action, PASS);
    let mut mapped = client_v6(SYN);
    mapped.source.0 = Ipv4Addr::new(10, 0, 2, 7).to_ipv6_mapped();
    assert_eq!(run(&mut program, &mapped.build(), "from a mapped address").1, ["malformed"]);
    let mut group = client_v6(SYN);
    group.source.0 = "ff02::1".parse().expect("an address");
    assert_eq!(run(&mut program, &group.build(), "from a group").1, ["malformed"]);
}

#[test]
fn what_no_table_knows_is_reset_exactly() {
    let mut program = setup_v6();
    let mut closed = client_v6(SYN).numbers(1000, 0);
    closed.destination.1 = 80;
    let table = [
        ("closed port", closed, "closed_port", Some((0, Some(1001)))),
        ("unknown flow", client_v6(ACK).numbers(7, 5001).payload(3), "unknown_flow", Some((5001, None))),
        ("unknown return", backend_v6(ACK).numbers(5, 1001), "unknown_return", Some((1001, None))),
        ("RST", client_v6(RST).numbers(7, 0), "unknown_rst", None),
    ];
    for (case, frame, counter, reset) in table {
        let (ran, counters) = run(&mut program, &frame.build(), case);
        assert_eq!(counters, [counter], "{case}");
        let Some((seq, ack)) = reset else {
            assert_eq!(ran.action, DROP, "{case}");
            continue;
        };
        let (from, to, tcp) = tcp_v6_of(&ran.frame);
        assert_eq!((ran.action, from, to), (TX, frame.destination, frame.source), "{case}");
        assert!(tcp.rst, "{case}");
        assert_eq!((tcp.sequence_number, tcp.ack.then_some(tcp.acknowledgment_number)), (seq, ack), "{case}");
        assert_eq!(ran.frame.len(), 74, "{case}");
        assert_eq!(ran.frame[..6], *frame.from_mac.octets(), "{case}");
    }
}

#[test]
fn a_raised_epoch_resets_and_hop_limits_are_used_up() {
    let mut program = setup_v6();
    handshake_v6(&mut program);
    for (hop_limit, action) in [(0, DROP), (1, DROP), (2, TX), (255, TX)] {
        for mut frame in [client_v6(ACK).numbers(1001, 5001), backend_v6(ACK).numbers(5001, 1001)] {
            frame.hop_limit = hop_limit;
            let (ran, counters) = run(&mut program, &frame.build(), "hop limit");
            assert_eq!(ran.action, action, "{hop_limit}");
            if action == DROP {
                assert_eq!(counters, ["ttl_expired"]);
            } else {
                assert_eq!(ran.frame[21], hop_limit - 1);
            }
        }
    }
    let mut raised = program.get_backend(3);
    raised.epoch += 1;
    program.set_backend(3, raised);
    for (frame, seq) in
        [(client_v6(ACK).numbers(1001, 5001), 5001), (backend_v6(ACK).numbers(5001, 1001), 1001)]
    {
        let (ran, counters) = run(&mut program, &frame.build(), "epoch");
        assert_eq!((ran.action, counters), (TX, vec!["flow_reset"]));
        assert_eq!(tcp_v6_of(&ran.frame).2.sequence_number, seq);
    }
}

#[test]
fn only_allowed_prefixes_connect() {
    let mut program = setup_v6();
    program.service(0, VIP6, 2379, SERVICE_ALLOW);
    assert_eq!(run(&mut program, &client_v6(SYN).build(), "nobody").1, ["not_allowed"]);
    program.allow(0, "fd00:2::".parse::<Ipv6Addr>().expect("an address"), 64);
    assert_eq!(run(&mut program, &client_v6(SYN).build(), "in the prefix").1, ["flow_new"]);
    let mut outside = client_v6(SYN);
    outside.source.0 = "fd00:3::7".parse().expect("an address");
    assert_eq!(run(&mut program, &outside.build(), "outside").1, ["not_allowed"]);
}

#[test]
fn extension_headers_are_passed_on_and_never_misread() {
    let options = |kind| Extension { kind, body: vec![1, 4, 0, 0, 0, 0] };
    let route = |left| Extension { kind: 43, body: vec![4, left, 0, 0, 0, 0] };
    let long =
        |units: usize| Extension { kind: 60, body: [vec![1, 4, 0, 0, 0, 0], vec![0; 8 * units]].concat() };
    let cases: &[(&str, Vec<Extension>, Option<&str>)] = &[
        ("hop-by-hop", vec![options(0)], None),
        ("destination options", vec![options(60)], None),
        ("a route that ends here", vec![route(0)], None),
        ("all three", vec![options(0), options(60), route(0)], None),
        ("256 octets", vec![long(31)], None),
        ("264 octets", vec![long(32)], Some("extension_headers")),
        ("a route that goes on", vec![route(1)], Some("extension_headers")),
        ("hop-by-hop that is not first", vec![options(60), options(0)], Some("extension_headers")),
        ("four headers", vec![options(60); 4], None),
        ("five headers", vec![options(60); 5], Some("extension_headers")),
        ("fragment", vec![Extension { kind: 44, body: vec![0, 1, 0, 0, 0, 1] }], Some("fragment")),
        ("whole fragment", vec![Extension { kind: 44, body: vec![0; 6] }], Some("fragment")),
        (
            "fragment behind options",
            vec![options(0), Extension { kind: 44, body: vec![0; 6] }],
            Some("fragment"),
        ),
        ("authentication", vec![Extension { kind: 51, body: vec![0; 6] }], Some("protocol")),
    ];
    for (case, extensions, dropped) in cases {
        let mut program = setup_v6();
        let mut syn = client_v6(SYN).numbers(1000, 0);
        syn.extensions.clone_from(extensions);
        let (ran, counters) = run(&mut program, &syn.build(), case);
        if let Some(reason) = dropped {
            assert_eq!((ran.action, counters), (DROP, vec![*reason]), "{case}");
            continue;
        }
        assert_eq!((ran.action, counters), (TX, vec!["flow_new"]), "{case}");
        assert_eq!(tcp_v6_of(&ran.frame).1, BACKEND6, "{case}");
        assert_eq!(ran.frame[54..syn.l4()], syn.build()[54..syn.l4()], "{case}: headers as they were");
        // Established too, in both directions, and to a closed port.
        handshake_v6(&mut program);
        for mut frame in
            [client_v6(ACK).numbers(1001, 5001).payload(9), backend_v6(ACK).numbers(5001, 1010).payload(9)]
        {
            frame.extensions.clone_from(extensions);
            let (ran, counters) = run(&mut program, &frame.build(), case);
            assert_eq!((ran.action, counters.len()), (TX, 0), "{case}");
        }
        syn.destination.1 = 80;
        let (ran, counters) = run(&mut program, &syn.build(), case);
        assert_eq!((ran.action, counters), (TX, vec!["closed_port"]), "{case}");
        assert_eq!(ran.frame.len(), 74, "{case}: the RST has none");
    }
}

#[test]
fn solicitations_for_the_vip_are_answered() {
    let mut program = setup_v6();
    let group_mac = Mac::new([0x33, 0x33, 0xff, 0, 1, 0]);
    let all_nodes_mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let (asker, nobody) = (CLIENT6.0, Ipv6Addr::UNSPECIFIED);
    let option = [vec![1, 1], CLIENT_MAC.octets().to_vec()].concat();
    let nonce = vec![14, 1, 1, 2, 3, 4, 5, 6];
    let cases = [
        ("to the group", group_mac, asker, group_of(VIP6), option.clone()),
        ("unicast", OWN_MAC, asker, VIP6, option.clone()),
        ("unicast without option", OWN_MAC, asker, VIP6, vec![]),
        ("is it free", group_mac, nobody, group_of(VIP6), vec![]),
        ("is it free, with a nonce", group_mac, nobody, group_of(VIP6), nonce),
    ];
    for (case, to_mac, source, destination, options) in cases {
        let frame = neighbour(135, (to_mac, CLIENT_MAC), (source, destination), VIP6, 255, &options);
        let (ran, counters) = run(&mut program, &frame, case);
        assert_eq!((ran.action, counters), (TX, vec!["nd_reply"]), "{case}");
        let (flags, to, mac) =
            if source == nobody { (0x20, all_nodes, all_nodes_mac) } else { (0x60, asker, CLIENT_MAC) };
        let target_option = [vec![2, 1], OWN_MAC.octets().to_vec()].concat();
        let mut want = neighbour(136, (mac, OWN_MAC), (VIP6, to), VIP6, 255, &target_option);
        want[58] = flags;
        set_icmp_checksum(&mut want);
        assert_eq!(ran.frame, want, "{case}");
    }
    program.set_lease(Lease { granted_at: 1, deadline: 1, ..Lease::NONE });
    let frame = neighbour(135, (group_mac, CLIENT_MAC), (asker, group_of(VIP6)), VIP6, 255, &option);
    assert_eq!(run(&mut program, &frame, "fenced").1, ["fenced"]);
}

#[test]
fn neighbour_discovery_of_others_is_not_touched() {
    let mut program = setup_v6();
    let group_mac = Mac::new([0x33, 0x33, 0xff, 0, 1, 0]);
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    // Another address with the same group, one with the VIP's last octets, and the node's own.
    for other in ["fd00:1::ab00:100", "fd00:9::100", "fe80::100", "fd00:1::2"] {
        let other: Ipv6Addr = other.parse().expect("an address");
        for (kind, to) in [(135, group_of(other)), (135, other), (136, all_nodes), (136, other)] {
            let frame = neighbour(kind, (group_mac, CLIENT_MAC), (CLIENT6.0, to), other, 255, &[]);
            let (ran, counters) = run(&mut program, &frame, "of others");
            assert_eq!((ran.action, counters.len()), (PASS, 0), "{kind} for {other} to {to}");
        }
    }
    // A router's advertisement and a listener query, as every link has them.
    for (kind, to) in [(134u8, "ff02::1"), (130, "ff02::1"), (133, "ff02::2"), (143, "ff02::16")] {
        let to = to.parse().expect("an address");
        let frame = neighbour(
            kind,
            (group_mac, CLIENT_MAC),
            ("fe80::9".parse().expect("an address"), to),
            VIP6,
            255,
            &[],
        );
        assert_eq!(run(&mut program, &frame, "ICMPv6 of others").0.action, PASS, "{kind}");
    }
}

#[test]
fn who_else_claims_the_vip_is_counted() {
    let mut program = setup_v6();
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let all_nodes_mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
    let na = |from: Mac| neighbour(136, (all_nodes_mac, from), (VIP6, all_nodes), VIP6, 255, &[]);
    let (ran, counters) = run(&mut program, &na(CLIENT_MAC), "another host");
    assert_eq!((ran.action, counters), (DROP, vec!["nd_other", "vip_conflict"]));
    assert_eq!(run(&mut program, &na(OWN_MAC), "our own").1, ["nd_other"]);
    let far = neighbour(136, (all_nodes_mac, CLIENT_MAC), (VIP6, all_nodes), VIP6, 64, &[]);
    assert_eq!(run(&mut program, &far, "from behind a router").1, ["nd_other"]);
    let asks = neighbour(135, (all_nodes_mac, CLIENT_MAC), (VIP6, group_of(VIP6)), VIP6, 255, &[]);
    assert_eq!(run(&mut program, &asks, "asks in the VIP's name").1, ["nd_other", "vip_conflict"]);
    let tagged = {
        let mut frame = neighbour(135, (OWN_MAC, CLIENT_MAC), (CLIENT6.0, VIP6), VIP6, 255, &[]);
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame
    };
    assert_eq!(run(&mut program, &tagged, "in a VLAN").1, ["nd_elsewhere"]);
}

#[test]
fn ping_is_answered_for_the_vip_only() {
    let mut program = setup_v6();
    for data in [0, 1, 56, 1400] {
        let sent = ping_v6(CLIENT6.0, VIP6, data);
        let (ran, counters) = run(&mut program, &sent, "ping");
        assert_eq!((ran.action, counters), (TX, vec!["echo_reply"]));
        assert_eq!(ran.frame[22..54], [&sent[38..54], &sent[22..38]].concat(), "addresses");
        assert_eq!((ran.frame[54], &ran.frame[58..], ran.frame[21]), (129, &sent[58..], 64));
    }
    for other in ["fd00:1::2", "fd00:9::100", "ff02::1"] {
        let other = other.parse().expect("an address");
        assert_eq!(run(&mut program, &ping_v6(CLIENT6.0, other, 56), "others").0.action, PASS);
    }
    let mut unreachable = ping_v6(CLIENT6.0, VIP6, 56);
    unreachable[54] = 1;
    assert_eq!(run(&mut program, &unreachable, "unreachable").1, ["icmp"]);
    let mut udp = ping_v6(CLIENT6.0, VIP6, 56);
    udp[20] = 17;
    assert_eq!(run(&mut program, &udp, "UDP").1, ["protocol"]);
}

#[test]
fn a_packet_for_the_vip_never_reaches_the_kernel_however_it_deviates() {
    let mut program = setup_v6();
    handshake_v6(&mut program);
    let mut with_options = client_v6(ACK).numbers(1001, 5001).payload(20);
    with_options.extensions = vec![Extension { kind: 60, body: vec![1, 4, 0, 0, 0, 0] }];
    let bases = [
        client_v6(SYN).payload(20),
        client_v6(ACK).numbers(1001, 5001).payload(20),
        backend_v6(ACK).numbers(5001, 1001).payload(20),
        with_options,
    ];
    for base in bases {
        for deviation in deviations_v6(&base) {
            let (ran, counters) = run(&mut program, &deviation.frame, &deviation.name);
            let want = if deviation.names_vip { (DROP, 1) } else { (PASS, 0) };
            assert_eq!((ran.action, counters.len()), want, "{}: {counters:?}", deviation.name);
        }
    }
}

#[test]
fn frames_for_other_hosts_are_not_touched() {
    let mut program = setup_v6();
    handshake_v6(&mut program);
    for base in [client_v6(SYN), client_v6(ACK).numbers(1001, 5001), backend_v6(ACK).numbers(5001, 1001)] {
        let mut flooded = base.clone();
        flooded.to_mac = Mac::new([2, 0, 0, 0, 0, 0x77]);
        assert_eq!(run(&mut program, &flooded.build(), "flooded by a switch").0.action, PASS);
        let mut group = base.clone();
        group.to_mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(run(&mut program, &group.build(), "group").1, ["group_mac"]);
        let mut other = base;
        other.destination.0 = "fd00:9::100".parse().expect("an address");
        assert_eq!(run(&mut program, &other.build(), "the VIP's last octets").0.action, PASS);
    }
    assert!(program.record(3, CLIENT6.1).client == Addr::from(std::net::IpAddr::V6(CLIENT6.0)));
}

#[test]
fn random_frames_are_passed_whole_or_sent_sound() {
    let mut program = setup_v6();
    let mut random = Random(0x5eed_0006);
    let (mut sent, mut passed) = (0, 0);
    for number in 0..10_000 {
        let (frame, sound) = random.any_v6();
        let before = program.counters();
        let ran = program.run(&frame);
        let context = format!("frame {number}: {frame:02x?}");
        let counted = !changed(&before, &program.counters()).is_empty();
        match ran.action {
            PASS => {
                passed += 1;
                assert_eq!(ran.frame, frame, "{context}");
                assert!(!counted, "{context}");
            }
            TX => {
                sent += 1;
                if sound {
                    assert_sound(&ran.frame, &context);
                }
            }
            _ => assert!(counted, "{context}"),
        }
        let other = !frame.windows(16).any(|window| window == VIP6.octets());
        assert!(!other || ran.action == PASS, "{context}: it does not name the VIP");
    }
    println!("{sent} transmitted, {passed} passed");
    assert!(sent > 500 && passed > 1000, "the frames do not exercise the program");
}
