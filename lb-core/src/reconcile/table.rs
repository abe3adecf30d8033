//! What a service's choices are made by: its Maglev table and its live backends, one value.

use std::{collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use lb_common::maps::{self, MAX_TURNS};

/// The Maglev table (slot → backend number, [`maps::MAGLEV_SLOTS`] long, as which this derefs) and the live backends.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Table {
    slots: Arc<[u16]>,
    live: Arc<[Member]>,
}

/// A live backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub number: u16,
    /// Its share of new flows relative to the others'; not 0.
    pub weight: u32,
    /// Established flows past which it is passed over; 0: no limit.
    pub max_connections: u32,
}

impl Table {
    /// A table and the live backends, in the order of their turns.
    pub fn new(slots: impl IntoIterator<Item = u16>, live: impl IntoIterator<Item = Member>) -> Self {
        Self { slots: slots.into_iter().collect(), live: live.into_iter().collect() }
    }

    /// The live backends.
    pub fn live(&self) -> &[Member] {
        &self.live
    }

    /// The backends' numbers in the order of their turns, for `round-robin`.
    pub fn turns(&self) -> Vec<u16> {
        turns(&self.live)
    }

    /// The table of a map's value.
    pub fn read(value: &maps::Maglev) -> Self {
        let live = value.live.iter().take(value.live_count as usize);
        let member = |&number: &u16| {
            let share = value.shares.get(usize::from(number))?;
            Some(Member { number, weight: share.weight, max_connections: share.max_connections })
        };
        let slots = &value.slots[..maps::MAGLEV_SLOTS as usize];
        Self::new(slots.iter().copied(), live.filter_map(member))
    }

    /// Fills a map's value, which is all zero but for that.
    pub fn write(&self, value: &mut maps::Maglev) {
        value.slots.fill(maps::NO_BACKEND);
        value.slots[..self.slots.len()].copy_from_slice(&self.slots);
        for (place, member) in value.live.iter_mut().zip(self.live.iter()) {
            *place = member.number;
            if let Some(share) = value.shares.get_mut(usize::from(member.number)) {
                *share = maps::Share { weight: member.weight, max_connections: member.max_connections };
            }
        }
        let turns = turns(&self.live);
        value.turns[..turns.len()].copy_from_slice(&turns);
        value.live_count = self.live.len() as u32;
        value.live_weight = self.live.iter().map(|member| member.weight).sum();
        value.turn_count = turns.len() as u32;
    }
}

/// Backend numbers in the order of their turns: each as often as its weight says, and as evenly spread as can be (nginx's
/// smooth weighted round-robin). Weights whose sum, in lowest terms, is more than [`MAX_TURNS`] are scaled down, to no
/// less than one turn.
fn turns(live: &[Member]) -> Vec<u16> {
    let divisor = live.iter().fold(0, |divisor, member| gcd(divisor, member.weight)).max(1);
    let sum: u64 = live.iter().map(|member| u64::from(member.weight / divisor)).sum();
    // What rounding up to one turn each may add.
    let room = (MAX_TURNS - live.len().min(MAX_TURNS)) as u64;
    let scaled = |member: &Member| {
        let weight = u64::from(member.weight / divisor);
        if sum > MAX_TURNS as u64 { (weight * room / sum).max(1) } else { weight }
    };
    let mut credits: Vec<(u16, i64, i64)> =
        live.iter().map(|member| (member.number, scaled(member) as i64, 0)).collect();
    let total: i64 = credits.iter().map(|(_, weight, _)| weight).sum();
    let mut turns = Vec::with_capacity(total as usize);
    for _ in 0..total {
        credits.iter_mut().for_each(|(_, weight, credit)| *credit += *weight);
        // The first of the richest.
        let Some(next) = credits.iter_mut().rev().max_by_key(|(_, _, credit)| *credit) else { break };
        next.2 -= total;
        turns.push(next.0);
    }
    turns
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Deref for Table {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.slots
    }
}

impl fmt::Debug for Table {
    /// How many slots each owner has: 65,537 numbers would be read by nobody.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slots = BTreeMap::new();
        for &owner in self.slots.iter() {
            *slots.entry(owner).or_insert(0u32) += 1;
        }
        f.debug_struct("Table").field("slots", &slots).field("live", &self.live).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(number, &weight)| Member { number, weight, max_connections: 0 };
        (0..).zip(weights).map(member).collect()
    }

    #[test]
    fn turns_are_weighted_and_smooth() {
        assert_eq!(turns(&members(&[1, 1, 1])), [0, 1, 2]);
        assert_eq!(turns(&members(&[5, 1, 1])), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(&members(&[200, 100])), [0, 1, 0]);
        assert_eq!(turns(&[]), Vec::<u16>::new());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn everybody_has_turns_in_proportion(weights in vec(1u32..=1000, 1..64)) {
            let turns = turns(&members(&weights));
            prop_assert!(turns.len() <= MAX_TURNS);
            let sum: u32 = weights.iter().sum();
            for (number, &weight) in (0u16..).zip(&weights) {
                let has = turns.iter().filter(|turn| **turn == number).count() as f64;
                let due = f64::from(weight) / f64::from(sum) * turns.len() as f64;
                prop_assert!(has >= 1.0 && (has - due).abs() <= 1.0 + due * 0.05, "{has} of {due}");
            }
        }
    }

    #[test]
    fn the_most_backends_fit() {
        let weights: Vec<u32> = (0..maps::MAX_BACKENDS as u32).map(|n| 1 + n * 7 % 1000).collect();
        assert!(turns(&members(&weights)).len() <= MAX_TURNS);
    }
}
