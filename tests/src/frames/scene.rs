//! One service with one backend, and the frames of one client.

use std::net::Ipv4Addr;

use lb_common::{
    addr::{Addr, Port},
    claim::State,
    counters::{Counter, Counters},
    maps::FlowKey,
    tcp::{ACK, SYN},
};

use super::{BACKEND_MAC, Program, Ran, TcpFrame, assert_sound};

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const TX: u32 = 3;

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
pub const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 7), 40_000);
pub const SERVICE: (Ipv4Addr, u16) = (VIP, 2379);
pub const BACKEND: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 11), 2379);
pub const KEY_PORT: Port = Port::new(CLIENT.1);

pub fn key() -> FlowKey {
    FlowKey { client: Addr::from(CLIENT.0), port: KEY_PORT, service: 0 }
}

/// One service with one backend, number 3, so that a zero somewhere does not pass for it.
pub fn setup() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP, 2379, 0);
    program.backend(3, 0, VIP, BACKEND);
    program.maglev(0, 3);
    program
}

pub fn client(flags: u8) -> TcpFrame {
    TcpFrame::new(CLIENT, SERVICE, flags)
}

pub fn backend(flags: u8) -> TcpFrame {
    TcpFrame::new(BACKEND, (VIP, CLIENT.1), flags).from_mac(BACKEND_MAC)
}

/// Client's ISN 1000, backend's 5000.
pub fn handshake(program: &mut Program) {
    for frame in [
        client(SYN).numbers(1000, 0),
        backend(SYN | ACK).numbers(5000, 1001),
        client(ACK).numbers(1001, 5001),
    ] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    let claim = program.record(3, CLIENT.1).claim();
    assert!(claim.is(State::Established), "{claim:?}");
}

/// Runs a frame, checks what is transmitted, and names the counters that changed.
pub fn run(program: &mut Program, frame: &[u8], context: &str) -> (Ran, Vec<&'static str>) {
    let before = program.counters();
    let ran = program.run(frame);
    if ran.action == TX {
        assert_sound(&ran.frame, context);
    }
    if ran.action == PASS {
        assert_eq!(ran.frame, frame, "{context}: a frame that is passed is changed");
    }
    (ran, changed(&before, &program.counters()))
}

pub fn changed(before: &Counters, after: &Counters) -> Vec<&'static str> {
    Counter::ALL
        .iter()
        .filter(|counter| counter.of(after) != counter.of(before))
        .map(|counter| counter.name())
        .collect()
}
