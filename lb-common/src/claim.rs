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

/// The backend's SYN-ACK was seen: the record's `edge` is valid.
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

/// The balancer ended the flow, neither of its ends did: whatever either of them still says is answered with a RST. The
/// backend may hold the connection yet, so the port rests like one in TIME_WAIT.
pub const ENDED: u64 = 1 << 14;

/// Half-open: no handshake was seen, the connection may be one that another node had; the backend is asked by its client's
/// own packets, and what it answers tells. Closed: it did not know the connection.
pub const ADOPTED: u64 = 1 << 15;

/// A step only, never in a claim: the client acknowledged exactly the backend's SYN-ACK.
pub const HANDSHAKE_DONE: u64 = 1 << 16;
/// A step only, never in a claim: a RST that its receiver accepts.
pub const RESET: u64 = 1 << 17;

/// A step only, never in a claim: what it says came from the backend.
pub const BY_BACKEND: u64 = 1 << 18;

/// The steps that a client's acknowledgment of a handshake says where the backend answers past us (`mode = "dsr"`): it
/// cannot be compared with the SYN-ACK, which nobody here saw.
pub const UNSEEN_HANDSHAKE: u64 = SYN_ACKED | HANDSHAKE_DONE;
/// The step that a backend's answer to an adopted flow's packet says: it knows the connection.
pub const CONFIRMED: u64 = UNSEEN_HANDSHAKE;
/// The steps that a client's FIN says there: what the backend says to it is not seen, so it ends the flow.
pub const UNSEEN_CLOSE: u64 = CLIENT_FIN | BACKEND_FIN | CLIENT_FIN_ACKED | BACKEND_FIN_ACKED;

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

    /// Established and no FIN seen: the established path may handle the backend's packets alone; the client's go by
    /// the gate, which says the same.
    #[inline(always)]
    pub const fn is_plain_established(self) -> bool {
        self.0 as u32 & !(SYN_ACKED as u32) == State::Established as u32
    }

    /// Whether a packet of this flow is to be forwarded: it has an owner whose identity is written.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.is(State::HalfOpen) || self.is(State::Established) || self.is(State::Closed)
    }

    /// Whether a slot may get another owner: it has none, or one without a connection.
    #[inline(always)]
    pub const fn may_be_claimed(self) -> bool {
        self.is(State::Free) || self.is(State::HalfOpen) || self.is(State::Closed)
    }

    /// The next owner's claim while it writes its identity.
    #[inline(always)]
    pub const fn next_owner(self) -> Self {
        Self::new(State::Claiming, self.generation().wrapping_add(1))
    }

    /// The claim after a packet that says `step`: any of the flags above together.
    ///
    /// * Half-open becomes established by the ACK of a SYN-ACK that was seen (RFC 9293 section 3.5).
    /// * Established becomes closed once both FINs were acknowledged (RFC 9293 section 3.6). The flag `FREE_AT_ONCE` is
    ///   set by the first FIN if it is the client's: then the client holds TIME_WAIT, and the backend takes a new SYN on
    ///   the same ports at once.
    /// * A RST closes at once, and leaves no state at either end.
    /// * An adopted flow is established by the first answer that speaks of it: both ends had their handshake long ago.
    /// * What the balancer ends is closed at once, but its port is not free: no end has agreed.
    #[inline(always)]
    pub const fn after(self, step: u64) -> Self {
        if step & ENDED != 0 {
            let over = self.is(State::Closed) || !self.is_live();
            return if over { self } else { Self(self.0 & !FREE_AT_ONCE).to(State::Closed).with(ENDED) };
        }
        if step & RESET != 0 {
            return self.to(State::Closed).with(FREE_AT_ONCE);
        }
        let mut next = self.with(step & SYN_ACKED);
        if step & HANDSHAKE_DONE != 0 && next.is(State::HalfOpen) && next.has(SYN_ACKED) {
            next = Self(next.0 & !ADOPTED).to(State::Established);
        }
        if step & ALL_FINS == 0 || !next.is(State::Established) {
            return next;
        }
        // Both at once is what is said where the backend is not seen: nobody knows who was first.
        let client_first = step & (CLIENT_FIN | BACKEND_FIN) == CLIENT_FIN;
        if client_first && next.0 & (CLIENT_FIN | BACKEND_FIN) == 0 {
            next = next.with(FREE_AT_ONCE);
        }
        next = next.with(step & ALL_FINS);
        if next.has(ALL_FINS) { next.to(State::Closed) } else { next }
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
                            claim = claim.after(steps[step]);
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
    fn an_adopted_flow_is_established_by_an_answer_which_may_be_a_fin() {
        let asked = Claim::new(State::HalfOpen, 7).with(ADOPTED);
        assert!(asked.after(CONFIRMED).is_plain_established());
        let closing = asked.after(CONFIRMED | BACKEND_FIN);
        assert!(closing.is(State::Established) && closing.has(BACKEND_FIN) && !closing.has(ADOPTED));
        // A refusal, and the slot is anybody's.
        let refused = asked.after(RESET);
        assert!(refused.is(State::Closed) && refused.has(ADOPTED | FREE_AT_ONCE) && refused.may_be_claimed());
        assert!(!refused.next_owner().has(ADOPTED));
    }

    #[test]
    fn the_port_is_free_at_once_only_if_the_client_closed_first() {
        assert!(ESTABLISHED.after(CLIENT_FIN).after(BACKEND_FIN).has(FREE_AT_ONCE));
        assert!(!ESTABLISHED.after(BACKEND_FIN).after(CLIENT_FIN).has(FREE_AT_ONCE));
        assert!(ESTABLISHED.after(RESET).has(FREE_AT_ONCE));
        // The acknowledgement of the backend's FIN and the client's own FIN in one segment: the backend was first.
        assert!(!ESTABLISHED.after(BACKEND_FIN).after(CLIENT_FIN | BACKEND_FIN_ACKED).has(FREE_AT_ONCE));
    }

    #[test]
    fn promotion_needs_both_halves_of_the_handshake() {
        let half_open = Claim::new(State::HalfOpen, 7);
        assert_eq!(half_open.after(HANDSHAKE_DONE), half_open);
        let answered = half_open.after(SYN_ACKED);
        assert!(answered.is(State::HalfOpen));
        assert!(answered.after(HANDSHAKE_DONE).is(State::Established));
        assert_eq!(
            answered.after(CLIENT_FIN),
            answered,
            "a FIN before the handshake is done changes nothing"
        );
        let at_once = answered.after(HANDSHAKE_DONE | CLIENT_FIN);
        assert!(at_once.is(State::Established) && at_once.has(CLIENT_FIN | FREE_AT_ONCE));
        let closed = ESTABLISHED.after(RESET);
        assert_eq!(closed.after(HANDSHAKE_DONE | SYN_ACKED | CLIENT_FIN).state(), State::Closed as u8);
    }

    #[test]
    fn where_the_backend_is_not_seen_the_client_alone_begins_and_ends_a_flow() {
        let begun = Claim::new(State::HalfOpen, 7).after(UNSEEN_HANDSHAKE);
        assert!(begun.is(State::Established));
        let closed = begun.after(UNSEEN_CLOSE);
        assert!(closed.is(State::Closed) && !closed.has(FREE_AT_ONCE), "it may be half closed");
    }

    #[test]
    fn what_the_balancer_ends_keeps_its_port() {
        let ended = ESTABLISHED.after(CLIENT_FIN).after(ENDED);
        assert!(ended.is(State::Closed) && ended.has(ENDED) && !ended.has(FREE_AT_ONCE));
        assert!(Claim::new(State::HalfOpen, 7).after(ENDED).is(State::Closed));
        let closed = ESTABLISHED.after(RESET);
        assert_eq!(closed.after(ENDED), closed, "it was over before");
        assert_eq!(Claim::new(State::Free, 7).after(ENDED), Claim::new(State::Free, 7));
        assert_eq!(ended.next_owner(), Claim::new(State::Claiming, 8));
    }

    #[test]
    fn plain_established_is_the_fast_path_only() {
        assert!(ESTABLISHED.is_plain_established());
        assert!(ESTABLISHED.with(SYN_ACKED).is_plain_established());
        assert!(!ESTABLISHED.after(CLIENT_FIN).is_plain_established());
        assert!(!ESTABLISHED.after(BACKEND_FIN).is_plain_established());
        assert!(!Claim::new(State::HalfOpen, 7).is_plain_established());
    }

    #[test]
    fn a_new_owner_gets_a_new_generation_and_no_flags() {
        let closed = Claim::new(State::Closed, u32::MAX).with(FREE_AT_ONCE | CLIENT_FIN);
        assert_eq!(closed.next_owner(), Claim::new(State::Claiming, 0));
    }
}
