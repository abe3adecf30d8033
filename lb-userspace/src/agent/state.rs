//! What the agent knows, and what it does when that changes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use lb_core::{
    config::{Config, Mode},
    desired::{self, BackendKey},
    health::State,
};
use tracing::{debug, error, info, warn};

use super::{
    Options,
    attach::Attachments,
    capture::Capture,
    clients::ClientWays,
    discover::Finds,
    files::Loaded,
    fit,
    lock::Locks,
    node::Node,
    notify::Notifier,
    pair::{self, Pair},
    report::Reloaded,
    sync::FlowSync,
    told::Told,
    traffic::Samples,
    world,
};
use crate::{
    api::{SocketFile, events::Events},
    dataplane::{Census, DataPlane, monotonic_ns},
    discovery::Discoveries,
    netlink::{Network, Touched, groups, hops::Hops},
    packet,
    probe::{Changed, Checks},
};

/// Gratuitous ARP is sent this often, a second apart: one may be lost, and a port that has just come up may not forward
/// yet (ANNOUNCE_NUM of RFC 5227 is 2).
const ANNOUNCEMENTS: u8 = 3;

/// Everything the agent knows.
pub(super) struct Agent {
    /// The config file.
    pub(super) config_path: PathBuf,
    /// Instead of the config's `[api] socket`.
    pub(super) socket_override: Option<PathBuf>,
    /// The config in force: what is written, and the backends that were found beside it.
    pub(super) config: Config,
    /// Where backends are looked for.
    pub(super) discoveries: Discoveries,
    /// What was found.
    pub(super) finds: Finds,
    /// Contents of its `hash_seed_file`.
    pub(super) hash_secret: Option<Vec<u8>>,
    /// The maps.
    pub(super) plane: DataPlane,
    /// The kernel's view of the network.
    pub(super) network: Network,
    /// Next hops toward the backends and the clients' routers.
    pub(super) hops: Hops,
    /// The routes by which clients are reached.
    pub(super) clients: ClientWays,
    /// The way of clients and members on this node.
    pub(super) node: Node,
    /// The backends' health.
    pub(super) checks: Checks,
    /// What the operator drains, and since when.
    pub(super) drains: BTreeMap<BackendKey, SystemTime>,
    /// Where the program is attached.
    pub(super) attachments: Attachments,
    /// For each service: failing open now.
    pub(super) failing_open: Vec<bool>,
    /// When it began.
    pub(super) begun: Instant,
    /// The first round of probes has ended and the program is attached.
    pub(super) serving: bool,
    /// The last reconciliation failed: to be tried again.
    pub(super) unreconciled: bool,
    /// The last reload.
    pub(super) reloaded: Reloaded,
    /// How often the VIPs are still to be announced.
    pub(super) announcements: u8,
    /// Sends them.
    pub(super) announcer: packet::Sender,
    /// The last census.
    pub(super) census: Census,
    /// When it was taken; `None`: what it says is no longer so.
    pub(super) census_at: Option<Instant>,
    /// What goes through the backends.
    pub(super) traffic: Samples,
    /// What the data plane told.
    pub(super) told: Told,
    /// Its part in a pair; `None` if it has no peer.
    pub(super) pair: Option<Pair>,
    /// Flows shared with other nodes; `None` if none are.
    pub(super) sync: Option<FlowSync>,
    /// The capture under way.
    pub(super) capture: Option<Capture>,
    /// What has happened lately.
    pub(super) events: Events,
    /// The way to systemd.
    pub(super) notifier: Notifier,
    /// Held while the agent lives.
    pub(super) _socket: SocketFile,
    /// The same; dropped after the socket is.
    pub(super) _locks: Locks,
}

impl Agent {
    /// An agent that has not looked at anything yet; drains and health are as the maps remember them.
    pub(super) fn new(
        options: &Options,
        loaded: Loaded,
        network: Network,
        plane: DataPlane,
        notifier: Notifier,
        socket: SocketFile,
        locks: Locks,
    ) -> Self {
        let Loaded { config, hash_secret, .. } = loaded;
        let mut discoveries = Discoveries::new();
        discoveries.configure(&config);
        let finds = Finds::restore(&config, &plane);
        let config = finds.effective();
        let mut checks = Checks::new();
        checks.configure(&config, |key| plane.restored_health(key.vip, key.port, key.address));
        let restored = plane.restored_drains();
        let now = SystemTime::now();
        let drains = restored
            .into_iter()
            .map(|(vip, port, address)| (BackendKey { vip, port, address }, now))
            .collect();
        let failing_open = vec![false; config.services.len()];
        Self {
            config_path: options.config.clone(),
            socket_override: options.socket.clone(),
            config,
            discoveries,
            finds,
            hash_secret,
            plane,
            network,
            hops: Hops::default(),
            clients: ClientWays::default(),
            node: Node::default(),
            checks,
            drains,
            attachments: Attachments::default(),
            failing_open,
            begun: Instant::now(),
            serving: false,
            unreconciled: false,
            reloaded: Reloaded::now(),
            announcements: 0,
            announcer: packet::Sender::default(),
            census: Census::default(),
            census_at: None,
            traffic: Samples::default(),
            told: Told::default(),
            capture: None,
            pair: None,
            sync: None,
            events: Events::default(),
            notifier,
            _socket: socket,
            _locks: locks,
        }
    }

    /// A check ended and changed something.
    pub(super) fn on_check(&mut self, changed: &Changed) {
        if let Some(flip) = &changed.flip {
            let (service, backend) = self.names(&changed.backend);
            let subject = format!("{service}/{backend}");
            match flip.to {
                State::Down => {
                    let (step, took) = changed.failed_step.unzip();
                    let step = step.map(tracing::field::display);
                    let step_ms = took.map(|took| took.as_millis());
                    let address = changed.backend.address;
                    warn!(service, backend, %address, step, step_ms, reason = %flip.reason, "backend is down");
                }
                state => {
                    info!(service, backend, address = %changed.backend.address, from = %flip.from, "backend is {state}");
                }
            }
            let why = if flip.to == State::Down { format!(": {}", flip.reason) } else { String::new() };
            self.events.note("backend", subject, format!("{} → {}{why}", flip.from, flip.to));
            self.discoveries.hurry((changed.backend.vip, changed.backend.port));
        }
        if self.serving && (changed.flip.is_some() || changed.standing) {
            self.reconcile();
        }
    }

    /// The kernel reported a change of the network.
    pub(super) async fn on_network(&mut self, touched: Touched) {
        if touched.lost {
            self.relist().await;
        }
        if touched.links || touched.addresses || touched.routes {
            self.look_up_hops().await;
        }
        if touched.links || touched.addresses {
            self.follow_groups().await;
        }
        if touched.links && self.serving {
            self.attachments.follow(&self.config, self.network.mirror(), &mut self.plane);
        }
        if touched.addresses
            && let Some(misfit) = fit::local_address(&self.config, self.network.mirror())
        {
            error!(reason = %misfit, "the config does not fit this host any more");
        }
        self.node.look_again |= touched.links || touched.addresses || self.node.is_leaving();
        let moved = self.hops.learn(self.network.mirror());
        if !self.hops.complete() {
            self.hops.provoke(self.network.handle(), self.network.mirror()).await;
        }
        // Most messages are about neighbours that are nobody's next hop.
        let more_than_neighbours = touched.links || touched.addresses || touched.routes;
        if self.serving && (moved || more_than_neighbours) {
            self.reconcile();
        }
    }

    /// What is due now and then, whatever netlink reported.
    pub(super) async fn refresh(&mut self) {
        self.relist().await;
        self.look_up_hops().await;
        self.follow_groups().await;
        self.hops.learn(self.network.mirror());
        self.hops.provoke(self.network.handle(), self.network.mirror()).await;
        self.node.look_again = true;
        if self.serving {
            self.attachments.follow(&self.config, self.network.mirror(), &mut self.plane);
            self.reconcile();
        }
    }

    /// Ends idle flows and frees what flows have left behind.
    pub(super) fn sweep(&mut self) {
        match self.plane.sweep(monotonic_ns()) {
            Ok(report) => self.forget_tables(&report.given_up),
            Err(error) => error!(%error, "sweeping the flow table failed"),
        }
        self.sample_traffic();
        if self.unreconciled && self.serving {
            self.reconcile();
        } else if self.serving {
            self.reset_due();
        }
        if self.announcements > 0 {
            self.announcements -= 1;
            self.announce_vips();
        }
    }

    /// Tells the neighbours where the VIPs are, if that is news: they may hold a MAC from before for minutes.
    pub(super) fn announce_if_moved(&mut self) {
        if self.attachments.take_unannounced(self.network.mirror()) {
            self.announcements = ANNOUNCEMENTS - 1;
            self.announce_vips();
        }
    }

    /// Says once where the VIPs are.
    pub(super) fn announce_vips(&mut self) {
        if !self.owns_vips() {
            return;
        }
        for (ifindex, frame) in self.announcements() {
            if let Err(error) = self.announcer.send(ifindex, &frame) {
                debug!(ifindex, %error, "a VIP was not announced");
            }
        }
    }

    /// Makes the maps what they should be. A failure is logged and tried again at the next occasion.
    pub(super) fn reconcile(&mut self) {
        self.follow_pair();
        match self.try_reconcile() {
            Ok(()) => {
                self.unreconciled = false;
                self.announce_if_moved();
                self.reset_due();
            }
            Err(error) => {
                error!(%error, "the maps could not be brought up to date; trying again");
                self.unreconciled = true;
            }
        }
    }

    /// Makes the maps what they should be.
    pub(super) fn try_reconcile(&mut self) -> Result<(), crate::dataplane::Error> {
        let decision = desired::desired(&self.config, &world::View(self));
        self.plane.reconcile(&decision.desired)?;
        // What follows from this is shown at once.
        self.census_at = None;
        let before = std::mem::replace(&mut self.failing_open, decision.failing_open);
        for (service, (before, now)) in self.config.services.iter().zip(before.iter().zip(&self.failing_open))
        {
            match (before, now) {
                (false, true) => {
                    warn!(service = service.name, "no backend is healthy: failing open");
                    self.events.note("service", &service.name, "failing open: no backend is healthy");
                }
                (true, false) => {
                    info!(service = service.name, "no longer failing open");
                    self.events.note("service", &service.name, "no longer failing open");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks for the route to each backend, and for those to clients.
    pub(super) async fn look_up_hops(&mut self) {
        let destinations = self
            .config
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.address.ip())
            .filter(|address| self.network.mirror().holder(*address).is_none())
            .chain(pair::unicast_peers(&self.config))
            .collect();
        self.hops.look_up(self.network.handle(), &destinations).await;
        self.list_client_ways().await;
        let dsr = self.config.services.iter().filter(|service| service.mode == Mode::Dsr);
        for backend in dsr.flat_map(|service| &service.backends) {
            let address = backend.address.ip();
            if self.hops.interface(address).is_some() && !self.hops.is_direct(address) {
                warn!(
                    backend = backend.name,
                    "behind a router, where `mode = \"dsr\"` cannot reach it: only the MAC is rewritten, and the router \
                     would send the packet back to the VIP; use `mode = \"nat\"`"
                );
            }
        }
    }

    /// Joins the groups that neighbour solicitations for the VIPs are sent to.
    pub(super) async fn follow_groups(&mut self) {
        let (interfaces, vips) = fit::solicited(&self.config, self.network.mirror());
        groups::follow(self.network.handle(), self.network.mirror(), &interfaces, &vips).await;
    }

    /// Names of a backend and its service, for the log.
    fn names(&self, key: &BackendKey) -> (&str, &str) {
        let mut services = self.config.services.iter();
        let Some(service) = services.find(|service| (service.vip, service.port) == (key.vip, key.port))
        else {
            return ("", "");
        };
        let backend = service.backends.iter().find(|backend| backend.address == key.address);
        (&service.name, backend.map_or("", |backend| backend.name.as_str()))
    }

    async fn relist(&mut self) {
        if let Err(error) = self.network.refresh().await {
            warn!(%error, "the network could not be listed");
        }
    }
}
