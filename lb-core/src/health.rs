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
//! Draining is the operator's overlay and stands elsewhere: a draining backend goes on being probed.

use std::fmt;
use std::time::{Duration, Instant};

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
    /// Anything else, in words for the operator.
    Failed(String),
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
    phase: Phase,
    last_start: Option<Instant>,
    last_id: u64,
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
            phase: Phase::Waiting(now),
            last_start: None,
            last_id: 0,
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
        let confirmed = std::mem::take(&mut self.refused) && outcome == Outcome::Refused;
        let flip = match outcome {
            Outcome::Passed => self.passed(now),
            Outcome::Refused => {
                self.failed(if confirmed { u32::MAX } else { 1 }, "connection refused".into(), now)
            }
            Outcome::Failed(reason) => self.failed(1, reason, now),
        };
        // An overrun is followed at once: the wait counts from the start.
        self.phase = Phase::Waiting((started + self.pause(random)).max(now));
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
        let flip = self.failed(1, "connection refused, seen in traffic".into(), now);
        self.refused = flip.is_none();
        self.phase = Phase::Waiting(self.last_start.map_or(now, |t| (t + REFUSAL_GAP).max(now)));
        flip
    }

    /// The data plane saw the backend end several established connections at once, as a process that dies does. Says
    /// nothing by itself, but makes a probe due at once; if that is refused, the backend is down.
    pub fn on_suspicion(&mut self, now: Instant) {
        if self.state == State::Healthy && !self.refused {
            self.refused = true;
            self.phase = Phase::Waiting(self.last_start.map_or(now, |t| (t + REFUSAL_GAP).max(now)));
        }
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

    fn passed(&mut self, now: Instant) -> Option<Flip> {
        self.reason = "probe passed".into();
        match self.state {
            State::Healthy => {
                self.streak = 0;
                None
            }
            State::Starting => self.flip(State::Healthy, now),
            State::Down => {
                self.streak = self.streak.saturating_add(1);
                if self.streak >= self.timing.rise { self.flip(State::Healthy, now) } else { None }
            }
        }
    }

    /// `count` is how many failures this one stands for.
    fn failed(&mut self, count: u32, reason: String, now: Instant) -> Option<Flip> {
        self.reason = reason;
        match self.state {
            State::Down => {
                self.streak = 0;
                None
            }
            State::Starting => self.flip(State::Down, now),
            State::Healthy => {
                self.streak = self.streak.saturating_add(count);
                if self.streak >= self.timing.fall { self.flip(State::Down, now) } else { None }
            }
        }
    }

    fn flip(&mut self, to: State, now: Instant) -> Option<Flip> {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.streak = 0;
        Some(Flip { from, to, reason: self.reason.clone() })
    }

    /// The wait from a probe's start to the next one's.
    fn pause(&self, random: u32) -> Duration {
        let in_transition = self.streak > 0 || self.state == State::Starting;
        let full = if in_transition { self.timing.fast_interval } else { self.timing.interval };
        full - full.mul_f64(f64::from(random) / f64::from(u32::MAX) * MAX_JITTER)
    }
}

/// The share of the wait that jitter may take away; what most checkers use.
const MAX_JITTER: f64 = 0.1;

#[cfg(test)]
mod tests;
