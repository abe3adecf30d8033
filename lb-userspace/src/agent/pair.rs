//! This node's part in a pair: the thread that advertises, and what it is told and tells.

mod fencing;
mod hold;
mod notify;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{addr::Mac, election::Election};
use lb_core::{
    config,
    desired::BackendKey,
    health::State,
    vrrp::{Family, Preemption, Role, Settings, VirtualRouter, Why},
};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot};
use tracing::{error, info, warn};

pub(super) use self::hold::Hold;
use self::notify::Notifications;
use super::{error::Error, state::Agent};
use crate::{
    api::{metrics::PairFigures, status},
    dataplane::{LeaseMap, monotonic_ns},
    netlink::{Link, Mirror, vip},
    vrrp::{News, Order, Setup, Vrrp, realtime},
};

/// A node of a pair.
pub(super) struct Pair {
    lease: LeaseMap,
    thread: Option<Running>,
    pub(super) role: Role,
    /// Changes to active, backup and fault, in the order of [`TRANSITIONS`].
    pub(super) transitions: [u64; 3],
    /// Whether it was fenced when that was last looked at.
    was_fenced: bool,
    /// Why the node cannot serve.
    fault: Option<String>,
    notifications: Option<Notifications>,
    /// The VIPs are to stay through a restart.
    pub(super) hold: Option<Hold>,
    /// Who waits for the end of a failover.
    failing_over: Vec<oneshot::Sender<Result<(), String>>>,
}

/// What the thread tells.
pub(super) enum PairNews {
    Told(News),
    /// An advertisement went out.
    Beat,
}

/// Roles whose beginnings are counted.
pub(super) const TRANSITIONS: [Role; 3] = [Role::Active, Role::Backup, Role::Fault];

/// The thread, and what it was told last.
struct Running {
    vrrp: Vrrp,
    news: UnboundedReceiver<News>,
    routers: Vec<VirtualRouter>,
    ifindex: u32,
    mac: Mac,
    priority: u8,
    is_fault: bool,
    preemption: Option<Preemption>,
    announcements: Vec<(u32, Vec<u8>)>,
    peers: BTreeMap<IpAddr, Mac>,
}

impl Pair {
    fn new(lease: LeaseMap, vrrp: &config::Vrrp) -> Self {
        Self {
            lease,
            thread: None,
            role: Role::Backup,
            transitions: [0; 3],
            was_fenced: false,
            fault: None,
            notifications: vrrp.notify.clone().map(Notifications::new),
            hold: None,
            failing_over: Vec::new(),
        }
    }

    /// What the thread tells next.
    pub(super) async fn news(&mut self) -> PairNews {
        let Some(thread) = &mut self.thread else { return std::future::pending().await };
        tokio::select! {
            Some(news) = thread.news.recv() => PairNews::Told(news),
            Ok(()) = thread.vrrp.beat.changed() => PairNews::Beat,
            else => std::future::pending().await,
        }
    }

    /// Whether this node claims the VIPs now.
    pub(super) fn owns_vips(&self) -> bool {
        self.lease.holds(now())
    }

    /// What is counted.
    pub(super) fn figures(&self) -> PairFigures {
        let of_thread = self.thread.as_ref().map(|thread| thread.vrrp.figures.read()).unwrap_or_default();
        PairFigures { transitions: self.transitions, ..of_thread }
    }

    /// The word for `status`.
    pub(super) fn status_role(&self) -> status::Role {
        match self.role {
            Role::Active => status::Role::Active,
            Role::Backup => status::Role::Backup,
            Role::Fault | Role::Stopped => status::Role::Fault,
        }
    }

    /// What the data plane has to know to end the lease by itself.
    pub(super) fn elections(&self) -> [Election; 2] {
        let mut elections = [Election::NONE; 2];
        if let Some(thread) = &self.thread {
            for router in &thread.routers {
                elections[router.family() as usize] = router.election(thread.ifindex, thread.priority);
            }
        }
        elections
    }

    /// Gives up the VIPs, in an orderly way if there is a thread.
    pub(super) fn stop(&mut self) {
        if self.is_held() {
            // The next agent goes on with the lease.
            if let Some(thread) = self.thread.take() {
                thread.vrrp.tell(Order::Leave);
            }
            return;
        }
        self.thread = None;
        self.role = Role::Stopped;
        if let Some(notifications) = &self.notifications {
            notifications.last(Role::Stopped);
        }
    }
}

impl Agent {
    /// Prepares a pair, if the config has one: whatever was claimed is given up, but for a lease that still runs, with which
    /// this node goes on at once.
    pub(super) fn prepare_pair(&mut self) -> Result<(), Error> {
        let Some(vrrp) = &self.config.vrrp else { return Ok(()) };
        let lease = self.plane.lease()?;
        let is_held = lease.held(now()).is_some();
        if !is_held {
            lease.drop_now();
        }
        if let Err(error) = realtime::favour() {
            warn!(%error, "the agent's loop has no better priority than others: give it CAP_SYS_NICE");
        }
        self.pair = Some(Pair::new(lease, vrrp));
        self.plane.set_owner(is_held);
        // Where flows are being carried over the old program reads the old lease; and what this node told of its flows before they
        // are here, its peer would believe.
        if is_held && !self.plane.migrates() {
            self.follow_pair();
        }
        Ok(())
    }

    /// Whether this node claims the VIPs: always, without a pair.
    pub(super) fn owns_vips(&self) -> bool {
        self.pair.as_ref().is_none_or(Pair::owns_vips)
    }

    /// Tells the thread what has changed, and starts it where it can run and does not.
    pub(super) fn follow_pair(&mut self) {
        let (Some(vrrp), Some(mut pair)) = (self.config.vrrp.clone(), self.pair.take()) else { return };
        let before = pair.fault.take();
        pair.fault = self.keep_running(&vrrp, &mut pair).err();
        if pair.thread.is_some() && pair.fault.is_none() && self.serving {
            pair.fault = self.fault(&vrrp);
        }
        match (&before, &pair.fault) {
            (None, Some(reason)) => error!(%reason, "this node cannot own the VIPs"),
            (Some(_), None) => info!("this node can own the VIPs again"),
            _ => {}
        }
        if pair.thread.is_none() {
            pair.role = Role::Fault;
        }
        let priority = self.priority(&vrrp);
        let announcements = self.announcements();
        let is_fault = pair.fault.is_some();
        let hops = |peer: &IpAddr| Some((*peer, self.hops.hop(self.network.mirror(), *peer)?.mac));
        let peers: BTreeMap<IpAddr, Mac> = vrrp.unicast_peers.iter().filter_map(hops).collect();
        if let Some(thread) = &mut pair.thread {
            for (peer, mac) in &peers {
                if thread.peers.insert(*peer, *mac) != Some(*mac) {
                    thread.vrrp.tell(Order::PeerMac(*peer, *mac));
                }
            }
            if thread.announcements != announcements {
                thread.announcements.clone_from(&announcements);
                thread.vrrp.tell(Order::Announcements(announcements));
            }
            if std::mem::replace(&mut thread.priority, priority) != priority {
                info!(priority, "the priority has changed");
                thread.vrrp.tell(Order::Priority(priority));
            }
            if std::mem::replace(&mut thread.is_fault, is_fault) != is_fault {
                thread.vrrp.tell(Order::Fault(is_fault));
            }
        }
        self.pair = Some(pair);
        self.follow_sync();
    }

    /// A thread on the interface as it is now; the error tells why there cannot be one.
    fn keep_running(&self, vrrp: &config::Vrrp, pair: &mut Pair) -> Result<(), String> {
        let mirror = self.network.mirror();
        let setup = setup(&self.config, vrrp, mirror);
        let fits = |thread: &Running, (link, mac, routers): &(&Link, Mac, Vec<VirtualRouter>)| {
            (thread.ifindex, thread.mac, &thread.routers) == (link.index, *mac, routers)
        };
        match (&pair.thread, setup) {
            (Some(thread), Ok(wanted)) if fits(thread, &wanted) => Ok(()),
            (_, Ok((link, mac, routers))) => {
                // Another one's sockets and addresses are no use any more; it gives up first.
                pair.thread = None;
                let lease = self.plane.lease().map_err(|error| error.to_string())?;
                let mut sources = [None; 2];
                for router in &routers {
                    sources[router.family() as usize] = Some(router.source);
                }
                let settings = Settings {
                    version: vrrp.version,
                    interval: vrrp.advert_interval,
                    priority: vrrp.priority,
                    preempt: vrrp.preempt,
                    preempt_delay: vrrp.preempt_delay,
                    sources,
                };
                let known =
                    self.config.sync.iter().flat_map(|sync| &sync.peers).map(SocketAddr::ip).collect();
                let grace = self.config.sync.as_ref().map_or(Duration::ZERO, |sync| sync.takeover_grace);
                let setup = Setup {
                    grace,
                    settings,
                    routers: routers.clone(),
                    ifindex: link.index,
                    mac,
                    known,
                    lease,
                };
                let (vrrp, news) = Vrrp::start(setup)
                    .map_err(|error| format!("no VRRP on interface {}: {error}", link.name))?;
                let sources: Vec<_> = routers.iter().map(|router| router.source.to_string()).collect();
                info!(
                    interface = link.name,
                    router_id = router_id(&routers),
                    priority = settings.priority,
                    source = sources.join(", "),
                    "taking part in VRRP"
                );
                pair.role = Role::Backup;
                pair.thread = Some(Running {
                    vrrp,
                    news,
                    routers,
                    ifindex: link.index,
                    mac,
                    priority: settings.priority,
                    is_fault: false,
                    preemption: None,
                    announcements: Vec::new(),
                    peers: BTreeMap::new(),
                });
                Ok(())
            }
            (_, Err(reason)) => {
                pair.thread = None;
                Err(reason)
            }
        }
    }

    /// Why this node could not serve if it owned the VIPs.
    fn fault(&self, vrrp: &config::Vrrp) -> Option<String> {
        let mirror = self.network.mirror();
        let link = mirror.link_named(&vrrp.interface)?;
        if !link.up || !link.carrier {
            let what = if link.up { "has no carrier" } else { "is down" };
            return Some(format!("interface {} {what}", link.name));
        }
        let bare = self.config.interfaces.iter().find(|name| self.attachments.mode(name).is_none())?;
        Some(format!("the program is not attached to interface {bare}"))
    }

    /// What is advertised: less while no backend is healthy.
    fn priority(&self, vrrp: &config::Vrrp) -> u8 {
        let keys = self.config.services.iter().flat_map(|service| {
            service.backends.iter().map(move |backend| BackendKey::new(service, backend))
        });
        let state = |key: BackendKey| self.checks.get(&key).map(|check| check.health().state());
        let any = keys.map(state).any(|state| state == Some(State::Healthy));
        let off = if any { 0 } else { vrrp.track_healthy_backends };
        vrrp.priority.saturating_sub(off).max(1)
    }

    /// Frames that tell all hosts where this node's addresses are.
    pub(super) fn announcements(&self) -> Vec<(u32, Vec<u8>)> {
        let mirror = self.network.mirror();
        let mut frames = Vec::new();
        for address in self.config.addresses() {
            for interface in self.attachments.interfaces(mirror) {
                for (link, _) in mirror.reaches_by(interface.ifindex, address) {
                    // In a VLAN too: the XDP program knows the MAC of the interface that it is on.
                    let of_one = vip::announcements(interface.mac, address);
                    frames.extend(of_one.into_iter().map(|frame| (link.index, frame)));
                }
            }
        }
        frames
    }

    /// The thread has told something.
    pub(super) fn on_news(&mut self, news: PairNews) {
        match news {
            PairNews::Told(news) => self.on_told(news),
            PairNews::Beat => self.pass_beat_on(),
        }
    }

    /// Nodes that VRRP's packets do not reach are told over flow sync.
    fn pass_beat_on(&mut self) {
        let Some(thread) = self.pair.as_mut().and_then(|pair| pair.thread.as_mut()) else { return };
        let Some(beat) = *thread.vrrp.beat.borrow_and_update() else { return };
        let sources: Vec<IpAddr> = thread.routers.iter().map(|router| router.source).collect();
        for source in sources {
            self.tell_advertisement(source, beat);
        }
        self.go_on_with_hold();
    }

    fn on_told(&mut self, news: News) {
        match news {
            News::Became { role, why } => self.on_role(role, why),
            News::Rejected(reject) => {
                warn!(reason = reject.reason(), "an advertisement is not heeded: {reject}");
            }
            News::OtherList(peer) => warn!(
                %peer,
                "the peer advertises other addresses than this node: make VIPs and source addresses the same on both"
            ),
            News::OtherChecksum(peer) => warn!(
                %peer,
                "the peer's checksums leave the pseudo-header out; it may not heed this node's: set `checksum = \"message\"` \
                 in [vrrp]"
            ),
            News::NotSent { to, reason } => {
                error!(%to, %reason, "an advertisement did not go out; the VIPs are given up unless the next ones do");
            }
            News::NoMac(peer) => {
                warn!(%peer, "the MAC of a unicast peer is not known, so it is not advertised to: is it up?");
            }
            News::AskForVips => self.ask_for_vips(),
            News::NotRealtime(what, reason) => warn!(
                %reason,
                "no {what} for the heartbeat: under load the VIPs may change nodes without need; give the agent CAP_SYS_NICE \
                 and CAP_IPC_LOCK"
            ),
        }
    }

    fn on_role(&mut self, role: Role, why: Why) {
        let Some(pair) = &mut self.pair else { return };
        let from = std::mem::replace(&mut pair.role, role);
        if let Some(place) = TRANSITIONS.iter().position(|counted| *counted == role) {
            pair.transitions[place] += 1;
        }
        let words = words(why);
        info!(from = name(from), to = name(role), why = words, "role changed");
        self.events.note("role", "", format!("{} → {}: {words}", name(from), name(role)));
        if let Some(notifications) = &pair.notifications {
            notifications.send(role);
        }
        self.sync_role(role);
        self.follow_role_on_node(role);
        let Some(pair) = &mut self.pair else { return };
        if role == Role::Active {
            // What was held back while the other node had the VIPs.
            self.reset_due();
        } else {
            pair.hold = None;
            for reply in pair.failing_over.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Tells the thread, if there is one.
    pub(super) fn tell_pair(&self, order: Order) {
        if let Some(thread) = self.pair.as_ref().and_then(|pair| pair.thread.as_ref()) {
            thread.vrrp.tell(order);
        }
    }

    /// How a weaker active node is replaced from now on.
    pub(super) fn set_preemption(&mut self, preemption: Preemption) {
        let Some(thread) = self.pair.as_mut().and_then(|pair| pair.thread.as_mut()) else { return };
        if thread.preemption.replace(preemption) != Some(preemption) {
            thread.vrrp.tell(Order::Preemption(preemption));
        }
    }

    /// Hands the VIPs over to the other node.
    pub(super) fn fail_over(&mut self, reply: oneshot::Sender<Result<(), String>>) {
        let refused = match &mut self.pair {
            None => "this node has no peer: there is no [vrrp] in its config".to_owned(),
            Some(Pair { role: Role::Active, thread: Some(_), failing_over, .. }) => {
                failing_over.push(reply);
                self.hand_over(false);
                return;
            }
            Some(pair) => format!("this node is {} already; run it on the active one", name(pair.role)),
        };
        let _ = reply.send(Err(refused));
    }
}

/// The interface, its MAC, and what is advertised there; the error tells why nothing can be.
fn setup<'a>(
    config: &config::Config,
    vrrp: &config::Vrrp,
    mirror: &'a Mirror,
) -> Result<(&'a Link, Mac, Vec<VirtualRouter>), String> {
    let name = &vrrp.interface;
    let link = mirror.link_named(name).ok_or_else(|| format!("interface {name} is gone"))?;
    let mac = link.mac.ok_or_else(|| format!("interface {name} has no MAC"))?;
    let routers =
        VirtualRouter::of_node(config, vrrp, |family| mirror.source(link.index, family == Family::V6));
    let routers = routers.map_err(|family| {
        let (kind, of) = match family {
            Family::V4 => ("IPv4", "an"),
            Family::V6 => ("link-local IPv6", "a"),
        };
        format!("interface {name} has no {kind} address to advertise from: give it one, or set `source` to {of} {kind} address")
    })?;
    Ok((link, mac, routers))
}

fn router_id(routers: &[VirtualRouter]) -> u8 {
    routers.first().map_or(0, |router| router.router_id)
}

fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// The word for a role.
pub(super) fn name(role: Role) -> &'static str {
    match role {
        Role::Active => "active",
        Role::Backup => "backup",
        Role::Fault => "fault",
        Role::Stopped => "stopped",
    }
}

fn words(why: Why) -> String {
    match why {
        Why::NobodyHeard => "nobody advertised for a whole down interval".into(),
        Why::PeerGaveUp => "the active node gave up".into(),
        Why::Resumed => "the agent was restarted within its lease".into(),
        Why::Stronger { source, priority } => format!("{source} advertises priority {priority}"),
        Why::LeaseOver => "the lease ran out: this node slept, or its advertisements did not go out".into(),
        Why::Failover => "the operator's failover".into(),
        Why::AskedFor => "the peer asked for the VIPs".into(),
        Why::AgentHangs => "this node's agent hung: it did nothing for seconds".into(),
        Why::Fault => "this node cannot serve".into(),
        Why::Recovered => "this node can serve again".into(),
        Why::Stop => "the agent ends".into(),
    }
}

/// Whose MACs the thread needs.
pub(super) fn unicast_peers(config: &config::Config) -> BTreeSet<IpAddr> {
    config.vrrp.iter().flat_map(|vrrp| vrrp.unicast_peers.iter().copied()).collect()
}
