//! Ending flows: because a backend is down, or because the operator says so.

use std::time::Duration;

use lb_core::{
    config::Service,
    desired::{BackendKey, World as _},
    rebalance::{self, Share},
    resets::{self, Member},
};
use tracing::{info, warn};

use super::{state::Agent, world};
use crate::{
    api::command::{DrainRequest, RebalanceAnswer, RebalancedBackend, ResetAnswer, ResetRequest},
    dataplane::{Reason, monotonic_ns},
    units,
};

/// Waits until flows are to be ended, or the ends of those that were are to be told; for ever if there are none.
pub(super) async fn due(at_ns: Option<u64>) {
    match at_ns {
        Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(monotonic_ns()))).await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// Ends flows whose `drain_timeout` is over, and goes on with telling the ends of those that were ended.
    pub(super) fn end_flows(&mut self) {
        let now_ns = monotonic_ns();
        if self.plane.end_drained(now_ns) > 0 {
            self.census_at = None;
        }
        let ended = self.plane.tell_ended(now_ns);
        for flow in &ended {
            let service = flow.place.service;
            let number = self.plane.backend_number(service.ip(), service.port(), flow.place.backend);
            if let Some(number) = number {
                self.mark(number, flow.nat_port);
            }
        }
        self.pump();
        self.log_ended(&ended);
    }

    /// Resets the flows of the backends that are down while another one is healthy.
    pub(super) fn reset_due(&mut self) {
        // Of a pair the active node alone: it is the one whose view of the backends its clients have.
        if !self.owns_vips() {
            return;
        }
        for (key, service, backend) in self.due_for_reset() {
            let Some(number) = self.plane.backend_number(key.vip, key.port, key.address) else { continue };
            if let Some(flows) = self.plane.reset_flows_if_any(number, Reason::BackendDown) {
                self.census_at = None;
                warn!(service, backend, address = %key.address, flows, "the flows of a down backend are reset");
            }
        }
    }

    fn due_for_reset(&self) -> Vec<(BackendKey, String, String)> {
        let mut found = Vec::new();
        for service in &self.config.services {
            let due = resets::due(&self.members(service), service.on_backend_down);
            let backends = service.backends.iter().zip(due).filter(|(_, due)| *due);
            found.extend(backends.map(|(backend, _)| {
                (BackendKey::new(service, backend), service.name.clone(), backend.name.clone())
            }));
        }
        found
    }

    fn members(&self, service: &Service) -> Vec<Member> {
        let view = world::View(self);
        let member = |backend| Member {
            standing: view.standing(&BackendKey::new(service, backend)),
            weight: backend.weight,
        };
        service.backends.iter().map(member).collect()
    }

    /// The operator's `reset`.
    pub(super) fn reset(&mut self, request: &ResetRequest) -> Result<ResetAnswer, String> {
        let flows = match (&request.backend, request.client) {
            (Some(name), None) => {
                let named = DrainRequest { backend: name.clone(), service: None };
                let mut flows = 0;
                for (key, ..) in self.find_backends(&named)? {
                    if let Some(number) = self.plane.backend_number(key.vip, key.port, key.address) {
                        flows += u64::from(self.plane.reset_flows(number, Reason::Operator));
                    }
                }
                info!(backend = name, flows, "flows reset by command");
                self.note_reset(name, flows);
                flows
            }
            (None, Some(client)) => {
                let flows = u64::from(self.plane.reset_client(client, Reason::Operator));
                info!(%client, flows, "flows reset by command");
                // Events are shown on the page too, which shows no client's address.
                self.note_reset("a client", flows);
                flows
            }
            _ => return Err("name either a backend or a client".into()),
        };
        self.census_at = None;
        Ok(ResetAnswer { flows })
    }

    fn note_reset(&mut self, of: &str, flows: u64) {
        self.events.note("flows", of, format!("{} reset; by command", units::counted(flows, "flow")));
    }

    /// The operator's `rebalance`.
    pub(super) fn rebalance(&mut self, dry_run: bool) -> RebalanceAnswer {
        self.census_at = None;
        self.take_census();
        let mut backends = Vec::new();
        for service in self.config.services.clone() {
            let usable = self.usable(&service);
            let share = |(backend, usable): (&lb_core::config::Backend, &bool)| Share {
                flows: self.backend_flows(&BackendKey::new(&service, backend)).established,
                weight: backend.weight,
                usable: *usable,
            };
            let shares: Vec<_> = service.backends.iter().zip(&usable).map(share).collect();
            let verdicts = rebalance::verdicts(&shares);
            for ((backend, share), verdict) in service.backends.iter().zip(&shares).zip(verdicts) {
                let key = BackendKey::new(&service, backend);
                let number = self.plane.backend_number(key.vip, key.port, key.address);
                let reset = match number {
                    Some(number) if !dry_run && verdict.excess > 0 => {
                        self.plane.reset_some(number, verdict.excess, Reason::Rebalance)
                    }
                    _ => verdict.excess,
                };
                backends.push(RebalancedBackend {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    address: backend.address.to_string(),
                    flows: share.flows.into(),
                    bound: (share.usable && share.weight > 0).then_some(verdict.bound.into()),
                    reset: reset.into(),
                });
            }
        }
        if !dry_run {
            let flows: u64 = backends.iter().map(|backend| backend.reset).sum();
            info!(flows, "rebalanced");
        }
        self.census_at = None;
        RebalanceAnswer { dry_run, backends }
    }

    /// Which backends take new flows now.
    fn usable(&self, service: &Service) -> Vec<bool> {
        let standings: Vec<_> = self.members(service).iter().map(|member| member.standing).collect();
        lb_core::desired::choose(&standings, service.fail_open).usable
    }
}
