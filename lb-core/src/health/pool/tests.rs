use super::super::{Outcome, Timing};
use super::*;
use proptest::prelude::*;
use std::time::Duration;

const TIMING: Timing =
    Timing { interval: ms(1000), fast_interval: ms(200), timeout: ms(1000), rise: 2, fall: 2 };

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A service's backends, and a clock.
struct Pool {
    backends: Vec<Health>,
    start: Instant,
}

impl Pool {
    fn healthy(count: usize) -> Self {
        let start = Instant::now();
        Self { backends: vec![Health::restore(TIMING, State::Healthy, start); count], start }
    }

    /// A probe of a backend from `begun` to `ended`, in ms. Timers are not asked for: any order of probes must do.
    fn probe(&mut self, place: usize, begun: u64, ended: u64, outcome: Outcome) -> Vec<(usize, State)> {
        let (begun, ended) = (self.start + ms(begun), self.start + ms(ended));
        let backend = &mut self.backends[place];
        backend.probe_at_once(begun);
        let probe = backend.poll(begun.max(backend.next_timeout()), 0).unwrap();
        let flip = backend.on_result(probe.id, outcome, ended);
        let mut pool: Vec<_> = self.backends.iter_mut().collect();
        let own = flip.map(|flip| (place, flip));
        own.into_iter().chain(settle(&mut pool, ended)).map(|(place, flip)| (place, flip.to)).collect()
    }

    /// `H`ealthy, `W`ithheld, `D`own alone, `d`own perhaps with all.
    fn states(&self) -> String {
        let word = |backend: &Health| match backend.state() {
            State::Starting => 'S',
            State::Healthy if backend.is_withheld() => 'W',
            State::Healthy => 'H',
            State::Down if backend.fails_alone() => 'D',
            State::Down => 'd',
        };
        self.backends.iter().map(word).collect()
    }
}

fn no_leader() -> Outcome {
    Outcome::Shared("status: no leader".into())
}

fn own() -> Outcome {
    Outcome::Failed("TLS: timed out".into())
}

/// One conformance case: probes as (backend, begun, ended, outcome) with the states after each.
type Case = (&'static str, usize, Vec<(usize, u64, u64, Outcome, &'static str)>);

fn cases() -> Vec<Case> {
    use Outcome::Passed;
    vec![
        (
            "a member cut off from the others: down once another passed after its first failure, and it failed again",
            3,
            vec![
                (1, 0, 5, Passed, "HHH"),
                (0, 100, 105, no_leader(), "HHH"),
                (0, 300, 305, no_leader(), "WHH"),
                (0, 500, 505, no_leader(), "WHH"),
                (1, 600, 605, Passed, "WHH"),
                (0, 700, 705, no_leader(), "DHH"),
            ],
        ),
        (
            "a pass begun before the first failure is no witness",
            2,
            vec![
                (0, 100, 105, no_leader(), "HH"),
                (1, 90, 110, Passed, "HH"),
                (0, 300, 305, no_leader(), "WH"),
                (0, 500, 505, no_leader(), "WH"),
            ],
        ),
        (
            "a failure begun before the witness passed proves nothing",
            2,
            vec![
                (0, 100, 105, no_leader(), "HH"),
                (1, 200, 250, Passed, "HH"),
                (0, 240, 1240, no_leader(), "WH"),
                (0, 1250, 1255, Passed, "HH"),
            ],
        ),
        (
            "an election: all fail, one by one, and return one by one; nobody is down alone",
            3,
            vec![
                (0, 100, 105, no_leader(), "HHH"),
                (1, 110, 115, no_leader(), "HHH"),
                (2, 120, 125, no_leader(), "HHH"),
                (0, 300, 305, no_leader(), "WHH"),
                (1, 310, 315, no_leader(), "WWH"),
                (2, 320, 325, no_leader(), "ddd"),
                (0, 500, 505, Passed, "ddd"),
                (0, 700, 705, Passed, "Hdd"),
                (1, 600, 650, Passed, "Hdd"),
                (1, 810, 815, Passed, "HHd"),
                (2, 820, 825, Passed, "HHd"),
                (2, 920, 925, Passed, "HHH"),
            ],
        ),
        (
            "a short election is over before anybody is condemned",
            2,
            vec![
                (0, 100, 105, no_leader(), "HH"),
                (1, 110, 115, no_leader(), "HH"),
                (0, 300, 305, no_leader(), "WH"),
                (1, 310, 315, Passed, "WH"),
                (0, 500, 505, Passed, "HH"),
            ],
        ),
        (
            "the quorum returns, but one member stays cut off: it turns out to fail alone",
            2,
            vec![
                (0, 100, 105, no_leader(), "HH"),
                (1, 110, 115, no_leader(), "HH"),
                (0, 300, 305, no_leader(), "WH"),
                (1, 310, 315, no_leader(), "dd"),
                (0, 1300, 1305, Passed, "dd"),
                (0, 1500, 1505, Passed, "Hd"),
                (1, 1310, 2310, no_leader(), "HD"),
            ],
        ),
        (
            "two of three die: theirs are failures of their own, the third's is not",
            3,
            vec![
                (0, 100, 105, Outcome::Refused, "HHH"),
                (1, 100, 105, Outcome::Refused, "HHH"),
                (0, 300, 305, Outcome::Refused, "DHH"),
                (1, 300, 305, Outcome::Refused, "DDH"),
                (2, 400, 1400, no_leader(), "DDH"),
                (2, 1400, 2400, no_leader(), "ddd"),
            ],
        ),
        (
            "a frozen member: its flows are reset with the verdict, since another passed meanwhile",
            2,
            vec![(0, 0, 1000, own(), "HH"), (1, 1000, 1010, Passed, "HH"), (0, 1000, 2000, own(), "DH")],
        ),
        (
            "two of three freeze and return, first seen by the third: nobody's flows are reset",
            3,
            vec![
                (0, 0, 1000, own(), "HHH"),
                (1, 0, 1000, own(), "HHH"),
                (2, 0, 1000, no_leader(), "HHH"),
                (0, 1000, 2000, own(), "dHH"),
                (1, 1000, 2000, own(), "ddH"),
                (2, 1000, 2000, no_leader(), "ddd"),
                (2, 3000, 3005, Passed, "ddd"),
                (2, 3200, 3205, Passed, "ddH"),
                (0, 2500, 3210, own(), "ddH"),
                (0, 3220, 3225, Passed, "ddH"),
                (1, 3230, 3235, Passed, "ddH"),
                (0, 3420, 3425, Passed, "HdH"),
                (1, 3430, 3435, Passed, "HHH"),
            ],
        ),
        (
            "the same, but one stays frozen",
            2,
            vec![
                (0, 0, 1000, own(), "HH"),
                (1, 0, 1000, own(), "HH"),
                (0, 1000, 2000, own(), "dH"),
                (1, 1000, 2000, own(), "dd"),
                (1, 3000, 3005, Passed, "dd"),
                (1, 3200, 3205, Passed, "dH"),
                (0, 3005, 4005, own(), "DH"),
            ],
        ),
        (
            "a failure of its own beside shared ones is a verdict",
            2,
            vec![(0, 100, 105, no_leader(), "HH"), (1, 110, 115, Passed, "HH"), (0, 300, 1300, own(), "DH")],
        ),
        (
            "a lone backend fails open",
            1,
            vec![(0, 100, 105, no_leader(), "H"), (0, 300, 305, no_leader(), "d"), (0, 500, 505, own(), "d")],
        ),
        (
            "a success between forgets the first failure and its witness",
            2,
            vec![
                (0, 100, 105, no_leader(), "HH"),
                (1, 200, 205, Passed, "HH"),
                (0, 300, 305, Passed, "HH"),
                (0, 400, 405, no_leader(), "HH"),
                (0, 500, 505, no_leader(), "WH"),
            ],
        ),
    ]
}

#[test]
fn conformance() {
    for (story, count, probes) in cases() {
        let mut pool = Pool::healthy(count);
        for (step, (place, begun, ended, outcome, expected)) in probes.into_iter().enumerate() {
            pool.probe(place, begun, ended, outcome);
            assert_eq!(pool.states(), expected, "{story}: step {step}");
        }
    }
}

#[test]
fn a_state_from_before_a_restart_proves_nothing() {
    let now = Instant::now();
    let mut pool = Pool { backends: vec![Health::restore(TIMING, State::Down, now); 2], start: now };
    assert_eq!(pool.states(), "dd");
    pool.probe(0, 10, 15, own());
    pool.probe(1, 20, 25, Outcome::Passed);
    pool.probe(1, 220, 225, Outcome::Passed);
    assert_eq!(pool.states(), "dH");
    pool.probe(0, 226, 1226, own());
    assert_eq!(pool.states(), "DH");
}

#[test]
fn others_are_asked_as_soon_as_one_begins_to_fail() {
    let mut pool = Pool::healthy(2);
    pool.probe(1, 0, 5, Outcome::Passed);
    assert_eq!(pool.backends[1].next_timeout(), pool.start + ms(1000));
    pool.probe(0, 100, 105, no_leader());
    let now = pool.start + ms(105);
    ask_others(&mut pool.backends.iter_mut().collect::<Vec<_>>(), 0, now);
    assert_eq!(pool.backends[1].next_timeout(), now);
    pool.probe(1, 105, 110, Outcome::Passed);
    pool.probe(0, 305, 310, no_leader());
    assert_eq!(pool.states(), "DH", "no later than an own failure would be");

    // One that is being asked already is asked again.
    let mut pool = Pool::healthy(2);
    let now = pool.start;
    let probe = pool.backends[1].poll(now, 0).unwrap();
    pool.probe(0, 10, 15, no_leader());
    ask_others(&mut pool.backends.iter_mut().collect::<Vec<_>>(), 0, now + ms(15));
    pool.backends[1].on_result(probe.id, Outcome::Passed, now + ms(40));
    assert_eq!(pool.backends[1].next_timeout(), now + ms(40));
}

proptest! {
    /// Where no other backend ever passes, no backend fails alone by shared failures; where all pass from then on, all are
    /// healthy.
    #[test]
    fn nobody_is_reset_without_a_witness(probes in prop::collection::vec((0..3_usize, 1..400_u64, 0..3_u8), 0..60)) {
        let mut pool = Pool::healthy(3);
        let (mut now, mut passed) = (0, false);
        for (place, pause, what) in probes {
            now += pause + 30;
            let outcome = match what {
                0 if place == 0 => Outcome::Passed,
                _ => no_leader(),
            };
            passed |= outcome == Outcome::Passed;
            pool.probe(place, now, now + 5, outcome);
            prop_assert!(passed || !pool.states().contains('D'), "{}", pool.states());
            // Either somebody is well, or every verdict is spoken.
            let states = pool.states();
            prop_assert!(states.contains('H') || !states.contains('W'), "{}", states);
            prop_assert!(!states.starts_with('D'), "nobody else ever passed");
        }
        for _ in 0..2 {
            for place in 0..3 {
                now += 50;
                pool.probe(place, now, now + 5, Outcome::Passed);
            }
        }
        prop_assert_eq!(pool.states(), "HHH");
    }
}
