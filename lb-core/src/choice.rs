//! The choice of a backend as the data plane makes it, step by step, for people: the same arithmetic
//! ([`lb_common::choose`]) on the same values, with every backend that was asked.

use lb_common::{
    choose::{Algorithm, Flows, Rank, TRIES, Verdict, is_full, verdict},
    maps::{MAGLEV_SLOTS, Share},
};

use crate::reconcile::{Member, Table};

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Each backend that was asked, in order, and its answer.
    pub asked: Vec<(u16, Verdict)>,
    /// The backend; `None`: none is live, or each live one has `max_connections`.
    pub chosen: Option<u16>,
    /// It was looked for among all live backends: by its load, not by a slot or turn.
    pub by_load: bool,
}

/// The backend for a new flow. `start`: the client's slot, or the turn; `k`: the service's flows with this one; `flows`:
/// those of a backend.
pub fn choose(
    table: &Table,
    algorithm: Algorithm,
    start: u64,
    k: u64,
    flows: impl Fn(u16) -> Flows,
) -> Choice {
    let live = table.live();
    let live_weight = live.iter().map(|member| member.weight).sum();
    let mut choice = Choice { asked: Vec::new(), chosen: None, by_load: false };
    let turns = if algorithm == Algorithm::RoundRobin { table.turns() } else { Vec::new() };
    let candidate = |step: u32| match algorithm {
        Algorithm::LeastConn => None,
        Algorithm::RoundRobin if turns.is_empty() => None,
        Algorithm::RoundRobin => {
            turns.get((start.wrapping_add(step.into()) % turns.len() as u64) as usize).copied()
        }
        Algorithm::Bounded | Algorithm::Maglev => {
            table.get(((start + u64::from(step)) % u64::from(MAGLEV_SLOTS)) as usize).copied()
        }
    };
    for number in (0..=TRIES).map_while(candidate) {
        let share = live.iter().find(|member| member.number == number).map_or(NOT_LIVE, share);
        let answer = verdict(algorithm, &share, flows(number), live_weight, k);
        choice.asked.push((number, answer));
        if answer == Verdict::Takes {
            choice.chosen = Some(number);
            return choice;
        }
    }
    let mut best: Option<(Rank, u16)> = None;
    for step in 0..live.len() as u64 {
        let member = &live[(start.wrapping_add(step) % live.len() as u64) as usize];
        let (share, flows) = (share(member), flows(member.number));
        let rank = Rank::new(&share, flows);
        if !is_full(&share, flows) && best.as_ref().is_none_or(|(best, _)| rank.is_before(best)) {
            best = Some((rank, member.number));
        }
    }
    choice.chosen = best.map(|(_, number)| number);
    choice.by_load = true;
    choice
}

const NOT_LIVE: Share = Share { weight: 0, max_connections: 0 };

const fn share(member: &Member) -> Share {
    Share { weight: member.weight, max_connections: member.max_connections }
}
