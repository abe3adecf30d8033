//! Flows of another node: into live tables and out of them, and a hundred thousand from one node to another.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use etcd_lb::dataplane::{DataPlane, Installed, Way, monotonic_ns};
use lb_common::addr::Mac;
use lb_core::sync::{
    Channel, Event, FlowState, MAX_PLAINTEXT, Message, NodeRole, Peer, Place, Service, Source as _,
};

use crate::sandbox::{self, PORT, VIP, desired};

const WAY: Way = Way { ifindex: 1, tags: [0; 2], mac: Mac::new([2, 0, 0, 0, 0, 0x33]) };

fn service() -> Service {
    Service { address: SocketAddr::new(VIP, PORT), is_dsr: false, seed_check: [7; 8] }
}

/// The place of a backend of `desired`.
fn place(host: u8) -> Place {
    let backend = SocketAddr::new(IpAddr::from([10, 0, 2, host]), PORT);
    Place { service: SocketAddr::new(VIP, PORT), backend, source: VIP }
}

fn flow(client: u32, port: u16, nat_port: u16) -> FlowState {
    FlowState {
        client: SocketAddr::new(Ipv4Addr::from_bits(client).into(), port),
        nat_port,
        flags: lb_common::claim::SYN_ACKED as u16,
        by_client: (100, 200),
        by_backend: (300, 400),
        client_edge: 200,
        age_ms: 5000,
    }
}

fn plane(sandbox: &sandbox::Sandbox, max_flows: u32) -> DataPlane {
    let mut plane = sandbox.open_for(max_flows).unwrap();
    plane.reconcile(&desired(&[11, 12])).unwrap();
    plane
}

#[test]
fn a_flow_of_another_node_is_put_in_told_and_taken_out() {
    sandbox::run(|sandbox| {
        let mut plane = plane(sandbox, sandbox::MAX_FLOWS);
        let theirs = flow(0x0a00_0115, 4000, 40_000);
        let Installed::New(number) = plane.install(&place(11), &theirs, WAY, false).unwrap() else {
            panic!("it is new");
        };
        assert_eq!(plane.install(&place(11), &theirs, WAY, false).unwrap(), Installed::Known(number));
        let told = plane.flow(number, 40_000).unwrap();
        // Kept in units of 17 ms.
        assert!((4900..6000).contains(&told.age_ms), "{}", told.age_ms);
        assert_eq!(FlowState { age_ms: 5000, ..told }, theirs, "as it came");
        assert_eq!(plane.place(number), Some(place(11)));
        assert_eq!(plane.established(), [(number, 40_000)]);
        assert_eq!(plane.sweep(monotonic_ns()).unwrap().census.total.established, 1);

        // Another client in the slot, and the same client by another slot: ours stays, unless the other node's word counts.
        let in_slot = flow(0x0a00_0116, 5000, 40_000);
        let by_other = flow(0x0a00_0115, 4000, 41_000);
        for rival in [in_slot, by_other] {
            assert_eq!(plane.install(&place(11), &rival, WAY, false).unwrap(), Installed::Conflict);
            assert_eq!(plane.install(&place(11), &rival, WAY, true).unwrap(), Installed::New(number));
            assert_eq!(plane.established(), [(number, rival.nat_port)]);
            assert_eq!(plane.flow(number, rival.nat_port).unwrap().client, rival.client);
            assert!(plane.take_out(number, rival.nat_port).unwrap());
            assert!(!plane.take_out(number, rival.nat_port).unwrap());
            assert!(plane.established().is_empty());
            plane.install(&place(11), &theirs, WAY, true).unwrap();
        }
        assert_eq!(plane.install(&place(99), &theirs, WAY, true).unwrap(), Installed::NotHere);
        // The service's own port is never a NAT port.
        let reserved = flow(0x0a00_0117, 1, PORT);
        assert_eq!(plane.install(&place(12), &reserved, WAY, true).unwrap(), Installed::Conflict);
    });
}

#[test]
fn clients_without_a_mac_are_reached_when_it_is_known() {
    sandbox::run(|sandbox| {
        let mut plane = plane(sandbox, sandbox::MAX_FLOWS);
        let lost = Way { mac: Mac::UNKNOWN, ..WAY };
        plane.install(&place(11), &flow(0x0a00_0115, 4000, 40_000), lost, false).unwrap();
        let client = IpAddr::from([10, 0, 1, 21]);
        assert_eq!(plane.unreachable_clients(), [(1, client)]);
        assert_eq!(plane.reach_clients(|_, _| None), 0);
        assert_eq!(plane.reach_clients(|_, asked| (asked == client).then_some(WAY.mac)), 1);
        assert!(plane.unreachable_clients().is_empty());
    });
}

#[test]
fn one_that_does_not_own_the_vips_ends_no_idle_flow() {
    sandbox::run(|sandbox| {
        let mut plane = plane(sandbox, sandbox::MAX_FLOWS);
        plane.install(&place(11), &flow(0x0a00_0115, 4000, 40_000), WAY, false).unwrap();
        let tomorrow = monotonic_ns() + 24 * 3_600_000_000_000;
        plane.set_owner(false);
        assert_eq!(plane.sweep(tomorrow).unwrap().idle_ended, 0);
        plane.set_owner(true);
        assert_eq!(plane.sweep(tomorrow).unwrap().idle_ended, 1);
    });
}

#[test]
fn a_hundred_thousand_flows_go_from_node_to_node() {
    const FLOWS: u32 = 100_000;
    sandbox::run(|here| {
        let mut from = plane(here, 131_072);
        for n in 0..FLOWS {
            let host = if n % 2 == 0 { 11 } else { 12 };
            // Past the port that is never a NAT port.
            let port = 3000 + (n / 2) as u16;
            from.install(&place(host), &flow(0x0a01_0000 + n, 4000, port), WAY, false).unwrap();
        }
        sandbox::run(move |there| {
            let mut to = plane(there, 131_072);
            let (mut dialer, first) = Channel::dial(&[7; 32]).unwrap();
            let (mut acceptor, mut reply) = (Channel::accept(&[7; 32]), Vec::new());
            acceptor.receive(&first, &mut reply).unwrap();
            dialer.receive(&reply, &mut Vec::new()).unwrap();
            let now = Duration::from_secs(1);
            let begun = Instant::now();
            let mut sender = Peer::new(now, NodeRole::Active, vec![service()], from.established());
            let mut receiver = Peer::new(now, NodeRole::Backup, vec![service()], []);
            let mut greeting = &receiver.fill(now, false, MAX_PLAINTEXT, &to)[..];
            sender.receive(now, Message::read(&mut greeting).unwrap().unwrap()).unwrap();
            let (mut new, mut longest) = (0, Duration::ZERO);
            while sender.has_news(now, true) {
                let turn = Instant::now();
                let mut wire = Vec::new();
                dialer.seal(&sender.fill(now, true, MAX_PLAINTEXT, &from), &mut wire).unwrap();
                for plaintext in acceptor.receive(&wire, &mut Vec::new()).unwrap() {
                    let mut rest = &plaintext[..];
                    while !rest.is_empty() {
                        let Some(message) = Message::read(&mut rest).unwrap() else { continue };
                        if let Some(Event::Flow { place, flow, .. }) = receiver.receive(now, message).unwrap()
                        {
                            let installed = to.install(&place, &flow, WAY, true).unwrap();
                            new += u32::from(matches!(installed, Installed::New(_)));
                        }
                    }
                }
                longest = longest.max(turn.elapsed());
            }
            println!(
                "{new} flows from the tables of one node through the channel into those of another in {:?}, a \
                 message of {MAX_PLAINTEXT} octets in {longest:?} at most (debug build)",
                begun.elapsed()
            );
            assert_eq!(new, FLOWS);
            assert_eq!(to.sweep(monotonic_ns()).unwrap().census.total.established, FLOWS);
        });
    });
}
