//! Which NAT ports are tried for a new flow.

/// The lowest NAT port: the ports below are the system's (RFC 6335 section 6).
pub const FIRST_PORT: u32 = 1024;
/// NAT ports of one (source address, backend).
pub const PORTS: u32 = 65_536 - FIRST_PORT;
/// Slots tried after the client's own port.
pub const TRIES: u32 = 16;
/// How long the port of a flow that the backend closed first stays unused, nanoseconds: Linux's TIME_WAIT
/// (`TCP_TIMEWAIT_LEN`, 60 s).
pub const TIME_WAIT_NS: u64 = 60_000_000_000;

/// The port of a try: the client's own first, where it is not a system port, then by hash.
///
/// Consecutive hashed tries lie an odd step apart, so that they never repeat, and two clients that meet in one slot part
/// at the next.
#[inline(always)]
pub const fn candidate(client_port: u16, hash: u64, attempt: u32) -> u16 {
    if attempt == 0 && client_port as u32 >= FIRST_PORT {
        return client_port;
    }
    let start = hash as u32 & 0xffff;
    let step = ((hash >> 16) as u32 & 0xffff) | 1;
    let at = start.wrapping_add(step.wrapping_mul(attempt)) & 0xffff;
    (FIRST_PORT + ((at * PORTS) >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn candidates_are_never_system_ports(client in any::<u16>(), hash in any::<u64>(), attempt in 0..=TRIES) {
            prop_assert!(candidate(client, hash, attempt) >= 1024);
        }

        #[test]
        fn the_clients_own_port_is_first(client in 1024u16.., hash in any::<u64>()) {
            prop_assert_eq!(candidate(client, hash, 0), client);
        }
    }

    #[test]
    fn tries_differ() {
        let mut distinct = 0;
        for seed in 0..100u64 {
            let hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let ports: std::collections::BTreeSet<u16> =
                (0..=TRIES).map(|n| candidate(80, hash, n)).collect();
            distinct += ports.len();
        }
        // Scaling 65,536 values to 64,512 ports may join two neighbours; more than that would be a mistake.
        assert!(distinct >= 100 * TRIES as usize, "{distinct}");
    }
}
