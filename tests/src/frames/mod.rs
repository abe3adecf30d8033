//! Packet tests: the real XDP program under `BPF_PROG_TEST_RUN`. Frames and map state in; action, frame and counters out.

mod build;
mod program;
pub mod scene;
mod verify;

pub use build::{Deviation, TcpFrame, arp_request, deviations, ping};
pub use program::{BACKEND_MAC, CLIENT_MAC, OWN_MAC, Program, Ran, SEED};
pub use verify::{assert_sound, reset_of, tcp_of};
