//! Which NAT ports are tried for a new flow.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hash::SPREAD;

/// The lowest NAT port: the ports below are the system's (RFC 6335 section 6).
pub const FIRST_PORT: u32 = 1024;
/// NAT ports of one (source address, backend).
pub const PORTS: u32 = 65_536 - FIRST_PORT;
/// Slots tried after the client's own port.
pub const TRIES: u32 = 16;
/// How long the port of a flow that the backend closed first stays unused, nanoseconds: Linux's TIME_WAIT
/// (`TCP_TIMEWAIT_LEN`, 60 s).
pub const TIME_WAIT_NS: u64 = 60_000_000_000;

/// The NAT ports that a node picks from where a flow cannot have its client's own port. A node that owns the VIPs and does
/// not hear another one picks from its own part: the other may own them too, where the link between the two is cut.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Range {
    /// The lowest.
    pub first: u16,
    /// How many there are.
    pub ports: u16,
}

impl Range {
    /// All of them.
    pub const ALL: Self = Self { first: FIRST_PORT as u16, ports: PORTS as u16 };

    /// Part `number`, counted from 0, of `of` equal ones; of none, or beyond the last: all.
    pub const fn part(number: u16, of: u16) -> Self {
        if number >= of {
            return Self::ALL;
        }
        let ports = PORTS as u16 / of;
        Self { first: FIRST_PORT as u16 + number * ports, ports }
    }
}

/// Tries at most: the client's own port, then [`TRIES`] slots of the range, and where that is a part as many of all: a port
/// that another node may use too is better than none.
#[inline(always)]
pub const fn tries(range: Range) -> u32 {
    if range.ports as u32 == PORTS { 1 + TRIES } else { 1 + 2 * TRIES }
}

/// The hash that NAT ports are picked by, of the hash that the backend was chosen by: with `affinity` the client's port is not
/// part of that.
#[inline(always)]
pub const fn hash(chosen_by: u64, client_port: u16) -> u64 {
    chosen_by.wrapping_add((client_port as u64).wrapping_mul(SPREAD))
}

/// The port of a try: the client's own first, where it is not a system port, then by hash.
///
/// Consecutive hashed tries lie an odd step apart, so that they never repeat, and two clients that meet in one slot part
/// at the next.
#[inline(always)]
pub const fn candidate(client_port: u16, hash: u64, attempt: u32, range: Range) -> u16 {
    if attempt == 0 && client_port as u32 >= FIRST_PORT {
        return client_port;
    }
    let start = hash as u32 & 0xffff;
    let step = ((hash >> 16) as u32 & 0xffff) | 1;
    let at = start.wrapping_add(step.wrapping_mul(attempt)) & 0xffff;
    // All bits once the tries in the range are used up; without a branch, for the verifier.
    let beyond = 0u32.wrapping_sub(TRIES.wrapping_sub(attempt) >> 31);
    let first = range.first as u32 & !beyond | FIRST_PORT & beyond;
    let ports = range.ports as u32 & !beyond | PORTS & beyond;
    (first + ((at * ports) >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn candidates_are_never_system_ports(client in any::<u16>(), hash in any::<u64>(), attempt in 0..=TRIES) {
            prop_assert!(candidate(client, hash, attempt, Range::ALL) >= 1024);
        }

        #[test]
        fn the_clients_own_port_is_first(client in 1024u16.., hash in any::<u64>()) {
            prop_assert_eq!(candidate(client, hash, 0, Range::part(1, 2)), client);
        }
    }

    proptest! {
        #[test]
        fn parts_share_no_port(of in 1..=8u16, hash in any::<u64>(), attempt in 1..=TRIES) {
            let mut lowest = FIRST_PORT;
            for number in 0..of {
                let range = Range::part(number, of);
                let above = u32::from(range.first) + u32::from(range.ports);
                prop_assert!(u32::from(range.first) >= lowest && above <= FIRST_PORT + PORTS);
                lowest = above;
                let port = u32::from(candidate(40_000, hash, attempt, range));
                prop_assert!(port >= u32::from(range.first) && port < above);
            }
            prop_assert!(PORTS - (lowest - FIRST_PORT) < u32::from(of), "nearly none is nobody's");
            prop_assert_eq!(Range::part(of, of), Range::ALL);
            prop_assert_eq!(tries(Range::ALL), 1 + TRIES);
        }
    }

    #[test]
    fn tries_differ() {
        let mut distinct = 0;
        for seed in 0..100u64 {
            let hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let ports: std::collections::BTreeSet<u16> =
                (0..=TRIES).map(|n| candidate(80, hash, n, Range::ALL)).collect();
            distinct += ports.len();
        }
        // Scaling 65,536 values to 64,512 ports may join two neighbours; more than that would be a mistake.
        assert!(distinct >= 100 * TRIES as usize, "{distinct}");
    }
}
