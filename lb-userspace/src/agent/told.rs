//! What the data plane tells by itself: signals, which are acted upon at once, and events, which go into the flow log.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use lb_common::{
    addr::{Addr, Mac},
    maps::{
        CLOSED_BY_BACKEND, CLOSED_BY_CLIENT, CLOSED_RESET_BY_BACKEND, CLOSED_RESET_BY_CLIENT, EVENT_CLOSED,
        FlowEvent, SIGNAL_ENDED, SIGNAL_REFUSED, SIGNAL_TABLE_FULL, SIGNAL_VIP_CONFLICT, Signal, age_ns,
    },
};
use lb_core::{config::Config, desired::BackendKey};
use tracing::{error, info, warn};

use super::{
    flow_log::{FlowLog, Line, time_ms},
    state::Agent,
};
use crate::dataplane::{self, BackendPlace, DataPlane, EndedFlow, Ring, monotonic_ns};

/// The least time between two warnings about one foreign MAC, and between two answers to its claims.
const CONFLICT_PACE: Duration = Duration::from_secs(1);
/// The least time between two warnings that the table is full.
const FULL_PACE: Duration = Duration::from_secs(10);
/// Foreign MACs that are remembered; a MAC costs its sender nothing.
const MACS: usize = 256;

/// The ring buffers.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) signals: Ring<Signal>,
    pub(super) events: Ring<FlowEvent>,
}

/// What is remembered of what was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The flow log, if there is one.
    log: Option<FlowLog>,
    /// Lines of it that are lost.
    pub(super) lines_lost: Arc<AtomicU64>,
    /// When a foreign MAC was last warned of.
    foreign: BTreeMap<[u8; 6], Instant>,
    /// When claims were last answered.
    defended: Option<Instant>,
    /// When the full table was last warned of.
    full: Option<Instant>,
}

impl Rings {
    /// Begins to read; what a former agent did not is still there.
    pub(super) fn of(plane: &mut DataPlane) -> Result<Self, dataplane::Error> {
        let (signals, events) = plane.take_rings()?;
        Ok(Self { signals, events })
    }
}

impl Told {
    /// Opens the flow log that the config names: anew if it is the same, since it may have been rotated.
    ///
    /// # Errors
    /// In words; then everything is as before.
    pub(super) fn follow(&mut self, config: &Config) -> Result<(), String> {
        match (&config.flow_log, &self.log) {
            (None, _) => self.log = None,
            (Some(path), Some(log)) if log.path() == path => log.reopen()?,
            (Some(path), _) => self.log = Some(FlowLog::open(path, &self.lines_lost)?),
        }
        Ok(())
    }
}

impl Agent {
    /// The data plane asks for something.
    pub(super) fn on_signals(&mut self, signals: &[Signal]) {
        for signal in signals {
            match signal.kind {
                SIGNAL_REFUSED | SIGNAL_ENDED => self.on_suspect(signal),
                SIGNAL_TABLE_FULL if is_due(&mut self.told.full, FULL_PACE) => {
                    warn!(
                        max_flows = self.config.max_flows,
                        "the flow table is full: new connections are reset"
                    );
                }
                SIGNAL_VIP_CONFLICT => self.on_vip_conflict(signal.address, signal.mac),
                _ => {}
            }
        }
    }

    /// Flows began, or were ended by their ends.
    pub(super) fn on_events(&mut self, events: &[FlowEvent]) {
        self.mark_events(events);
        let flow = |event: &FlowEvent| {
            let closed = event.kind == EVENT_CLOSED;
            Some(Logged {
                place: self.plane.place_of(event.backend)?,
                client: SocketAddr::new(event.client.to_ip(), event.client_port.get()),
                nat_port: event.nat_port.get(),
                at_ns: event.at,
                end: closed.then(|| End {
                    lasted: Some(Duration::from_nanos(age_ns(event.established, event.at))),
                    reason: reason(event.why),
                }),
            })
        };
        self.log(events.iter().filter_map(flow));
    }

    /// Flows were ended by the agent.
    pub(super) fn log_ended(&self, flows: &[EndedFlow]) {
        self.log(flows.iter().map(|flow| Logged {
            place: flow.place,
            client: flow.client,
            nat_port: flow.nat_port,
            at_ns: flow.at_ns,
            end: Some(End { lasted: flow.lasted, reason: Some(flow.reason.name()) }),
        }));
    }

    fn log(&self, flows: impl Iterator<Item = Logged>) {
        let Some(log) = &self.told.log else { return };
        let (now, now_ns) = (SystemTime::now(), monotonic_ns());
        let lines: Vec<_> = flows
            .map(|flow| {
                let at = now.checked_sub(Duration::from_nanos(now_ns.saturating_sub(flow.at_ns)));
                line(&self.config, &flow, at.unwrap_or(now))
            })
            .collect();
        if !lines.is_empty() {
            log.write(&lines);
        }
    }

    fn on_suspect(&mut self, signal: &Signal) {
        let Some(place) = self.plane.place_of(signal.backend) else { return };
        let key = BackendKey { vip: place.service.ip(), port: place.service.port(), address: place.backend };
        if signal.kind == SIGNAL_ENDED {
            self.checks.suspected(&key);
        } else {
            self.checks.refused(&key);
        }
    }

    /// Another host claims a VIP: it is named, and answered.
    fn on_vip_conflict(&mut self, vip: Addr, mac: Mac) {
        // An announcement of ours, come in by another interface.
        let ours = self.network.mirror().links().any(|link| link.mac == Some(mac));
        if ours || !self.serving {
            return;
        }
        if self.told.foreign.len() >= MACS {
            self.told.foreign.retain(|_, at| at.elapsed() < CONFLICT_PACE);
        }
        let known = self.told.foreign.get(mac.octets()).is_some_and(|at| at.elapsed() < CONFLICT_PACE);
        if !known && self.told.foreign.len() < MACS {
            self.told.foreign.insert(*mac.octets(), Instant::now());
            let vip = vip.to_ip();
            warn!(%vip, %mac, "another host claims the VIP: find it by its MAC, and take the address away there");
            self.events.note("vip", vip.to_string(), format!("claimed by another host, {mac}"));
        }
        if is_due(&mut self.told.defended, CONFLICT_PACE) {
            self.announce_vips();
        }
        // Each claim is answered in the end, also one that came too soon after the last answer.
        self.announcements = self.announcements.max(1);
    }

    /// The log that logrotate renamed is left alone, and a new one begun.
    pub(super) fn reopen_flow_log(&mut self) {
        match self.told.follow(&self.config) {
            Ok(()) => {}
            Err(reason) => error!(%reason, "the flow log goes on in the old file"),
        }
    }

    /// Says that there is a flow log.
    pub(super) fn announce_flow_log(&self) {
        if let Some(path) = &self.config.flow_log {
            info!(path = %path.display(), "flows are logged");
        }
    }
}

/// Whether `pace` has gone by since; then now is when it last was.
fn is_due(last: &mut Option<Instant>, pace: Duration) -> bool {
    let due = last.is_none_or(|at| at.elapsed() >= pace);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// A flow that began or ended.
struct Logged {
    place: BackendPlace,
    client: SocketAddr,
    nat_port: u16,
    /// ns of [`monotonic_ns`].
    at_ns: u64,
    end: Option<End>,
}

struct End {
    lasted: Option<Duration>,
    reason: Option<&'static str>,
}

fn line<'a>(config: &'a Config, flow: &Logged, at: SystemTime) -> Line<'a> {
    let Logged { place, end, .. } = flow;
    let mut services = config.services.iter();
    let service = services.find(|s| (s.vip, s.port) == (place.service.ip(), place.service.port()));
    let backend = service.and_then(|s| s.backends.iter().find(|b| b.address == place.backend));
    let millis = |lasted: Duration| u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
    Line {
        time: time_ms(at),
        event: if end.is_some() { "closed" } else { "established" },
        client: flow.client.to_string(),
        // What has left the config has no name any more; its address stands beside it.
        service: service.map_or("", |service| &service.name),
        vip: place.service.to_string(),
        source: place.source.to_string(),
        nat_port: flow.nat_port,
        backend: backend.map_or("", |backend| &backend.name),
        backend_address: place.backend.to_string(),
        duration_ms: end.as_ref().and_then(|end| end.lasted).map(millis),
        reason: end.as_ref().and_then(|end| end.reason),
    }
}

/// Why a flow ended, in the words of the docs.
fn reason(why: u16) -> Option<&'static str> {
    Some(match why {
        CLOSED_BY_CLIENT => "closed by client",
        CLOSED_BY_BACKEND => "closed by backend",
        CLOSED_RESET_BY_CLIENT => "reset by client",
        CLOSED_RESET_BY_BACKEND => "reset by backend",
        _ => return None,
    })
}
