//! Who is active: RFC 9568 section 6.4, with a lease.
//!
//! ```text
//!            down timer                                   stop, fault
//!  backup ───────────────▶ active ────────────────────────────────────▶ stopped, fault
//!     ▲                      │  a stronger advertisement, the lease over,           │
//!     └──────────────────────┘  failover                                            │
//!     └─────────────────────────────────────────────────────────────────────────────┘ recovered
//! ```
//!
//! The *lease* is what the data plane goes by: the VIPs are claimed until its deadline and not a moment longer. It begins
//! [`CLAIM_DELAY`] after the first advertisement as active, is renewed by each advertisement that was sent, and lasts from
//! the time *before* that send for three of the announced intervals: shorter than any peer's down timer, which began when
//! the advertisement arrived. So a node that hangs, or whose advertisements do not go out, owns nothing any more when its
//! peer begins to.
//!
//! The driver owns clock and sockets. At every turn, at [`Machine::next_wake`] at the latest, it reads the clock; calls
//! [`Machine::check_lease`] with what the data plane did to the lease; reports each advertisement of the pair that has
//! arrived to [`Machine::received`]; and calls [`Machine::wake`]. It carries out the actions in their order, and tells by
//! [`Machine::sent`] whether an advertisement went out. So a node that slept knows that its lease is over before it says
//! anything, and what it missed before it decides anything. Times are since the start of the clock.

use std::time::Duration;

use super::{
    Version,
    packet::{Advertisement, STOPPED},
    words::{Action, Preemption, Role, Settings, Why},
};

/// From the first advertisement as active until the VIPs are claimed: a stronger node answers within it.
pub const CLAIM_DELAY: Duration = Duration::from_millis(5);
/// When the VIPs are announced after they were claimed (RFC 9568 leaves the number open): for hosts that were busy.
const ANNOUNCE_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];
/// Between two answers to a weaker node: a flood of its advertisements draws no flood of ours.
const ANSWER_PACE: Duration = Duration::from_millis(1);

/// An active node whose agent gives no sign of life for longer gives up, once: nobody sees what becomes of backends.
pub const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// The state machine of one node.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    /// After tracking.
    priority: u8,
    preemption: Preemption,
    /// No preemption before.
    preempt_from: Duration,
    /// The operator wanted the other node to be active: no preemption until this one has been active again.
    yielded: bool,
    /// The agent's last sign of life.
    agent_seen: Duration,
    /// It has been silent for too long; what there was to do was done.
    agent_hangs: bool,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Backup(Backup),
    Active(Active),
    Fault,
    Stopped,
}

#[derive(Clone, Copy, Debug)]
struct Backup {
    /// When each family's virtual router counts as dead; of a family that there is not: the start of time.
    down_at: [Duration; 2],
    /// The last word was a priority of 0.
    given_up: bool,
    /// When the VIPs may be asked for again.
    ask_from: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Active {
    /// The next advertisement.
    advertise_at: Duration,
    /// What is announced; longer than our pace where the agent is about to be restarted.
    announced: Duration,
    /// What the peer is known to reckon with: a lease lasts three of these.
    reckoned: Duration,
    lease: Lease,
    /// When the next announcement is due, and which it is.
    announce: Option<(Duration, usize)>,
    /// No answer to a weaker node before.
    answer_from: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// No advertisement has gone out yet.
    Unsent,
    /// From then on, if by then nobody objected; the time before the last send.
    ClaimAt(Duration, Duration),
    Until(Duration),
}

impl Machine {
    /// A backup that waits for a whole down interval. `lease` is that of an agent before this one, its begin and end, if it
    /// holds still: then this node goes on as active.
    pub fn new(settings: Settings, now: Duration, lease: Option<Duration>) -> (Self, Vec<Action>) {
        let mut machine = Self {
            settings,
            priority: settings.priority,
            preemption: if settings.preempt { Preemption::Silently } else { Preemption::Never },
            preempt_from: now + settings.preempt_delay,
            yielded: false,
            agent_seen: now,
            agent_hangs: false,
            state: State::Stopped,
        };
        let mut actions = Vec::new();
        match lease.filter(|deadline| now < *deadline) {
            Some(deadline) => {
                machine.state =
                    State::Active(Active { lease: Lease::Until(deadline), ..machine.active(now) });
                actions.push(Action::Became { role: Role::Active, why: Why::Resumed });
                machine.advertise(now, &mut actions);
            }
            None => machine.state = machine.backup(now),
        }
        (machine, actions)
    }

    /// What this node is now.
    pub fn role(&self) -> Role {
        match self.state {
            State::Backup(_) => Role::Backup,
            State::Active(_) => Role::Active,
            State::Fault => Role::Fault,
            State::Stopped => Role::Stopped,
        }
    }

    /// The priority that is advertised.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// When [`Self::wake`] is to be called at the latest; `None` where only an input can change anything.
    pub fn next_wake(&self) -> Option<Duration> {
        match self.state {
            State::Backup(backup) => Some(backup.down_at()),
            State::Active(active) => {
                let lease = match active.lease {
                    Lease::Unsent => None,
                    Lease::ClaimAt(at, _) => Some(at),
                    Lease::Until(deadline) => Some(deadline),
                };
                let announce = active.announce.map(|(at, _)| at);
                let agent = (!self.agent_hangs).then(|| self.agent_seen + AGENT_PATIENCE);
                [Some(active.advertise_at), lease, announce, agent].into_iter().flatten().min()
            }
            State::Fault | State::Stopped => None,
        }
    }

    /// Is the lease over? `is_revoked`: the data plane ended it, asked after `now` was read.
    pub fn check_lease(&mut self, now: Duration, is_revoked: bool) -> Vec<Action> {
        let State::Active(active) = self.state else { return vec![] };
        let is_over = match active.lease {
            Lease::Unsent => false,
            // It slept before it claimed anything: the others have forgotten its advertisement by now.
            Lease::ClaimAt(_, sent_at) => now >= sent_at + 3 * active.reckoned,
            Lease::Until(deadline) => is_revoked || now >= deadline,
        };
        let mut actions = Vec::new();
        // Another node may own the VIPs by now: what it sent is still to be read.
        if is_over {
            self.yield_to(Why::LeaseOver, now, &mut actions);
        }
        actions
    }

    /// Time has passed.
    pub fn wake(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.state {
            State::Backup(backup) if now >= backup.down_at() => {
                let why = if backup.given_up { Why::PeerGaveUp } else { Why::NobodyHeard };
                self.state = State::Active(self.active(now));
                self.yielded = false;
                // There is nobody else: a node whose agent hangs is better than none.
                self.agent_hangs = now >= self.agent_seen + AGENT_PATIENCE;
                actions.push(Action::Became { role: Role::Active, why });
                self.advertise(now, &mut actions);
            }
            State::Active(_) if !self.agent_hangs && now >= self.agent_seen + AGENT_PATIENCE => {
                self.agent_hangs = true;
                self.hand_over(now, Why::AgentHangs, &mut actions);
            }
            State::Active(active) => self.wake_active(now, active, &mut actions),
            State::Backup(_) | State::Fault | State::Stopped => {}
        }
        actions
    }

    fn wake_active(&mut self, now: Duration, mut active: Active, actions: &mut Vec<Action>) {
        if let Lease::ClaimAt(at, sent_at) = active.lease
            && now >= at
        {
            let deadline = sent_at + 3 * active.reckoned;
            active.lease = Lease::Until(deadline);
            active.announce = Some((now, 0));
            actions.push(Action::Grant { granted_at: sent_at, deadline });
        }
        if let Some((at, number)) = active.announce
            && now >= at
        {
            actions.push(Action::Announce);
            let next = ANNOUNCE_AT.get(number + 1).zip(ANNOUNCE_AT.get(number));
            active.announce = next.map(|(next, this)| (now + (*next - *this), number + 1));
        }
        self.state = State::Active(active);
        if now >= active.advertise_at {
            self.advertise(now, actions);
        }
    }

    /// An advertisement of this pair arrived.
    pub fn received(&mut self, now: Duration, advertisement: &Advertisement) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.settings.sources[advertisement.family() as usize].is_none() {
            // Of a family that this node has no addresses of.
            return actions;
        }
        match self.state {
            State::Backup(backup) => self.received_as_backup(now, backup, advertisement, &mut actions),
            State::Active(active) => self.received_as_active(now, active, advertisement, &mut actions),
            State::Fault | State::Stopped => {}
        }
        actions
    }

    fn received_as_backup(
        &mut self,
        now: Duration,
        mut backup: Backup,
        advertisement: &Advertisement,
        actions: &mut Vec<Action>,
    ) {
        let family = advertisement.family() as usize;
        if advertisement.priority == STOPPED {
            backup.down_at[family] = now + self.skew(self.settings.interval);
            backup.given_up = true;
            self.state = State::Backup(backup);
            return;
        }
        let may_preempt = advertisement.priority < self.priority && now >= self.preempt_from && !self.yielded;
        match self.preemption {
            // Its advertisements count for nothing: the timer runs on.
            Preemption::Silently if may_preempt => return,
            Preemption::ByAsking if may_preempt && now >= backup.ask_from => {
                backup.ask_from = now + self.down(self.settings.interval);
                actions.push(Action::AskForVips);
            }
            _ => {}
        }
        let interval = match self.settings.version {
            Version::V3 => advertisement.interval,
            Version::V2 => self.settings.interval,
        };
        backup.down_at[family] = now + self.down(interval);
        backup.given_up = false;
        self.state = State::Backup(backup);
    }

    fn received_as_active(
        &mut self,
        now: Duration,
        mut active: Active,
        advertisement: &Advertisement,
        actions: &mut Vec<Action>,
    ) {
        let Advertisement { source, priority, .. } = *advertisement;
        let ours = self.settings.sources[advertisement.family() as usize];
        let is_stronger =
            priority > self.priority || (priority == self.priority && ours.is_some_and(|ours| source > ours));
        if is_stronger {
            self.yield_to(Why::Stronger { source, priority }, now, actions);
            let interval = match self.settings.version {
                Version::V3 => advertisement.interval,
                Version::V2 => self.settings.interval,
            };
            let down_at = now + self.down(interval);
            if let State::Backup(backup) = &mut self.state {
                backup.down_at[advertisement.family() as usize] = down_at;
            }
            return;
        }
        if now < active.answer_from {
            return;
        }
        active.answer_from = now + ANSWER_PACE;
        if priority != STOPPED && matches!(active.lease, Lease::Until(_)) {
            // Another node said that the VIPs are its own.
            actions.push(Action::Announce);
            active.announce = Some((now + ANNOUNCE_AT[1], 1));
        }
        self.state = State::Active(active);
        self.advertise(now, actions);
    }

    /// Whether the last advertisement went out for every family and to every peer. `at` is the time before the first send.
    pub fn sent(&mut self, now: Duration, at: Duration, is_out: bool) -> Vec<Action> {
        let State::Active(active) = &mut self.state else { return vec![] };
        if !is_out {
            return vec![];
        }
        let deadline = at + 3 * active.reckoned;
        match active.lease {
            Lease::Unsent => {
                active.lease = Lease::ClaimAt(now + CLAIM_DELAY, at);
                vec![]
            }
            Lease::ClaimAt(claim_at, _) => {
                active.lease = Lease::ClaimAt(claim_at, at);
                vec![]
            }
            // Over already: the next turn finds it so.
            Lease::Until(before) if now >= before => vec![],
            Lease::Until(_) => {
                active.lease = Lease::Until(deadline);
                vec![Action::Grant { granted_at: at, deadline }]
            }
        }
    }

    /// Another node may have had the VIPs meanwhile: hosts are told anew where they are, by the next turn.
    pub fn announce(&mut self, now: Duration) {
        if let State::Active(active) = &mut self.state
            && matches!(active.lease, Lease::Until(_))
        {
            active.announce = Some((now, 0));
        }
    }

    /// Tracking changed the priority, 1 to 254. It is told at once.
    pub fn set_priority(&mut self, now: Duration, priority: u8) -> Vec<Action> {
        let mut actions = Vec::new();
        if std::mem::replace(&mut self.priority, priority) != priority && self.role() == Role::Active {
            self.advertise(now, &mut actions);
        }
        actions
    }

    /// How a weaker active node is replaced, if `preempt` allows it at all.
    pub fn set_preemption(&mut self, preemption: Preemption) {
        if self.settings.preempt {
            self.preemption = preemption;
        }
    }

    /// The node can no longer serve, or can again.
    pub fn set_fault(&mut self, now: Duration, is_fault: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        match (is_fault, self.state) {
            (true, State::Active(_) | State::Backup(_)) => {
                self.give_up(&mut actions);
                self.state = State::Fault;
                actions.push(Action::Became { role: Role::Fault, why: Why::Fault });
            }
            (false, State::Fault) => {
                self.state = self.backup(now);
                self.preempt_from = now + self.settings.preempt_delay;
                actions.push(Action::Became { role: Role::Backup, why: Why::Recovered });
            }
            _ => {}
        }
        actions
    }

    /// The peer is to become active: as the operator wants it, or the peer itself asked for it. Does nothing on a backup.
    pub fn fail_over(&mut self, now: Duration, is_asked_for: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.role() == Role::Active {
            let why = if is_asked_for { Why::AskedFor } else { Why::Failover };
            self.hand_over(now, why, &mut actions);
        }
        actions
    }

    /// From active to backup, and the peer is told. Should there be none, this node is active again after a while.
    fn hand_over(&mut self, now: Duration, why: Why, actions: &mut Vec<Action>) {
        self.give_up(actions);
        // The peer's own down interval is longer than that of a stronger node: should the priority of 0 be lost, this
        // one is not to be first.
        self.state = self.backup(now + self.down(self.settings.interval));
        // Whoever asked has the higher priority: there is nothing to hold back.
        self.yielded = why != Why::AskedFor;
        actions.push(Action::Became { role: Role::Backup, why });
    }

    /// A sign of life of the agent that this machine runs in.
    pub fn agent_lives(&mut self, now: Duration) {
        self.agent_seen = now;
        if std::mem::take(&mut self.agent_hangs) {
            self.yielded = false;
        }
    }

    /// The agent ends.
    pub fn stop(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.give_up(&mut actions);
        if self.role() != Role::Stopped {
            self.state = State::Stopped;
            actions.push(Action::Became { role: Role::Stopped, why: Why::Stop });
        }
        actions
    }

    /// Announces an interval longer than our pace, for a restart that the peer is not to notice (version 3).
    pub fn announce_interval(&mut self, now: Duration, interval: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if let State::Active(active) = &mut self.state {
            active.announced = interval.max(self.settings.interval);
            self.advertise(now, &mut actions);
        }
        actions
    }

    /// The peer has confirmed the interval that it reckons with: leases may last three of these.
    pub fn confirm_interval(&mut self, interval: Duration) {
        if let State::Active(active) = &mut self.state {
            active.reckoned = interval.min(active.announced);
        }
    }

    fn advertise(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let State::Active(active) = &mut self.state else { return };
        let interval = self.settings.interval;
        // Kept to the beat, unless a beat was missed.
        let next = active.advertise_at + interval;
        active.advertise_at = if now >= active.advertise_at && now < next { next } else { now + interval };
        actions.push(Action::Advertise { priority: self.priority, interval: active.announced });
    }

    /// Priority 0, after the lease.
    fn give_up(&self, actions: &mut Vec<Action>) {
        if self.role() == Role::Active {
            actions.push(Action::DropLease);
            actions.push(Action::Advertise { priority: STOPPED, interval: self.settings.interval });
        }
    }

    /// To backup without a word: the other node is active already, or may be.
    fn yield_to(&mut self, why: Why, now: Duration, actions: &mut Vec<Action>) {
        actions.push(Action::DropLease);
        self.state = self.backup(now);
        actions.push(Action::Became { role: Role::Backup, why });
    }

    fn active(&self, now: Duration) -> Active {
        Active {
            advertise_at: now,
            announced: self.settings.interval,
            reckoned: self.settings.interval,
            lease: Lease::Unsent,
            announce: None,
            answer_from: now,
        }
    }

    fn backup(&self, now: Duration) -> State {
        let down_at = now + self.down(self.settings.interval);
        let of_family = |family: usize| self.settings.sources[family].map_or(Duration::ZERO, |_| down_at);
        State::Backup(Backup { down_at: [of_family(0), of_family(1)], given_up: false, ask_from: now })
    }

    /// `Skew_Time` (RFC 9568 section 6.1; RFC 3768 section 6.1).
    fn skew(&self, interval: Duration) -> Duration {
        let base = match self.settings.version {
            Version::V3 => interval,
            Version::V2 => Duration::from_secs(1),
        };
        base * (256 - u32::from(self.priority)) / 256
    }

    /// `Active_Down_Interval`: how long nobody must be heard.
    pub(super) fn down(&self, interval: Duration) -> Duration {
        3 * interval + self.skew(interval)
    }
}

impl Backup {
    /// When both families' virtual routers are dead.
    fn down_at(&self) -> Duration {
        self.down_at[0].max(self.down_at[1])
    }
}
