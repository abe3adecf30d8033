//! The way back to a client, in the real program under `BPF_PROG_TEST_RUN`: by the router of its route, else the way that its
//! own packets come by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::Mac,
    maps::ClientRoute,
    tcp::{ACK, PSH, SYN},
};

const ROUTER: Mac = Mac::new([2, 0, 0, 0, 0, 0x71]);
const BY_ROUTER: ClientRoute = ClientRoute::by(IFINDEX, ROUTER);
const DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The MAC that a backend's packet is sent to.
fn sent_to(program: &mut Program, backend: &[u8]) -> Mac {
    let (ran, _) = run(program, backend, "to the client");
    assert_eq!(ran.action, TX);
    Mac::new(ran.frame[..6].try_into().expect("six octets"))
}

#[test]
fn packets_to_a_client_behind_a_router_go_to_the_router() {
    let mut program = setup();
    program.client_route(DEFAULT, 0, BY_ROUTER);
    handshake(&mut program);
    assert_eq!(program.record(3, CLIENT.1).client_mac, ROUTER);
    assert_eq!(program.forward_of(&key()).expect("established").client_mac, CLIENT_MAC);
    assert_eq!(sent_to(&mut program, &backend(ACK | PSH).numbers(5001, 1001).payload(9).build()), ROUTER);

    // They come by another one from now on: the established path knows it, and the way back stays.
    let other = Mac::new([2, 0, 0, 0, 0, 0x44]);
    run(&mut program, &client(ACK).numbers(1001, 5001).from_mac(other).build(), "by another one");
    assert_eq!(program.forward_of(&key()).expect("established").client_mac, other);
    assert_eq!(sent_to(&mut program, &backend(ACK | PSH).numbers(5010, 1001).payload(9).build()), ROUTER);

    // Without a route the way back is that of the client's packets, once they change.
    program.client_route(Ipv4Addr::new(10, 0, 2, 0), 24, ClientRoute::THE_WAY_THEY_COME);
    run(&mut program, &client(ACK).numbers(1001, 5001).build(), "by the first one again");
    assert_eq!(sent_to(&mut program, &backend(ACK | PSH).numbers(5020, 1001).payload(9).build()), CLIENT_MAC);
}

#[test]
fn the_longest_prefix_decides() {
    for (length, route, expected) in [
        (24, ClientRoute::THE_WAY_THEY_COME, CLIENT_MAC),
        (32, ClientRoute::THE_WAY_THEY_COME, ROUTER),
        (24, ClientRoute::by(IFINDEX, Mac::new([2, 0, 0, 0, 0, 0x72])), Mac::new([2, 0, 0, 0, 0, 0x72])),
    ] {
        let mut program = setup();
        program.client_route(DEFAULT, 0, BY_ROUTER);
        program.client_route(Ipv4Addr::new(10, 0, 2, 0), length, route);
        handshake(&mut program);
        assert_eq!(program.record(3, CLIENT.1).client_mac, expected, "/{length} {route:?}");
    }
}

#[test]
fn a_tagged_packet_is_answered_the_way_it_came() {
    let mut program = setup();
    program.client_route(DEFAULT, 0, BY_ROUTER);
    let mut syn = client(SYN).numbers(1000, 0);
    syn.tags = vec![(0x8100, 7)];
    run(&mut program, &syn.build(), "tagged");
    assert_eq!(program.record(3, CLIENT.1).client_mac, CLIENT_MAC);
}

#[test]
fn ipv6_has_the_same() {
    let mut program = setup_v6();
    program.client_route(Ipv6Addr::UNSPECIFIED, 0, BY_ROUTER);
    // As the agent has it: `::/0` is no route of IPv4.
    program.client_route(DEFAULT, 0, ClientRoute::THE_WAY_THEY_COME);
    handshake_v6(&mut program);
    assert_eq!(sent_to(&mut program, &backend_v6(ACK | PSH).numbers(5001, 1001).payload(9).build()), ROUTER);

    let mut program = setup();
    program.client_route(Ipv6Addr::UNSPECIFIED, 0, BY_ROUTER);
    program.client_route(DEFAULT, 0, ClientRoute::THE_WAY_THEY_COME);
    handshake(&mut program);
    assert_eq!(program.record(3, CLIENT.1).client_mac, CLIENT_MAC);
}
