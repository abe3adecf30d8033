//! Sharing flows with the other nodes: what they are told and when, and what becomes of what they tell.

mod heard;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{maps::FlowEvent, nat};
use lb_core::{
    config::{self, Mode},
    sync::{MAX_PLAINTEXT, Message, NodeRole, Peer, Service, Source as _, seed_check},
    vrrp::{Preemption, Role},
};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{state::Agent, world};
use crate::{
    api::{metrics::SyncFigures, status::PeerStatus},
    dataplane::monotonic_ns,
    secret,
    sync::{News, Streams, Trouble},
    vrrp::{Beat, Order},
};

/// Between two looks at what is due without an occasion.
pub(super) const PACE: Duration = Duration::from_millis(100);
/// For so long after it has given the VIPs up a node still tells what it knows of its flows.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest time that a hand-over waits until the other node has every flow.
const HANDOVER_PATIENCE: Duration = Duration::from_millis(500);

/// The streams of this node.
pub(super) struct FlowSync {
    _streams: Streams,
    inbox: mpsc::Receiver<News>,
    listen: SocketAddr,
    peers: Vec<Link>,
    key: Vec<u8>,
    /// This node has been active since it last was in sync as backup: its flows are its own, and not copies.
    has_own: bool,
    /// When it last was active.
    active_until: Duration,
    /// The VIPs are to be handed over, at the latest then; whether the peer asked.
    handover: Option<(Duration, bool)>,
    /// As they were counted when last looked at.
    events_lost: u64,
    pub(super) figures: SyncFigures,
}

struct Link {
    address: SocketAddr,
    stream: Option<Stream>,
    /// What was told of the stream that is not there, so that it is told once.
    told: Option<String>,
}

struct Stream {
    peer: Peer,
    out: mpsc::Sender<Vec<u8>>,
    role: NodeRole,
    /// Slots of the peer's snapshot, until all are here.
    snapshot: Option<BTreeSet<(u16, u16)>>,
    /// The peer has every flow that this node has: it was told of them, or they came from it.
    has_all: bool,
    was_synced: bool,
    /// The interval that the peer is about to announce, and how many of its advertisements had it.
    announced: Option<(Duration, u32)>,
    /// What the peer reckons with.
    confirmed: Option<Duration>,
}

impl FlowSync {
    /// Listens, and reads the key.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn start(sync: &config::PeerSync) -> Result<Self, String> {
        let key = secret::read(&sync.key_file).map_err(|error| error.to_string())?;
        if key.len() < MIN_KEY {
            return Err(format!(
                "{} holds {} bytes, at least {MIN_KEY} are needed: make one by `head -c 32 /dev/urandom`",
                sync.key_file.display(),
                key.len()
            ));
        }
        let started = Streams::start(sync.listen, &sync.peers, key.clone()).await;
        let (streams, inbox) = started.map_err(|error: io::Error| {
            format!(
                "cannot listen on {} for other nodes: {error}; is `listen` an address of this node?",
                sync.listen
            )
        })?;
        let peers = sync.peers.iter().map(|&address| Link { address, stream: None, told: None }).collect();
        Ok(Self {
            _streams: streams,
            inbox,
            listen: sync.listen,
            peers,
            key,
            has_own: false,
            active_until: Duration::ZERO,
            handover: None,
            events_lost: u64::MAX,
            figures: SyncFigures::default(),
        })
    }

    /// What the streams tell next.
    pub(super) async fn news(&mut self) -> News {
        match self.inbox.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// In sync with every peer that there is a stream to, and there is one to each.
    pub(super) fn is_synced(&self) -> bool {
        self.peers.iter().all(|link| link.stream.as_ref().is_some_and(|stream| stream.peer.is_synced()))
    }

    /// Where a peer is not heard it may own the VIPs too: then each node picks NAT ports from its own part.
    pub(super) fn nat_ports(&self) -> nat::Range {
        if self.peers.iter().all(|link| link.stream.is_some()) {
            return nat::Range::ALL;
        }
        let below = self.peers.iter().filter(|link| link.address < self.listen).count();
        match (u16::try_from(below), u16::try_from(self.peers.len() + 1)) {
            (Ok(number), Ok(nodes)) => nat::Range::part(number, nodes),
            _ => nat::Range::ALL,
        }
    }

    /// The worst of all peers.
    pub(super) fn status(&self) -> Option<PeerStatus> {
        let of_link = |link: &Link| {
            let peer = link.stream.as_ref().map(|stream| &stream.peer);
            let lag = peer.and_then(|peer| peer.lag(now()));
            PeerStatus {
                address: link.address.to_string(),
                connected: peer.is_some(),
                synced: peer.is_some_and(Peer::is_synced),
                lag_ms: lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            }
        };
        self.peers
            .iter()
            .map(of_link)
            .min_by_key(|peer| (peer.connected, peer.synced, u64::MAX - peer.lag_ms.unwrap_or(0)))
    }
}

/// `sync.key_file` at least, octets.
const MIN_KEY: usize = 32;

impl Agent {
    /// A slot has changed; every node is to know.
    pub(super) fn mark_events(&mut self, events: &[FlowEvent]) {
        for event in events {
            self.mark(event.backend, event.nat_port.get());
        }
        self.pump();
    }

    pub(super) fn mark(&mut self, backend: u16, port: u16) {
        let Some(sync) = &mut self.sync else { return };
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            stream.peer.mark(now(), backend, port);
        }
    }

    /// There may be other services and tables: other nodes are told of the services anew, and asked for the flows of tables that
    /// were not there `before`.
    pub(super) fn sync_tables(&mut self, before: &[u16]) {
        let services = self.sync_services();
        let tables = self.plane.table_numbers().into_iter().filter(|table| !before.contains(table));
        let places: Vec<_> = tables.filter_map(|table| self.plane.place(table)).collect();
        let Some(sync) = &mut self.sync else { return };
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            places.iter().for_each(|place| stream.peer.say(Message::Want(*place)));
        }
        self.begin_sync_anew("this node's services have changed", |stream| {
            stream.peer.services() != services
        });
        self.pump();
    }

    /// Both nodes are to tell each other of all flows, where other maps count now.
    pub(super) fn tell_all_anew(&mut self) {
        self.begin_sync_anew("this node's flows were carried over to other maps", |_| true);
    }

    /// Ends streams as planned: they come again, and begin with everything.
    fn begin_sync_anew(&mut self, why: &str, which: impl Fn(&Stream) -> bool) {
        for number in self.streams(which) {
            let Some(link) = self.sync.as_mut().and_then(|sync| sync.peers.get_mut(number)) else { continue };
            info!(peer = %link.address, why, "flow sync begins anew");
            self.events.note("sync", link.address.to_string(), format!("begins anew: {why}"));
            link.stream = None;
            self.follow_streams();
        }
    }

    /// Numbers of peers whose streams are such.
    fn streams(&self, which: impl Fn(&Stream) -> bool) -> Vec<usize> {
        let links = self.sync.iter().flat_map(|sync| &sync.peers).enumerate();
        let such = links.filter(|(_, link)| link.stream.as_ref().is_some_and(&which));
        such.map(|(number, _)| number).collect()
    }

    /// Numbers of tables that stand for nothing any more.
    pub(super) fn forget_tables(&mut self, numbers: &[u16]) {
        let Some(sync) = &mut self.sync else { return };
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            numbers.iter().for_each(|number| stream.peer.forget_table(*number));
        }
    }

    /// Events that nobody got may have been about any slot.
    fn mark_lost(&mut self) {
        let Ok(counters) = self.plane.counters() else { return };
        let tables = self.plane.table_numbers();
        let Some(sync) = &mut self.sync else { return };
        if std::mem::replace(&mut sync.events_lost, counters.events_lost) >= counters.events_lost {
            return;
        }
        warn!("events of the data plane were lost: every slot is told to the other nodes again");
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            tables.iter().for_each(|table| stream.peer.mark_all(now(), *table));
        }
    }

    /// A stream has told something.
    pub(super) fn on_sync(&mut self, news: News) {
        match news {
            News::Open { peer, out } => self.on_open(peer, out),
            News::Room { .. } => {}
            News::Said { peer, messages } => {
                for message in messages {
                    if let Err(reason) = self.on_message(peer, message) {
                        self.close(peer, &reason);
                        break;
                    }
                }
                self.follow_sync();
            }
            News::Closed { peer, trouble } => self.on_closed(peer, &trouble),
            News::Stranger(from) => {
                let Some(sync) = &mut self.sync else { return };
                sync.figures.strangers += 1;
                debug!(%from, "a connection for flow sync from an address that is no peer's");
            }
        }
        self.pump();
    }

    fn on_open(&mut self, number: usize, out: mpsc::Sender<Vec<u8>>) {
        let role = self.node_role();
        let services = self.sync_services();
        // A backup's flows are the other node's own: it knows better what became of them.
        let has_own = self.sync.as_ref().is_some_and(|sync| sync.has_own);
        let used = if has_own { self.plane.established() } else { Vec::new() };
        let Some(link) = self.sync.as_mut().and_then(|sync| sync.peers.get_mut(number)) else { return };
        info!(peer = %link.address, flows = used.len(), "connected for flow sync");
        link.told = None;
        link.stream = Some(Stream {
            peer: Peer::new(now(), role, services, used),
            out,
            role: NodeRole::Other,
            snapshot: Some(BTreeSet::new()),
            has_all: has_own,
            was_synced: false,
            announced: None,
            confirmed: None,
        });
        self.follow_streams();
    }

    /// What follows from there being a stream or not.
    fn follow_streams(&mut self) {
        self.follow_sync();
        if self.serving {
            self.reconcile();
        }
    }

    fn on_closed(&mut self, number: usize, trouble: &Trouble) {
        let Some(sync) = &mut self.sync else { return };
        if let Some(failure) = trouble.failure() {
            sync.figures.failures[failure.number()] += 1;
        }
        let Some(link) = sync.peers.get_mut(number) else { return };
        let was_open = link.stream.take().is_some();
        let said = trouble.to_string();
        if link.told.as_ref() != Some(&said) {
            self.events.note("sync", link.address.to_string(), format!("no stream: {said}"));
            match trouble.failure() {
                Some(_) => error!(peer = %link.address, reason = %said, "no flow sync"),
                None => warn!(peer = %link.address, reason = %said, "no flow sync; trying again"),
            }
            link.told = Some(said);
        }
        if was_open {
            self.follow_streams();
        }
    }

    fn close(&mut self, number: usize, reason: &str) {
        let Some(link) = self.sync.as_mut().and_then(|sync| sync.peers.get_mut(number)) else { return };
        if link.told.as_deref() != Some(reason) {
            error!(peer = %link.address, reason, "flow sync ended");
            self.events.note("sync", link.address.to_string(), format!("ended: {reason}"));
            link.told = Some(reason.to_owned());
        }
        link.stream = None;
        self.follow_streams();
    }

    /// Says what there is to say, as far as there is room.
    pub(super) fn pump(&mut self) {
        let Some(mut sync) = self.sync.take() else { return };
        let time = now();
        if self.is_active() {
            sync.active_until = time;
        }
        let tells = time.saturating_sub(sync.active_until) < LAST_WORDS;
        for link in &mut sync.peers {
            let Some(stream) = &mut link.stream else { continue };
            while stream.peer.has_news(time, tells) {
                let Ok(room) = stream.out.try_reserve() else { break };
                let octets = stream.peer.fill(time, tells, MAX_PLAINTEXT, &self.plane);
                sync.figures.flows_out += stream.peer.take_told();
                room.send(octets);
            }
        }
        self.sync = Some(sync);
        self.go_on_with_handover();
    }

    /// What is due now and then.
    pub(super) fn tick_sync(&mut self) {
        for number in self.streams(|stream| stream.peer.is_dead(now())) {
            self.close(number, "the other node has been silent for too long");
        }
        self.mark_lost();
        self.follow_sync();
        self.pump();
    }

    /// What follows from being in sync, or not.
    pub(super) fn follow_sync(&mut self) {
        let is_active = self.is_active();
        let Some(sync) = &mut self.sync else { return };
        let is_synced = sync.is_synced();
        for link in &mut sync.peers {
            let Some(stream) = &mut link.stream else { continue };
            if stream.peer.is_synced() && !std::mem::replace(&mut stream.was_synced, true) {
                info!(peer = %link.address, "in sync");
                self.events.note("sync", link.address.to_string(), "in sync");
            }
        }
        if is_synced && !is_active {
            sync.has_own = false;
        }
        let preemption = if is_synced { Preemption::ByAsking } else { Preemption::Never };
        self.set_preemption(preemption);
    }

    /// This node's role has changed.
    pub(super) fn sync_role(&mut self, role: Role) {
        self.plane.set_owner(role == Role::Active);
        if role == Role::Active {
            self.plane.wake_flows();
        }
        let node_role = self.node_role();
        let Some(sync) = &mut self.sync else { return };
        if role == Role::Active {
            sync.has_own = true;
        }
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            stream.peer.say(Message::Role(node_role));
            // A stream from before this node was active, to a node that was not: flows that it has had since before its
            // agent's start, as a node has that was alone, nobody has told of.
            if role == Role::Active && !std::mem::replace(&mut stream.has_all, true) {
                for (backend, port) in self.plane.established() {
                    stream.peer.mark(now(), backend, port);
                }
            }
        }
        self.pump();
    }

    /// This node, active, has advertised just now.
    pub(super) fn tell_advertisement(&mut self, source: IpAddr, beat: Beat) {
        let Some(sync) = &mut self.sync else { return };
        let interval_ms = u32::try_from(beat.interval.as_millis()).unwrap_or(u32::MAX);
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            // One that does not read learns of the last one alone.
            stream.peer.say_last(Message::Advertisement { source, priority: beat.priority, interval_ms });
        }
        self.pump();
    }

    /// Says something to every peer.
    pub(super) fn say_to_all(&mut self, message: &Message) {
        let Some(sync) = &mut self.sync else { return };
        for stream in sync.peers.iter_mut().filter_map(|link| link.stream.as_mut()) {
            stream.confirmed = None;
            stream.peer.say(message.clone());
        }
        self.pump();
    }

    /// The active node is weaker than this one, and is asked for the VIPs. The address that it advertises from need not be
    /// that of its stream: IPv6 has link-local ones.
    pub(super) fn ask_for_vips(&mut self) {
        let Some(sync) = &mut self.sync else { return };
        for link in &mut sync.peers {
            if let Some(stream) = link.stream.as_mut().filter(|stream| stream.role == NodeRole::Active) {
                info!(peer = %link.address, "asking the weaker node for the VIPs");
                stream.peer.say(Message::AskForVips);
            }
        }
        self.pump();
    }

    /// Hands the VIPs over, if they are here, as soon as the other nodes have every flow.
    pub(super) fn hand_over(&mut self, is_asked_for: bool) {
        if !self.is_active() {
            return;
        }
        match &mut self.sync {
            Some(sync) => {
                sync.handover.get_or_insert((now() + HANDOVER_PATIENCE, is_asked_for));
                self.go_on_with_handover();
            }
            None => self.tell_pair(Order::FailOver(is_asked_for)),
        }
    }

    fn go_on_with_handover(&mut self) {
        let Some(sync) = &mut self.sync else { return };
        let Some((until, is_asked_for)) = sync.handover else { return };
        let streams = sync.peers.iter().filter_map(|link| link.stream.as_ref());
        let is_told = streams.into_iter().all(|stream| !stream.peer.is_behind());
        if is_told || now() >= until {
            sync.handover = None;
            self.tell_pair(Order::FailOver(is_asked_for));
        }
    }

    fn peer_role(&self, number: usize) -> NodeRole {
        let stream = self.sync.as_ref().and_then(|sync| sync.peers.get(number)?.stream.as_ref());
        stream.map_or(NodeRole::Other, |stream| stream.role)
    }

    fn node_role(&self) -> NodeRole {
        match self.pair.as_ref().map(|pair| pair.role) {
            Some(Role::Active) => NodeRole::Active,
            Some(Role::Backup) => NodeRole::Backup,
            _ => NodeRole::Other,
        }
    }

    fn is_active(&self) -> bool {
        self.node_role() == NodeRole::Active
    }

    fn sync_services(&self) -> Vec<Service> {
        let key = self.sync.as_ref().map(|sync| sync.key.clone()).unwrap_or_default();
        let view = world::View(self);
        let services = self.config.services.iter().map(|service| {
            let seed = lb_core::desired::World::seed(&view, service);
            let octets = seed.key.map(u64::to_be_bytes).concat();
            Service {
                address: SocketAddr::new(service.vip, service.port),
                is_dsr: service.mode == Mode::Dsr,
                seed_check: seed_check(&key, &octets),
            }
        });
        services.collect()
    }
}

fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}
