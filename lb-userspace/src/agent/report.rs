//! What the agent tells: status, metrics, flows, readiness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_core::{
    config::{Backend, Service},
    desired::BackendKey,
    etcd::{self, Member},
    health::State,
};
use tracing::warn;

use super::{pair::Pair, state::Agent, sync::FlowSync};
use crate::{
    api::{
        command::{FLOW_LIMIT, FlowEntry, FlowList, FlowQuery},
        metrics::{self, BackendFigures, EtcdFigures, Figures, ReloadFigures},
        status::{BackendStatus, FlowTableStatus, InterfaceStatus, NodeStatus, Role, ServiceStatus, Status},
        timestamp,
    },
    dataplane::{BackendCensus, FlowFilter, FlowState, FlowView, Reason},
    probe::Check,
};

/// How old a census may be: half of the 500 ms that figures may be, so that polling costs little.
const CENSUS_AGE: Duration = Duration::from_millis(250);

/// The last reload, or the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reloaded {
    /// The last one succeeded.
    pub(super) successful: bool,
    /// When one last did.
    pub(super) succeeded_at: SystemTime,
}

impl Reloaded {
    /// It succeeded just now.
    pub(super) fn now() -> Self {
        Self { successful: true, succeeded_at: SystemTime::now() }
    }
}

impl Agent {
    /// What `status` shows.
    pub(super) fn status(&mut self) -> Status {
        self.take_census();
        let services: Vec<_> = self
            .config
            .services
            .iter()
            .zip(&self.failing_open)
            .map(|(service, fail_open)| self.service_status(service, *fail_open))
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            role: self.pair.as_ref().map_or(Role::Standalone, Pair::status_role),
            fenced: self.pair.as_ref().is_some_and(Pair::is_fenced),
            interfaces: self
                .config
                .interfaces
                .iter()
                .map(|name| InterfaceStatus {
                    name: name.clone(),
                    xdp_mode: self.attachments.mode(name).map(|mode| mode.to_string()),
                })
                .collect(),
            node: self.config.node_link.as_ref().map(|names| NodeStatus {
                interface: names.near.clone(),
                xdp_mode: self.attachments.mode(&names.far).map(|mode| mode.to_string()),
                led: self.node.led().iter().map(ToString::to_string).collect(),
            }),
            flow_table: FlowTableStatus {
                used: self.census.total.established.into(),
                capacity: self.config.max_flows.into(),
            },
            services,
            peer: self.sync.as_ref().and_then(FlowSync::status),
        }
    }

    /// The text for Prometheus.
    pub(super) fn metrics(&mut self) -> String {
        let status = self.status();
        let figures = Figures {
            status,
            half_open: self.census.total.half_open.into(),
            log_lines_lost: self.told.lines_lost.load(std::sync::atomic::Ordering::Relaxed),
            counters: self.plane.counters().unwrap_or_else(|error| {
                warn!(%error, "the counters cannot be read");
                Default::default()
            }),
            backends: self
                .config
                .services
                .iter()
                .map(|service| service.backends.iter().map(|b| self.backend_figures(service, b)).collect())
                .collect(),
            discovery: self
                .config
                .services
                .iter()
                .map(|service| self.discoveries.figures((service.vip, service.port)))
                .map(|figures| figures.cloned().unwrap_or_default())
                .collect(),
            sync: self.sync.as_ref().map(|sync| sync.figures.clone()).unwrap_or_default(),
            pair: self.pair.as_ref().map(Pair::figures).unwrap_or_default(),
            reload: ReloadFigures {
                successful: self.reloaded.successful,
                succeeded_at: self
                    .reloaded
                    .succeeded_at
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
            },
        };
        metrics::render(&figures)
    }

    /// What `flows` shows.
    pub(super) fn flows(&self, query: &FlowQuery) -> Result<FlowList, String> {
        // One more than is shown tells whether there are more.
        let limit = FLOW_LIMIT + 1;
        let mut filter = FlowFilter { client: query.client, backend: None, nat_port: query.nat_port };
        let mut found = match &query.backend {
            None => self.plane.flows(&filter, limit),
            Some(name) => {
                let mut found = Vec::new();
                for number in self.numbers_of(name)? {
                    filter.backend = Some(number);
                    found.extend(self.plane.flows(&filter, limit - found.len()));
                }
                found
            }
        };
        let truncated = found.len() > FLOW_LIMIT;
        found.truncate(FLOW_LIMIT);
        Ok(FlowList { flows: found.iter().map(|flow| self.flow_entry(flow)).collect(), truncated })
    }

    /// Numbers of the backends with this name or address.
    fn numbers_of(&self, name: &str) -> Result<Vec<u16>, String> {
        let all = self.config.services.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b)));
        let named: Vec<_> = all
            .filter(|(_, backend)| backend.name == name || backend.address.to_string() == name)
            .map(|(service, backend)| BackendKey::new(service, backend))
            .collect();
        if named.is_empty() {
            return Err(format!(
                "there is no backend with the name or address \"{name}\"; see `etcd-lb status`"
            ));
        }
        let numbers = named.iter().map(|key| self.plane.backend_number(key.vip, key.port, key.address));
        Ok(numbers.flatten().collect())
    }

    pub(super) fn flow_entry(&self, flow: &FlowView) -> FlowEntry {
        let (vip, port) = (flow.service.ip(), flow.service.port());
        let service = self.config.services.iter().find(|service| (service.vip, service.port) == (vip, port));
        let backend = service.and_then(|s| s.backends.iter().find(|backend| backend.address == flow.backend));
        let address = flow.backend.to_string();
        FlowEntry {
            client: flow.client.to_string(),
            // A service or backend that has left the config goes by its address.
            service: service.map_or_else(|| flow.service.to_string(), |service| service.name.clone()),
            vip: flow.service.to_string(),
            backend: backend.map_or_else(|| address.clone(), |backend| backend.name.clone()),
            address,
            nat_port: flow.nat_port,
            state: match flow.state {
                FlowState::HalfOpen => "half-open",
                FlowState::Established => "established",
                FlowState::Closed => "closed",
            }
            .into(),
            idle_ms: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Whether new connections are served; if not, why.
    pub(super) fn readiness(&self) -> Result<(), String> {
        if !self.serving {
            return Err("the first round of discovery and health checks has not ended yet".into());
        }
        if let Some(name) = self.config.interfaces.iter().find(|name| self.attachments.mode(name).is_none()) {
            return Err(format!("the XDP program is not attached to {name}"));
        }
        if self.unreconciled {
            return Err("the maps are not up to date; see the log".into());
        }
        let empty = self.config.services.iter().zip(&self.failing_open).find(|(service, failing_open)| {
            !**failing_open && !service.backends.iter().any(|backend| self.takes_flows(service, backend))
        });
        match empty {
            Some((service, _)) => {
                Err(format!("service {} has no backend that takes new connections", service.name))
            }
            None => Ok(()),
        }
    }

    /// Flows of a backend, by the last census.
    pub(super) fn backend_flows(&self, key: &BackendKey) -> BackendCensus {
        let number = self.plane.backend_number(key.vip, key.port, key.address);
        number.map_or_else(BackendCensus::default, |number| self.census.of(number))
    }

    fn takes_flows(&self, service: &Service, backend: &Backend) -> bool {
        let key = BackendKey::new(service, backend);
        let healthy = self.checks.get(&key).is_some_and(|check| check.health().state() == State::Healthy);
        healthy && !self.drains.contains_key(&key)
    }

    /// Counts the flows anew, unless that was done just now.
    pub(super) fn take_census(&mut self) {
        if self.census_at.is_none_or(|at| at.elapsed() >= CENSUS_AGE) {
            self.census = self.plane.census();
            self.census_at = Some(Instant::now());
        }
    }

    fn service_status(&self, service: &Service, fail_open: bool) -> ServiceStatus {
        let backends: Vec<_> = service.backends.iter().map(|b| self.backend_status(service, b)).collect();
        let half_open =
            |b: &Backend| -> u64 { self.backend_flows(&BackendKey::new(service, b)).half_open.into() };
        ServiceStatus {
            name: service.name.clone(),
            vip: service.vip.to_string(),
            port: service.port,
            mode: service.mode.to_string(),
            algorithm: service.algorithm.to_string(),
            fail_open,
            flows: backends.iter().map(|backend| backend.flows).sum(),
            half_open: service.backends.iter().map(half_open).sum(),
            backends,
        }
    }

    pub(super) fn backend_status(&self, service: &Service, backend: &Backend) -> BackendStatus {
        let key = BackendKey::new(service, backend);
        let check = self.checks.get(&key);
        let state = check.map_or(State::Starting, |check| check.health().state());
        let number = self.plane.backend_number(key.vip, key.port, key.address);
        let drained = self.drains.get(&key).copied();
        let since = drained.or_else(|| check.map(Check::since));
        let last_check = check.and_then(|check| check.health().last_check());
        let (known, member) = (check.and_then(Check::member), check.and_then(Check::current_member));
        let last = check.and_then(Check::last);
        let failed_step = last.and_then(|last| last.failed_step);
        let not_after = check.and_then(Check::not_after).and_then(|at| u64::try_from(at).ok());
        BackendStatus {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            state: match state {
                _ if drained.is_some() => "draining",
                State::Down if member.is_some_and(|member| member.learner) => "learner",
                State::Healthy if self.finds.learner(&key) == Some(true) => "learner",
                _ => state.as_str(),
            }
            .into(),
            reason: check.map_or_else(String::new, reason),
            weight: backend.weight,
            flows: self.backend_flows(&key).established.into(),
            slots: number.map_or(0, |number| self.plane.maglev_slots(number) as u64),
            leader: member.map(Member::is_leader),
            version: known.map(|member| member.version.clone()),
            cluster_id: known.map(|member| format!("{:x}", member.cluster_id)),
            discovered: self.finds.learner(&key).is_some() && !self.finds.is_written(&key),
            learner: member.map(|member| member.learner),
            alarms: member
                .map(Member::alarm_kinds)
                .map_or_else(Vec::new, |kinds| kinds.into_iter().map(str::to_owned).collect()),
            db_size: known.map(|member| member.db_size),
            tls_not_after: not_after.map(|at| timestamp::rfc3339(UNIX_EPOCH + Duration::from_secs(at))),
            check_ms: last.map(|last| millis(last.duration)),
            failed_step: failed_step.map(|(step, _)| step.to_string()),
            failed_step_ms: failed_step.map(|(_, took)| millis(took)),
            traffic: number
                .and_then(|number| Some(self.traffic.of(number, &self.plane.backend_counters(number).ok()?)))
                .unwrap_or_default(),
            last_check_ms: last_check.map(|at| millis(at.elapsed())),
            since: timestamp::rfc3339(since.unwrap_or(UNIX_EPOCH)),
        }
    }

    fn backend_figures(&self, service: &Service, backend: &Backend) -> BackendFigures {
        let key = BackendKey::new(service, backend);
        let check = self.checks.get(&key);
        let number = self.plane.backend_number(key.vip, key.port, key.address);
        let counters = number.and_then(|number| self.plane.backend_counters(number).ok());
        BackendFigures {
            up: check.is_some_and(|check| check.health().state() == State::Healthy),
            counters: counters.unwrap_or_default(),
            handshakes: number.and_then(|number| self.plane.handshakes(number).ok()).unwrap_or_default(),
            unanswered: number.map_or(0, |number| self.plane.unanswered(number)),
            nat_ports: self.backend_flows(&key).nat_ports_used().into(),
            ended: Reason::ALL.map(|why| number.map_or(0, |number| self.plane.ended_flows(number, why))),
            checks: check.map_or_else(Default::default, |check| *check.figures()),
            etcd: EtcdFigures {
                leader: check.and_then(Check::current_member).is_some_and(Member::is_leader),
                learner: check.and_then(Check::member).is_some_and(|member| member.learner),
                db_size: check.and_then(Check::member).map_or(0, |member| member.db_size),
                alarms: etcd::ALARMS
                    .map(|kind| check.and_then(Check::member).is_some_and(|m| m.has_alarm(kind))),
                not_after: check
                    .and_then(Check::not_after)
                    .and_then(|at| u64::try_from(at).ok())
                    .unwrap_or(0),
            },
        }
    }
}

/// What the last check said, with what it remarked beside.
fn reason(check: &Check) -> String {
    let remarks = check.last().map_or(&[][..], |last| &last.remarks);
    [&[check.health().reason().to_owned()], remarks].concat().join("; ")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
