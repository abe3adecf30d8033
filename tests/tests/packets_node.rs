//! Frames that come by the far end of the node's own veth pair, under `BPF_PROG_TEST_RUN`: clients and members on this node.

use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{
    addr::Mac,
    choose::Algorithm,
    maps::*,
    tcp::{ACK, RST, SYN},
};
use lb_core::reconcile::{Member, Table};

const OTHER_NODE: Mac = Mac::new([2, 0, 0, 0, 0, 0x44]);

/// The interface that frames come in by is the far end.
fn node(mut program: Program) -> Program {
    program.set_interface(INTERFACE_NODE);
    program
}

/// Another node has the VIPs, as its advertisement said that came by the interface.
fn elsewhere(program: &mut Program, mac: Mac) {
    let lease = Lease { granted_at: 1, deadline: 1, other_ifindex: IFINDEX, other_mac: mac, ..Lease::NONE };
    program.set_lease(lease);
}

/// The frames, but for known flows, that clients and members on this node send.
fn said() -> Vec<(&'static str, Vec<u8>)> {
    let mut closed = client(SYN);
    closed.destination.1 = 9;
    vec![
        ("a SYN", client(SYN).build()),
        ("of a flow of the other node", client(ACK).numbers(1001, 5001).build()),
        ("a RST of one", client(RST).numbers(1001, 5001).build()),
        ("a member's answer", backend(SYN | ACK).numbers(5000, 1001).build()),
        ("a member's refusal", backend(RST | ACK).numbers(0, 1001).build()),
        ("to a closed port", closed.build()),
        ("a ping", ping(CLIENT.0, VIP, 56)),
    ]
}

#[test]
fn without_the_vip_they_are_handed_to_the_node_that_has_it() {
    let mut program = node(setup());
    elsewhere(&mut program, OTHER_NODE);
    for (what, frame) in said() {
        let (ran, counters) = run(&mut program, &frame, what);
        assert_eq!((ran.action, counters), (TX, vec!["relayed"]), "{what}");
        assert_eq!(ran.frame[..6], *OTHER_NODE.octets(), "{what}");
        assert_eq!(ran.frame[6..12], *OWN_MAC.octets(), "{what}");
        assert_eq!(ran.frame[12..], frame[12..], "{what}: nothing but the MACs is changed");
    }
}

#[test]
fn a_known_flow_is_served_on() {
    let mut program = node(setup());
    handshake(&mut program);
    elsewhere(&mut program, OTHER_NODE);
    let (ran, counters) = run(&mut program, &client(ACK).numbers(1001, 5001).build(), "known");
    assert_eq!((ran.action, counters.len()), (TX, 0), "{counters:?}");
    assert_eq!(ran.frame[..6], *BACKEND_MAC.octets());
}

#[test]
fn while_nobody_is_known_to_have_it_they_are_dropped_and_so_is_what_others_say() {
    let mut program = node(setup());
    elsewhere(&mut program, Mac::UNKNOWN);
    for (what, frame) in said() {
        let (ran, counters) = run(&mut program, &frame, what);
        assert_eq!((ran.action, counters), (DROP, vec!["no_next_hop"]), "{what}");
    }
    let mut program = node(setup());
    program.set_lease(Lease { granted_at: 1, deadline: 1, ..Lease::NONE });
    for (what, frame) in said() {
        let (ran, counters) = run(&mut program, &frame, what);
        assert_eq!((ran.action, counters), (DROP, vec!["fenced"]), "{what}");
    }
    let mut wire = setup();
    elsewhere(&mut wire, OTHER_NODE);
    for (what, frame) in said() {
        let (ran, counters) = run(&mut wire, &frame, what);
        assert_eq!((ran.action, counters), (DROP, vec!["fenced"]), "{what}, by a wire");
    }
}

/// Backends 3 and 9, of which 9 is on this node; by its hash the client goes to 3.
fn near(algorithm: Algorithm, limit: u32) -> Program {
    let members = [
        Member { number: 3, weight: 1, max_connections: 0 },
        Member { number: 9, weight: 1, max_connections: limit },
    ];
    let mut program = Program::load(4096);
    program.service(0, VIP, 2379, algorithm.flags());
    program.backend(3, 0, VIP, BACKEND);
    program.backend(9, 0, VIP, (BACKEND.0, 2380));
    program.table(0, &Table::new(std::iter::repeat_n(3, MAGLEV_SLOTS as usize), members));
    program.change_service(0, |service| service.near = 9 + 1);
    program
}

#[test]
fn a_client_on_the_node_goes_to_its_member_whatever_the_algorithm() {
    for algorithm in [Algorithm::Bounded, Algorithm::Maglev, Algorithm::LeastConn, Algorithm::RoundRobin] {
        let mut program = node(near(algorithm, 0));
        for port in 0..10 {
            let mut frame = client(SYN);
            frame.source.1 += port;
            run(&mut program, &frame.build(), "a SYN");
        }
        assert_eq!(program.backend_counters(9).connections, 10, "{algorithm:?}");
        assert_eq!(program.backend_counters(3).connections, 0, "{algorithm:?}");
        // Clients elsewhere are spread as ever.
        let mut program = near(algorithm, 0);
        for port in 0..10 {
            let mut frame = client(SYN);
            frame.source.1 += port;
            run(&mut program, &frame.build(), "a SYN");
        }
        assert!(program.backend_counters(3).connections >= 5, "{algorithm:?}");
    }
}

#[test]
fn a_member_that_is_full_or_not_live_is_passed_over() {
    for algorithm in [Algorithm::Bounded, Algorithm::Maglev, Algorithm::LeastConn, Algorithm::RoundRobin] {
        let mut program = node(near(algorithm, 4));
        program.set_load(load_of_backend(9), 4);
        program.set_load(load_of_service(0), 4);
        run(&mut program, &client(SYN).build(), "full");
        assert_eq!(program.backend_counters(3).connections, 1, "{algorithm:?}");
        let mut program = node(near(algorithm, 0));
        program.change_service(0, |service| service.near = 10 + 1);
        run(&mut program, &client(SYN).build(), "not live");
        let begun = [3, 9].map(|number| program.backend_counters(number).connections);
        assert_eq!(begun.iter().sum::<u64>(), 1, "{algorithm:?}");
    }
}
