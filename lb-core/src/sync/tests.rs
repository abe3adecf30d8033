use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};

use super::*;

const KEY: &[u8] = b"thirty-two octets of a shared key";

fn place(number: u16) -> Place {
    Place {
        service: "10.0.1.100:2379".parse().unwrap(),
        backend: SocketAddr::new(IpAddr::from([10, 0, 1, number as u8]), 2379),
        source: "10.0.1.100".parse().unwrap(),
    }
}

fn service(seed: u8) -> Service {
    Service { address: place(0).service, is_dsr: false, seed_check: [seed; 8] }
}

fn flow(nat_port: u16, client: u32) -> FlowState {
    FlowState {
        client: SocketAddr::new(IpAddr::from(client.to_be_bytes()), nat_port),
        nat_port,
        flags: 0x100,
        by_client: (1, 2),
        by_backend: (3, 4),
        client_edge: 5,
        age_ms: 77,
    }
}

/// A node's flows, by backend and port.
#[derive(Clone, Debug, Default, PartialEq)]
struct Flows(BTreeMap<(u16, u16), FlowState>);

impl Source for Flows {
    fn place(&self, table: u16) -> Option<Place> {
        (table < 8).then(|| place(table))
    }

    fn flow(&self, table: u16, port: u16) -> Option<FlowState> {
        self.0.get(&(table, port)).copied()
    }
}

fn messages(mut octets: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while !octets.is_empty() {
        found.extend(Message::read(&mut octets).unwrap());
    }
    found
}

/// A dialer and an acceptor that have met.
fn channels() -> (Channel, Channel) {
    let (mut dialer, first) = Channel::dial(KEY).unwrap();
    let mut acceptor = Channel::accept(KEY);
    let mut reply = Vec::new();
    assert!(acceptor.receive(&first, &mut reply).unwrap().is_empty());
    assert!(dialer.receive(&reply, &mut Vec::new()).unwrap().is_empty());
    assert!(dialer.is_open() && acceptor.is_open());
    (dialer, acceptor)
}

#[test]
fn what_is_sealed_is_read_in_whatever_pieces_it_comes() {
    let (mut dialer, mut acceptor) = channels();
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut dialer, &mut acceptor];
        let mut wire = Vec::new();
        for text in [&b"one"[..], &[7; MAX_PLAINTEXT], b""] {
            ends[from].seal(text, &mut wire).unwrap();
        }
        let mut read = Vec::new();
        for piece in wire.chunks(1000) {
            read.extend(ends[to].receive(piece, &mut Vec::new()).unwrap());
        }
        assert_eq!(read, [b"one".to_vec(), vec![7; MAX_PLAINTEXT], vec![]]);
    }
}

#[test]
fn another_key_is_told_to_both_sides() {
    let (mut dialer, first) = Channel::dial(b"another key, that is also long enough").unwrap();
    let (mut acceptor, mut reply) = (Channel::accept(KEY), Vec::new());
    assert_eq!(acceptor.receive(&first, &mut reply), Err(Failure::WrongKey));
    assert_eq!(dialer.receive(&reply, &mut Vec::new()), Err(Failure::WrongKey));
}

#[test]
fn a_version_that_is_not_known_is_told_to_both_sides() {
    let (mut dialer, mut first) = Channel::dial(KEY).unwrap();
    first[11..13].copy_from_slice(&[7, 9]);
    let (mut acceptor, mut reply) = (Channel::accept(KEY), Vec::new());
    let failure = Failure::Version { theirs_low: 7, theirs_high: 9 };
    assert_eq!(acceptor.receive(&first, &mut reply), Err(failure));
    let failure = Failure::Version { theirs_low: 1, theirs_high: 1 };
    assert_eq!(dialer.receive(&reply, &mut Vec::new()), Err(failure));
}

#[test]
fn what_is_no_etcd_lb_is_known_at_its_first_octet() {
    let mut acceptor = Channel::accept(KEY);
    assert_eq!(acceptor.receive(b"GET / HTTP/1.1\r\n", &mut Vec::new()), Err(Failure::NotSync));
    let (mut dialer, _) = Channel::dial(KEY).unwrap();
    assert_eq!(dialer.receive(b"HTTP/1.1 400 Bad Request\r\n", &mut Vec::new()), Err(Failure::NotSync));
}

#[test]
fn a_recorded_stream_says_nothing_to_another_one() {
    let (mut dialer, first) = Channel::dial(KEY).unwrap();
    let (mut acceptor, mut reply) = (Channel::accept(KEY), Vec::new());
    acceptor.receive(&first, &mut reply).unwrap();
    dialer.receive(&reply, &mut Vec::new()).unwrap();
    let mut wire = Vec::new();
    dialer.seal(b"hand over", &mut wire).unwrap();
    // The same octets once more, to an acceptor with the same key: its own part of the key exchange is another one.
    let mut again = Channel::accept(KEY);
    again.receive(&first, &mut Vec::new()).unwrap();
    assert_eq!(again.receive(&wire, &mut Vec::new()), Err(Failure::Tampered));
    assert_eq!(acceptor.receive(&wire, &mut Vec::new()).unwrap(), [b"hand over".to_vec()]);
    assert_eq!(acceptor.receive(&wire, &mut Vec::new()), Err(Failure::Tampered), "twice in one stream");
}

#[test]
fn the_seed_is_compared_without_being_told() {
    let check = seed_check(KEY, b"seed");
    assert_ne!(check, seed_check(KEY, b"seel"));
    assert_ne!(check, seed_check(b"another", b"seed"));
}

/// Lets two peers talk until neither has anything to say; their flows are kept as the agent would.
fn talk(peers: &mut [Peer; 2], flows: &mut [Flows; 2], active: [bool; 2], now: Duration, limit: usize) {
    for _ in 0..10_000 {
        let mut quiet = true;
        for (from, to) in [(0, 1), (1, 0)] {
            let octets = peers[from].fill(now, active[from], limit, &flows[from]);
            assert!(octets.len() <= limit.max(1024), "{} octets", octets.len());
            quiet &= octets.is_empty();
            for message in messages(&octets) {
                let Some(event) = peers[to].receive(now, message).unwrap() else { continue };
                let number = |place: Place| match place.backend.ip() {
                    IpAddr::V4(v4) => v4.octets()[3].into(),
                    IpAddr::V6(_) => 0u16,
                };
                match event {
                    Event::Flow { place, flow, .. } if !active[to] => {
                        flows[to].0.insert((number(place), flow.nat_port), flow);
                    }
                    Event::Flow { place, flow, .. } => {
                        flows[to].0.entry((number(place), flow.nat_port)).or_insert(flow);
                    }
                    Event::Free { place, nat_port } if !active[to] => {
                        flows[to].0.remove(&(number(place), nat_port));
                    }
                    _ => {}
                }
            }
        }
        if quiet {
            return;
        }
    }
    panic!("they talk for ever");
}

fn peers(flows: &[Flows; 2], seeds: [u8; 2]) -> [Peer; 2] {
    [0, 1].map(|n| {
        let used: Vec<_> = flows[n].0.keys().copied().collect();
        Peer::new(Duration::from_secs(1), NodeRole::Backup, vec![service(seeds[n])], used)
    })
}

#[test]
fn both_snapshots_are_exchanged_and_then_the_active_ones_changes() {
    let mut flows = [Flows::default(), Flows::default()];
    for port in 0..3000 {
        flows[0].0.insert((1, port), flow(port, 1));
    }
    for port in 5000..5500 {
        flows[1].0.insert((2, port), flow(port, 2));
    }
    let mut peers = peers(&flows, [3, 3]);
    let now = Duration::from_secs(1);
    talk(&mut peers, &mut flows, [true, false], now, 16_384);
    assert!(peers.iter().all(Peer::is_synced));
    assert_eq!(flows[0].0.len(), 3500);
    assert_eq!(flows[0], flows[1]);

    flows[0].0.remove(&(1, 7));
    flows[0].0.insert((1, 8), flow(8, 99));
    flows[0].0.insert((3, 1), flow(1, 1));
    for slot in [(1, 7), (1, 8), (3, 1)] {
        peers[0].mark(now, slot.0, slot.1);
    }
    assert!(peers[0].has_news(now, true));
    talk(&mut peers, &mut flows, [true, false], now, 16_384);
    assert_eq!(flows[0], flows[1]);

    // A backup's own changes wait until it is active.
    flows[1].0.remove(&(1, 9));
    peers[1].mark(now, 1, 9);
    talk(&mut peers, &mut flows, [true, false], now, 16_384);
    assert!(flows[0].0.contains_key(&(1, 9)));
    talk(&mut peers, &mut flows, [false, true], now, 16_384);
    assert_eq!(flows[0], flows[1]);
}

#[test]
fn what_differs_is_told_and_another_seed_shares_nothing() {
    let mut flows = [Flows::default(), Flows::default()];
    flows[0].0.insert((1, 1), flow(1, 1));
    let mut peers = peers(&flows, [3, 4]);
    let now = Duration::from_secs(1);
    let greeting = messages(&peers[0].fill(now, true, 16_384, &flows[0])).remove(0);
    let event = peers[1].receive(now, greeting).unwrap().unwrap();
    let differences = vec![Difference::Seed(service(3).address)];
    assert_eq!(event, Event::Hello { role: NodeRole::Backup, differences });
    peers[0].receive(now, Message::Hello { role: NodeRole::Other, services: vec![] }).unwrap();
    let octets = peers[0].fill(now, true, 16_384, &flows[0]);
    assert!(!messages(&octets).iter().any(|message| matches!(message, Message::Flow { .. })));
}

#[test]
fn what_no_etcd_lb_says_ends_the_stream() {
    let now = Duration::from_secs(1);
    let flows = [Flows::default(), Flows::default()];
    let greeting = || Message::Hello { role: NodeRole::Active, services: vec![service(3)] };
    let fresh = || peers(&flows, [3, 3]).into_iter().next().unwrap();
    let greeted = || {
        let mut peer = fresh();
        peer.receive(now, greeting()).unwrap();
        peer
    };
    assert!(fresh().receive(now, Message::Ping(1)).is_err());
    assert!(greeted().receive(now, greeting()).is_err());
    assert!(greeted().receive(now, Message::Free { table: 1, nat_port: 1 }).is_err());
    assert!(greeted().receive(now, Message::Pong(9)).is_err());
    let mut peer = greeted();
    peer.receive(now, Message::SnapshotEnd { flows: 0 }).unwrap();
    assert!(peer.receive(now, Message::SnapshotEnd { flows: 0 }).is_err());
    let mut peer = greeted();
    assert!((0..5000).any(|n| peer.receive(now, Message::Ping(n)).is_err()), "answers pile up");
    let mut peer = greeted();
    let table = |table| Message::Table { table, place: place(1) };
    assert!((0..u16::MAX).any(|n| peer.receive(now, table(n)).is_err()), "tables pile up");
    assert!(!greeted().is_dead(now + PATIENCE));
    assert!(greeted().is_dead(now + PATIENCE + Duration::from_millis(1)));
}

#[test]
fn a_hundred_thousand_flows() {
    let mut flows = [Flows::default(), Flows::default()];
    for n in 0..100_000u32 {
        flows[0].0.insert(((n / 50_000) as u16 + 1, (n % 50_000) as u16), flow((n % 50_000) as u16, n));
    }
    let mut peers = peers(&flows, [3, 3]);
    let begun = Instant::now();
    talk(&mut peers, &mut flows, [true, false], Duration::from_secs(1), 16_384);
    println!("100,000 flows in {:?}", begun.elapsed());
    assert_eq!(flows[0], flows[1]);
}

fn any_message() -> impl Strategy<Value = Message> {
    let socket = || (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
    prop_oneof![
        vec((socket(), any::<bool>(), any::<[u8; 8]>()), 0..5).prop_map(|services| Message::Hello {
            role: NodeRole::Backup,
            services: services
                .into_iter()
                .map(|(address, is_dsr, seed_check)| Service { address, is_dsr, seed_check })
                .collect(),
        }),
        (any::<u16>(), socket(), socket()).prop_map(|(table, service, backend)| Message::Table {
            table,
            place: Place { service, backend, source: service.ip() },
        }),
        (any::<u16>(), any::<u16>(), any::<u32>())
            .prop_map(|(table, port, client)| Message::Flow { table, flow: flow(port, client) }),
        (any::<u16>(), any::<u16>()).prop_map(|(table, nat_port)| Message::Free { table, nat_port }),
        any::<u64>().prop_map(Message::Pong),
        any::<u32>().prop_map(Message::Interval),
        (any::<[u8; 16]>(), any::<u8>(), any::<u32>()).prop_map(|(source, priority, interval_ms)| {
            let source = std::net::Ipv6Addr::from(source).to_canonical();
            Message::Advertisement { source, priority, interval_ms }
        }),
        Just(Message::AskForVips),
        (socket(), socket()).prop_map(|(service, backend)| {
            Message::Want(Place { service, backend, source: service.ip() })
        }),
    ]
}

proptest! {
    #[test]
    fn messages_are_read_as_they_were_written(written in vec(any_message(), 0..8)) {
        let mut octets = Vec::new();
        written.iter().for_each(|message| message.write(&mut octets));
        prop_assert_eq!(messages(&octets), written);
    }

    #[test]
    fn octets_make_messages_or_an_error(octets in vec(any::<u8>(), 0..300)) {
        let mut rest = &octets[..];
        while !rest.is_empty() {
            let before = rest.len();
            if Message::read(&mut rest).is_err() {
                break;
            }
            prop_assert!(rest.len() < before);
        }
    }

    #[test]
    fn an_altered_stream_is_never_read(
        at in 0usize..300, flip in 1u8.., cut in any::<bool>(), first in any::<bool>()
    ) {
        let (dialer, mut wire) = Channel::dial(KEY).unwrap();
        let mut acceptor = Channel::accept(KEY);
        let alter = |wire: &mut Vec<u8>| {
            let at = at % wire.len();
            if cut {
                wire.remove(at);
            } else {
                wire[at] ^= flip;
            }
        };
        if first {
            alter(&mut wire);
            // Altered, it is refused or waits for more, and opens nothing.
            let opened = acceptor.receive(&wire, &mut Vec::new());
            prop_assert!(opened.is_err() || !acceptor.is_open());
        } else {
            let mut dialer = dialer;
            let mut reply = Vec::new();
            acceptor.receive(&wire, &mut reply).unwrap();
            dialer.receive(&reply, &mut Vec::new()).unwrap();
            let mut sealed = Vec::new();
            dialer.seal(b"a message of some length", &mut sealed).unwrap();
            alter(&mut sealed);
            let read = acceptor.receive(&sealed, &mut Vec::new());
            prop_assert!(read.map_or(true, |plaintexts| plaintexts.is_empty()));
        }
    }

    #[test]
    fn the_backup_has_what_the_active_has(
        before in vec((0u16..4, 0u16..200, any::<u32>()), 0..100),
        rounds in vec(vec((0u16..4, 0u16..200, any::<Option<u32>>()), 0..50), 0..5),
        limit in 600usize..4000,
    ) {
        let mut flows = [Flows::default(), Flows::default()];
        for (table, port, client) in before {
            flows[0].0.insert((table, port), flow(port, client));
        }
        let mut peers = peers(&flows, [3, 3]);
        let mut now = Duration::from_secs(1);
        for round in rounds {
            for (table, port, client) in round {
                match client {
                    Some(client) => drop(flows[0].0.insert((table, port), flow(port, client))),
                    None => drop(flows[0].0.remove(&(table, port))),
                }
                peers[0].mark(now, table, port);
            }
            talk(&mut peers, &mut flows, [true, false], now, limit);
            prop_assert_eq!(&flows[0], &flows[1]);
            now += Duration::from_millis(700);
        }
    }
}
