//! Runs the health machines of all backends: starts the probes they ask for and brings them the results.

mod pool;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lb_core::{
    config::{Backend, Config, Probe, Service, Tls},
    desired::BackendKey,
    etcd::{Fault, Member},
    health::{Flip, Health, Outcome, ProbeId, State, Timing},
};
use tokio::{sync::mpsc, task::AbortHandle};

use self::pool::pool_of;
use super::{Alpn, Found, HttpSpec, Kind, Report, Spec, Step, TlsFiles, TlsSource};
use crate::api::metrics::CheckFigures;

/// The checks of every backend of a config.
pub struct Checks {
    checks: BTreeMap<BackendKey, Check>,
    reports: mpsc::UnboundedReceiver<Ended>,
    report_to: mpsc::UnboundedSender<Ended>,
    /// What changed and was not told yet.
    changed: VecDeque<Changed>,
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
    last: Option<Last>,
    /// What the member last said of itself, also if it said nothing since.
    member: Option<Member>,
    /// By its last answer it belongs to another cluster than its pool.
    foreign: bool,
    not_after: Option<i64>,
    max_raft_lag: Option<u64>,
    running: Option<Running>,
}

/// How the last probe went.
#[derive(Clone, Debug)]
pub struct Last {
    /// How long it took.
    pub duration: Duration,
    /// The step that failed, and how long that took.
    pub failed_step: Option<(Step, Duration)>,
    /// What an operator should know, though it is no failure.
    pub remarks: Vec<String>,
    /// It came as far as the member's word of itself.
    pub has_status: bool,
}

/// A probe under way.
struct Running {
    task: AbortHandle,
    /// The highest raft entry that the pool was known to have committed before it began.
    committed: u64,
}

/// What a check changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Whose.
    pub backend: BackendKey,
    /// Its state changed.
    pub flip: Option<Flip>,
    /// Something else that counts for its service: it began or ceased to accept connections, was checked for the first
    /// time, or its failure turned out to be its own.
    pub standing: bool,
    /// The step of its last probe that failed, and how long that took.
    pub failed_step: Option<(Step, Duration)>,
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
        Self {
            checks: BTreeMap::new(),
            reports,
            report_to,
            changed: VecDeque::new(),
            random: RandomState::new(),
            started: 0,
        }
    }

    /// Takes over a config: a backend that stays keeps its state, also where what is asked of it changed; a new one
    /// starts with what `restored` remembers of it, or with nothing; one that left is not asked any more.
    pub fn configure(&mut self, config: &Config, restored: impl Fn(&BackendKey) -> Option<bool>) {
        let now = Instant::now();
        let mut kept = BTreeSet::new();
        for service in &config.services {
            let alpn = alpn(&service.health.probe);
            let source = service.health.probe.tls().map(|tls| Arc::new(TlsSource::new(files(tls), alpn)));
            let max_raft_lag = match service.health.probe {
                Probe::Etcd { max_raft_lag, .. } => max_raft_lag,
                Probe::Grpc { .. } | Probe::Http(_) | Probe::Tcp => None,
            };
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
                if let Some(check) = self.checks.get_mut(&key) {
                    check.max_raft_lag = max_raft_lag;
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
            if let Some(changed) = self.changed.pop_front() {
                return changed;
            }
            // Probes that ended while the agent was busy come first: they are not lost, they were not looked at.
            tokio::task::yield_now().await;
            while let Ok(ended) = self.reports.try_recv() {
                self.take(ended);
            }
            self.start_due(Instant::now());
            if !self.changed.is_empty() {
                continue;
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
            if let Some(ended) = ended {
                self.take(ended);
            }
        }
    }

    /// The data plane saw a backend refuse a handshake: it is probed at once, and two refusals are a verdict.
    pub fn refused(&mut self, backend: &BackendKey) {
        let now = Instant::now();
        let Some(check) = self.checks.get_mut(backend) else { return };
        if let Some(flip) = check.health.on_refusal(now) {
            let standing = std::mem::replace(&mut check.accepts, false);
            self.flipped(backend, flip, standing);
        }
        self.settle(backend, now);
    }

    /// The data plane saw a backend end several connections at once: it is probed at once.
    pub fn suspected(&mut self, backend: &BackendKey) {
        if let Some(check) = self.checks.get_mut(backend) {
            check.health.on_suspicion(Instant::now());
        }
    }

    /// Starts each probe that is due; gives up one that never ended.
    fn start_due(&mut self, now: Instant) {
        let mut lost = Vec::new();
        let committed = self.committed();
        for (key, check) in &mut self.checks {
            if let Some(flip) = check.health.on_timeout(now) {
                check.accepts = false;
                lost.push((*key, flip));
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
            let committed = committed.get(&pool_of(key)).copied().unwrap_or(0);
            if let Some(void) = check.running.replace(Running { task: task.abort_handle(), committed }) {
                void.task.abort();
            }
        }
        for (key, flip) in lost {
            self.flipped(&key, flip, true);
            self.settle(&key, now);
        }
    }

    fn take(&mut self, mut ended: Ended) {
        let now = Instant::now();
        let cluster = self.learn(&ended);
        // The backend may have left meanwhile.
        let Some(check) = self.checks.get_mut(&ended.backend) else { return };
        check.judge(&mut ended.report, cluster);
        let fails_alone = check.health.fails_alone();
        let Some((flip, standing)) = check.take(&ended, now) else { return };
        let standing = standing || fails_alone != check.health.fails_alone();
        match flip {
            Some(flip) => self.flipped(&ended.backend, flip, standing),
            None if standing => self.tell(&ended.backend, None, true),
            None => {}
        }
        self.settle(&ended.backend, now);
        self.ask_strangers(&ended.backend, now);
    }

    fn flipped(&mut self, backend: &BackendKey, flip: Flip, standing: bool) {
        if let Some(check) = self.checks.get_mut(backend) {
            check.since = SystemTime::now();
        }
        self.tell(backend, Some(flip), standing);
    }

    fn tell(&mut self, backend: &BackendKey, flip: Option<Flip>, standing: bool) {
        let last = self.checks.get(backend).and_then(|check| check.last.as_ref());
        let failed_step = last.and_then(|last| last.failed_step);
        self.changed.push_back(Changed { backend: *backend, flip, standing, failed_step });
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
            running.task.abort();
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
            last: None,
            member: None,
            foreign: false,
            not_after: None,
            max_raft_lag: None,
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

    /// How the last probe went; `None` before the first has ended.
    pub fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// What the member last said of itself, also if it said nothing since.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// What the member said of itself in the last probe.
    pub fn current_member(&self) -> Option<&Member> {
        self.member().filter(|_| self.last.as_ref().is_some_and(|last| last.has_status))
    }

    /// By its last answer it belongs to another cluster than its pool.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// When the backend's certificate ends, Unix time in seconds.
    pub fn not_after(&self) -> Option<i64> {
        self.not_after
    }

    /// What the pool knows better than the member itself.
    fn judge(&mut self, report: &mut Report, cluster: Option<u64>) {
        let Some(member) = &report.found.member else { return };
        let committed = self.running.as_ref().map_or(0, |running| running.committed);
        let foreign = member.judge_cluster(cluster);
        self.foreign = foreign.is_err();
        let lag = || member.judge_lag(committed, self.max_raft_lag);
        let fault: Result<(), Fault> = match report.outcome {
            // Another cluster's quorum is no concern of this pool.
            Outcome::Shared(_) => foreign,
            Outcome::Passed => foreign.and_then(|()| lag()),
            Outcome::Refused | Outcome::Failed(_) => Ok(()),
        };
        if let Err(fault) = fault {
            report.outcome = Outcome::Failed(format!("{}: {fault}", Step::Status));
            report.failed_step = Some((Step::Status, report.duration));
        }
    }

    /// The flip, and whether something else changed that counts; `None`: a probe that was void already.
    fn take(&mut self, ended: &Ended, now: Instant) -> Option<(Option<Flip>, bool)> {
        let report = &ended.report;
        let before = self.health.last_check();
        let flip = self.health.on_result(ended.id, report.outcome.clone(), now);
        if self.health.last_check() == before {
            return None;
        }
        self.figures.durations.observe(report.duration);
        match report.outcome {
            Outcome::Passed => self.figures.passed += 1,
            Outcome::Refused | Outcome::Failed(_) | Outcome::Shared(_) => self.figures.failed += 1,
        }
        let Found { member, remarks, not_after, .. } = &report.found;
        self.not_after = not_after.or(self.not_after);
        self.last = Some(Last {
            duration: report.duration,
            failed_step: report.failed_step,
            remarks: remarks.clone(),
            has_status: member.is_some(),
        });
        let standing = before.is_none() || self.accepts != report.accepts;
        self.accepts = report.accepts;
        Some((flip, standing))
    }
}

pub(super) fn files(tls: &Tls) -> TlsFiles {
    TlsFiles {
        ca_file: tls.ca_file.clone(),
        client: tls.client.as_ref().map(|client| (client.cert_file.clone(), client.key_file.clone())),
    }
}

/// Who is asked, as `HOST:PORT`, and whose name the certificate must have.
pub(super) fn names(service: &Service, address: SocketAddr) -> (String, String) {
    let name = service.health.probe.tls().and_then(|tls| tls.server_name.clone());
    let authority = match &name {
        None => address.to_string(),
        Some(name) => match name.parse() {
            Ok(ip) => SocketAddr::new(ip, address.port()).to_string(),
            Err(_) => format!("{name}:{}", address.port()),
        },
    };
    (authority, name.unwrap_or_else(|| address.ip().to_string()))
}

/// What is spoken over a check's TLS.
pub(super) fn alpn(probe: &Probe) -> Alpn {
    match probe {
        Probe::Grpc { .. } | Probe::Etcd { .. } => Alpn::Http2,
        Probe::Http(_) | Probe::Tcp => Alpn::Http1,
    }
}

pub(super) fn spec(service: &Service, backend: &Backend, source: Option<&Arc<TlsSource>>) -> Spec {
    let address = service.health.target(backend);
    let (authority, server_name) = names(service, address);
    let kind = match &service.health.probe {
        Probe::Tcp => Kind::Tcp,
        Probe::Http(http) => Kind::Http(HttpSpec {
            host: authority,
            path: http.path.clone(),
            expect_status: http.expect_status,
            expect_body: http.expect_body.clone(),
        }),
        Probe::Grpc { .. } => Kind::Grpc { authority },
        Probe::Etcd { .. } => Kind::Etcd { authority },
    };
    Spec { address, kind, tls: source.map(|source| (source.clone(), server_name)) }
}
