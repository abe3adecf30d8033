//! One other node: what it is told next, and what its messages mean.
//!
//! After the first words each side sends all of its established flows, then [`Message::SnapshotEnd`]. From then on the
//! active node sends each slot that changes, and what it says is so: the backup's table is a copy. A backup's own changes
//! wait, marked, until it is active.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    marks::Marks,
    message::{FlowState, Message, NodeRole, Place, Service},
};

/// Between two pings without anything else to say.
const PING_PACE: Duration = Duration::from_millis(300);
/// A peer that says nothing for so long is gone: its pings come ten times as often.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Port tables that a peer may name; the data plane has 1,024.
const MAX_TABLES: usize = 4096;

/// Where the flows are.
pub trait Source {
    /// What a table is for; `None` if there is none.
    fn place(&self, table: u16) -> Option<Place>;
    /// The established flow in a slot.
    fn flow(&self, table: u16, port: u16) -> Option<FlowState>;
}

/// What the services of two nodes do not have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The other node does not have it.
    OnlyOurs(SocketAddr),
    /// This node does not have it.
    OnlyTheirs(SocketAddr),
    /// `nat` here, `dsr` there, or the other way round.
    Mode(SocketAddr),
    /// Another `hash_seed_file`.
    Seed(SocketAddr),
}

/// What a message means for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first words, and what is not the same on both nodes.
    Hello { role: NodeRole, differences: Vec<Difference> },
    /// The other node has this flow.
    Flow { place: Place, flow: FlowState, in_snapshot: bool },
    /// The other node has no flow in this slot.
    Free { place: Place, nat_port: u16 },
    /// All of its flows are here.
    SnapshotEnd { flows: u32 },
    /// It is in another role.
    Role(NodeRole),
    /// It wants the VIPs.
    AskForVips,
    /// It has this table since just now: all of its flows are news to it.
    Wanted(Place),
    /// It will be gone for a moment: its advertisements announce this interval.
    Interval(Duration),
    /// It reckons with the interval.
    IntervalConfirmed(Duration),
    /// It is active, and has advertised just now; with priority 0: it was, and has given up.
    Advertisement { source: IpAddr, priority: u8, interval: Duration },
}

/// What no etcd-lb says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other node broke the protocol: {0}")]
pub struct Violation(pub &'static str);

/// The state of one stream.
#[derive(Debug)]
pub struct Peer {
    services: Vec<Service>,
    marks: Marks,
    /// Marks of the beginning that are left; `None` once all flows have been sent.
    snapshot_left: Option<usize>,
    snapshot_flows: u32,
    /// Tables that the other side knows by our number.
    named: BTreeSet<u16>,
    theirs: BTreeMap<u16, Place>,
    /// Services whose flows mean the same on both nodes.
    common: BTreeSet<SocketAddr>,
    hello: bool,
    /// The other side's snapshot is here, and it has ours.
    their_snapshot: bool,
    our_snapshot_at: Option<u64>,
    sequence: u64,
    answered: u64,
    /// Pings under way: their sequence, and the time of the oldest change that they stand behind.
    pings: BTreeMap<u64, Duration>,
    /// When the oldest change that is not sent was marked.
    waiting_since: Option<Duration>,
    next_ping: Duration,
    heard_at: Duration,
    lag: Option<Duration>,
    /// Messages that are due out of turn.
    out: Vec<Message>,
    /// Slots that were told of.
    told: u64,
}

impl Peer {
    /// A stream that was opened just now; every slot of `used` is to be sent.
    pub fn new(
        now: Duration,
        role: NodeRole,
        services: Vec<Service>,
        used: impl IntoIterator<Item = (u16, u16)>,
    ) -> Self {
        let mut marks = Marks::default();
        used.into_iter().for_each(|(table, port)| marks.mark(table, port));
        Self {
            out: vec![Message::Hello { role, services: services.clone() }],
            services,
            snapshot_left: Some(marks.len()),
            snapshot_flows: 0,
            marks,
            named: BTreeSet::new(),
            theirs: BTreeMap::new(),
            common: BTreeSet::new(),
            hello: false,
            their_snapshot: false,
            our_snapshot_at: None,
            sequence: 0,
            answered: 0,
            pings: BTreeMap::new(),
            waiting_since: None,
            next_ping: now,
            heard_at: now,
            lag: None,
            told: 0,
        }
    }

    /// A slot has changed.
    pub fn mark(&mut self, now: Duration, table: u16, port: u16) {
        self.marks.mark(table, port);
        self.waiting_since.get_or_insert(now);
    }

    /// Any slot of a table may have changed.
    pub fn mark_all(&mut self, now: Duration, table: u16) {
        self.marks.mark_all(table);
        self.waiting_since.get_or_insert(now);
    }

    /// A table's number now stands for another backend, or for none.
    pub fn forget_table(&mut self, table: u16) {
        self.marks.forget(table);
        self.named.remove(&table);
    }

    /// The services that the other node was told of.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Says something as soon as may be.
    pub fn say(&mut self, message: Message) {
        self.out.push(message);
    }

    /// The same, instead of what was to be said of this kind by this source.
    pub fn say_last(&mut self, message: Message) {
        let is_older = |said: &Message| match (said, &message) {
            (Message::Advertisement { source: a, .. }, Message::Advertisement { source: b, .. }) => a == b,
            _ => false,
        };
        self.out.retain(|said| !is_older(said));
        self.out.push(message);
    }

    /// Each side has all flows of the other's beginning.
    pub fn is_synced(&self) -> bool {
        self.their_snapshot && self.our_snapshot_at.is_some_and(|sequence| self.answered >= sequence)
    }

    /// How long the latest change took from its mark until the other side had it; of those under way, how long they take
    /// already.
    pub fn lag(&self, now: Duration) -> Option<Duration> {
        let under_way = self
            .pings
            .values()
            .next()
            .or(self.waiting_since.as_ref())
            .map(|since| now.saturating_sub(*since));
        self.lag.max(under_way)
    }

    /// Slots that the other side was told of since this was last asked.
    pub fn take_told(&mut self) -> u64 {
        std::mem::take(&mut self.told)
    }

    /// Whether the other side does not have every change yet.
    pub fn is_behind(&self) -> bool {
        !self.marks.is_empty() || !self.pings.is_empty()
    }

    /// Whether the other side has said nothing for too long.
    pub fn is_dead(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard_at) > PATIENCE
    }

    /// Whether [`Self::fill`] would say something.
    pub fn has_news(&self, now: Duration, is_active: bool) -> bool {
        !self.out.is_empty()
            || now >= self.next_ping
            || (self.hello && (self.snapshot_left.is_some() || (is_active && !self.marks.is_empty())))
    }

    /// The next messages, of about `limit` octets at most. A backup sends its snapshot alone.
    pub fn fill(&mut self, now: Duration, is_active: bool, limit: usize, source: &impl Source) -> Vec<u8> {
        let mut octets = Vec::with_capacity(limit);
        while !self.out.is_empty() && octets.len() + 512 < limit || octets.is_empty() && !self.out.is_empty()
        {
            self.out.remove(0).write(&mut octets);
        }
        let mut sent = false;
        // Before the other side has said who it is nothing is known to mean the same there.
        while self.hello && octets.len() + 256 < limit {
            if let Some(left) = self.snapshot_left.as_mut() {
                if *left == 0 || self.marks.is_empty() {
                    self.snapshot_left = None;
                    Message::SnapshotEnd { flows: self.snapshot_flows }.write(&mut octets);
                    self.our_snapshot_at = Some(self.sequence + 1);
                    sent = true;
                    continue;
                }
                *left -= 1;
            } else if !is_active {
                break;
            }
            let Some((table, port)) = self.marks.take() else { break };
            sent = true;
            self.write_slot(table, port, source, &mut octets);
        }
        if sent || now >= self.next_ping {
            self.sequence += 1;
            let since = self.waiting_since.filter(|_| sent).unwrap_or(now);
            if self.marks.is_empty() {
                self.waiting_since = None;
            }
            self.pings.insert(self.sequence, since);
            self.next_ping = now + PING_PACE;
            Message::Ping(self.sequence).write(&mut octets);
        }
        octets
    }

    fn write_slot(&mut self, table: u16, port: u16, source: &impl Source, octets: &mut Vec<u8>) {
        let Some(place) = source.place(table).filter(|place| self.common.contains(&place.service)) else {
            return;
        };
        let in_snapshot = self.snapshot_left.is_some();
        let flow = source.flow(table, port);
        if flow.is_none() && in_snapshot {
            return;
        }
        if self.named.insert(table) {
            Message::Table { table, place }.write(octets);
        }
        self.told += 1;
        match flow {
            Some(flow) => {
                self.snapshot_flows += u32::from(in_snapshot);
                Message::Flow { table, flow }.write(octets);
            }
            None => Message::Free { table, nat_port: port }.write(octets),
        }
    }

    /// Takes in a message; what it means, if it means anything for this node.
    ///
    /// # Errors
    /// The stream is to be closed.
    pub fn receive(&mut self, now: Duration, message: Message) -> Result<Option<Event>, Violation> {
        self.heard_at = now;
        if !self.hello && !matches!(message, Message::Hello { .. }) {
            return Err(Violation("the first message is no greeting"));
        }
        let event = match message {
            Message::Hello { .. } if self.hello => return Err(Violation("a second greeting")),
            Message::Hello { role, services } => {
                self.hello = true;
                let differences = self.compare(&services);
                Event::Hello { role, differences }
            }
            Message::Table { table, place } => {
                if self.theirs.len() >= MAX_TABLES && !self.theirs.contains_key(&table) {
                    return Err(Violation("more tables than there can be"));
                }
                self.theirs.insert(table, place);
                return Ok(None);
            }
            Message::Flow { table, flow } => {
                let place = self.their_place(table)?;
                if !self.common.contains(&place.service) {
                    return Ok(None);
                }
                Event::Flow { place, flow, in_snapshot: !self.their_snapshot }
            }
            Message::Free { table, nat_port } => Event::Free { place: self.their_place(table)?, nat_port },
            Message::SnapshotEnd { .. } if self.their_snapshot => return Err(Violation("a second snapshot")),
            Message::SnapshotEnd { flows } => {
                self.their_snapshot = true;
                Event::SnapshotEnd { flows }
            }
            Message::Ping(sequence) => {
                // A peer that asks without reading the answers is asked to stop.
                if self.out.len() > 1024 {
                    return Err(Violation("more pings than answers are read"));
                }
                self.out.push(Message::Pong(sequence));
                return Ok(None);
            }
            Message::Pong(sequence) => {
                let Some(since) = self.pings.remove(&sequence) else {
                    return Err(Violation("an answer to what was not asked"));
                };
                self.answered = self.answered.max(sequence);
                self.lag = Some(now.saturating_sub(since));
                return Ok(None);
            }
            Message::Role(role) => Event::Role(role),
            Message::AskForVips => Event::AskForVips,
            Message::Want(place) => Event::Wanted(place),
            Message::Interval(ms) => Event::Interval(Duration::from_millis(ms.into())),
            Message::IntervalConfirmed(ms) => Event::IntervalConfirmed(Duration::from_millis(ms.into())),
            Message::Advertisement { interval_ms: 0, .. } => {
                return Err(Violation("an advertisement without an interval"));
            }
            Message::Advertisement { source, priority, interval_ms } => {
                Event::Advertisement { source, priority, interval: Duration::from_millis(interval_ms.into()) }
            }
        };
        Ok(Some(event))
    }

    fn their_place(&self, table: u16) -> Result<Place, Violation> {
        self.theirs.get(&table).copied().ok_or(Violation("a slot of a table that was not named"))
    }

    fn compare(&mut self, theirs: &[Service]) -> Vec<Difference> {
        let mut differences = Vec::new();
        for ours in &self.services {
            match theirs.iter().find(|service| service.address == ours.address) {
                None => differences.push(Difference::OnlyOurs(ours.address)),
                Some(service) if service.is_dsr != ours.is_dsr => {
                    differences.push(Difference::Mode(ours.address));
                }
                Some(service) if service.seed_check != ours.seed_check => {
                    differences.push(Difference::Seed(ours.address));
                }
                Some(_) => drop(self.common.insert(ours.address)),
            }
        }
        let ours = |service: &&Service| !self.services.iter().any(|ours| ours.address == service.address);
        differences.extend(theirs.iter().filter(ours).map(|service| Difference::OnlyTheirs(service.address)));
        differences
    }
}
