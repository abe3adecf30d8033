//! What the agent tells: status, metrics, flows, readiness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_core::{
    config::{Backend, Service},
    desired::BackendKey,
    health::State,
};
use tracing::warn;

use super::state::Agent;
use crate::{
    api::{
        command::{FLOW_LIMIT, FlowEntry, FlowList, FlowQuery},
        endpoint,
        metrics::{self, BackendFigures, Figures, ReloadFigures},
        status::{BackendStatus, FlowTableStatus, InterfaceStatus, Role, ServiceStatus, Status},
        timestamp,
    },
    dataplane::{BackendCensus, FlowFilter},
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
        let established = |service: &ServiceStatus| service.flows;
        let services: Vec<_> = self
            .config
            .services
            .iter()
            .zip(&self.failing_open)
            .map(|(service, fail_open)| self.service_status(service, *fail_open))
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            role: Role::Standalone,
            fenced: false,
            interfaces: self
                .config
                .interfaces
                .iter()
                .map(|name| InterfaceStatus {
                    name: name.clone(),
                    xdp_mode: self.attachments.mode(name).map(|mode| mode.to_string()),
                })
                .collect(),
            flow_table: FlowTableStatus {
                used: self.census.as_ref().map_or_else(
                    || services.iter().map(established).sum(),
                    |(_, census)| census.total.established,
                ),
                capacity: self.config.max_flows.into(),
            },
            services,
            peer: None,
        }
    }

    /// The text for Prometheus.
    pub(super) fn metrics(&mut self) -> String {
        let status = self.status();
        let figures = Figures {
            status,
            half_open: self.census.as_ref().map_or(0, |(_, census)| census.total.half_open),
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
        let wanted =
            |backend: &Backend, name: &str| backend.name == name || backend.address.to_string() == name;
        let all = self.config.services.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b)));
        if let Some(name) = &query.backend
            && !all.clone().any(|(_, backend)| wanted(backend, name))
        {
            return Err(format!(
                "there is no backend with the name or address \"{name}\"; see `etcd-lb status`"
            ));
        }
        let filter = FlowFilter { client: query.client, backend: None, nat_port: query.nat_port };
        let mut flows = Vec::new();
        let mut truncated = false;
        // One more than fits tells whether there are more.
        for flow in self.plane.flows(&filter, usize::MAX) {
            let of = all.clone().find(|(service, backend)| {
                (service.vip, service.port, backend.address) == (flow.vip, flow.port, flow.backend)
            });
            if let Some(name) = &query.backend
                && !of.is_some_and(|(_, backend)| wanted(backend, name))
            {
                continue;
            }
            if flows.len() == FLOW_LIMIT {
                truncated = true;
                break;
            }
            let address = flow.backend.to_string();
            flows.push(FlowEntry {
                client: flow.client.to_string(),
                service: of.map_or_else(String::new, |(service, _)| service.name.clone()),
                vip: endpoint(flow.vip, flow.port),
                backend: of.map_or_else(|| address.clone(), |(_, backend)| backend.name.clone()),
                address,
                nat_port: flow.nat_port,
                state: flow.state.to_string(),
                idle_ms: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
            });
        }
        Ok(FlowList { flows, truncated })
    }

    /// Whether new connections are served; if not, why.
    pub(super) fn readiness(&self) -> Result<(), String> {
        if !self.serving {
            return Err("the first round of health checks has not ended yet".into());
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
        let census = self.census.as_ref().map(|(_, census)| census);
        number.zip(census).and_then(|(number, census)| census.backend(number)).unwrap_or_default()
    }

    fn takes_flows(&self, service: &Service, backend: &Backend) -> bool {
        let key = BackendKey::new(service, backend);
        let healthy = self.checks.get(&key).is_some_and(|check| check.health().state() == State::Healthy);
        healthy && !self.drains.contains_key(&key)
    }

    fn take_census(&mut self) {
        if self.census.as_ref().is_some_and(|(at, _)| at.elapsed() < CENSUS_AGE) {
            return;
        }
        match self.plane.census() {
            Ok(census) => self.census = Some((Instant::now(), census)),
            Err(error) => warn!(%error, "the flows cannot be counted"),
        }
    }

    fn service_status(&self, service: &Service, fail_open: bool) -> ServiceStatus {
        let backends: Vec<_> = service.backends.iter().map(|b| self.backend_status(service, b)).collect();
        let half_open = |b: &Backend| self.backend_flows(&BackendKey::new(service, b)).half_open;
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

    fn backend_status(&self, service: &Service, backend: &Backend) -> BackendStatus {
        let key = BackendKey::new(service, backend);
        let check = self.checks.get(&key);
        let state = check.map_or(State::Starting, |check| check.health().state());
        let drained = self.drains.get(&key).copied();
        let since = drained.or_else(|| check.map(|check| check.since()));
        let last_check = check.and_then(|check| check.health().last_check());
        BackendStatus {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            state: if drained.is_some() { "draining" } else { state.as_str() }.into(),
            reason: check.map_or_else(String::new, |check| check.health().reason().to_owned()),
            weight: backend.weight,
            flows: self.backend_flows(&key).established,
            slots: self.plane.slots(key.vip, key.port, key.address),
            leader: None,
            version: None,
            cluster_id: None,
            last_check_ms: last_check.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
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
            nat_ports: self.backend_flows(&key).nat_ports,
            checks: check.map_or_else(Default::default, |check| *check.figures()),
        }
    }
}
