//! What lies under TCP's addresses in the real program under `BPF_PROG_TEST_RUN`: VLAN tags, MTU, MSS.

use std::net::Ipv6Addr;

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::Mac,
    tcp::{ACK, PSH, SYN},
};

type Tags = Vec<(u16, u16)>;

/// The tags of a frame, and where its IP header starts.
fn tags_of(frame: &[u8]) -> (Tags, usize) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut tags = Vec::new();
    let mut at = 12;
    while [0x8100, 0x88a8].contains(&word(at)) {
        tags.push((word(at), word(at + 2)));
        at += 4;
    }
    (tags, at + 2)
}

fn control(tags: &Tags) -> [u16; 2] {
    let word = |n: usize| tags.get(n).map_or(0, |tag: &(u16, u16)| tag.1.to_be());
    [word(0), word(1)]
}

#[test]
fn each_side_of_a_flow_has_its_own_tags() {
    let none = || Tags::new();
    let one = |n: u16| vec![(0x8100, n)];
    let two = |n: u16| vec![(0x88a8, n), (0x8100, n + 1)];
    for (client_tags, backend_tags) in [
        (none(), one(7)),
        (one(7), none()),
        (one(7), one(8)),
        (one(0x2007), two(9)),
        (two(9), one(7)),
        (two(9), none()),
        (none(), two(9)),
        (two(9), two(11)),
    ] {
        let mut program = setup();
        let mut hop = program.get_backend(3);
        hop.hop.tags = control(&backend_tags);
        program.set_backend(3, hop);
        let steps = [
            client(SYN).numbers(1000, 0),
            backend(SYN | ACK).numbers(5000, 1001),
            client(ACK).numbers(1001, 5001),
            client(ACK | PSH).numbers(1001, 5001).payload(100),
            backend(ACK | PSH).numbers(5001, 1101).payload(300),
        ];
        for (number, mut frame) in steps.into_iter().enumerate() {
            let from_client = frame.source == CLIENT;
            let (came, goes) =
                if from_client { (&client_tags, &backend_tags) } else { (&backend_tags, &client_tags) };
            frame.tags = came.clone();
            let context = format!("step {number}, {came:x?} to {goes:x?}");
            let (ran, counters) = run(&mut program, &frame.build(), &context);
            assert_eq!(ran.action, TX, "{context}: {counters:?}");
            let (tags, l3) = tags_of(&ran.frame);
            assert_eq!(&tags, goes, "{context}");
            let to = if from_client { BACKEND_MAC } else { CLIENT_MAC };
            assert_eq!(ran.frame[..12], [*to.octets(), *OWN_MAC.octets()].concat(), "{context}: MACs");
            assert_eq!(ran.frame[l3 + 20 + 16..].len(), frame.build()[frame.l4() + 16..].len(), "{context}");
        }
    }
}

/// A frame with VLAN tags before its EtherType.
fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()].concat());
    [frame[..12].to_vec(), tags.collect(), frame[12..].to_vec()].concat()
}

#[test]
fn arp_and_nd_are_answered_in_the_vlans_of_the_vip() {
    let (mut v4, mut v6) = (setup(), setup_v6());
    let ask = arp_request(Mac::new([0xff; 6]), (CLIENT_MAC, CLIENT.0), VIP);
    let group_mac = Mac::new([0x33, 0x33, 0xff, 0, 1, 0]);
    let solicit = neighbour(
        135,
        (group_mac, CLIENT_MAC),
        (CLIENT6.0, group_of(VIP6)),
        VIP6,
        255,
        &[1, 1, 2, 0, 0, 0, 0, 1],
    );
    let untagged = (run(&mut v4, &ask, "ARP").0.frame, run(&mut v6, &solicit, "ND").0.frame);
    // Priority 5 says nothing about the VLAN; identifier 0 with a priority is no VLAN at all.
    for (vlan, tags) in [
        ([0, 0], vec![(0x8100, 0xa000)]),
        ([7, 0], vec![(0x8100, 0xa007)]),
        ([7, 8], vec![(0x88a8, 7), (0x8100, 0xa008)]),
    ] {
        if vlan != [0, 0] {
            let elsewhere = |ran: (Ran, Vec<&str>)| (ran.0.action, ran.1.join(" "));
            let answer = elsewhere(run(&mut v4, &tagged(&ask, &tags), "ARP in no VLAN of the VIP"));
            assert_eq!(answer, (DROP, "arp_elsewhere".into()), "{vlan:?}");
            let answer = elsewhere(run(&mut v6, &tagged(&solicit, &tags), "ND in no VLAN of the VIP"));
            assert_eq!(answer, (DROP, "nd_elsewhere".into()), "{vlan:?}");
            v4.answer_in_vlan(VIP, vlan);
            v6.answer_in_vlan(VIP6, vlan);
        }
        let (ran, counters) = run(&mut v4, &tagged(&ask, &tags), "ARP");
        assert_eq!((ran.action, counters), (TX, vec!["arp_reply"]), "{vlan:?}");
        assert_eq!(ran.frame, tagged(&untagged.0, &tags), "{vlan:?}");
        let (ran, counters) = run(&mut v6, &tagged(&solicit, &tags), "ND");
        assert_eq!((ran.action, counters), (TX, vec!["nd_reply"]), "{vlan:?}");
        assert_eq!(ran.frame, tagged(&untagged.1, &tags), "{vlan:?}");
    }
    let other = tagged(&ask, &[(0x8100, 9)]);
    assert_eq!(run(&mut v4, &other, "another VLAN").1, ["arp_elsewhere"]);
}

#[test]
fn a_reset_goes_back_by_the_tags_that_its_packet_came_by() {
    let mut program = setup();
    let mut frame = client(ACK).numbers(1, 2);
    frame.tags = vec![(0x8100, 7)];
    let (ran, counters) = run(&mut program, &frame.build(), "unknown");
    assert_eq!((ran.action, counters), (TX, vec!["unknown_flow"]));
    assert_eq!(tags_of(&ran.frame).0, frame.tags);
}

fn mss_of(frame: &[u8]) -> Option<u16> {
    let l4 = if frame[14] >> 4 == 4 { 14 + usize::from(frame[14] & 0xf) * 4 } else { 54 };
    let end = l4 + usize::from(frame[l4 + 12] >> 4) * 4;
    let mut at = l4 + 20;
    while at < end {
        match frame[at] {
            0 => return None,
            1 => at += 1,
            2 => return Some(u16::from_be_bytes([frame[at + 2], frame[at + 3]])),
            _ => at += usize::from(frame[at + 1]).max(2),
        }
    }
    None
}

#[test]
fn the_mss_of_both_ends_is_clamped_to_the_mtu() {
    let mss = |n: u16| [2, 4, (n >> 8) as u8, n as u8];
    for before in [&[][..], &[1], &[1, 1], &[3, 3, 7], &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]] {
        for (offered, mtu, want) in
            [(1460, 1400, 1360), (1460, 1500, 1460), (536, 1400, 536), (8960, 1500, 1460)]
        {
            let mut program = setup();
            program.set_mtu(mtu);
            let mut options = [before, &mss(offered)].concat();
            options.resize(options.len().next_multiple_of(4), 1);
            let mut syn = client(SYN).numbers(1000, 0);
            syn.tcp_options = options.clone();
            let mut answer = backend(SYN | ACK).numbers(5000, 1001);
            answer.tcp_options = options.clone();
            for frame in [syn, answer] {
                let context = format!("{offered} after {before:?}, MTU {mtu}");
                let (ran, counters) = run(&mut program, &frame.build(), &context);
                assert_eq!(ran.action, TX, "{context}: {counters:?}");
                assert_eq!(mss_of(&ran.frame), Some(want), "{context}");
            }
        }
    }
}

#[test]
fn the_mss_of_ipv6_is_clamped_too() {
    let mut program = setup_v6();
    program.set_mtu(1400);
    let mut syn = client_v6(SYN).numbers(1000, 0);
    syn.tcp_options = vec![2, 4, 0x05, 0xa0];
    let (ran, _) = run(&mut program, &syn.build(), "SYN");
    assert_eq!(mss_of(&ran.frame), Some(1340));
}

#[test]
fn options_that_contradict_themselves_are_left_alone() {
    for options in [
        vec![2, 4, 0x05, 0xb4],
        vec![2, 3, 0x05, 0xb4],
        vec![3, 0, 0, 0, 2, 4, 5, 0xb4],
        vec![3, 1, 0, 0],
        vec![0, 0, 0, 0, 2, 4, 5, 0xb4],
        vec![1, 1, 1, 2],
        vec![5, 255, 0, 0],
        vec![1; 40],
    ] {
        let mut program = setup();
        program.set_mtu(1200);
        let mut syn = client(SYN).numbers(1000, 0);
        syn.tcp_options = options.clone();
        let (ran, _) = run(&mut program, &syn.build(), &format!("{options:?}"));
        assert_eq!(ran.action, TX, "{options:?}");
        if options != [2, 4, 0x05, 0xb4] {
            assert_eq!(ran.frame[54..], options, "left as they were");
        }
    }
}

#[test]
fn what_does_not_fit_is_answered_with_the_mtu() {
    let mut program = setup();
    handshake(&mut program);
    program.set_mtu(1400);
    for frame in [
        client(ACK | PSH).numbers(1001, 5001).payload(1361),
        backend(ACK | PSH).numbers(5001, 1001).payload(1361),
        {
            let mut tagged = client(ACK).numbers(1001, 5001).payload(1400);
            tagged.tags = vec![(0x8100, 7)];
            tagged
        },
    ] {
        let whole = frame.build();
        let before = program.counters();
        let ran = program.run(&whole);
        assert_eq!((ran.action, changed(&before, &program.counters())), (TX, vec!["too_big"]));
        let (tags, l3) = tags_of(&ran.frame);
        assert_eq!(tags, frame.tags);
        assert_eq!(ran.frame[..12], [*frame.from_mac.octets(), *OWN_MAC.octets()].concat());
        let ip = &ran.frame[l3..];
        assert_eq!(internet_sum(&ip[..20]), 0, "IP checksum");
        assert_eq!((ip[9], &ip[12..16], &ip[16..20]), (1, &VIP.octets()[..], &frame.source.0.octets()[..]));
        let icmp = &ip[20..usize::from(u16::from_be_bytes([ip[2], ip[3]]))];
        assert_eq!(internet_sum(icmp), 0, "ICMP checksum");
        assert_eq!((&icmp[..2], &icmp[4..8]), (&[3, 4][..], &[0, 0, 0x05, 0x78][..]), "1400");
        assert_eq!(icmp[8..], whole[frame.l3()..][..128], "the packet as it came");
    }
    let (ran, counters) =
        run(&mut program, &client(ACK).numbers(1001, 5001).payload(1360).build(), "just fits");
    assert_eq!((ran.action, counters), (TX, vec![]));
}

#[test]
fn what_does_not_fit_is_answered_in_ipv6_too() {
    let mut program = setup_v6();
    handshake_v6(&mut program);
    program.set_mtu(1400);
    for frame in [
        client_v6(ACK | PSH).numbers(1001, 5001).payload(1341),
        backend_v6(ACK | PSH).numbers(5001, 1001).payload(1400),
    ] {
        let whole = frame.build();
        let ran = program.run(&whole);
        assert_eq!(ran.action, TX);
        let ip = &ran.frame[14..];
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 octets"));
        assert_eq!((ip[6], address(8), address(24)), (58, VIP6, frame.source.0));
        let icmp = &ip[40..];
        assert_eq!(icmp.len(), usize::from(u16::from_be_bytes([ip[4], ip[5]])));
        let pseudo = [&ip[8..40], &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, 58], icmp].concat();
        assert_eq!(internet_sum(&pseudo), 0, "ICMPv6 checksum");
        assert_eq!((&icmp[..2], &icmp[4..8]), (&[2, 0][..], &[0, 0, 0x05, 0x78][..]), "1400");
        assert_eq!(icmp[8..], whole[14..][..128], "the packet as it came");
    }
}
