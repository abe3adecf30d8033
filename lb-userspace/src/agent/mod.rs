//! The agent: one loop that owns all state, and what it is made of.
//!
//! ```text
//!  probes ──▶ health flips ─┐
//!  netlink ─▶ next hops ────┼─▶ Agent ──▶ desired state ──▶ reconciler ──▶ maps
//!  operator ▶ drain, reload ┘
//! ```
//!
//! Whatever happens, the answer is the same call: [`state::Agent::reconcile`]. The agent is never on the way of a packet:
//! should it die, the data plane goes on with what it was told last.

mod attach;
mod capture;
mod clients;
mod commands;
mod discover;
pub mod error;
mod explain;
pub mod files;
pub(crate) mod fit;
mod flow_log;
pub mod lock;
pub mod log;
mod memory;
mod node;
mod notify;
mod open_files;
mod pair;
mod reload;
mod report;
mod resets;
mod start;
mod state;
mod sync;
mod told;
mod traffic;
mod world;

use std::{path::PathBuf, time::Instant};

use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Duration, Interval, MissedTickBehavior, interval_at},
};
use tracing::{error, info};

pub use self::error::Error;
use self::{
    notify::Notifier,
    pair::{Pair, PairNews},
    state::Agent,
    told::Rings,
};
use crate::{api::Command, vrrp::Order};

/// How the agent is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The config file.
    pub config: PathBuf,
    /// Instead of the config's `[api] socket`.
    pub socket: Option<PathBuf>,
}

/// Between two sweeps of the flow table: half-open flows live seconds, `loads` drift slowly.
const SWEEP_PACE: Duration = Duration::from_secs(1);
/// Between two looks at routes, neighbours and interfaces beyond what netlink reported. The kernel calls a neighbour
/// stale after 15 to 45 s (`base_reachable_time_ms`, arp(7)).
const REFRESH_PACE: Duration = Duration::from_secs(5);

/// How long the end of the agent waits until the ends of flows that it ended are told, 10,000 a second. SIGTERM takes 2 s at
/// most.
const LAST_RESETS: Duration = Duration::from_secs(1);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// It cannot start; then nothing was changed that was not there before.
pub fn run(options: &Options) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let notifier = Notifier::from_env();
        let (mut agent, rings, commands) = start::start(options, notifier).await?;
        turn(&mut agent, rings, commands).await
    })
}

/// The loop.
async fn turn(
    agent: &mut Agent,
    mut rings: Rings,
    mut commands: mpsc::Receiver<Command>,
) -> Result<(), Error> {
    let catch = |kind| signal(kind).map_err(Error::Runtime);
    let mut reload = catch(SignalKind::hangup())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut sweep = paced(SWEEP_PACE);
    let mut refresh = paced(REFRESH_PACE);
    let mut sync_tick = paced(sync::PACE);
    let mut watchdog = agent.notifier.watchdog_pace().map(paced);
    loop {
        select! {
            changed = agent.checks.changed() => agent.on_check(&changed),
            news = agent.discoveries.next() => agent.on_discovery(news).await,
            touched = agent.network.changed() => agent.on_network(touched).await,
            signals = rings.signals.next() => agent.on_signals(&signals),
            events = rings.events.next() => agent.on_events(&events),
            news = pair_news(agent.pair.as_mut()) => agent.on_news(news),
            news = sync_news(agent.sync.as_mut()) => agent.on_sync(news),
            _ = sync_tick.tick() => agent.tick_sync(),
            Some(command) = commands.recv() => agent.on_command(command).await,
            _ = sweep.tick() => {
                agent.tell_pair(Order::AgentLives);
                agent.sweep();
                agent.expire_capture();
                agent.note_fencing();
                agent.reach_clients().await;
            }
            () = resets::due(agent.plane.resets_due_ns()) => agent.end_flows(),
            _ = refresh.tick() => agent.refresh().await,
            () = tick(watchdog.as_mut()) => agent.notifier.send("WATCHDOG=1"),
            Some(()) = reload.recv() => {
                if let Err(reason) = agent.reload().await {
                    error!(%reason, "reload refused, the config is as before");
                }
            }
            Some(()) = terminate.recv() => return end(agent, "SIGTERM").await,
            Some(()) = interrupt.recv() => return end(agent, "SIGINT").await,
        }
        agent.serve_if_ready().await?;
        agent.follow_node().await;
    }
}

/// A clean end: nothing is taken back, and what was begun is done as far as the time allows.
async fn end(agent: &mut Agent, signal: &str) -> Result<(), Error> {
    agent.notifier.send("STOPPING=1");
    // First of all: the other node waits for nothing else.
    if let Some(pair) = &mut agent.pair {
        pair.stop();
    }
    agent.leave_node_to_the_other().await;
    agent.end_capture();
    let begun = Instant::now();
    while agent.plane.untold() > 0 && begun.elapsed() < LAST_RESETS {
        agent.end_flows();
        std::thread::sleep(Duration::from_millis(1));
    }
    if agent.pair.as_ref().is_some_and(Pair::is_held) {
        info!(signal, "ending; the VIPs stay here for the next agent");
    } else if agent.pair.is_some() {
        info!(signal, "ending; the VIPs are given up, and connections that still come here are served on");
    } else if agent.serving {
        info!(
            signal,
            "ending; the data plane stays attached and goes on serving (`etcd-lb detach` removes it)"
        );
    } else {
        info!(signal, "ending before the first round of health checks has ended");
    }
    Ok(())
}

/// Ticks that are not made up for: a late one is as good as none.
fn paced(pace: Duration) -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + pace, pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn pair_news(pair: Option<&mut Pair>) -> PairNews {
    match pair {
        Some(pair) => pair.news().await,
        None => std::future::pending().await,
    }
}

async fn sync_news(sync: Option<&mut sync::FlowSync>) -> crate::sync::News {
    match sync {
        Some(sync) => sync.news().await,
        None => std::future::pending().await,
    }
}

async fn tick(ticks: Option<&mut Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
