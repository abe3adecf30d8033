//! Packet tests: the real XDP program under `BPF_PROG_TEST_RUN`. Frames and map state in; action, frame and counters out.

mod build;
mod program;
mod random;
mod rings;
pub mod scene;
pub mod v6;
mod verify;

pub use build::{Deviation, TcpFrame, arp_request, deviations, icmp_error, ping};
pub use program::{BACKEND_MAC, CLIENT_MAC, IFINDEX, OWN_MAC, Program, Ran, SEED};
pub use random::Random;
pub use verify::{assert_sound, check, internet_sum, reset_of, tcp_of};
