//! Choosing a backend for a new flow: the arithmetic, for the data plane and for `etcd-lb explain`.
//!
//! All of it without a division, so that nothing is rounded and nothing can divide by zero.

use crate::maps::{SERVICE_AFFINITY, Share};

/// Further slots that are asked after the first, before the least loaded backend is looked for.
pub const TRIES: u32 = 16;

/// How a service chooses. In [`crate::maps::Service::flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The slot's backend, within bounds of load.
    Bounded = 0,
    /// The slot's backend.
    Maglev = 1,
    /// The least loaded.
    LeastConn = 2,
    /// One after the other.
    RoundRobin = 3,
}

/// The algorithm's place in the flags.
const SHIFT: u32 = 8;

impl Algorithm {
    /// Its bits in a service's flags.
    pub const fn flags(self) -> u16 {
        (self as u16) << SHIFT
    }

    /// What a service's flags say. Affinity is a promise that neither load nor turn may break, so it chooses by the slot
    /// alone.
    #[inline(always)]
    pub const fn of(flags: u16) -> Self {
        if flags & SERVICE_AFFINITY != 0 {
            return Self::Maglev;
        }
        match (flags >> SHIFT) & 3 {
            0 => Self::Bounded,
            1 => Self::Maglev,
            2 => Self::LeastConn,
            _ => Self::RoundRobin,
        }
    }
}

/// Flows of a backend or a service, as a choice counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Established ones.
    pub established: u64,
    /// Handshakes begun in the last instant; see [`crate::pending`].
    pub pending: u64,
}

impl Flows {
    /// All of them.
    #[inline(always)]
    pub const fn all(self) -> u64 {
        self.established.saturating_add(self.pending)
    }
}

/// What a slot's backend says to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes it.
    Takes,
    /// It takes no new flows.
    NotLive,
    /// It has `max_connections`.
    Full,
    /// It would have more than the bound.
    OverBound,
}

/// Whether a backend takes a new flow. `k`: the service's flows with this one; `live_weight`: all live backends' weight.
///
/// Handshakes under way count here, so that a backend is not filled past `max_connections` by many at once while others
/// have room; the last choice, [`is_full`], does not count them, since whoever forges SYNs could else close a service.
#[inline(always)]
pub const fn verdict(algorithm: Algorithm, share: &Share, flows: Flows, live_weight: u32, k: u64) -> Verdict {
    if share.weight == 0 {
        return Verdict::NotLive;
    }
    if share.max_connections != 0 && flows.all() >= share.max_connections as u64 {
        return Verdict::Full;
    }
    if matches!(algorithm, Algorithm::Bounded) && !is_within_bound(flows.all(), share.weight, live_weight, k)
    {
        return Verdict::OverBound;
    }
    Verdict::Takes
}

/// Whether a backend has `max_connections` established flows.
#[inline(always)]
pub const fn is_full(share: &Share, flows: Flows) -> bool {
    share.max_connections != 0 && flows.established >= share.max_connections as u64
}

/// Flows as a factor: what is beyond 2^35, far beyond what is possible, is cut off, so that no product runs over (a saturating
/// one needs 128 bits, which BPF lacks), and without a branch, of which the verifier would follow both sides.
#[inline(always)]
const fn count(flows: u64) -> u64 {
    flows & ((1 << 35) - 1)
}

/// The same of a weight, beyond 2^24.
#[inline(always)]
const fn factor(weight: u32) -> u64 {
    weight as u64 & ((1 << 24) - 1)
}

/// Whether a backend with `load` flows, after one more, has at most max(⌈s⌉, ⌊1.25 × s⌋), where s = `k` × `weight` /
/// `live_weight` is its share of the service's `k` flows. Counts below 2^35 and weights below 2^24 are told apart.
#[inline(always)]
pub const fn is_within_bound(load: u64, weight: u32, live_weight: u32, k: u64) -> bool {
    let (load, live_weight) = (count(load), factor(live_weight));
    let share = count(k) * factor(weight);
    // load + 1 ≤ ⌈s⌉ is load < s; load + 1 ≤ ⌊1.25 × s⌋ is load + 1 ≤ 1.25 × s.
    load * live_weight < share || (load + 1) * live_weight * 4 <= share * 5
}

/// The bound of [`is_within_bound`] as a number, for people.
pub const fn bound(weight: u32, live_weight: u32, k: u64) -> u64 {
    if live_weight == 0 {
        return 0;
    }
    let (share, live_weight) = (k as u128 * weight as u128, live_weight as u128);
    let (ceil, five_quarters) = (share.div_ceil(live_weight), 5 * share / (4 * live_weight));
    (if ceil > five_quarters { ceil } else { five_quarters }) as u64
}

/// How loaded a backend is for its weight. As HAProxy ranks servers for `leastconn`: an idle one first, whatever its
/// weight, then by (flows + 1) / weight; those which handshakes under way would fill come last.
#[derive(Clone, Copy, Debug)]
pub struct Rank {
    load: u64,
    weight: u64,
    crowded: bool,
}

impl Rank {
    /// The rank of a live backend.
    #[inline(always)]
    pub const fn new(share: &Share, flows: Flows) -> Self {
        let crowded = share.max_connections != 0 && flows.all() >= share.max_connections as u64;
        let load = if flows.all() == 0 { 0 } else { count(flows.all()) + 1 };
        Self { load, weight: factor(share.weight), crowded }
    }

    /// Whether it is to be chosen before another.
    #[inline(always)]
    pub const fn is_before(&self, other: &Self) -> bool {
        if self.crowded != other.crowded {
            return other.crowded;
        }
        self.load * other.weight < other.load * self.weight
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn flows(established: u64, pending: u64) -> Flows {
        Flows { established, pending }
    }

    const fn share(weight: u32, max_connections: u32) -> Share {
        Share { weight, max_connections }
    }

    /// Six connections, one after the other, on three equal backends, in whichever order the slots come.
    #[test]
    fn six_flows_are_two_by_two_by_two() {
        for order in 0..3u64.pow(6) {
            let mut loads = [0u64; 3];
            for flow in 0..6 {
                let first = (order / 3u64.pow(flow)) % 3;
                let taker = (0..3).map(|step| (first + step) as usize % 3);
                let k = loads.iter().sum::<u64>() + 1;
                let taker =
                    taker.clone().find(|&b| is_within_bound(loads[b], 1, 3, k)).expect("one takes it");
                loads[taker] += 1;
            }
            assert_eq!(loads, [2, 2, 2]);
        }
    }

    #[test]
    fn no_backend_and_one_backend() {
        let none = verdict(Algorithm::Bounded, &share(0, 0), flows(0, 0), 0, 1);
        assert_eq!(none, Verdict::NotLive);
        assert_eq!(bound(0, 0, 7), 0);
        for load in 0..1000 {
            assert!(is_within_bound(load, 1, 1, load + 1), "the only one takes everything");
        }
    }

    #[test]
    fn limits_and_algorithms() {
        use Algorithm::{Bounded, LeastConn, Maglev, RoundRobin};
        assert_eq!(verdict(Maglev, &share(0, 0), flows(0, 0), 3, 1), Verdict::NotLive);
        assert_eq!(verdict(Maglev, &share(1, 5), flows(4, 0), 3, 9), Verdict::Takes);
        assert_eq!(verdict(Maglev, &share(1, 5), flows(5, 0), 3, 9), Verdict::Full);
        assert_eq!(verdict(Maglev, &share(1, 5), flows(2, 3), 3, 9), Verdict::Full);
        assert!(!is_full(&share(1, 5), flows(2, 30)));
        assert_eq!(verdict(Bounded, &share(1, 0), flows(5, 0), 3, 6), Verdict::OverBound);
        for other in [Maglev, LeastConn, RoundRobin] {
            assert_eq!(verdict(other, &share(1, 0), flows(500, 0), 3, 501), Verdict::Takes);
            assert_eq!(Algorithm::of(other.flags()), other);
            assert_eq!(Algorithm::of(other.flags() | SERVICE_AFFINITY), Maglev);
        }
        assert_eq!(Algorithm::of(0), Bounded);
    }

    #[test]
    fn ranks() {
        let before = |a: (u32, u64), b: (u32, u64)| {
            Rank::new(&share(a.0, 0), flows(a.1, 0)).is_before(&Rank::new(&share(b.0, 0), flows(b.1, 0)))
        };
        assert!(before((1, 0), (9, 1)), "an idle one first");
        assert!(before((2, 3), (1, 2)), "4/2 < 3/1");
        assert!(!before((1, 3), (1, 3)), "equals keep their turn");
        let crowded = Rank::new(&share(9, 3), flows(0, 3));
        assert!(Rank::new(&share(1, 0), flows(90, 0)).is_before(&crowded) && !crowded.is_before(&crowded));
    }

    proptest! {
        #[test]
        fn the_bound_is_what_the_design_says(
            load in 0u64..5_000_000, weight in 1u32..=1000, others in 0u32..1_023_000, k in 1u64..=(1 << 32)
        ) {
            let live = weight + others;
            let exact = bound(weight, live, k);
            prop_assert_eq!(is_within_bound(load, weight, live, k), load < exact);
            if others == 0 {
                prop_assert!(exact >= k);
            }
        }

        #[test]
        fn somebody_always_takes_it(backends in vec((1u32..=1000, 0u64..100_000), 1..64)) {
            let live: u32 = backends.iter().map(|(weight, _)| weight).sum();
            let k = backends.iter().map(|(_, load)| load).sum::<u64>() + 1;
            prop_assert!(backends.iter().any(|&(weight, load)| is_within_bound(load, weight, live, k)));
        }

        #[test]
        fn nothing_overflows(load: u64, weight: u32, live: u32, k: u64, max: u32, pending: u64) {
            let flows = Flows { established: load, pending };
            let _ = verdict(Algorithm::Bounded, &share(weight, max), flows, live, k);
            let rank = Rank::new(&share(weight, max), flows);
            prop_assert!(!rank.is_before(&rank));
        }
    }
}
