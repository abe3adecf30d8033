//! The loop: what the lease says, what has arrived, what the agent wants, what the timer says; then what follows is done.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use lb_common::addr::Mac;
use lb_core::vrrp::{
    Action, Checksum, Machine, Reject, Role, VirtualRouter, Why,
    packet::{self, STOPPED},
};
use tokio::sync::{mpsc::UnboundedSender, watch};

use super::{
    Beat, Figures, News, Order, Setup, realtime,
    sockets::{MAX_FRAME, Sockets, Waker},
};
use crate::dataplane::monotonic_ns;

/// Frames read in a turn: so many a flood may hold the heartbeat up by.
const FRAMES_A_TURN: usize = 64;
/// Addresses that nodes of our own kind advertise from, at most: more than all peers have.
const MAX_KNOWN: usize = 64;
/// Between two reports of the same trouble.
const REPORT_PACE: Duration = Duration::from_secs(60);

/// The ways to the agent.
pub(super) struct Told {
    pub(super) news: UnboundedSender<News>,
    pub(super) beats: watch::Sender<Option<Beat>>,
}

pub(super) struct Turn {
    setup: Setup,
    machine: Machine,
    sockets: Sockets,
    waker: Arc<Waker>,
    inbox: mpsc::Receiver<Order>,
    agent: Told,
    figures: Arc<Figures>,
    announcements: Vec<(u32, Vec<u8>)>,
    /// Of unicast peers: as the kernel has them, or as their own advertisements came by.
    macs: HashMap<IpAddr, Mac>,
    /// When which trouble was told last.
    told: HashMap<Trouble, Duration>,
    /// When the next advertisement is due, if it is for the beat alone.
    due: Option<Duration>,
    /// The lease is to outlive this thread.
    leaves: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Trouble {
    Rejected(usize),
    OtherList,
    OtherChecksum,
    NotSent,
    NoMac(IpAddr),
}

impl Turn {
    pub(super) fn new(
        setup: Setup,
        sockets: Sockets,
        waker: Arc<Waker>,
        inbox: mpsc::Receiver<Order>,
        agent: Told,
        figures: Arc<Figures>,
    ) -> Self {
        let now = now();
        let (machine, first) = Machine::new(setup.settings, now, setup.lease.held(now));
        let mut turn = Self {
            setup,
            machine,
            sockets,
            waker,
            inbox,
            agent,
            figures,
            announcements: Vec::new(),
            macs: HashMap::new(),
            told: HashMap::new(),
            due: None,
            leaves: false,
        };
        // One that begins as backup owns nothing, whatever the map says.
        if turn.machine.role() != Role::Active {
            turn.setup.lease.drop_now();
        }
        turn.carry_out(now, first);
        turn
    }

    pub(super) fn run(mut self) {
        for (what, result) in
            [("real-time priority", realtime::prioritise()), ("locked memory", realtime::lock_memory())]
        {
            if let Err(error) = result {
                self.tell(News::NotRealtime(what, error.to_string()));
            }
        }
        loop {
            // Before the lease is looked at: what is granted in this turn is granted as of now, so that a revocation that
            // comes after the look is not undone.
            let now = now();
            let is_revoked = self.setup.lease.is_revoked();
            let actions = self.machine.check_lease(now, is_revoked);
            self.carry_out(now, actions);
            self.read_frames(now);
            while let Ok(order) = self.inbox.try_recv() {
                self.obey(now, order);
            }
            self.beat(now);
            // Before the wait: where no other node speaks, nothing would end it.
            if self.leaves || self.machine.role() == Role::Stopped {
                return;
            }
            let next = self.machine.next_wake();
            self.due = next;
            self.sockets.wait(&self.waker, next.map(|next| next.saturating_sub(self::now())));
        }
    }

    /// The timer's part of a turn.
    fn beat(&mut self, now: Duration) {
        let is_due = self.due.is_some_and(|due| now >= due);
        let was_active = self.machine.role() == Role::Active;
        let actions = self.machine.wake(now);
        let advertises = actions.iter().any(|action| matches!(action, Action::Advertise { .. }));
        if let Some(due) = self.due.filter(|_| is_due && was_active && advertises) {
            self.figures.count_late(now - due);
        }
        self.carry_out(now, actions);
    }

    fn read_frames(&mut self, now: Duration) {
        let mut frame = [0; MAX_FRAME];
        for _ in 0..FRAMES_A_TURN {
            let Some(length) = self.sockets.receive(&mut frame) else { return };
            self.read(now, &frame[..length]);
        }
        // More is waiting: the next turn comes at once.
        self.waker.wake();
    }

    fn read(&mut self, now: Duration, frame: &[u8]) {
        let Some(datagram) = packet::in_frame(frame) else { return };
        let family = lb_core::vrrp::Family::of(datagram.source);
        let Some(router) = self.setup.routers.iter().find(|router| router.family() == family) else { return };
        let is_known = self.setup.known.contains(&datagram.source);
        match packet::read(router, &datagram, is_known) {
            Ok(advertisement) => {
                self.figures.received.fetch_add(1, Ordering::Relaxed);
                let (ours, is_unicast) = (router.checksum, !router.peers.is_empty());
                if is_unicast && let Some(mac) = frame.get(6..).and_then(|rest| rest.first_chunk()) {
                    self.macs.insert(advertisement.source, Mac::new(*mac));
                }
                let is_v3 = router.version == lb_core::vrrp::Version::V3;
                if is_v3 && ours == Checksum::PseudoHeader && advertisement.checksum == Checksum::Message {
                    self.report(now, Trouble::OtherChecksum, News::OtherChecksum(advertisement.source));
                }
                if advertisement.other_list {
                    self.report(now, Trouble::OtherList, News::OtherList(advertisement.source));
                }
                let actions = self.machine.received(now, &advertisement);
                if actions.contains(&Action::AskForVips) {
                    self.tell(News::AskForVips);
                }
                self.carry_out(now, actions);
            }
            Err(reject) => self.reject(now, reject),
        }
    }

    fn reject(&mut self, now: Duration, reject: Reject) {
        self.figures.rejected[reject.number()].fetch_add(1, Ordering::Relaxed);
        if !reject.is_usual() {
            self.report(now, Trouble::Rejected(reject.number()), News::Rejected(reject));
        }
    }

    fn obey(&mut self, now: Duration, order: Order) {
        let actions = match order {
            Order::Priority(priority) => self.machine.set_priority(now, priority),
            Order::Fault(is_fault) => self.machine.set_fault(now, is_fault),
            Order::Preemption(preemption) => {
                self.machine.set_preemption(preemption);
                vec![]
            }
            Order::Announcements(frames) => {
                self.announcements = frames;
                vec![]
            }
            Order::PeerMac(peer, mac) => {
                self.macs.insert(peer, mac);
                vec![]
            }
            Order::FailOver(is_asked_for) => self.machine.fail_over(now, is_asked_for),
            Order::Heard(advertisement) => {
                let known = &mut self.setup.known;
                if !known.contains(&advertisement.source) && known.len() < MAX_KNOWN {
                    known.push(advertisement.source);
                }
                let actions = self.machine.received(now, &advertisement);
                if actions.contains(&Action::AskForVips) {
                    self.tell(News::AskForVips);
                }
                actions
            }
            Order::Announce => {
                self.machine.announce(now);
                vec![]
            }
            Order::AnnounceInterval(interval) => self.machine.announce_interval(now, interval),
            Order::ConfirmInterval(interval) => {
                self.machine.confirm_interval(interval);
                vec![]
            }
            Order::AgentLives => {
                self.machine.agent_lives(now);
                vec![]
            }
            Order::Leave => {
                self.leaves = true;
                vec![]
            }
            Order::Stop if self.leaves => vec![],
            Order::Stop => self.machine.stop(),
        };
        self.carry_out(now, actions);
    }

    fn carry_out(&mut self, now: Duration, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::DropLease => self.setup.lease.drop_now(),
                Action::Grant { granted_at, deadline } => self.setup.lease.grant(granted_at, deadline),
                Action::Advertise { priority, interval } => {
                    let is_out = self.advertise(now, priority, interval);
                    if is_out {
                        // Only the last one counts: nothing piles up.
                        let _nobody_listens = self.agent.beats.send(Some(Beat { priority, interval }));
                    }
                    if priority != STOPPED {
                        let next = self.machine.sent(self::now(), now, is_out);
                        self.carry_out(now, next);
                    }
                }
                Action::Announce => {
                    for (ifindex, frame) in &self.announcements {
                        // One of several: the next one follows.
                        let _ = self.sockets.send_on(*ifindex, frame);
                    }
                }
                Action::AskForVips => {}
                Action::Became { role, why } => {
                    if role == Role::Active && why != Why::Resumed {
                        self.setup.lease.be_lenient(now + self.setup.grace);
                    }
                    self.tell(News::Became { role, why });
                }
            }
        }
    }

    /// Whether it went out for each family and to each peer.
    fn advertise(&mut self, now: Duration, priority: u8, interval: Duration) -> bool {
        let mut failed = None;
        for router in &self.setup.routers {
            for to in router.destinations() {
                let Some(mac) = self.mac_of(router, to) else {
                    failed = Some((Trouble::NoMac(to), News::NoMac(to)));
                    continue;
                };
                let frame = packet::frame(router, self.setup.mac, (to, mac), priority, interval);
                if let Err(error) = self.sockets.send(&frame) {
                    failed = Some((Trouble::NotSent, News::NotSent { to, reason: error.to_string() }));
                }
            }
        }
        match failed {
            None => {
                self.figures.sent.fetch_add(1, Ordering::Relaxed);
                self.told.remove(&Trouble::NotSent);
                true
            }
            Some((trouble, news)) => {
                self.figures.not_sent.fetch_add(1, Ordering::Relaxed);
                self.report(now, trouble, news);
                false
            }
        }
    }

    fn mac_of(&self, router: &VirtualRouter, to: IpAddr) -> Option<Mac> {
        if router.peers.is_empty() {
            Some(packet::group_mac(router.family()))
        } else {
            self.macs.get(&to).copied()
        }
    }

    /// Tells of trouble, unless it was told of lately.
    fn report(&mut self, now: Duration, trouble: Trouble, news: News) {
        let is_new = self.told.get(&trouble).is_none_or(|at| now >= *at + REPORT_PACE);
        if is_new {
            self.told.insert(trouble, now);
            self.tell(news);
        }
    }

    fn tell(&self, news: News) {
        // An agent that has ended needs no news.
        let _ = self.agent.news.send(news);
    }
}

/// Time of `CLOCK_MONOTONIC`, the lease's.
fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}
