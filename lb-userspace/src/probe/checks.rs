//! Runs the health machines of all backends: starts the probes they ask for and brings them the results.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Instant, SystemTime},
};

use lb_core::{
    config::{Backend, Config, HttpProbe, Probe, Service, Tls},
    desired::BackendKey,
    health::{Flip, Health, Outcome, ProbeId, State, Timing},
};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{HttpSpec, Kind, Report, Spec, TlsFiles, TlsSource};
use crate::api::metrics::CheckFigures;

/// The checks of every backend of a config.
pub struct Checks {
    checks: BTreeMap<BackendKey, Check>,
    reports: mpsc::UnboundedReceiver<Ended>,
    report_to: mpsc::UnboundedSender<Ended>,
    random: RandomState,
    started: u64,
}

/// The check of one backend.
pub struct Check {
    health: Health,
    spec: Arc<Spec>,
    accepts: bool,
    since: SystemTime,
    figures: CheckFigures,
    running: Option<AbortHandle>,
}

/// What a check changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Whose.
    pub backend: BackendKey,
    /// Its state changed.
    pub flip: Option<Flip>,
    /// It began or ceased to accept connections, or was checked for the first time.
    pub standing: bool,
}

struct Ended {
    backend: BackendKey,
    id: ProbeId,
    report: Report,
}

impl Checks {
    /// No backends yet.
    pub fn new() -> Self {
        let (report_to, reports) = mpsc::unbounded_channel();
        Self { checks: BTreeMap::new(), reports, report_to, random: RandomState::new(), started: 0 }
    }

    /// Takes over a config: a backend that stays keeps its state, also where what is asked of it changed; a new one
    /// starts with what `restored` remembers of it, or with nothing; one that left is not asked any more.
    pub fn configure(&mut self, config: &Config, restored: impl Fn(&BackendKey) -> Option<bool>) {
        let now = Instant::now();
        let mut kept = BTreeSet::new();
        for service in &config.services {
            let source = service.health.probe.tls().map(|tls| Arc::new(TlsSource::new(files(tls))));
            for backend in &service.backends {
                let key = BackendKey::new(service, backend);
                kept.insert(key);
                let spec = Arc::new(spec(service, backend, source.as_ref()));
                let timing = service.health.timing;
                match self.checks.get_mut(&key) {
                    Some(check) => {
                        check.health.retime(timing, now);
                        check.spec = spec;
                    }
                    None => {
                        self.checks.insert(key, Check::new(spec, timing, restored(&key), now));
                    }
                }
            }
        }
        self.checks.retain(|key, _| kept.contains(key));
    }

    /// The check of a backend.
    pub fn get(&self, backend: &BackendKey) -> Option<&Check> {
        self.checks.get(backend)
    }

    /// Each backend has been checked once.
    pub fn first_round_ended(&self) -> bool {
        self.checks.values().all(|check| check.health.last_check().is_some())
    }

    /// Waits for something to change, probing meanwhile. Cancel-safe.
    pub async fn changed(&mut self) -> Changed {
        loop {
            // Probes that ended while the agent was busy come first: they are not lost, they were not looked at.
            tokio::task::yield_now().await;
            while let Ok(ended) = self.reports.try_recv() {
                if let Some(changed) = self.take(&ended) {
                    return changed;
                }
            }
            let now = Instant::now();
            if let Some(changed) = self.start_due(now) {
                return changed;
            }
            let next = self.checks.values().map(|check| check.health.next_timeout()).min();
            let ended = match next {
                Some(next) => {
                    let ended = tokio::time::timeout_at(next.into(), self.reports.recv()).await;
                    let Ok(ended) = ended else { continue };
                    ended
                }
                None => self.reports.recv().await,
            };
            // `self` holds a sender: the channel does not close.
            if let Some(changed) = ended.and_then(|ended| self.take(&ended)) {
                return changed;
            }
        }
    }

    /// The data plane saw a backend refuse a handshake: it is probed at once, and two refusals are a verdict.
    pub fn refused(&mut self, backend: &BackendKey) -> Option<Changed> {
        let check = self.checks.get_mut(backend)?;
        let flip = check.health.on_refusal(Instant::now())?;
        check.since = SystemTime::now();
        let standing = std::mem::replace(&mut check.accepts, false);
        Some(Changed { backend: *backend, flip: Some(flip), standing })
    }

    /// The data plane saw a backend end several connections at once: it is probed at once.
    pub fn suspected(&mut self, backend: &BackendKey) {
        if let Some(check) = self.checks.get_mut(backend) {
            check.health.on_suspicion(Instant::now());
        }
    }

    /// Starts each probe that is due; gives up one that never ended.
    fn start_due(&mut self, now: Instant) -> Option<Changed> {
        for (key, check) in &mut self.checks {
            if let Some(flip) = check.health.on_timeout(now) {
                check.since = SystemTime::now();
                check.accepts = false;
                return Some(Changed { backend: *key, flip: Some(flip), standing: true });
            }
            self.started += 1;
            let random = self.random.hash_one(self.started) as u32;
            let Some(probe) = check.health.poll(now, random) else { continue };
            let (spec, report_to, backend) = (check.spec.clone(), self.report_to.clone(), *key);
            let task = tokio::spawn(async move {
                let report = super::run(&spec, probe.deadline.into()).await;
                // The receiver is gone only when the agent ends.
                let _ = report_to.send(Ended { backend, id: probe.id, report });
            });
            if let Some(void) = check.running.replace(task.abort_handle()) {
                void.abort();
            }
        }
        None
    }

    fn take(&mut self, ended: &Ended) -> Option<Changed> {
        // The backend may have left meanwhile.
        let check = self.checks.get_mut(&ended.backend)?;
        check.take(ended)
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Check {
    fn new(spec: Arc<Spec>, timing: Timing, restored: Option<bool>, now: Instant) -> Self {
        let state = match restored {
            Some(true) => State::Healthy,
            Some(false) => State::Down,
            None => State::Starting,
        };
        Self {
            health: Health::restore(timing, state, now),
            spec,
            accepts: false,
            since: SystemTime::now(),
            figures: CheckFigures::default(),
            running: None,
        }
    }

    /// The verdict.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The last probe could connect.
    pub fn accepts(&self) -> bool {
        self.accepts
    }

    /// Since when the verdict stands.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Counts and durations of its probes.
    pub fn figures(&self) -> &CheckFigures {
        &self.figures
    }

    fn take(&mut self, ended: &Ended) -> Option<Changed> {
        let report = &ended.report;
        let before = self.health.last_check();
        let flip = self.health.on_result(ended.id, report.outcome.clone(), Instant::now());
        if self.health.last_check() == before {
            // A probe that was void already.
            return None;
        }
        self.figures.durations.observe(report.duration);
        match report.outcome {
            Outcome::Passed => self.figures.passed += 1,
            Outcome::Refused | Outcome::Failed(_) => self.figures.failed += 1,
        }
        if flip.is_some() {
            self.since = SystemTime::now();
        }
        let standing = before.is_none() || self.accepts != report.accepts;
        self.accepts = report.accepts;
        (flip.is_some() || standing).then_some(Changed { backend: ended.backend, flip, standing })
    }
}

fn files(tls: &Tls) -> TlsFiles {
    TlsFiles {
        ca_file: tls.ca_file.clone(),
        client: tls.client.as_ref().map(|client| (client.cert_file.clone(), client.key_file.clone())),
    }
}

fn spec(service: &Service, backend: &Backend, source: Option<&Arc<TlsSource>>) -> Spec {
    let mut address = backend.address;
    if let Some(port) = service.health.port {
        address.set_port(port);
    }
    let kind = match &service.health.probe {
        Probe::Http(http) => Kind::Http(
            HttpSpec {
                host: host(http, address),
                path: http.path.clone(),
                expect_status: http.expect_status,
                expect_body: http.expect_body.clone(),
            },
            source.map(|source| (source.clone(), server_name(http, address))),
        ),
        // The config refuses the other kinds, until they are built.
        Probe::Tcp | Probe::Grpc { .. } | Probe::Etcd { .. } => Kind::Tcp,
    };
    Spec { address, kind }
}

fn server_name(http: &HttpProbe, address: std::net::SocketAddr) -> String {
    let configured = http.tls.as_ref().and_then(|tls| tls.server_name.clone());
    configured.unwrap_or_else(|| address.ip().to_string())
}

fn host(http: &HttpProbe, address: std::net::SocketAddr) -> String {
    match http.tls.as_ref().and_then(|tls| tls.server_name.as_ref()) {
        Some(name) => format!("{name}:{}", address.port()),
        None => address.to_string(),
    }
}
