//! `mode = "dsr"` in the real program under `BPF_PROG_TEST_RUN`: only the destination MAC is rewritten, and the client's
//! packets alone tell how a flow lives.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    addr::Mac,
    claim::State,
    maps::*,
    tcp::{ACK, FIN, PSH, RST, SYN},
};

fn setup_dsr() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP, 2379, SERVICE_DSR);
    program.backend(3, 0, VIP, BACKEND);
    program.maglev(0, 3);
    program
}

fn state(program: &mut Program) -> u8 {
    program.record(3, CLIENT.1).claim().state()
}

/// The frame as it leaves: other MACs, and nothing else.
fn with_macs(frame: &TcpFrame) -> Vec<u8> {
    let mut bytes = frame.build();
    bytes[..6].copy_from_slice(BACKEND_MAC.octets());
    bytes[6..12].copy_from_slice(OWN_MAC.octets());
    bytes
}

#[test]
fn a_connection_lives_and_ends_by_what_its_client_says() {
    let mut program = setup_dsr();
    let mut options = client(SYN).numbers(1000, 0);
    options.tcp_options = vec![2, 4, 0x23, 0x28];
    let steps = [
        ("SYN", options, State::HalfOpen),
        ("SYN again", client(SYN).numbers(1000, 0), State::HalfOpen),
        ("ACK", client(ACK).numbers(1001, 5001), State::Established),
        ("request", client(ACK | PSH).numbers(1001, 5001).payload(100), State::Established),
        ("ACK of the answer", client(ACK).numbers(1101, 9001), State::Established),
        ("FIN", client(ACK | FIN).numbers(1101, 9001), State::Closed),
        ("ACK of what comes yet", client(ACK).numbers(1102, 9500), State::Closed),
    ];
    for (step, frame, state) in steps {
        let (ran, counters) = run(&mut program, &frame.build(), step);
        assert_eq!(ran.action, TX, "{step}: {counters:?}");
        assert_eq!(ran.frame, with_macs(&frame), "{step}: nothing but the MACs is rewritten, TTL included");
        assert_eq!(self::state(&mut program), state as u8, "{step}");
    }
    let load = program.load_of(load_of_backend(3));
    assert_eq!(load, 0, "the flow is counted out");
    let (ran, counters) = run(&mut program, &client(SYN).numbers(7000, 0).build(), "a new one on its ports");
    assert_eq!((ran.action, counters), (TX, vec!["flow_new"]));
}

#[test]
fn a_reset_of_the_client_ends_it_if_it_is_exact() {
    let mut program = setup_dsr();
    for frame in [client(SYN).numbers(1000, 0), client(ACK).numbers(1001, 5001)] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    for (seq, state) in [(999, State::Established), (1001, State::Closed)] {
        let frame = client(RST).numbers(seq, 0);
        assert_eq!(run(&mut program, &frame.build(), "RST").0.frame, with_macs(&frame));
        assert_eq!(self::state(&mut program), state as u8, "SEQ {seq}");
    }
}

#[test]
fn a_flow_whose_backend_was_reset_is_answered() {
    let mut program = setup_dsr();
    for frame in [client(SYN).numbers(1000, 0), client(ACK).numbers(1001, 5001)] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    let mut backend = program.get_backend(3);
    backend.epoch += 1;
    program.set_backend(3, backend);
    let (ran, counters) =
        run(&mut program, &client(ACK | PSH).numbers(1001, 5001).payload(9).build(), "reset");
    assert_eq!((ran.action, counters), (TX, vec!["flow_reset"]));
    assert_eq!(reset_of(&ran.frame).0, 5001, "exact for the client");
}

#[test]
fn ipv6_tags_and_a_moved_client_are_no_different() {
    let mut program = Program::load(1024);
    program.service(0, VIP6, 2379, SERVICE_DSR);
    program.backend(3, 0, VIP6, BACKEND6);
    program.maglev(0, 3);
    let mut hop = program.get_backend(3);
    hop.hop.tags = [7u16.to_be(), 0];
    program.set_backend(3, hop);
    let moved = Mac::new([2, 0, 0, 0, 0, 0x55]);
    for (step, mut frame) in [
        ("SYN", client_v6(SYN).numbers(1000, 0)),
        ("ACK", client_v6(ACK).numbers(1001, 5001)),
        ("data", client_v6(ACK | PSH).numbers(1001, 5001).payload(700)),
        ("from another MAC", client_v6(ACK | PSH).numbers(1701, 5001).payload(700)),
    ] {
        if step == "from another MAC" {
            frame.from_mac = moved;
        }
        let ran = program.run(&frame.build());
        assert_eq!(ran.action, TX, "{step}");
        assert_eq!(ran.frame[12..16], [0x81, 0, 0, 7], "{step}: the backend's tag");
        assert_eq!(ran.frame[18..], frame.build()[14..], "{step}: the packet is as it was");
    }
    assert!(program.record(3, CLIENT6.1).claim().is(State::Established));
    // The next packet from there is on the established path.
    assert_eq!(program.forward(3, CLIENT6.1).client_mac, moved);
}

#[test]
fn an_error_about_the_backends_packet_goes_to_the_backend_as_it_is() {
    let mut program = setup_dsr();
    for frame in [client(SYN).numbers(1000, 0), client(ACK).numbers(1001, 5001)] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    let quoted = TcpFrame::new(SERVICE, CLIENT, ACK).numbers(5001, 1001).payload(500).build();
    let router = (Mac::new([2, 0, 0, 0, 0, 0x44]), Ipv4Addr::new(10, 9, 9, 1));
    let frame = icmp_error(router, VIP, (3, 4, 1300), &quoted[14..42]);
    let ran = program.run(&frame);
    assert_eq!((ran.action, &ran.frame[..6]), (TX, &BACKEND_MAC.octets()[..]));
    assert_eq!(ran.frame[14..], frame[14..], "as it came");
}
