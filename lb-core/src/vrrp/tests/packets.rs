//! Golden packets of keepalived 2.2.7, both ways, and everything that is to be refused.

use std::net::Ipv4Addr;

use lb_common::{addr::Mac, election::Advertisement as Header, election::Envelope};
use proptest::prelude::*;

use super::super::{packet::*, *};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const SOURCE_V6: &str = "fe80::ff:fe00:1";

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn router(version: Version, addresses: &[&str], interval: u64) -> VirtualRouter {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    VirtualRouter {
        version,
        router_id: 51,
        source: if addresses[0].is_ipv4() { SOURCE } else { SOURCE_V6.parse().unwrap() },
        addresses,
        peers: vec![],
        checksum: Checksum::PseudoHeader,
        auth_pass: None,
        interval: Duration::from_millis(interval),
    }
}

/// Name, octets, the node that sends them, its priority, to whom.
fn golden() -> Vec<(&'static str, Vec<u8>, VirtualRouter, u8, IpAddr)> {
    let group = Family::V4.group();
    let v2 = router(Version::V2, &["192.0.2.10"], 1000);
    let password = VirtualRouter { auth_pass: Some(*b"secret12"), ..v2.clone() };
    let v3 = router(Version::V3, &["192.0.2.10"], 100);
    let plain = VirtualRouter { checksum: Checksum::Message, ..v3.clone() };
    let two = router(Version::V3, &["192.0.2.10", "192.0.2.11"], 1000);
    let unicast = VirtualRouter { peers: vec![OURS], ..v3.clone() };
    let v6 = router(Version::V3, &["fe80::10", "2001:db8:0:1::10"], 100);
    let list_v6 = "fe80000000000000000000000000001020010db8000000010000000000000010";
    vec![
        ("v2", octets("2133c801000154bfc000020a0000000000000000"), v2.clone(), 200, group),
        ("v2 gives up", octets("2133000100011cc0c000020a0000000000000000"), v2, 0, group),
        ("v2 password", octets("2133c8010101e640c000020a7365637265743132"), password, 200, group),
        ("v3", octets("3133c801000aa225c000020a"), v3.clone(), 200, group),
        ("v3 message only", octets("3133c801000a44b6c000020a"), plain, 200, group),
        ("v3 gives up", octets("31330001000a6a26c000020a"), v3, 0, group),
        ("v3 two addresses", octets("3133c8020064dfbac000020ac000020b"), two, 200, group),
        ("v3 unicast", octets("3133c801000ac035c000020a"), unicast, 200, OURS),
        ("v6", octets(&format!("3133c802000add35{list_v6}")), v6.clone(), 200, Family::V6.group()),
        ("v6 gives up", octets(&format!("31330002000aa536{list_v6}")), v6, 0, Family::V6.group()),
    ]
}

/// The node that hears what `sender` says.
fn hearer(sender: &VirtualRouter) -> VirtualRouter {
    let mut hearer = sender.clone();
    hearer.source = if sender.source.is_ipv4() { OURS } else { "fe80::2".parse().unwrap() };
    if !sender.peers.is_empty() {
        hearer.peers = vec![sender.source];
    }
    hearer
}

fn datagram<'a>(sender: &VirtualRouter, destination: IpAddr, message: &'a [u8]) -> Datagram<'a> {
    Datagram { source: sender.source, destination, hop_limit: 255, message }
}

#[test]
fn golden_packets_are_written_and_read() {
    for (name, octets, sender, priority, to) in golden() {
        assert_eq!(message(&sender, priority, sender.interval, to), octets, "{name}");
        let read = read(&hearer(&sender), &datagram(&sender, to, &octets), false).unwrap();
        let is_plain = sender.checksum == Checksum::Message || sender.version == Version::V2;
        let checksum = if is_plain { Checksum::Message } else { Checksum::PseudoHeader };
        let want = Advertisement {
            source: sender.source,
            priority,
            interval: sender.interval,
            checksum,
            other_list: false,
        };
        assert_eq!(read, want, "{name}");
    }
}

#[test]
fn the_data_plane_agrees_on_what_is_stronger() {
    for (name, octets, sender, priority, to) in golden() {
        let hearer = hearer(&sender);
        let word = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let header = Header { head: word(0), priority_count: word(2), timing: word(4), check: word(6) };
        let envelope = Envelope {
            source: sender.source.into(),
            destination: to.into(),
            hop_limit: 255,
            length: octets.len() as u32,
        };
        for ours in [1, 100, 199, 200, 201, 254] {
            let election = hearer.election(3, ours);
            let lost = election.has(3, &envelope, &header) && election.is_weaker_than(&envelope, &header);
            let stronger = priority > ours || (priority == ours && sender.source > hearer.source);
            assert_eq!(lost, stronger, "{name} against {ours}");
        }
    }
}

#[test]
fn frames_are_those_that_keepalived_sends() {
    let (_, _, sender, _, to) = golden().remove(3);
    let mac = Mac::new([2, 0, 0, 0, 0, 1]);
    let built = frame(&sender, mac, (to, group_mac(Family::V4)), 200, sender.interval);
    assert_eq!(built[..14], octets("01005e0000120200000000010800"));
    // keepalived numbers its packets; the rest is the same.
    let theirs = octets("45c0002000010000ff701899c0000201e0000012");
    assert_eq!((&built[14..18], &built[20..24]), (&theirs[..4], &theirs[6..10]));
    assert_eq!(built[26..34], theirs[12..]);
    assert_eq!(sum(&built[14..34]), 0xffff, "the header's checksum");
    for (name, octets, sender, priority, to) in golden() {
        let built = frame(&sender, mac, (to, group_mac(sender.family())), priority, sender.interval);
        let padded = [built, vec![0; 30]].concat();
        assert_eq!(in_frame(&padded), Some(datagram(&sender, to, &octets)), "{name}");
    }
}

#[test]
fn each_deviation_is_refused_by_its_name() {
    let (_, good, sender, _, group) = golden().remove(3);
    let hearer = hearer(&sender);
    let with = |change: &dyn Fn(&mut Datagram<'_>, &mut Vec<u8>)| {
        let mut message = good.clone();
        let mut envelope = datagram(&sender, group, &[]);
        change(&mut envelope, &mut message);
        read(&hearer, &Datagram { message: &message, ..envelope }, false).map_err(|reject| reject.reason())
    };
    // A message by another config, its checksum right.
    let by = |change: &dyn Fn(&mut VirtualRouter)| {
        let mut other = sender.clone();
        change(&mut other);
        let octets = message(&other, 200, other.interval, group);
        read(&hearer, &datagram(&other, group, &octets), false).map_err(|reject| reject.reason())
    };
    assert!(with(&|_, _| {}).is_ok());
    assert_eq!(with(&|envelope, _| envelope.source = OURS), Err("own"));
    assert_eq!(with(&|_, message| message[1] = 52), Err("other_router"));
    assert_eq!(with(&|envelope, _| envelope.hop_limit = 254), Err("hop_limit"));
    assert_eq!(with(&|envelope, _| envelope.destination = OURS), Err("destination"));
    assert_eq!(with(&|_, message| message[6] ^= 1), Err("checksum"));
    assert_eq!(with(&|_, message| message[2] ^= 1), Err("checksum"));
    assert_eq!(with(&|_, message| message[0] = 0x32), Err("type"));
    assert_eq!(with(&|_, message| message.truncate(11)), Err("length"));
    assert_eq!(with(&|_, message| message.truncate(7)), Err("length"));
    assert_eq!(with(&|_, message| message.extend([0; 28])), Err("length"), "a trailer");
    assert_eq!(with(&|_, message| message[3] = 255), Err("length"), "its own word for how many");
    assert_eq!(by(&|router| router.version = Version::V2), Err("version"));
    assert_eq!(by(&|router| router.interval = Duration::ZERO), Err("interval_zero"));
    assert_eq!(by(&|router| router.addresses = vec!["192.0.2.11".parse().unwrap()]), Err("address_list"));
    assert_eq!(by(&|router| router.addresses.push("192.0.2.11".parse().unwrap())), Err("address_list"));
    assert!(by(&|router| router.interval = Duration::from_secs(40)).is_ok(), "another interval is fine");
    assert!(by(&|router| router.checksum = Checksum::Message).is_ok());
    let reserved = {
        let mut reserved = good.clone();
        (reserved[4], reserved[6], reserved[7]) = (0xf0, 0xb2, 0x24);
        read(&hearer, &datagram(&sender, group, &reserved), false)
    };
    assert_eq!(reserved.unwrap().interval, sender.interval, "reserved bits mean nothing");

    let (_, good, sender, _, _) = golden().remove(2);
    let hearer_v2 = super::packets::hearer(&sender);
    let reason = |hearer: &VirtualRouter| read(hearer, &datagram(&sender, group, &good), false).unwrap_err();
    let other = |change: &dyn Fn(&mut VirtualRouter)| {
        let mut other = hearer_v2.clone();
        change(&mut other);
        reason(&other).reason()
    };
    assert_eq!(other(&|router| router.auth_pass = None), "auth_type");
    assert_eq!(other(&|router| router.auth_pass = Some(*b"secret13")), "password");
    assert_eq!(other(&|router| router.interval = Duration::from_secs(2)), "interval");

    let (_, good, sender, _, group) = golden().remove(8);
    let mut wrong = sender.clone();
    wrong.addresses.swap(0, 1);
    let octets = message(&wrong, 200, wrong.interval, group);
    let refused = read(&super::packets::hearer(&sender), &datagram(&sender, group, &octets), false);
    assert_eq!(refused.unwrap_err().reason(), "link_local");
    assert!(read(&super::packets::hearer(&sender), &datagram(&sender, group, &good), false).is_ok());
}

#[test]
fn unicast_is_taken_from_peers_by_any_checksum_that_is_in_use() {
    let (_, good, sender, _, to) = golden().remove(7);
    let mut hearer = hearer(&sender);
    let mut far = datagram(&sender, to, &good);
    far.hop_limit = 64;
    assert!(read(&hearer, &far, false).is_ok(), "a peer may be behind a router");
    // By keepalived 1.3.6 and before: with the group's address.
    let old = octets("3133c801000aa225c000020a");
    assert!(read(&hearer, &datagram(&sender, to, &old), false).is_ok());
    let to_group = read(&hearer, &datagram(&sender, Family::V4.group(), &old), false);
    assert_eq!(to_group.unwrap_err().reason(), "destination");
    hearer.peers = vec!["192.0.2.9".parse().unwrap()];
    assert_eq!(read(&hearer, &far, false).unwrap_err().reason(), "unknown_peer");
}

#[test]
fn another_list_is_taken_from_a_known_peer_and_told() {
    let (_, good, sender, _, group) = golden().remove(3);
    let mut hearer = hearer(&sender);
    hearer.addresses.push("192.0.2.99".parse().unwrap());
    let refused = read(&hearer, &datagram(&sender, group, &good), false).unwrap_err();
    assert!(refused.to_string().contains("it lacks 192.0.2.99"), "{refused}");
    assert!(read(&hearer, &datagram(&sender, group, &good), true).unwrap().other_list);
    let order = VirtualRouter {
        addresses: vec!["192.0.2.99".parse().unwrap(), "192.0.2.10".parse().unwrap()],
        ..sender.clone()
    };
    let octets = message(&order, 200, order.interval, group);
    assert!(!read(&hearer, &datagram(&sender, group, &octets), false).unwrap().other_list, "in any order");
}

#[test]
fn every_reason_has_its_place() {
    let reasons: std::collections::BTreeSet<_> = Reject::REASONS.into_iter().collect();
    assert_eq!(reasons.len(), Reject::REASONS.len());
}

proptest! {
    #[test]
    fn nothing_makes_the_decoder_panic(
        frame in proptest::collection::vec(any::<u8>(), 0..200),
        start in 0usize..10,
        flips in proptest::collection::vec((0usize..128, any::<u8>()), 0..4),
    ) {
        let (_, octets, sender, priority, to) = golden().remove(start);
        let hearer = hearer(&sender);
        if let Some(datagram) = in_frame(&frame) {
            let _ = read(&hearer, &datagram, false);
        }
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);
        let mut near = packet::frame(&sender, mac, (to, mac), priority, sender.interval);
        for (at, value) in flips {
            let at = at % near.len();
            near[at] = value;
        }
        if let Some(datagram) = in_frame(&near)
            && let Ok(advertisement) = read(&hearer, &datagram, false)
        {
            prop_assert!(advertisement.interval > Duration::ZERO);
            prop_assert_eq!(datagram.message.len(), octets.len());
        }
    }
}
