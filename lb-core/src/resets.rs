//! Resets: which backends' flows are to end, and when each flow's two ends are told.
//!
//! What resets a flow is that its epoch differs from its backend's, or that the agent ended it by itself; the data plane
//! answers whatever either end still says with an exact RST. The ends that say nothing are told by the agent: at once, and
//! twice again, since a frame may be lost.

use std::collections::VecDeque;

use crate::{config::OnBackendDown, desired::Standing, health::State};

/// Told again so long after it was told before, ns: 1 s and 3 s after the first time.
const PAUSES_NS: [u64; 2] = [1_000_000_000, 2_000_000_000];
/// Flows are told at 10,000 a second, so that a backend's flows do not come back as one burst.
const PACE_NS: u64 = 100_000;
/// Flows that may be told at once after a rest: what is due between two ticks of a timer of some milliseconds.
const BURST: u64 = 100;

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What is known of it.
    pub standing: Standing,
    /// Its weight.
    pub weight: u32,
}

/// For each backend of a service: whether its flows are to end now. Levels, not edges: a backend that is down has its
/// flows reset as long as another one can take them, also when that one became healthy later. While no other is healthy
/// nobody is reset: the service fails open, or the flows are all that works. A backend whose failure others may share keeps
/// its flows until it turns out to fail alone: they may be fine by the time that another becomes healthy.
pub fn due(members: &[Member], policy: OnBackendDown) -> Vec<bool> {
    let takes = |member: &Member| {
        member.standing.state == State::Healthy && !member.standing.drained && member.weight > 0
    };
    let somewhere_to_go = members.iter().any(takes);
    let resets = policy == OnBackendDown::Reset && somewhere_to_go;
    members.iter().map(|member| resets && member.standing.fails_alone).collect()
}

/// Flows whose ends are to be told, in order and paced. Times are ns of any clock that does not go back.
#[derive(Debug)]
pub struct Schedule<T> {
    fresh: VecDeque<T>,
    /// For each repetition, flows by the time from which they are due.
    again: [VecDeque<(u64, T)>; PAUSES_NS.len()],
    /// When the next may be told.
    next_ns: u64,
}

/// How often a flow's ends were told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Never.
    First,
    /// They were.
    Again,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { fresh: VecDeque::new(), again: Default::default(), next_ns: 0 }
    }
}

impl<T: Copy> Schedule<T> {
    /// A flow to be told for the first time.
    pub fn add(&mut self, flow: T) {
        self.fresh.push_back(flow);
    }

    /// The next flow to tell, if one is due at `now_ns`. New ones come before repetitions.
    pub fn take(&mut self, now_ns: u64) -> Option<(T, Time)> {
        if self.next_ns > now_ns {
            return None;
        }
        let (flow, told) = match self.fresh.pop_front() {
            Some(flow) => (flow, 0),
            None => {
                let due = |queue: &VecDeque<(u64, T)>| queue.front().is_some_and(|(at, _)| *at <= now_ns);
                let number = self.again.iter().position(due)?;
                (self.again[number].pop_front()?.1, number + 1)
            }
        };
        if let Some(pause) = PAUSES_NS.get(told) {
            self.again[told].push_back((now_ns.saturating_add(*pause), flow));
        }
        self.next_ns = self.next_ns.max(now_ns.saturating_sub(BURST * PACE_NS)) + PACE_NS;
        Some((flow, if told == 0 { Time::First } else { Time::Again }))
    }

    /// When [`Self::take`] has something next; `None`: nothing is left.
    pub fn due_ns(&self) -> Option<u64> {
        let repetitions = self.again.iter().filter_map(|queue| queue.front()).map(|(at, _)| *at);
        let earliest = if self.fresh.is_empty() { repetitions.min()? } else { 0 };
        Some(earliest.max(self.next_ns))
    }

    /// Flows that were not told yet.
    pub fn untold(&self) -> usize {
        self.fresh.len()
    }

    /// The flows that are still to be told at least once more.
    pub fn waiting(&self) -> impl Iterator<Item = &T> {
        self.fresh.iter().chain(self.again.iter().flatten().map(|(_, flow)| flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// `H`ealthy, `D`own, `d`own perhaps with all others, `S`tarting; `!`: drained; `0`: weight 0.
    fn members(text: &str) -> Vec<Member> {
        text.split_whitespace()
            .map(|word| Member {
                standing: Standing {
                    state: match word.as_bytes()[0] {
                        b'H' => State::Healthy,
                        b'D' | b'd' => State::Down,
                        _ => State::Starting,
                    },
                    accepts: false,
                    fails_alone: word.starts_with('D'),
                    drained: word.contains('!'),
                },
                weight: u32::from(!word.contains('0')),
            })
            .collect()
    }

    #[test]
    fn the_table() {
        #[rustfmt::skip]
        let table = [
            ("H H H",     "000"),
            ("H D H",     "010"),
            ("D D H",     "110"),
            ("H! D H",    "010"),
            // A drained one that dies is down all the same.
            ("D! H",      "10"),
            // There must be somewhere to go: nobody healthy, or nobody that takes flows.
            ("D D D",     "000"),
            ("D",         "0"),
            ("H! D D",    "000"),
            ("H0 D D",    "000"),
            ("S D D",     "000"),
            // A quorum that returns is seen by one before the others.
            ("H d d",     "000"),
            ("H d D",     "001"),
            // Not checked yet is not down.
            ("S H D",     "001"),
            ("",          ""),
        ];
        let text = |due: Vec<bool>| due.iter().map(|due| if *due { '1' } else { '0' }).collect::<String>();
        for (standings, expected) in table {
            let members = members(standings);
            assert_eq!(text(due(&members, OnBackendDown::Reset)), expected, "{standings}");
            assert!(!due(&members, OnBackendDown::Keep).contains(&true), "{standings}");
        }
    }

    #[test]
    fn a_flow_is_told_three_times() {
        let mut schedule = Schedule::default();
        assert_eq!((schedule.take(0), schedule.due_ns()), (None, None));
        schedule.add('a');
        assert_eq!(schedule.untold(), 1);
        let start = 5 * SECOND;
        assert_eq!(schedule.take(start), Some(('a', Time::First)));
        assert_eq!(schedule.untold(), 0);
        assert_eq!((schedule.take(start), schedule.due_ns()), (None, Some(start + SECOND)));
        assert_eq!(schedule.take(start + SECOND - 1), None);
        assert_eq!(schedule.take(start + SECOND), Some(('a', Time::Again)));
        assert_eq!(schedule.due_ns(), Some(start + 3 * SECOND));
        assert_eq!(schedule.waiting().count(), 1);
        assert_eq!(schedule.take(start + 3 * SECOND), Some(('a', Time::Again)));
        assert_eq!((schedule.due_ns(), schedule.waiting().count()), (None, 0));
    }

    #[test]
    fn a_thousand_flows_take_a_tenth_of_a_second() {
        let mut schedule = Schedule::default();
        (0..1000).for_each(|flow| schedule.add(flow));
        let start = 7 * SECOND;
        let mut now = start;
        let mut told = Vec::new();
        while told.len() < 1000 {
            now = now.max(schedule.due_ns().unwrap());
            let (flow, time) = schedule.take(now).unwrap();
            assert_eq!(time, Time::First);
            told.push(flow);
        }
        assert!(told.is_sorted());
        let took = now - start;
        assert!((85_000_000..=100_000_000).contains(&took), "{took} ns");
    }

    #[test]
    fn new_flows_come_before_repetitions_and_the_pace_holds() {
        let mut schedule = Schedule::default();
        (0..3000).for_each(|flow| schedule.add(flow));
        let mut now = SECOND;
        let (mut firsts, mut all) = (0, 0);
        let mut seen = Vec::new();
        while let Some(due) = schedule.due_ns() {
            now = now.max(due);
            if all == 3100 {
                (3000..3010).for_each(|flow| schedule.add(flow));
            }
            let (flow, time) = schedule.take(now).unwrap();
            firsts += u32::from(time == Time::First);
            all += 1;
            seen.push((now, flow));
            assert!((all - u64::from(all > BURST) * BURST) * PACE_NS <= now - SECOND + BURST * PACE_NS);
        }
        assert_eq!((firsts, all), (3010, 3 * 3010));
        for flow in [0, 2999, 3005] {
            let times: Vec<_> = seen.iter().filter(|(_, f)| *f == flow).map(|(at, _)| *at).collect();
            assert!(times.len() == 3 && times[1] >= times[0] + SECOND && times[2] >= times[0] + 3 * SECOND);
        }
    }
}
