//! When a backend counts as healthy: one machine a backend, fed with probe results and with what the data
//! plane sees.
//!
//! ```text
//!             first probe passed                 `fall` failures in a row
//!  starting ─────────────────────▶ healthy ◀──────────────────────────────▶ down
//!      └──────────────────────────────────────────────────────────────────▶
//!             first probe failed                 `rise` successes in a row
//! ```
//!
//! The driver owns sockets and clock: it calls [`Health::poll`] at [`Health::next_timeout`] and after every
//! input, runs the probe that comes out, and reports to [`Health::on_result`]. There is always a probe under
//! way or a timer armed: a probe whose result never comes is counted as failed, so a lost task cannot freeze
//! a verdict.
//!
//! What all members of a cluster may suffer at once (no leader, a linearizable read without quorum) is a *shared failure*:
//! it counts like any other, but the verdict is withheld until another backend of the service is seen to do better, see
//! [`settle`].
//!
//! Draining is the operator's overlay and stands elsewhere: a draining backend goes on being probed.

mod pool;

use std::fmt;
use std::time::{Duration, Instant};

pub use pool::{ask_others, settle};

/// The pace of a backend's probes. Validated by [`crate::config`]: `rise` and `fall` at least 1, no duration
/// zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From one probe's start to the next one's start.
    pub interval: Duration,
    /// The same while going up or down, that is while results contradict the state or there is none yet.
    pub fast_interval: Duration,
    /// What a whole probe may take, all its steps together. The driver enforces it.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Not yet probed: takes no new flows.
    Starting,
    Healthy,
    Down,
}

impl State {
    /// The word in `status`, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Healthy => "healthy",
            State::Down => "down",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change of state: what is logged and what the data plane is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    pub from: State,
    pub to: State,
    /// Why, for the operator: the last probe's failure, or that it passed.
    pub reason: String,
}

/// A probe to run now. One that was under way before is void: cancel it, its result is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartProbe {
    pub id: ProbeId,
    /// When to give up and report [`Outcome::Failed`].
    pub deadline: Instant,
}

/// Ties a result to its probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The connection was refused: if the data plane has just seen the same, that settles it.
    Refused,
    /// Anything else that is the backend's own, in words for the operator.
    Failed(String),
    /// What its whole cluster may suffer: a verdict only where another backend does better.
    Shared(String),
}

/// A probe that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    pub begun: Instant,
    pub ended: Instant,
}

/// How long after its deadline a probe without result is given up. Only a lost task ever gets here, so it
/// need not be tight; it keeps the driver's own timeout, whose reason is better, in front.
pub const LOST_PROBE_SLACK: Duration = Duration::from_millis(250);

/// The least time between the starts of two probes that refusals ask for. Refused handshakes are signalled up
/// to every 10 ms; a backend that refuses some and passes probes must not be probed as often. Well inside the
/// 100 ms promised from the first refusal to the verdict.
pub const REFUSAL_GAP: Duration = Duration::from_millis(25);

/// The machine of one backend.
#[derive(Debug, Clone)]
pub struct Health {
    timing: Timing,
    state: State,
    since: Instant,
    reason: String,
    last_check: Option<Instant>,
    /// Results in a row that contradict `state`: failures while healthy, successes while down.
    streak: u32,
    /// A refusal was counted, or there is a suspicion, and no probe has ended since: its probe decides, further refusals say nothing
    /// new.
    refused: bool,
    doubt: Option<Doubt>,
    /// The probe under way is to be followed by another at once.
    hurried: bool,
    phase: Phase,
    last_start: Option<Instant>,
    last_id: u64,
    /// The last probe passed.
    passed: Option<Pass>,
}

/// Kept from a failure on until a probe passes, or until it is sure that the failure is the backend's own.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// When the first failure was known.
    since: Instant,
    /// The end of the first passed probe of another backend that began after that: who fails a probe begun later fails alone.
    witness: Option<Instant>,
    /// `fall` is reached, but a shared failure has no witness yet.
    withheld: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The next probe starts at this time.
    Waiting(Instant),
    /// `random` was drawn at the start and decides how much shorter the wait after it is.
    Probing { id: ProbeId, started: Instant, deadline: Instant, random: u32 },
}

impl Health {
    /// A backend that nothing is known of; its first probe is due at once and decides alone.
    pub fn new(timing: Timing, now: Instant) -> Self {
        Self::restore(timing, State::Starting, now)
    }

    /// A backend whose state an earlier agent left behind: that state stands until probes contradict it.
    pub fn restore(timing: Timing, state: State, now: Instant) -> Self {
        let reason = match state {
            State::Starting => "not checked yet",
            State::Healthy | State::Down => "as before the restart",
        };
        Self {
            timing,
            state,
            since: now,
            reason: reason.to_owned(),
            last_check: None,
            streak: 0,
            refused: false,
            doubt: (state != State::Healthy).then(|| Doubt::new(now)),
            hurried: false,
            phase: Phase::Waiting(now),
            last_start: None,
            last_id: 0,
            passed: None,
        }
    }

    /// Applies a changed config. The state stays; the next probe comes no later than the new pace has it.
    pub fn retime(&mut self, timing: Timing, now: Instant) {
        self.timing = timing;
        if let Phase::Waiting(at) = &mut self.phase {
            *at = (*at).min(now + timing.interval);
        }
    }

    /// Starts the probe that is due, if one is. `random` is uniform over all of `u32`; it shortens the wait
    /// that follows by up to a tenth, so that probes of many backends do not march in step.
    pub fn poll(&mut self, now: Instant, random: u32) -> Option<StartProbe> {
        let Phase::Waiting(at) = self.phase else { return None };
        if now < at {
            return None;
        }
        self.last_id += 1;
        self.last_start = Some(now);
        let (id, deadline) = (ProbeId(self.last_id), now + self.timing.timeout);
        self.phase = Phase::Probing { id, started: now, deadline, random };
        Some(StartProbe { id, deadline })
    }

    /// Takes note of a probe's end. Results of probes that are no longer awaited change nothing.
    pub fn on_result(&mut self, id: ProbeId, outcome: Outcome, now: Instant) -> Option<Flip> {
        let Phase::Probing { id: awaited, started, random, .. } = self.phase else { return None };
        if id != awaited {
            return None;
        }
        self.last_check = Some(now);
        self.passed = (outcome == Outcome::Passed).then_some(Pass { begun: started, ended: now });
        let confirmed = std::mem::take(&mut self.refused) && outcome == Outcome::Refused;
        let flip = match outcome {
            Outcome::Passed => self.passed(now),
            Outcome::Refused => {
                let count = if confirmed { u32::MAX } else { 1 };
                let flip = self.failed(count, "connection refused".into(), started, now);
                // Whatever the others do: a process that is gone has no connections left.
                self.prove(self.state == State::Down);
                flip
            }
            Outcome::Failed(reason) => self.failed(1, reason, started, now),
            Outcome::Shared(reason) => self.failed_perhaps_with_all(reason, started, now),
        };
        // An overrun is followed at once: the wait counts from the start.
        let pause = if std::mem::take(&mut self.hurried) { REFUSAL_GAP } else { self.pause(random) };
        self.phase = Phase::Waiting((started + pause).max(now));
        flip
    }

    /// Gives up a probe whose result is overdue by [`LOST_PROBE_SLACK`]. To be called when
    /// [`Health::next_timeout`] has passed, before [`Health::poll`].
    pub fn on_timeout(&mut self, now: Instant) -> Option<Flip> {
        match self.phase {
            Phase::Probing { id, deadline, .. } if now >= deadline + LOST_PROBE_SLACK => {
                self.on_result(id, Outcome::Failed("the probe never ended".into()), now)
            }
            Phase::Probing { .. } | Phase::Waiting(_) => None,
        }
    }

    /// The data plane saw the backend refuse a handshake. Counts as one failure and makes a probe due at
    /// once, in place of one that may have begun before the refusal; if that is refused too, the backend is
    /// down.
    pub fn on_refusal(&mut self, now: Instant) -> Option<Flip> {
        if self.state != State::Healthy || self.refused {
            return None;
        }
        let flip = self.failed(1, "connection refused, seen in traffic".into(), now, now);
        self.prove(flip.is_some());
        self.refused = flip.is_none();
        self.probe_at_once(now);
        flip
    }

    /// The data plane saw the backend end several established connections at once, as a process that dies does. Says
    /// nothing by itself, but makes a probe due at once; if that is refused, the backend is down.
    pub fn on_suspicion(&mut self, now: Instant) {
        if self.state == State::Healthy && !self.refused {
            self.refused = true;
            self.probe_at_once(now);
        }
    }

    /// What a probe begun now says is wanted; one under way goes on to its end first.
    pub fn hurry(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting(_) => self.probe_at_once(now),
            Phase::Probing { .. } => self.hurried = true,
        }
    }

    /// Another backend of the service passed a probe.
    pub fn on_witness(&mut self, pass: Pass) {
        if let Some(doubt) = &mut self.doubt
            && doubt.witness.is_none()
            && pass.begun >= doubt.since
        {
            doubt.witness = Some(pass.ended);
            if self.state == State::Down || doubt.withheld {
                // Its next failure decides, and one that began before does not.
                self.probe_at_once(pass.ended);
            }
        }
    }

    /// No backend of the service does better, so that its failure says nothing about itself alone.
    fn doubt_again(&mut self, now: Instant) {
        if self.state == State::Down {
            self.doubt.get_or_insert(Doubt::new(now));
        }
    }

    /// No backend of the service does better: a verdict that was withheld is spoken, so that the service fails open. It stays
    /// unconfirmed, see [`Health::fails_alone`].
    pub fn concede(&mut self, now: Instant) -> Option<Flip> {
        let doubt = self.doubt.as_mut().filter(|doubt| doubt.withheld)?;
        doubt.withheld = false;
        Some(self.flip(State::Down, now))
    }

    /// The verdict is due, but withheld: all backends may suffer the same.
    pub fn is_withheld(&self) -> bool {
        self.doubt.is_some_and(|doubt| doubt.withheld)
    }

    /// Down, while another backend was seen to do better. Only such a backend's flows may be reset: where all fail, they may
    /// all return.
    pub fn fails_alone(&self) -> bool {
        self.state == State::Down && self.doubt.is_none()
    }

    /// The last probe, if it passed.
    pub fn pass(&self) -> Option<Pass> {
        self.passed
    }

    /// The last result was the first failure of a healthy backend.
    fn begins_to_fail(&self) -> bool {
        self.state == State::Healthy && self.streak == 1
    }

    /// When the driver must look again: the next probe's start, or the end of patience with the one under
    /// way.
    pub fn next_timeout(&self) -> Instant {
        match self.phase {
            Phase::Waiting(at) => at,
            Phase::Probing { deadline, .. } => deadline + LOST_PROBE_SLACK,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Since when the state stands; after a restart, since the restart.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What the last result said: the failure in words also while `fall` is not reached.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// When the last probe ended.
    pub fn last_check(&self) -> Option<Instant> {
        self.last_check
    }

    fn probe_at_once(&mut self, now: Instant) {
        self.phase = Phase::Waiting(self.last_start.map_or(now, |t| (t + REFUSAL_GAP).max(now)));
    }

    fn passed(&mut self, now: Instant) -> Option<Flip> {
        self.reason = "probe passed".into();
        match self.state {
            State::Healthy => {
                self.streak = 0;
                self.doubt = None;
                None
            }
            State::Starting => {
                self.doubt = None;
                Some(self.flip(State::Healthy, now))
            }
            State::Down => {
                self.streak = self.streak.saturating_add(1);
                if self.streak < self.timing.rise {
                    return None;
                }
                self.doubt = None;
                Some(self.flip(State::Healthy, now))
            }
        }
    }

    /// A failure of the backend's own, by a probe begun at `begun`; it stands for `count`.
    fn failed(&mut self, count: u32, reason: String, begun: Instant, now: Instant) -> Option<Flip> {
        self.reason = reason;
        let doubt = *self.doubt.get_or_insert(Doubt::new(now));
        match self.state {
            State::Down => {
                self.streak = 0;
                self.prove(doubt.fails_alone(begun));
                None
            }
            State::Starting => Some(self.flip(State::Down, now)),
            State::Healthy => {
                self.streak = self.streak.saturating_add(count);
                if self.streak < self.timing.fall {
                    return None;
                }
                // With `fall = 1` there is no time for a witness, and none was asked for.
                self.prove(doubt.witness.is_some() || self.timing.fall == 1);
                Some(self.flip(State::Down, now))
            }
        }
    }

    /// A failure that says as much of the cluster as of the backend.
    fn failed_perhaps_with_all(&mut self, reason: String, begun: Instant, now: Instant) -> Option<Flip> {
        self.reason = reason;
        if self.fails_alone() {
            return None;
        }
        let doubt = self.doubt.get_or_insert(Doubt::new(now));
        let alone = doubt.fails_alone(begun);
        match self.state {
            State::Down => {
                self.streak = 0;
                self.prove(alone);
                None
            }
            // Nobody relies on it yet.
            State::Starting => Some(self.flip(State::Down, now)),
            State::Healthy => {
                self.streak = self.streak.saturating_add(1);
                doubt.withheld = self.streak >= self.timing.fall;
                if !(doubt.withheld && alone) {
                    return None;
                }
                self.prove(true);
                Some(self.flip(State::Down, now))
            }
        }
    }

    /// That it fails alone is sure now, if it is.
    fn prove(&mut self, alone: bool) {
        if alone {
            self.doubt = None;
        } else if let Some(doubt) = &mut self.doubt {
            doubt.withheld = false;
        }
    }

    fn flip(&mut self, to: State, now: Instant) -> Flip {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.streak = 0;
        Flip { from, to, reason: self.reason.clone() }
    }

    /// The wait from a probe's start to the next one's.
    fn pause(&self, random: u32) -> Duration {
        let in_transition = self.streak > 0 || self.state == State::Starting;
        let full = if in_transition { self.timing.fast_interval } else { self.timing.interval };
        full - full.mul_f64(f64::from(random) / f64::from(u32::MAX) * MAX_JITTER)
    }
}

impl Doubt {
    fn new(since: Instant) -> Self {
        Self { since, witness: None, withheld: false }
    }

    /// Whether a failed probe that began then failed alone: another had passed by then.
    fn fails_alone(&self, begun: Instant) -> bool {
        self.witness.is_some_and(|ended| begun >= ended)
    }
}

/// The share of the wait that jitter may take away; what most checkers use.
const MAX_JITTER: f64 = 0.1;

#[cfg(test)]
mod tests;
