//! How many flows each backend of a service has too many, so that `rebalance` resets no more than these.

use lb_common::choose;

/// A backend, as it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Established flows.
    pub flows: u32,
    /// Its weight.
    pub weight: u32,
    /// Takes new flows now. One that does not is left alone, and counts for nothing.
    pub usable: bool,
}

/// A backend, as it should be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Flows at most; 0 for a backend that takes no new flows.
    pub bound: u32,
    /// Flows too many.
    pub excess: u32,
}

/// For each backend its bound ([`choose::bound`], the one that new flows are held to), and what it has above it. Counted are
/// the flows of all usable backends, so that whoever comes again finds room elsewhere.
pub fn verdicts(backends: &[Share]) -> Vec<Verdict> {
    let counted = || backends.iter().filter(|backend| backend.usable && backend.weight > 0);
    let flows: u64 = counted().map(|backend| u64::from(backend.flows)).sum();
    let weights: u32 = counted().map(|backend| backend.weight).fold(0, u32::saturating_add);
    let verdict = |backend: &Share| {
        if !backend.usable || backend.weight == 0 {
            return Verdict { bound: 0, excess: 0 };
        }
        let bound = u32::try_from(choose::bound(backend.weight, weights, flows)).unwrap_or(u32::MAX);
        Verdict { bound, excess: backend.flows.saturating_sub(bound) }
    };
    backends.iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `flows`, `flows*weight`, or either with `!`: takes no new flows.
    fn backends(text: &str) -> Vec<Share> {
        text.split_whitespace()
            .map(|word| {
                let (flows, weight) =
                    word.trim_end_matches('!').split_once('*').unwrap_or((word.trim_end_matches('!'), "1"));
                Share {
                    flows: flows.parse().unwrap(),
                    weight: weight.parse().unwrap(),
                    usable: !word.ends_with('!'),
                }
            })
            .collect()
    }

    #[test]
    fn the_table() {
        #[rustfmt::skip]
        let table = [
            // flows           bounds          too many
            ("2 2 2",          "2 2 2",        "0 0 0"),
            ("6 0 0",          "2 2 2",        "4 0 0"),
            ("30 30 0",        "25 25 25",     "5 5 0"),
            ("60 0 0",         "25 25 25",     "35 0 0"),
            ("25 20 15",       "25 25 25",     "0 0 0"),
            ("26 20 14",       "25 25 25",     "1 0 0"),
            // One flow more than fits evenly has a place.
            ("2 1 1",          "2 2 2",        "0 0 0"),
            ("3 1 0",          "2 2 2",        "1 0 0"),
            // Weighted: 40 flows, shares 1/4 and 3/4.
            ("20*1 20*3",      "12 37",        "8 0"),
            // Weight 0 and what takes no new flows: not counted, not touched.
            ("9*0 4 0",        "0 2 2",        "0 2 0"),
            ("50! 3 3",        "0 3 3",        "0 0 0"),
            ("50! 60!",        "0 0",          "0 0"),
            ("0 0",            "0 0",          "0 0"),
            ("7",              "8",            "0"),
            ("",               "",             ""),
        ];
        let text = |numbers: Vec<u32>| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        for (flows, bounds, excess) in table {
            let verdicts = verdicts(&backends(flows));
            assert_eq!(text(verdicts.iter().map(|v| v.bound).collect()), bounds, "{flows}");
            assert_eq!(text(verdicts.iter().map(|v| v.excess).collect()), excess, "{flows}");
        }
    }

    #[test]
    fn whoever_comes_again_finds_room() {
        let mut random = 7u64;
        for _ in 0..2000 {
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 40) as u32
            };
            let backends: Vec<_> = (0..1 + next() % 9)
                .map(|_| Share { flows: next() % 100, weight: next() % 4, usable: next() % 5 > 0 })
                .collect();
            let verdicts = verdicts(&backends);
            let excess: u32 = verdicts.iter().map(|v| v.excess).sum();
            let room: u32 =
                backends.iter().zip(&verdicts).map(|(b, v)| v.bound.saturating_sub(b.flows)).sum();
            assert!(excess <= room, "{backends:?}: {verdicts:?}");
        }
    }
}
