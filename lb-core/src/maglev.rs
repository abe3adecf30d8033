//! Which backend a slot belongs to: weighted Maglev whose slots stay put.
//!
//! Maglev (Eisenbud et al., NSDI 2016, section 3.4) lets each backend take turns in claiming the next free
//! slot of its own permutation of the table. That spreads slots almost perfectly, but filling the table anew
//! for the backends that are left after a loss also moves slots between survivors. Here a loss never does,
//! because it is handled in two steps:
//!
//! 1. The *home* table is filled over all configured backends, live or not. It is a function of keys and
//!    weights only.
//! 2. Each slot has a fixed walk over the home table: itself, then steps of its own stride. The slot belongs to
//!    the first live owner on its walk, and to the live member that ranks highest for it should the walk end
//!    without one.
//!
//! Neither walk nor rank depend on who is live, so a backend's loss moves exactly the slots it held, and its return
//! brings back exactly those in which it comes first: whatever else is down, in whatever order things fail.
//! Strides are spread by hash, so what a lost backend held falls to the others in proportion to their
//! weights.
//!
//! Measured (see the tests, which hold these): home shares are within one slot of the weights' proportion,
//! plus one slot for each backend too light to earn one; after a loss the others' gains differ from their
//! proportion by random sampling only, below 1 % of the table. Configuring a further backend, or another
//! weight, also moves up to 0.5 % of the slots between the others, as in any Maglev. Building takes 0.5 to 4
//! ms for up to 16 backends, 60 ms at worst for 1,024 (`examples/maglev_time.rs`).
//!
//! Both nodes of a pair and all releases must build the same table, so hash and fill are part of the contract
//! between nodes: the test `table_is_the_same_everywhere` holds them.

use lb_common::maps;

/// Slots of a table, as in the pinned map: a prime, the paper's choice for small sets of backends.
pub const TABLE_SIZE: usize = maps::MAGLEV_SLOTS as usize;

/// The owner of a slot that no backend can take, as in the pinned map.
pub const NONE: u16 = maps::NO_BACKEND;

/// A configured backend, as the table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// What identifies the backend on every node, such as `address:port`.
    pub key: &'a [u8],
    /// Its share of the slots relative to the others'. With 0 it owns none.
    pub weight: u32,
    /// Whether it takes new flows now.
    pub live: bool,
}

/// The owner of each of the [`TABLE_SIZE`] slots, as an index into `members`; [`NONE`] if nobody lives.
///
/// The order of `members` does not matter for who owns what. At most 65,535 members are looked at.
pub fn build(members: &[Member<'_>]) -> Vec<u16> {
    let mut table = home(members);
    let is_live = |owner: u16| members.get(usize::from(owner)).is_some_and(|m| m.live);
    if members.iter().all(|m| m.live || m.weight == 0) {
        return table;
    }
    let live: Vec<(u16, &Member<'_>)> =
        (0..NONE).zip(members).filter(|(_, m)| m.live && m.weight > 0).collect();
    let home = table.clone();
    for (slot, owner) in table.iter_mut().enumerate() {
        if is_live(*owner) {
            continue;
        }
        let stride = 1 + bounded(mix(slot as u64 ^ SALT_WALK), TABLE_SIZE - 1);
        let walk = std::iter::successors(Some(step(slot, stride)), |at| Some(step(*at, stride)));
        let met = walk.take(MAX_STEPS).map(|at| home[at]).find(|o| is_live(*o));
        *owner = met.unwrap_or_else(|| highest_rank(slot, &live));
    }
    table
}

/// Where a walk ends: bounds the work when those who live own next to nothing of the home table. With a tenth of
/// the weight alive one slot in 10^11 gets this far, with a hundredth one in 13.
const MAX_STEPS: usize = 256;

/// The live member that ranks highest for a slot (rendezvous hashing, Thaler and Ravishankar 1998), whatever its
/// weight. Like the walk it is an order that does not depend on who is live.
fn highest_rank(slot: usize, live: &[(u16, &Member<'_>)]) -> u16 {
    let rank = |m: &Member<'_>| mix(mix(slot as u64 ^ SALT_RANK) ^ fnv1a(m.key));
    live.iter().max_by_key(|(_, m)| (rank(m), m.key)).map_or(NONE, |(index, _)| *index)
}

/// The Maglev table over all members, live or not.
fn home(members: &[Member<'_>]) -> Vec<u16> {
    let mut table = vec![NONE; TABLE_SIZE];
    let heaviest = members.iter().map(|m| m.weight).max().unwrap_or(0);
    if heaviest == 0 {
        return table;
    }
    let mut turns: Vec<Turn<'_>> =
        (0..NONE).zip(members).filter_map(|(i, m)| Turn::new(i, m, heaviest)).collect();
    turns.sort_by_key(|t| (t.key, t.index));

    let mut free = TABLE_SIZE;
    loop {
        for turn in &mut turns {
            // A member of half the weight claims in every second round.
            turn.credit += u64::from(turn.weight);
            if turn.credit < u64::from(heaviest) {
                continue;
            }
            turn.credit -= u64::from(heaviest);
            while table[turn.next] != NONE {
                turn.next = step(turn.next, turn.stride);
            }
            table[turn.next] = turn.index;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

/// A member while the home table is filled.
struct Turn<'a> {
    index: u16,
    key: &'a [u8],
    weight: u32,
    /// What has been earned toward the next claim, which costs the heaviest member's weight.
    credit: u64,
    /// The next slot of its permutation: `next`, `next + stride`, … modulo the table's size.
    next: usize,
    stride: usize,
}

impl<'a> Turn<'a> {
    fn new(index: u16, member: &Member<'a>, heaviest: u32) -> Option<Self> {
        if member.weight == 0 {
            return None;
        }
        let hash = fnv1a(member.key);
        Some(Self {
            index,
            key: member.key,
            weight: member.weight,
            // Enough for a claim in the first round, so that the lightest of many owns a slot too.
            credit: u64::from(heaviest - member.weight),
            next: bounded(mix(hash ^ SALT_START), TABLE_SIZE),
            stride: 1 + bounded(mix(hash ^ SALT_STRIDE), TABLE_SIZE - 1),
        })
    }
}

// Domain separation between the uses of one hash: the first digits of pi's fraction, as good as any.
const SALT_START: u64 = 0x243f_6a88_85a3_08d3;
const SALT_STRIDE: u64 = 0x1319_8a2e_0370_7344;
const SALT_WALK: u64 = 0xa409_3822_299f_31d0;
const SALT_RANK: u64 = 0x082e_fa98_ec4e_6c89;

fn step(slot: usize, stride: usize) -> usize {
    let next = slot + stride;
    if next >= TABLE_SIZE { next - TABLE_SIZE } else { next }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): simple enough to be the same everywhere for ever. Keys are the
/// operator's, not an attacker's, and [`mix`] makes up for its weak high bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): each input bit changes each output
/// bit with probability about 1/2.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `hash` scaled to `0..bound` by multiplication (Lemire 2019); the bias is below 2^-47 for a table's size.
fn bounded(hash: u64, bound: usize) -> usize {
    ((u128::from(hash) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests;
