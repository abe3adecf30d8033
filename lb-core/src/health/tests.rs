use super::*;
use proptest::prelude::*;

const TIMING: Timing =
    Timing { interval: ms(1000), fast_interval: ms(200), timeout: ms(1000), rise: 2, fall: 2 };

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A machine, its clock, and steps that read like a story.
struct Story {
    health: Health,
    start: Instant,
    now: Instant,
}

impl Story {
    fn new(state: State) -> Self {
        Self::with(TIMING, state)
    }

    fn with(timing: Timing, state: State) -> Self {
        let now = Instant::now();
        Self { health: Health::restore(timing, state, now), start: now, now }
    }

    /// Goes on to the next probe's start, which must be at `at` ms, and reports after `took` ms.
    fn probe(&mut self, at: u64, took: u64, outcome: Outcome) -> Option<Flip> {
        self.now = self.health.next_timeout().max(self.now);
        assert_eq!((self.now - self.start).as_millis(), u128::from(at), "the probe's start");
        let probe = self.health.poll(self.now, 0).expect("a probe is due");
        assert_eq!(self.health.poll(self.now, 0), None, "one probe at a time");
        assert_eq!(probe.deadline, self.now + self.health.timing.timeout);
        self.now += ms(took);
        self.health.on_result(probe.id, outcome, self.now)
    }

    fn to(&mut self, at: u64) {
        self.now = self.start + ms(at);
    }
}

fn failed() -> Outcome {
    Outcome::Failed("HTTP status 503, expected 200".into())
}

fn flip(from: State, to: State, reason: &str) -> Option<Flip> {
    Some(Flip { from, to, reason: reason.into() })
}

#[test]
fn first_success_admits() {
    let mut s = Story::new(State::Starting);
    assert_eq!(s.health.reason(), "not checked yet");
    assert_eq!(s.health.last_check(), None);
    assert_eq!(s.probe(0, 3, Outcome::Passed), flip(State::Starting, State::Healthy, "probe passed"));
    assert_eq!(s.health.last_check(), Some(s.start + ms(3)));
    assert_eq!(s.health.since(), s.start + ms(3));
    assert_eq!(s.probe(1000, 3, Outcome::Passed), None);
}

#[test]
fn first_failure_condemns_and_return_takes_rise() {
    let mut s = Story::new(State::Starting);
    assert_eq!(s.probe(0, 3, failed()), flip(State::Starting, State::Down, "HTTP status 503, expected 200"));
    assert_eq!(s.probe(1000, 3, Outcome::Passed), None);
    assert_eq!(s.probe(1200, 3, Outcome::Passed), flip(State::Down, State::Healthy, "probe passed"));
}

#[test]
fn fall_counts_failures_in_a_row() {
    let mut s = Story::new(State::Healthy);
    assert_eq!(s.probe(0, 1, failed()), None);
    assert_eq!(s.health.reason(), "HTTP status 503, expected 200");
    assert_eq!(s.probe(200, 1, Outcome::Passed), None);
    assert_eq!(s.probe(1200, 1, failed()), None);
    assert_eq!(
        s.probe(1400, 1, failed()),
        flip(State::Healthy, State::Down, "HTTP status 503, expected 200")
    );
    assert_eq!(s.health.state(), State::Down);
    // Down is no transition: the pace is the ordinary one again.
    assert_eq!(s.probe(2400, 1, failed()), None);
    assert_eq!(s.probe(3400, 1, Outcome::Passed), None);
    assert_eq!(s.probe(3600, 1, failed()), None);
    assert_eq!(s.probe(4600, 1, Outcome::Passed), None);
    assert_eq!(s.probe(4800, 1, Outcome::Passed), flip(State::Down, State::Healthy, "probe passed"));
}

/// The promise for a frozen member: `interval` + `fall` × `timeout`, 3 s by default.
#[test]
fn freeze_is_noticed_in_time() {
    let mut s = Story::new(State::Healthy);
    assert_eq!(s.probe(0, 1, Outcome::Passed), None); // and freezes right after
    assert_eq!(s.probe(1000, 1000, failed()), None);
    assert!(s.probe(2000, 1000, failed()).is_some(), "an overrun is followed at once");
    assert_eq!(s.now - s.start, ms(3000));
}

#[test]
fn refusal_and_a_refused_probe_settle_it() {
    let timing = Timing { fall: 5, ..TIMING };
    let mut s = Story::with(timing, State::Healthy);
    assert_eq!(s.probe(0, 1, Outcome::Passed), None);
    s.to(400);
    assert_eq!(s.health.on_refusal(s.now), None);
    assert_eq!(s.health.on_refusal(s.now + ms(10)), None, "its probe decides, not more refusals");
    assert_eq!(s.probe(400, 1, Outcome::Refused), flip(State::Healthy, State::Down, "connection refused"));
}

#[test]
fn refusal_and_a_passed_probe_change_nothing() {
    let mut s = Story::new(State::Healthy);
    assert_eq!(s.probe(0, 1, Outcome::Passed), None);
    for at in [400, 425, 450] {
        // The port checked may differ from the port refused: each refusal is asked about, none flips.
        s.to(at);
        assert_eq!(s.health.on_refusal(s.now), None);
        assert_eq!(s.probe(at, 1, Outcome::Passed), None);
    }
    // Refusals alone do not hurry probes beyond the gap.
    s.to(452);
    assert_eq!(s.health.on_refusal(s.now), None);
    assert_eq!(s.probe(475, 1, Outcome::Passed), None);
}

#[test]
fn refusal_counts_as_one_failure() {
    let mut s = Story::with(Timing { fall: 1, ..TIMING }, State::Healthy);
    let reason = "connection refused, seen in traffic";
    assert_eq!(s.health.on_refusal(s.now), flip(State::Healthy, State::Down, reason));

    // With another failure than a refusal it is one of `fall`.
    let mut s = Story::with(Timing { fall: 3, ..TIMING }, State::Healthy);
    assert_eq!(s.health.on_refusal(s.now), None);
    assert_eq!(s.probe(0, 1, failed()), None);
    assert!(s.probe(200, 1, failed()).is_some());
}

#[test]
fn a_suspicion_is_settled_by_its_probe() {
    let mut s = Story::new(State::Healthy);
    assert_eq!(s.probe(0, 1, Outcome::Passed), None);
    s.to(400);
    s.health.on_suspicion(s.now);
    assert_eq!(s.probe(400, 1, Outcome::Passed), None, "nothing was wrong");
    s.to(500);
    s.health.on_suspicion(s.now);
    assert_eq!(s.probe(500, 1, Outcome::Refused), flip(State::Healthy, State::Down, "connection refused"));

    let mut s = Story::new(State::Down);
    s.health.poll(s.now, 0);
    s.health.on_suspicion(s.now);
    assert_eq!(s.health.next_timeout(), s.now + TIMING.timeout + LOST_PROBE_SLACK, "the probe goes on");
}

#[test]
fn refusal_says_nothing_of_a_backend_that_is_not_healthy() {
    for state in [State::Starting, State::Down] {
        let mut s = Story::new(state);
        s.health.poll(s.now, 0);
        assert_eq!(s.health.on_refusal(s.now), None);
        assert_eq!(s.health.next_timeout(), s.now + TIMING.timeout + LOST_PROBE_SLACK, "the probe goes on");
    }
}

/// A probe that hangs since before the refusal must not delay the one that settles it.
#[test]
fn refusal_replaces_the_probe_under_way() {
    let mut s = Story::new(State::Healthy);
    let old = s.health.poll(s.now, 0).unwrap();
    s.to(300);
    assert_eq!(s.health.on_refusal(s.now), None);
    let new = s.health.poll(s.now, 0).expect("at once");
    assert_eq!(s.health.on_result(old.id, Outcome::Passed, s.now), None);
    assert_eq!(s.health.reason(), "connection refused, seen in traffic", "the old result is ignored");
    assert!(s.health.on_result(new.id, Outcome::Refused, s.now).is_some());
}

#[test]
fn lost_probe_is_a_failure() {
    let mut s = Story::with(Timing { fall: 1, ..TIMING }, State::Healthy);
    let probe = s.health.poll(s.now, 0).unwrap();
    assert_eq!(s.health.on_timeout(probe.deadline), None, "the driver's own timeout comes first");
    let late = s.health.next_timeout();
    assert_eq!(s.health.on_timeout(late), flip(State::Healthy, State::Down, "the probe never ended"));
    assert!(s.health.poll(late, 0).is_some());
}

#[test]
fn jitter_only_shortens() {
    let mut s = Story::new(State::Healthy);
    for random in [0, u32::MAX / 2, u32::MAX] {
        let started = s.health.next_timeout();
        let probe = s.health.poll(started, random).unwrap();
        s.health.on_result(probe.id, Outcome::Passed, started + ms(1));
        let pause = s.health.next_timeout() - started;
        assert!((ms(900)..=ms(1000)).contains(&pause), "{random}: {pause:?}");
    }
}

#[test]
fn a_shorter_interval_applies_at_once() {
    let mut s = Story::with(Timing { interval: ms(3_600_000), ..TIMING }, State::Healthy);
    assert_eq!(s.probe(0, 1, Outcome::Passed), None);
    s.to(5000);
    s.health.retime(TIMING, s.now);
    assert_eq!(s.health.state(), State::Healthy);
    assert_eq!(s.probe(6000, 1, Outcome::Passed), None);
}

#[derive(Debug, Clone)]
enum Input {
    Wait(u16),
    Poll(u32),
    Passed,
    Refused,
    Failed,
    LateResult,
    Refusal,
    Retime,
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    use Input::*;
    let input = prop_oneof![
        3 => any::<u16>().prop_map(|ms| Wait(ms % 3000)),
        4 => any::<u32>().prop_map(Poll),
        2 => Just(Passed), 2 => Just(Refused), 2 => Just(Failed), 1 => Just(LateResult),
        2 => Just(Refusal), 1 => Just(Retime),
    ];
    prop::collection::vec(input, 0..80)
}

proptest! {
    /// Whatever comes in whatever order: the machine wants to be looked at within one interval or one
    /// timeout, every flip starts where the last one ended, and a backend that answers from then on is
    /// healthy in bounded time.
    #[test]
    fn never_stuck(inputs in inputs(), rise in 1..4_u32, fall in 1..4_u32) {
        let timing = Timing { rise, fall, ..TIMING };
        let mut now = Instant::now();
        let mut health = Health::new(timing, now);
        let (mut running, mut previous) = (None, None);
        let mut state = State::Starting;
        for input in inputs {
            let flip = match input {
                Input::Wait(pause) => {
                    now += ms(pause.into());
                    health.on_timeout(now)
                }
                Input::Poll(random) => {
                    if let Some(probe) = health.poll(now, random) {
                        previous = running.replace(probe.id);
                    }
                    None
                }
                Input::Passed => running.and_then(|id| health.on_result(id, Outcome::Passed, now)),
                Input::Refused => running.and_then(|id| health.on_result(id, Outcome::Refused, now)),
                Input::Failed => running.and_then(|id| health.on_result(id, failed(), now)),
                Input::LateResult => previous.and_then(|id| health.on_result(id, Outcome::Passed, now)),
                Input::Refusal => health.on_refusal(now),
                Input::Retime => {
                    health.retime(timing, now);
                    None
                }
            };
            if let Some(flip) = flip {
                prop_assert_eq!(flip.from, state);
                prop_assert_ne!(flip.to, state);
                prop_assert_ne!(flip.to, State::Starting);
                state = flip.to;
            }
            prop_assert_eq!(health.state(), state);
            prop_assert!(health.next_timeout() <= now + timing.interval.max(timing.timeout + LOST_PROBE_SLACK));
        }
        let patience = now + timing.timeout + LOST_PROBE_SLACK + timing.interval * (rise + 1);
        while health.state() != State::Healthy {
            now = now.max(health.next_timeout());
            prop_assert!(now <= patience, "still {:?}", health);
            health.on_timeout(now);
            if let Some(probe) = health.poll(now, 0) {
                health.on_result(probe.id, Outcome::Passed, now);
            }
        }
    }
}
