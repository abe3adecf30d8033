//! VRRP advertisements in the real program under `BPF_PROG_TEST_RUN`: they always pass, and only a stronger one of the
//! same pair ends the lease.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::Mac,
    checksum::fold,
    election::{Election, GROUP_V4, GROUP_V6},
    maps::{FLOW_COPIED, Forward, Lease, Record},
    tcp::{ACK, SYN},
};

/// What keepalived 2.2.7 sends for VRID 51 with priority 200, each 100 ms.
const V4: &str = "45c0002000010000ff701899c0000201e00000123133c801000aa225c000020a";
const V6: &str = "6c0000000028 70fffe80000000000000000000fffe000001ff020000000000000000000000000012\
    3133c802000add35fe80000000000000000000000000001020010db8000000010000000000000010";

fn packet(hex: &str) -> Vec<u8> {
    let digits: String = hex.chars().filter(char::is_ascii_hexdigit).collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}

/// The packet in a frame to the group's MAC, padded to the shortest that Ethernet has.
fn frame(packet: &[u8]) -> Vec<u8> {
    let (group, ethertype) = if packet[0] >> 4 == 4 {
        (Mac::new([1, 0, 0x5e, 0, 0, 0x12]), [8, 0])
    } else {
        (Mac::new([0x33, 0x33, 0, 0, 0, 0x12]), [0x86, 0xdd])
    };
    let mut frame = [*group.octets(), *CLIENT_MAC.octets()].concat();
    frame.extend(ethertype);
    frame.extend(packet);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The election of a node with priority 100 that advertises the same list.
fn election(packet: &[u8]) -> Election {
    let (message, source, destination): (_, IpAddr, _) = if packet[0] >> 4 == 4 {
        (&packet[20..], Ipv4Addr::new(192, 0, 2, 2).into(), GROUP_V4)
    } else {
        (&packet[40..], "fe80::2".parse::<Ipv6Addr>().expect("an address").into(), GROUP_V6)
    };
    let words = message[8..].chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]])));
    Election {
        source: source.into(),
        destination,
        ifindex: IFINDEX,
        list_sum: fold(words.sum()),
        head: u16::from_ne_bytes([message[0], message[1]]),
        length: message.len() as u16,
        priority: 100,
        count: message[3],
        ..Election::NONE
    }
}

/// Active for the next hour.
fn active() -> Lease {
    Lease { granted_at: 1, deadline: u64::MAX - 1, ..Lease::NONE }
}

fn program(packet: &[u8], is_v4: bool) -> Program {
    let mut program = if is_v4 { setup() } else { setup_v6() };
    program.set_election(is_v4, election(packet));
    program.set_lease(active());
    program
}

#[test]
fn a_stronger_advertisement_ends_the_lease_and_passes() {
    for (hex, is_v4) in [(V4, true), (V6, false)] {
        let packet = packet(hex);
        let mut program = program(&packet, is_v4);
        let sent = frame(&packet);
        let (ran, counters) = run(&mut program, &sent, "stronger");
        assert_eq!((ran.action, counters), (PASS, vec!["lease_revoked"]));
        assert_eq!(ran.frame, sent, "not one bit is changed");
        let lease = program.lease();
        assert!(lease.revoked_at >= lease.granted_at && !lease.holds(2), "{lease:?}");
        // It ends once, and a grant that was under way is too late.
        assert_eq!(run(&mut program, &sent, "again").1, [] as [&str; 0]);
        assert!(!Lease { granted_at: lease.revoked_at, ..program.lease() }.holds(2));
    }
}

#[test]
fn without_the_lease_known_flows_go_on_and_nothing_new_begins() {
    let packet = packet(V4);
    let mut program = program(&packet, true);
    handshake(&mut program);
    run(&mut program, &frame(&packet), "stronger");
    let known = client(ACK).numbers(1001, 5001).build();
    assert_eq!(run(&mut program, &known, "known").0.action, TX);
    let mut new = client(SYN);
    new.source.1 += 1;
    assert_eq!(run(&mut program, &new.build(), "new").1, ["fenced"]);
    let ask = arp_request(Mac::new([0xff; 6]), (CLIENT_MAC, CLIENT.0), VIP);
    assert_eq!(run(&mut program, &ask, "ARP").1, ["fenced"]);
}

#[test]
fn nothing_weaker_foreign_or_malformed_ends_it() {
    for (hex, is_v4) in [(V4, true), (V6, false)] {
        let good = packet(hex);
        let header = if is_v4 { 20 } else { 40 };
        let mut program = program(&good, is_v4);
        let mut unchanged = |frame: &[u8], case: &str| {
            let (ran, counters) = run(&mut program, frame, case);
            assert_eq!((ran.action, counters.len()), (PASS, 0), "{case}: {counters:?}");
            assert_eq!(ran.frame, frame, "{case}: not one bit is changed");
            assert_eq!(program.lease(), active(), "{case}");
        };
        // Every bit of the message, but those of the list, which only the checksum covers: the program does not read it.
        for bit in 0..64 {
            let mut packet = good.clone();
            packet[header + bit / 8] ^= 1 << (bit % 8);
            unchanged(&frame(&packet), &format!("bit {bit}"));
        }
        for length in 0..good.len() + 14 {
            let cut = &frame(&good)[..length.max(14)];
            let whole = length.saturating_sub(14) >= header + 8;
            if !whole {
                unchanged(cut, &format!("cut at {length}"));
            }
        }
        let mut far = good.clone();
        far[if is_v4 { 8 } else { 7 }] = 254;
        unchanged(&frame(&far), "came over a router");
        let mut tagged = frame(&good);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        unchanged(&tagged, "in a VLAN");
        if is_v4 {
            let mut fragment = good.clone();
            fragment[6] = 0x20;
            unchanged(&frame(&fragment), "a fragment");
        }
    }
    // With another VIP in the list, its own checksum right: another pair's.
    let mut other = packet(V4);
    other[31] += 1;
    let check = u16::from_be_bytes([other[26], other[27]]) - 1;
    other[26..28].copy_from_slice(&check.to_be_bytes());
    let mut program = program(&packet(V4), true);
    assert_eq!(run(&mut program, &frame(&other), "another list").1, [] as [&str; 0]);
    assert_eq!(program.lease(), active());
}

#[test]
fn the_other_nodes_announcements_are_a_conflict_only_while_this_one_owns_the_vip() {
    let mut program = setup();
    let announcement = arp_request(Mac::new([0xff; 6]), (CLIENT_MAC, VIP), VIP);
    assert_eq!(run(&mut program, &announcement, "active").1, ["arp_other", "vip_conflict"]);
    program.set_lease(Lease { granted_at: 1, deadline: 1, ..Lease::NONE });
    let (ran, counters) = run(&mut program, &announcement, "backup");
    assert_eq!((ran.action, counters.len()), (PASS, 0), "for the node's own neighbour table: {counters:?}");

    let mut program = setup_v6();
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
    let option = [vec![2, 1], CLIENT_MAC.octets().to_vec()].concat();
    let announcement = neighbour(136, (mac, CLIENT_MAC), (VIP6, all_nodes), VIP6, 255, &option);
    assert_eq!(run(&mut program, &announcement, "active").1, ["nd_other", "vip_conflict"]);
    program.set_lease(Lease { granted_at: 1, deadline: 1, ..Lease::NONE });
    assert_eq!(run(&mut program, &announcement, "backup").0.action, PASS);
}

#[test]
fn what_is_sent_to_the_vip_itself_never_passes() {
    let mut to_vip = packet(V4);
    to_vip[16..20].copy_from_slice(&VIP.octets());
    let mut program = program(&packet(V4), true);
    let mut sent = frame(&to_vip);
    sent[..6].copy_from_slice(OWN_MAC.octets());
    assert_eq!(run(&mut program, &sent, "to the VIP").1, ["protocol"]);
}

#[test]
fn the_first_packet_of_a_copied_flow_shows_the_way_to_its_client() {
    let mut program = setup();
    handshake(&mut program);
    // As another node's flow comes: a guess for the way, and old numbers.
    let record = program.record(3, CLIENT.1);
    let lost = Record { ifindex: 99, client_mac: Mac::UNKNOWN, outer_tag: 5, last_ack: 1, edge: 2, ..record };
    program.set_record(3, CLIENT.1, lost);
    let forward = program.forward(3, CLIENT.1);
    let copied = Forward { client_mac: Mac::UNKNOWN, flags: FLOW_COPIED, last_ack: 7, edge: 8, ..forward };
    program.set_forward(3, CLIENT.1, copied);
    program.forget_shortcuts();
    let back = backend(ACK).numbers(5001, 1001).payload(10).build();
    assert_ne!(run(&mut program, &back, "before the client has spoken").0.action, PASS);

    let far_on = client(ACK).numbers(0x7000_0000, 0x9000_0000).build();
    assert_eq!(run(&mut program, &far_on, "the client's first").0.action, TX);
    let learned = program.record(3, CLIENT.1);
    assert_eq!((learned.ifindex, learned.client_mac, learned.outer_tag), (IFINDEX, CLIENT_MAC, 0));
    assert_eq!(program.forward(3, CLIENT.1).flags, 0);
    assert_eq!(run(&mut program, &back, "the backend's").0.action, TX);
    // From then on only what is plausible changes the way.
    let other = Mac::new([2, 0, 0, 0, 0, 0x44]);
    run(&mut program, &client(ACK).numbers(0x7000_0000, 0x1000_0000).from_mac(other).build(), "implausible");
    assert_eq!(program.record(3, CLIENT.1).client_mac, CLIENT_MAC);
}

#[test]
fn what_nobody_knows_is_left_unanswered_for_a_while() {
    let mut program = setup();
    let unknown = client(ACK).numbers(1001, 5001).build();
    let back = backend(ACK).numbers(5001, 1001).build();
    let far = u64::MAX - 1;
    for (lease, reason) in [
        (Lease { granted_at: 1, deadline: 1, ..Lease::NONE }, "fenced"),
        (Lease { grace_until: far, ..active() }, "takeover_grace"),
    ] {
        program.set_lease(lease);
        assert_eq!(run(&mut program, &back, reason).1, [reason]);
    }
    program.set_lease(Lease { granted_at: 1, deadline: 1, ..Lease::NONE });
    assert_eq!(run(&mut program, &unknown, "backup").1, ["fenced"]);
    program.set_lease(active());
    assert_eq!(run(&mut program, &unknown, "later").1, ["unknown_flow"]);
    assert_eq!(run(&mut program, &back, "later").1, ["unknown_return"]);
}
