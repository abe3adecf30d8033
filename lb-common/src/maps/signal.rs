//! What the data plane tells the agent by itself: two ring buffers, what it knows of suspects, and how fast backends answer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_BACKENDS;
use crate::addr::{Addr, Mac, Port};

/// Octets of the ring buffer `signals`: over a thousand, where a backend has one in 10 ms.
pub const SIGNALS_LEN: usize = 64 << 10;
/// Octets of the ring buffer `events`: some 18,000 flows begun or ended while the agent is busy or away.
pub const EVENTS_LEN: usize = 1 << 20;

/// A signal: something that the agent should act upon at once. At most one a [`Suspect`] slot and [`SIGNAL_GAP_NS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Signal {
    /// When, ns.
    pub at: u64,
    /// The VIP that was claimed, with [`SIGNAL_VIP_CONFLICT`].
    pub address: Addr,
    /// Whose claim it was.
    pub mac: Mac,
    /// `SIGNAL_*`.
    pub kind: u16,
    /// The backend's number, of those that are about one.
    pub backend: u16,
    /// 0.
    pub reserved: [u16; 3],
}

/// A backend refused a handshake.
pub const SIGNAL_REFUSED: u16 = 1;
/// A backend ended several established flows at once.
pub const SIGNAL_ENDED: u16 = 2;
/// A SYN was refused: as many flows as `max_flows` are established.
pub const SIGNAL_TABLE_FULL: u16 = 3;
/// Another host claims a VIP.
pub const SIGNAL_VIP_CONFLICT: u16 = 4;

/// An established flow began or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowEvent {
    /// When, ns.
    pub at: u64,
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: Port,
    /// Source port toward the backend.
    pub nat_port: Port,
    /// Number of the backend.
    pub backend: u16,
    /// Number of the service.
    pub service: u16,
    /// Generation of the port table slot.
    pub generation: u32,
    /// When the handshake was complete, in [`AGE_UNIT_NS`]; see [`age_ns`].
    pub established: u32,
    /// `EVENT_*`.
    pub kind: u16,
    /// `CLOSED_*`; 0 if it is established.
    pub why: u16,
    /// 0.
    pub reserved: u32,
}

/// The handshake is complete.
pub const EVENT_ESTABLISHED: u16 = 1;
/// The flow is over.
pub const EVENT_CLOSED: u16 = 2;

/// Both ends closed, the client first.
pub const CLOSED_BY_CLIENT: u16 = 1;
/// Both ends closed, the backend first.
pub const CLOSED_BY_BACKEND: u16 = 2;
/// The client's RST.
pub const CLOSED_RESET_BY_CLIENT: u16 = 3;
/// The backend's RST.
pub const CLOSED_RESET_BY_BACKEND: u16 = 4;

/// Unit of the times that a flow remembers in 32 bits: about 17 ms, so that they last for two years.
pub const AGE_UNIT_NS: u64 = 1 << 24;

/// A time in units of [`AGE_UNIT_NS`], cut to 32 bits.
#[inline(always)]
pub const fn age_stamp(now: u64) -> u32 {
    (now / AGE_UNIT_NS) as u32
}

/// Time from a stamp to `now`, both ns of one clock, less than two years apart.
pub const fn age_ns(stamp: u32, now: u64) -> u64 {
    age_stamp(now).wrapping_sub(stamp) as u64 * AGE_UNIT_NS
}

/// What is known against a backend. Written by whichever CPU sees it: a lost write costs one signal or one connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Suspect {
    /// New flows pass it over until then, ns; 0: never.
    pub until: u64,
    /// When it last ended an established flow, ns.
    pub ended_at: u64,
    /// When the last signal of this slot was sent, ns.
    pub signalled_at: u64,
}

/// How long new flows pass a suspect over, ns.
pub const SUSPECT_NS: u64 = 200_000_000;
/// Two established flows that a backend ends within this time make it a suspect, ns.
pub const ENDED_TOGETHER_NS: u64 = 10_000_000;
/// The least time between two signals of one slot, ns.
pub const SIGNAL_GAP_NS: u64 = 10_000_000;

/// Slots of `suspects`: a backend's number is its slot; then those of signals that are about no backend.
pub const SUSPECT_SLOTS: usize = MAX_BACKENDS + 2;
/// Slot of [`SIGNAL_TABLE_FULL`].
pub const SUSPECT_TABLE_FULL: u32 = MAX_BACKENDS as u32;
/// Slot of [`SIGNAL_VIP_CONFLICT`].
pub const SUSPECT_VIP_CONFLICT: u32 = MAX_BACKENDS as u32 + 1;

/// How long a backend took from SYN to SYN-ACK; the value of the map `handshakes`, one a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Handshakes {
    /// How many took at most [`HANDSHAKE_BOUNDS_NS`] and more than the bound before; the last: more than all.
    pub buckets: [u64; HANDSHAKE_BOUNDS_NS.len() + 1],
    /// All of them together, ns.
    pub sum: u64,
}

/// Upper bounds of the buckets, ns: from a switch hop to a SYN that was sent three times.
pub const HANDSHAKE_BOUNDS_NS: [u64; 15] = [
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    5_000_000_000,
];

/// The bucket of a time. Without branches: the verifier would walk the rest of the program once for each.
#[inline(always)]
pub const fn handshake_bucket(ns: u64) -> usize {
    // Beyond 2^62 the subtraction below would lose its sign; no time is so long.
    let ns = ns & (u64::MAX >> 2);
    let mut bucket = 0;
    let mut at = 0;
    while at < HANDSHAKE_BOUNDS_NS.len() {
        bucket += HANDSHAKE_BOUNDS_NS[at].wrapping_sub(ns) >> 63;
        at += 1;
    }
    (bucket & 15) as usize
}

impl Handshakes {
    /// Adds another CPU's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.wrapping_add(theirs);
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_belongs_to_its_own_bucket() {
        for (number, bound) in HANDSHAKE_BOUNDS_NS.into_iter().enumerate() {
            assert_eq!(handshake_bucket(bound), number);
            assert_eq!(handshake_bucket(bound + 1), number + 1);
        }
        assert_eq!(handshake_bucket(0), 0);
        assert_eq!(handshake_bucket(u64::MAX >> 2), HANDSHAKE_BOUNDS_NS.len());
    }

    #[test]
    fn an_age_survives_the_end_of_its_32_bits() {
        let begun = (u64::from(u32::MAX) - 1) * AGE_UNIT_NS;
        assert_eq!(age_ns(age_stamp(begun), begun + 5 * AGE_UNIT_NS), 5 * AGE_UNIT_NS);
    }
}
