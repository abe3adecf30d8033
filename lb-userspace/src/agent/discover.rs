//! Backends that are found: whom to ask, and what becomes of an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::SystemTime,
};

use lb_core::{
    config::{Backend, Config, DiscoverySource, Service},
    desired::BackendKey,
    discovery::{self, Answer, Found, ServiceKey},
    health::State,
};
use tracing::{debug, error, info, warn};

use super::state::Agent;
use crate::{
    dataplane::DataPlane,
    discovery::{Followed, Heard, News, Question},
    probe::{self, Check},
};

/// What was found beside what is written.
#[derive(Clone)]
pub(super) struct Finds {
    /// The config as the file has it.
    written: Config,
    /// What is believed, by service.
    found: BTreeMap<ServiceKey, Vec<Found>>,
    /// What was complained of last, by service, so that it is said once.
    said: BTreeMap<ServiceKey, BTreeSet<String>>,
}

impl Finds {
    /// What an earlier agent had found, by the maps: used until a source has been asked.
    pub(super) fn restore(written: &Config, plane: &DataPlane) -> Self {
        let mut found = BTreeMap::new();
        for service in written.services.iter().filter(|service| service.discovery.is_some()) {
            let of_plane = plane.backends_of(service.vip, service.port);
            let is_written = |address: &SocketAddr| service.backends.iter().any(|b| b.address == *address);
            let restored = of_plane.into_iter().filter(|address| !is_written(address));
            let name = |address: SocketAddr| Found { name: address.to_string(), address, learner: false };
            found.insert((service.vip, service.port), restored.map(name).collect());
        }
        Self { written: written.clone(), found, said: BTreeMap::new() }
    }

    /// The config in force.
    pub(super) fn effective(&self) -> Config {
        discovery::effective(&self.written, &self.found)
    }

    /// Whether a backend was found, and is a learner by its source's word.
    pub(super) fn learner(&self, backend: &BackendKey) -> Option<bool> {
        let found = self.found.get(&(backend.vip, backend.port))?;
        found.iter().find(|found| found.address == backend.address).map(|found| found.learner)
    }

    /// Whether the file names a backend.
    pub(super) fn is_written(&self, backend: &BackendKey) -> bool {
        let mut services = self.written.services.iter();
        let service = services.find(|service| (service.vip, service.port) == (backend.vip, backend.port));
        service.is_some_and(|service| service.backends.iter().any(|b| b.address == backend.address))
    }

    /// Takes over another file, and forgets what was found for services that look for nobody any more.
    pub(super) fn rewrite(&mut self, written: &Config) {
        let looks = |key: &ServiceKey| {
            let mut services = written.services.iter();
            services.any(|service| (service.vip, service.port) == *key && service.discovery.is_some())
        };
        self.found.retain(|key, _| looks(key));
        self.said.retain(|key, _| looks(key));
        self.written = written.clone();
    }
}

impl Agent {
    /// Something is due, or was found.
    pub(super) async fn on_discovery(&mut self, news: News) {
        match news {
            News::Due => self.discover(),
            News::Heard(heard) => self.on_discovered(heard).await,
        }
    }

    /// Begins the rounds that are due.
    fn discover(&mut self) {
        let (services, checks) = (&self.config.services, &self.checks);
        self.discoveries.begin(|key, source| match source {
            DiscoverySource::Dns { domain, srv_name, nameserver } => Question::Dns {
                domain: domain.clone(),
                srv_name: srv_name.clone(),
                nameserver: *nameserver,
                ipv6: key.0.is_ipv6(),
            },
            DiscoverySource::Kubernetes { namespace, service, kubeconfig } => {
                Question::Kubernetes(Followed {
                    namespace: namespace.clone(),
                    service: service.clone(),
                    kubeconfig: kubeconfig.clone(),
                    port: key.1,
                })
            }
            DiscoverySource::Etcd => {
                let service = services.iter().find(|service| (service.vip, service.port) == key);
                let Some(service) = service else { return Question::Etcd(vec![]) };
                let is_healthy = |backend: &&Backend| {
                    let check = checks.get(&BackendKey::new(service, backend));
                    check.is_some_and(|check| check.health().state() == State::Healthy)
                };
                let (mut likely, others): (Vec<&Backend>, Vec<&Backend>) =
                    service.backends.iter().partition(is_healthy);
                likely.extend(others);
                Question::Etcd(probe::specs(service, &likely))
            }
        });
    }

    /// A source has answered, or not.
    async fn on_discovered(&mut self, heard: Heard) {
        let key = heard.service;
        let Some(service) = self.config.services.iter().find(|s| (s.vip, s.port) == key).cloned() else {
            return;
        };
        match heard.result {
            Err(reason) => {
                if let Some(figures) = self.discoveries.figures_mut(key) {
                    figures.failures += 1;
                }
                self.complain(&service, BTreeSet::from([format!("no answer: {reason}")]));
            }
            Ok(answer) => self.on_answer(&service, answer).await,
        }
    }

    async fn on_answer(&mut self, service: &Service, answer: Answer) {
        let key = (service.vip, service.port);
        let pool = self.checks.cluster_of_service(key);
        let mirror = self.network.mirror();
        let is_own = |ip| mirror.holder(ip).is_some();
        let judged = match discovery::judge(&self.config, service, pool, is_own, answer) {
            Ok(judged) => judged,
            Err(refused) => {
                if let Some(figures) = self.discoveries.figures_mut(key) {
                    figures.ignored[refused.number()] += 1;
                }
                self.complain(service, BTreeSet::from([format!("an answer is not believed: {refused}")]));
                return;
            }
        };
        if let Some(figures) = self.discoveries.figures_mut(key) {
            figures.last_success = Some(SystemTime::now());
            figures.members = judged.found.len();
            for (_, reason) in &judged.ignored {
                figures.ignored[reason.number()] += 1;
            }
        }
        let complaints = judged.ignored.iter().map(|(candidate, reason)| {
            let addresses: Vec<_> = candidate.addresses.iter().map(ToString::to_string).collect();
            format!("{} ({}) is left out: {reason}", candidate.name, addresses.join(", "))
        });
        let mut complaints: BTreeSet<String> = complaints.collect();
        // Only its own word tells whose member it is: it stays, so that it is asked again, and gets no connections.
        for found in &judged.found {
            let key = BackendKey { vip: service.vip, port: service.port, address: found.address };
            if self.checks.get(&key).is_some_and(Check::is_foreign) {
                if let Some(figures) = self.discoveries.figures_mut((service.vip, service.port)) {
                    figures.ignored[discovery::OTHER_CLUSTER] += 1;
                }
                let what = format!(
                    "{} ({}) gets no connections: it is of another cluster",
                    found.name, found.address
                );
                complaints.insert(what);
            }
        }
        self.complain(service, complaints);
        self.take_over(service, judged.found).await;
    }

    /// Makes what was found part of the config in force.
    async fn take_over(&mut self, service: &Service, found: Vec<Found>) {
        let key = (service.vip, service.port);
        let before = self.finds.found.insert(key, found.clone()).unwrap_or_default();
        if before == found {
            return;
        }
        let by_address =
            |list: &[Found], address| list.iter().find(|found| found.address == address).cloned();
        for now in &found {
            let what = match by_address(&before, now.address) {
                None if now.learner => "found: a learner, used once it is promoted",
                None => "found",
                Some(was) if was.learner && !now.learner => "promoted to a voting member",
                // Its name alone is new: an agent that was restarted knows addresses only.
                Some(_) => continue,
            };
            info!(service = service.name, backend = now.name, address = %now.address, "{what}");
            self.events.note("discovery", format!("{}/{}", service.name, now.name), what);
        }
        for was in before.iter().filter(|was| by_address(&found, was.address).is_none()) {
            let what = "not named any more: it drains";
            info!(service = service.name, backend = was.name, address = %was.address, "{what}");
            self.events.note("discovery", format!("{}/{}", service.name, was.name), what);
        }
        self.config = self.finds.effective();
        if let Err(error) = self.adopt_config().await {
            error!(%error, "what was found could not be brought into the maps; trying again");
            self.unreconciled = true;
        }
    }

    /// Says what is wrong with a source, unless that was said already.
    fn complain(&mut self, service: &Service, complaints: BTreeSet<String>) {
        let said = self.finds.said.entry((service.vip, service.port)).or_default();
        for complaint in &complaints {
            if said.contains(complaint) {
                debug!(service = service.name, "discovery: {complaint}");
            } else {
                warn!(service = service.name, "discovery: {complaint}");
                self.events.note("discovery", &service.name, complaint.clone());
            }
        }
        *said = complaints;
    }
}
