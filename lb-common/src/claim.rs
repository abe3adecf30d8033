//! The claim word of a NAT port: who owns the slot, and how far its TCP connection has come.
//!
//! One word of 64 bits, changed only by compare-and-swap, so that two CPUs, or a CPU and the agent, never both own a
//! slot, and a flow that ends does so exactly once:
//!
//! ```text
//!  63           32 31      16 15       8 7        0
//! +---------------+----------+----------+----------+
//! |  generation   |    0     |  flags   |  state   |
//! +---------------+----------+----------+----------+
//! ```
//!
//! The generation goes up with each new owner; a forward entry names the generation it was made for, so an entry that
//! outlived its flow is told from one that did not.

/// State of a slot.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's.
    Free = 0,
    /// Its new owner is writing the identity fields; nobody else touches the record.
    Claiming = 1,
    /// SYN seen, the client's ACK of the handshake not yet.
    HalfOpen = 2,
    /// Handshake complete.
    Established = 3,
    /// Both FINs acknowledged, or a valid RST: stays to forward the last packets until the slot is taken.
    Closed = 4,
    /// Never given to a flow: a port on which the source address has a service.
    Reserved = 5,
}

/// The backend's SYN-ACK was seen: the record's `expected_ack` is valid.
pub const SYN_ACKED: u64 = 1 << 8;
/// The client sent a FIN.
pub const CLIENT_FIN: u64 = 1 << 9;
/// The backend sent a FIN.
pub const BACKEND_FIN: u64 = 1 << 10;
/// The client's FIN was acknowledged by the backend.
pub const CLIENT_FIN_ACKED: u64 = 1 << 11;
/// The backend's FIN was acknowledged by the client.
pub const BACKEND_FIN_ACKED: u64 = 1 << 12;
/// The client's FIN came before the backend's, or a RST ended the flow: no TIME_WAIT at the backend bars the port.
pub const FREE_AT_ONCE: u64 = 1 << 13;

const STATE_MASK: u64 = 0xff;
const FLAGS_MASK: u64 = 0xff00;
const ALL_FINS: u64 = CLIENT_FIN | BACKEND_FIN | CLIENT_FIN_ACKED | BACKEND_FIN_ACKED;

/// A claim word that was read; see the module's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(pub u64);

impl Claim {
    /// A claim in `state` without flags.
    #[inline(always)]
    pub const fn new(state: State, generation: u32) -> Self {
        Self((generation as u64) << 32 | state as u64)
    }

    /// Whether the slot is in `state`.
    #[inline(always)]
    pub const fn is(self, state: State) -> bool {
        self.0 & STATE_MASK == state as u64
    }

    /// The state's number.
    #[inline(always)]
    pub const fn state(self) -> u8 {
        self.0 as u8
    }

    /// The generation of the owner.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// The same claim with `flags` set.
    #[inline(always)]
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | (flags & FLAGS_MASK))
    }

    /// The same owner and flags in another state.
    #[inline(always)]
    pub const fn to(self, state: State) -> Self {
        Self(self.0 & !STATE_MASK | state as u64)
    }

    /// Established and no FIN seen: the fast path may handle the packet alone.
    #[inline(always)]
    pub const fn is_plain_established(self) -> bool {
        self.0 as u32 & !(SYN_ACKED as u32) == State::Established as u32
    }

    /// Whether a packet of this flow is to be forwarded: it has an owner whose identity is written.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.is(State::HalfOpen) || self.is(State::Established) || self.is(State::Closed)
    }

    /// The next owner's claim while it writes its identity.
    #[inline(always)]
    pub const fn next_owner(self) -> Self {
        Self::new(State::Claiming, self.generation().wrapping_add(1))
    }

    /// After a FIN or an ACK of a FIN: the flow is closed once both FINs were acknowledged (RFC 9293 section 3.6).
    ///
    /// The flag `FREE_AT_ONCE` is set by the first FIN if it is the client's: then the client holds TIME_WAIT, and the
    /// backend takes a new SYN on the same ports at once.
    #[inline(always)]
    pub const fn fin(self, flags: u64) -> Self {
        let client_first = flags & CLIENT_FIN != 0 && !self.has(BACKEND_FIN) && !self.has(CLIENT_FIN);
        let mut next = self.with(flags);
        if client_first {
            next = next.with(FREE_AT_ONCE);
        }
        if next.has(ALL_FINS) && next.is(State::Established) { next.to(State::Closed) } else { next }
    }

    /// After a valid RST: neither end keeps state.
    #[inline(always)]
    pub const fn reset(self) -> Self {
        self.to(State::Closed).with(FREE_AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: Claim = Claim::new(State::Established, 7);

    #[test]
    fn a_flow_closes_when_both_fins_are_acknowledged_in_any_order() {
        let steps = [CLIENT_FIN, BACKEND_FIN, CLIENT_FIN_ACKED, BACKEND_FIN_ACKED];
        for first in 0..4 {
            for second in 0..4 {
                for third in 0..4 {
                    for fourth in 0..4 {
                        let order = [first, second, third, fourth];
                        let mut claim = ESTABLISHED;
                        let mut seen = 0u32;
                        for step in order {
                            claim = claim.fin(steps[step]);
                            seen |= 1 << step;
                            assert_eq!(claim.is(State::Closed), seen == 0b1111, "{order:?}");
                            assert_eq!(claim.generation(), 7);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_port_is_free_at_once_only_if_the_client_closed_first() {
        assert!(ESTABLISHED.fin(CLIENT_FIN).fin(BACKEND_FIN).has(FREE_AT_ONCE));
        assert!(!ESTABLISHED.fin(BACKEND_FIN).fin(CLIENT_FIN).has(FREE_AT_ONCE));
        assert!(ESTABLISHED.reset().has(FREE_AT_ONCE));
        // The acknowledgement of the backend's FIN and the client's own FIN in one segment: the backend was first.
        assert!(!ESTABLISHED.fin(BACKEND_FIN).fin(CLIENT_FIN | BACKEND_FIN_ACKED).has(FREE_AT_ONCE));
    }

    #[test]
    fn plain_established_is_the_fast_path_only() {
        assert!(ESTABLISHED.is_plain_established());
        assert!(ESTABLISHED.with(SYN_ACKED).is_plain_established());
        assert!(!ESTABLISHED.fin(CLIENT_FIN).is_plain_established());
        assert!(!ESTABLISHED.fin(BACKEND_FIN).is_plain_established());
        assert!(!Claim::new(State::HalfOpen, 7).is_plain_established());
    }

    #[test]
    fn a_new_owner_gets_a_new_generation_and_no_flags() {
        let closed = Claim::new(State::Closed, u32::MAX).with(FREE_AT_ONCE | CLIENT_FIN);
        assert_eq!(closed.next_owner(), Claim::new(State::Claiming, 0));
    }
}
