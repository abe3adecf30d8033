//! The operator's commands, carried out.

use std::time::SystemTime;

use lb_core::desired::BackendKey;
use tracing::info;

use super::state::Agent;
use crate::api::{
    Command,
    command::{DrainAnswer, DrainRequest, DrainedBackend, Draining},
};

impl Agent {
    /// Carries out a command and answers. That nobody waits for the answer any more changes nothing.
    pub(super) async fn on_command(&mut self, command: Command) {
        match command {
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Metrics(reply) => drop(reply.send(self.metrics())),
            Command::Flows(query, reply) => drop(reply.send(self.flows(&query))),
            Command::Explain(query, reply) => drop(reply.send(self.explain(&query))),
            Command::Drain(request, draining, reply) => drop(reply.send(self.drain(&request, draining))),
            Command::Reset(request, reply) => drop(reply.send(self.reset(&request))),
            Command::Rebalance(dry_run, reply) => drop(reply.send(self.rebalance(dry_run))),
            Command::Reload(reply) => drop(reply.send(self.reload().await)),
            Command::Capture(request, reply) => drop(reply.send(self.capture(request))),
            Command::Events(query, reply) => drop(reply.send(self.events.after(query.after))),
            Command::FailOver(reply) => self.fail_over(reply),
            Command::Hold(time, reply) => self.hold(time, reply),
            Command::Ready(reply) => drop(reply.send(self.readiness())),
        }
    }

    fn drain(&mut self, request: &DrainRequest, draining: Draining) -> Result<DrainAnswer, String> {
        self.take_census();
        let found = self.find_backends(request)?;
        let mut backends = Vec::with_capacity(found.len());
        for (key, service, backend) in found {
            let changed = match draining {
                Draining::Begin => self.drains.insert(key, SystemTime::now()).is_none(),
                Draining::End => self.drains.remove(&key).is_some(),
            };
            if changed {
                let done = match draining {
                    Draining::Begin => "draining: no new flows",
                    Draining::End => "no longer draining",
                };
                info!(service, backend, address = %key.address, "{done}");
                self.events.note("backend", format!("{service}/{backend}"), format!("{done}; by command"));
            }
            backends.push(DrainedBackend {
                service,
                backend,
                address: key.address.to_string(),
                flows: self.backend_flows(&key).established.into(),
                changed,
            });
        }
        if self.serving {
            self.reconcile();
        }
        Ok(DrainAnswer { backends })
    }

    /// Each backend with this name or address, in every service or in the one named.
    pub(super) fn find_backends(
        &self,
        request: &DrainRequest,
    ) -> Result<Vec<(BackendKey, String, String)>, String> {
        let wanted = request.service.as_deref();
        let services: Vec<_> = self
            .config
            .services
            .iter()
            .filter(|service| wanted.is_none_or(|wanted| service.name == wanted))
            .collect();
        if let (Some(wanted), true) = (wanted, services.is_empty()) {
            let names: Vec<_> = self.config.services.iter().map(|service| service.name.as_str()).collect();
            return Err(format!("there is no service \"{wanted}\"; there are: {}", names.join(", ")));
        }
        let all = services.iter().flat_map(|service| service.backends.iter().map(move |b| (service, b)));
        let found: Vec<_> = all
            .clone()
            .filter(|(_, backend)| {
                backend.name == request.backend || backend.address.to_string() == request.backend
            })
            .map(|(service, backend)| {
                (BackendKey::new(service, backend), service.name.clone(), backend.name.clone())
            })
            .collect();
        if found.is_empty() {
            let mut names: Vec<_> = all.map(|(_, backend)| backend.name.as_str()).collect();
            names.dedup();
            let named = &request.backend;
            return Err(format!(
                "there is no backend with the name or address \"{named}\"; there are: {}",
                names.join(", ")
            ));
        }
        Ok(found)
    }
}
