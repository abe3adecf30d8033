//! Flow sync: what comes before the other side has proved that it has the key, and messages of one that has.

use std::time::Duration;

use lb_core::sync::{Channel, FlowState, Message, NodeRole, Peer, Place, Service};

const KEY: &[u8] = b"thirty-two octets of a shared key";

/// The acceptor and the dialer read octets that anybody can send.
pub(super) fn channel(input: &[u8]) {
    let mut acceptor = Channel::accept(KEY);
    let mut reply = Vec::new();
    let read = acceptor.receive(input, &mut reply);
    assert!(reply.len() < 100, "a long answer to a stranger");
    assert!(read.map_or(true, |plaintexts| plaintexts.is_empty()), "words of one who has no key");
    let Ok((mut dialer, _)) = Channel::dial(KEY) else { return };
    let _ = dialer.receive(input, &mut Vec::new());
    assert!(!dialer.is_open(), "opened by one who has no key");
}

pub(super) fn channel_seeds() -> Vec<Vec<u8>> {
    let first = Channel::dial(b"the key of somebody else altogether").map(|(_, first)| first);
    let answers =
        [vec![1], vec![2, 1, 9], [&[0, 0, 49][..], &[7; 49]].concat(), b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    answers.into_iter().chain(first.ok()).collect()
}

/// A node that has the key may still be wrong.
pub(super) fn message(input: &[u8]) {
    let services = vec![service()];
    let now = Duration::from_secs(1);
    let mut peer = Peer::new(now, NodeRole::Backup, services, []);
    let mut rest = input;
    while !rest.is_empty() {
        let before = rest.len();
        let Ok(message) = Message::read(&mut rest) else { return };
        assert!(rest.len() < before, "the same octets for ever");
        let Some(message) = message else { continue };
        let mut again = Vec::new();
        message.write(&mut again);
        assert_eq!(
            Message::read(&mut &again[..]).ok().flatten().as_ref(),
            Some(&message),
            "what is read can be written"
        );
        if peer.receive(now, message).is_err() {
            return;
        }
    }
}

/// A conversation with a message of each kind.
pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let place = Place {
        service: service().address,
        backend: ([10, 0, 1, 11], 2379).into(),
        source: [10, 0, 1, 100].into(),
    };
    let flow = FlowState {
        client: ([10, 0, 2, 7], 40_000).into(),
        nat_port: 40_000,
        flags: 0x100,
        by_client: (1, 2),
        by_backend: (3, 4),
        client_edge: 5,
        age_ms: 6,
    };
    let mut octets = Vec::new();
    for message in [
        Message::Hello { role: NodeRole::Active, services: vec![service()] },
        Message::Table { table: 3, place },
        Message::Flow { table: 3, flow },
        Message::Free { table: 3, nat_port: 40_000 },
        Message::SnapshotEnd { flows: 1 },
        Message::Ping(1),
        Message::Role(NodeRole::Backup),
        Message::AskForVips,
        Message::Want(place),
        Message::Interval(1000),
        Message::IntervalConfirmed(1000),
        Message::Advertisement { source: [10, 0, 1, 2].into(), priority: 200, interval_ms: 100 },
        Message::Pong(1),
    ] {
        message.write(&mut octets);
    }
    vec![octets]
}

fn service() -> Service {
    Service { address: ([10, 0, 1, 100], 2379).into(), is_dsr: false, seed_check: [7; 8] }
}
