//! From the config file to a running loop, each step before the one that could hurt.

use std::{path::Path, time::Duration};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    Options,
    error::Error,
    files, fit,
    lock::Locks,
    memory,
    notify::Notifier,
    open_files,
    state::Agent,
    sync::FlowSync,
    told::{Rings, Told},
};
use crate::{
    api::{self, Command, Commands, SocketFile},
    dataplane::{self, DataPlane},
    netlink::Network,
};

/// Everything up to the first round of probes. Nothing is attached yet; what an earlier agent attached goes on.
pub(super) async fn start(
    options: &Options,
    notifier: Notifier,
) -> Result<(Agent, Rings, mpsc::Receiver<Command>), Error> {
    let mut loaded = files::load(&options.config).map_err(Error::Config)?;
    if let Some(socket) = &options.socket {
        loaded.config.api.socket.clone_from(socket);
    }
    info!(version = env!("CARGO_PKG_VERSION"), config = %options.config.display(), "starting");
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    open_files::raise_limit();
    let network = Network::open().await?;
    if let Some(misfit) = fit::misfit(&loaded.config, network.mirror()) {
        return Err(Error::Config(misfit));
    }
    let mut locks = Locks::of_socket(&loaded.config.api.socket)?;
    let pin_dir = loaded.config.api.pin_dir.clone();
    locks.take_pin_dir(&pin_dir)?;
    // An address in use is found out before anything is pinned.
    let (commands, socket) = listen(&loaded.config).await?;
    let mut told = Told::default();
    told.follow(&loaded.config).map_err(Error::Config)?;
    let sync = match &loaded.config.sync {
        Some(sync) => Some(FlowSync::start(sync).await.map_err(Error::Config)?),
        None => None,
    };
    // A data plane that is attached answers for the VIPs itself. Those of a pair may be the other node's.
    let asks = loaded.config.vrrp.is_none() && !dataplane::has_links(&pin_dir);
    // The answers take as long as loading does: both at once.
    let (plane, free) = tokio::join!(open_data_plane(&pin_dir, loaded.config.max_flows), async {
        if asks { fit::vips_are_free(&loaded.config, network.mirror(), &[]).await } else { Ok(()) }
    });
    let mut plane = plane?;
    free?;
    locks.take_pin_dir(&pin_dir)?;
    if !asks && loaded.config.vrrp.is_none() && plane.pinned_interfaces()?.is_empty() {
        // The links that are pinned are of interfaces that went away.
        fit::vips_are_free(&loaded.config, network.mirror(), &[]).await?;
    }
    let rings = Rings::of(&mut plane)?;
    let mut agent = Agent::new(options, loaded, network, plane, notifier, socket, locks);
    agent.told = told;
    agent.sync = sync;
    agent.prepare_pair()?;
    agent.node.look_again = true;
    agent.follow_node().await;
    agent.look_up_hops().await;
    agent.follow_groups().await;
    agent.hops.learn(agent.network.mirror());
    agent.hops.provoke(agent.network.handle(), agent.network.mirror()).await;
    Ok((agent, rings, commands))
}

/// Longest time that serving waits for the MACs of routers toward clients. A router that lives answers within milliseconds; where the
/// question got lost, once the kernel asks again, a second later (`retrans_timer`, RFC 4861 section 10); and on an interface that has just
/// come up the kernel asks for IPv6 routers by a link-local address only when it knows that no one else has that, which takes
/// up to 2 s (RFC 4862 section 5.4). Without its MAC, flows begin by the router that their packets came by. A data plane that runs already is
/// not left alone for so long: where the node is one of a pair, its lease would run out.
const ROUTERS_PATIENCE: Duration = Duration::from_secs(3);

impl Agent {
    /// Attaches and says so, once the first round of probes has ended.
    pub(super) async fn serve_if_ready(&mut self) -> Result<(), Error> {
        if self.serving || !self.discoveries.first_round_ended() || !self.checks.first_round_ended() {
            return Ok(());
        }
        let runs_already = self.plane.adopted() || self.plane.migrates();
        if !runs_already && !self.hops.routers_are_known() && self.begun.elapsed() < ROUTERS_PATIENCE {
            return Ok(());
        }
        let made = self.make_node_link().await;
        let begun = self.serve();
        if begun.is_err() && made {
            self.unmake_node_link().await;
        }
        begun
    }

    fn serve(&mut self) -> Result<(), Error> {
        self.hops.learn(self.network.mirror());
        // First what the program reads, then the program, then the interfaces it knows it is on.
        let (tables, migrates) = (self.plane.table_numbers(), self.plane.migrates());
        self.try_reconcile()?;
        self.plane.carry_flows()?;
        self.attachments.attach_all(&self.config, self.network.mirror(), &mut self.plane)?;
        self.plane.carry_rest()?;
        self.try_reconcile()?;
        self.attachments.leave_others(self.network.mirror(), &mut self.plane);
        self.plane.keep();
        self.serving = true;
        self.node.look_again = true;
        // Another node's flows may have come before there were tables for them, or an end of one that is carried over.
        if migrates {
            self.tell_all_anew();
        } else {
            self.sync_tables(&tables);
        }
        // Only now: what it claims it can serve.
        self.follow_pair();
        self.try_reconcile()?;
        self.announce_if_moved();
        self.announce();
        memory::give_back();
        Ok(())
    }

    /// The line that says what is served, and where.
    fn announce(&self) {
        let vips: Vec<_> =
            self.config.services.iter().map(|service| api::endpoint(service.vip, service.port)).collect();
        let vips = vips.join(", ");
        for interface in &self.config.interfaces {
            let Some(mode) = self.attachments.mode(interface) else { continue };
            info!(interface, xdp_mode = %mode, vip = %vips, adopted = self.plane.adopted(), "ready");
        }
        self.announce_flow_log();
        self.notifier.ready(&format!("Serving {vips}"));
    }
}

async fn open_data_plane(pin_dir: &Path, max_flows: u32) -> Result<DataPlane, Error> {
    let dir = pin_dir.to_owned();
    let open = move || DataPlane::open(&dataplane::Options { pin_dir: &dir, max_flows });
    let opened = tokio::task::spawn_blocking(open).await;
    let plane = opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    if plane.adopted() {
        info!(pin_dir = %pin_dir.display(), "the data plane of an earlier agent is taken over");
    }
    Ok(plane)
}

/// Opens the API's listeners.
async fn listen(config: &lb_core::config::Config) -> Result<(mpsc::Receiver<Command>, SocketFile), Error> {
    let (commands, receiver) = Commands::channel();
    let path = &config.api.socket;
    let (listener, socket) =
        api::bind_socket(path).map_err(|source| Error::Socket { socket: path.clone(), source })?;
    tokio::spawn(api::serve_socket(listener, api::socket_router(commands.clone())));
    if let Some(address) = config.api.http_listen {
        let listener = api::bind_http(address).await.map_err(|source| Error::Http { address, source })?;
        tokio::spawn(api::serve_http(listener, api::http_router(commands)));
    }
    Ok((receiver, socket))
}
