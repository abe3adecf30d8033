//! Where backends are looked for: rounds of questions, one at a time for each service that has a `[service.discovery]`.
//!
//! | file | what |
//! | --- | --- |
//! | `etcd.rs` | a member's list of members |
//! | `dns.rs` | SRV records |
//! | `kubernetes.rs` | EndpointSlices, which are followed instead of asked for; with the feature `kubernetes` |
//!
//! What of an answer is believed is decided by [`lb_core::discovery`].

mod dns;
mod etcd;
#[cfg(feature = "kubernetes")]
mod kubernetes;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use lb_core::{
    config::{Config, DiscoverySource},
    discovery::{Answer, REASONS, ServiceKey},
};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{sleep_until, timeout},
};

use crate::probe::Spec;

/// A round takes at most so long, all its steps together.
const ROUND: Duration = Duration::from_secs(10);
/// A backend that went down may have left: the next round is begun at once, but two not closer than this.
const HURRY: Duration = Duration::from_secs(2);

/// The sources of all services.
pub struct Discoveries {
    sources: BTreeMap<ServiceKey, Source>,
    ended: mpsc::UnboundedReceiver<Heard>,
    end: mpsc::UnboundedSender<Heard>,
}

/// The source of one service.
struct Source {
    source: DiscoverySource,
    interval: Duration,
    next: Instant,
    began: Option<Instant>,
    round: Option<AbortHandle>,
    /// A round has ended, one way or the other.
    has_tried: bool,
    figures: Figures,
}

/// What is counted of a source.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// When an answer was believed last.
    pub last_success: Option<SystemTime>,
    /// Backends that the last believed answer names.
    pub members: usize,
    /// Rounds without an answer.
    pub failures: u64,
    /// Answers and members of them that were not believed, by [`REASONS`].
    pub ignored: [u64; REASONS.len()],
}

/// See [`Discoveries::next`].
pub enum News {
    Due,
    Heard(Heard),
}

/// How a round ended.
#[derive(Debug)]
pub struct Heard {
    /// Whose.
    pub service: ServiceKey,
    /// The answer, or why there is none, in words.
    pub result: Result<Answer, String>,
    /// More may follow.
    goes_on: bool,
}

/// What to ask in a round.
pub enum Question {
    /// These members, one after the other, until one answers.
    Etcd(Vec<Spec>),
    /// Names; whether of IPv6 addresses.
    Dns { domain: String, srv_name: Option<String>, nameserver: Option<SocketAddr>, ipv6: bool },
    /// EndpointSlices: the answers go on for as long as they change.
    Kubernetes(Followed),
}

/// A Kubernetes service whose EndpointSlices are followed.
pub struct Followed {
    pub namespace: String,
    pub service: String,
    /// `None`: as a pod reaches the API.
    pub kubeconfig: Option<PathBuf>,
    /// The VIP's, which decides among several ports of the service.
    pub port: u16,
}

impl Discoveries {
    /// Nobody to ask yet.
    pub fn new() -> Self {
        let (end, ended) = mpsc::unbounded_channel();
        Self { sources: BTreeMap::new(), ended, end }
    }

    /// Takes over a config; a source that is asked otherwise from now on is asked at once.
    pub fn configure(&mut self, config: &Config) {
        let mut sources = BTreeMap::new();
        for service in &config.services {
            let Some(discovery) = &service.discovery else { continue };
            let key = (service.vip, service.port);
            let kept = self.sources.remove(&key).filter(|source| source.source == discovery.source);
            let source = kept.map_or_else(
                || Source {
                    source: discovery.source.clone(),
                    interval: discovery.interval,
                    next: Instant::now(),
                    began: None,
                    round: None,
                    has_tried: false,
                    figures: Figures::default(),
                },
                |mut kept| {
                    kept.interval = discovery.interval;
                    kept.next = kept.next.min(Instant::now() + discovery.interval);
                    kept
                },
            );
            sources.insert(key, source);
        }
        self.sources = sources;
    }

    /// Every source has been asked once, whatever it said.
    pub fn first_round_ended(&self) -> bool {
        self.sources.values().all(|source| source.has_tried)
    }

    /// What is next: a round is due, or one has ended. Cancel-safe.
    pub async fn next(&mut self) -> News {
        let idle = self.sources.values().filter(|source| source.round.is_none());
        let due = idle.map(|source| source.next).min();
        let is_due = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(heard) = self.ended.recv() => {
                if let Some(source) = self.sources.get_mut(&heard.service) {
                    source.has_tried = true;
                    if heard.goes_on {
                        return News::Heard(heard);
                    }
                    source.round = None;
                    source.next = source.began.unwrap_or_else(Instant::now) + source.interval;
                }
                News::Heard(heard)
            }
            () = is_due => News::Due,
        }
    }

    /// Begins the rounds that are due.
    pub fn begin(&mut self, question: impl Fn(ServiceKey, &DiscoverySource) -> Question) {
        let now = Instant::now();
        for (service, source) in &mut self.sources {
            if source.round.is_some() || now < source.next {
                continue;
            }
            source.began = Some(now);
            let (service, question, end) = (*service, question(*service, &source.source), self.end.clone());
            let round = tokio::spawn(async move {
                // Nobody listens where the agent ends.
                let tell = |result, goes_on| drop(end.send(Heard { service, result, goes_on }));
                let result = question.ask(|result| tell(result, true)).await;
                tell(result, false);
            });
            source.round = Some(round.abort_handle());
        }
    }

    /// Something has happened to a service's backends: its source may have news.
    pub fn hurry(&mut self, service: ServiceKey) {
        if let Some(source) = self.sources.get_mut(&service) {
            let earliest = source.began.map_or_else(Instant::now, |began| began + HURRY);
            source.next = source.next.min(earliest);
        }
    }

    /// What is counted of a service's source.
    pub fn figures(&self, service: ServiceKey) -> Option<&Figures> {
        self.sources.get(&service).map(|source| &source.figures)
    }

    /// The same, to count.
    pub fn figures_mut(&mut self, service: ServiceKey) -> Option<&mut Figures> {
        self.sources.get_mut(&service).map(|source| &mut source.figures)
    }
}

impl Default for Discoveries {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(round) = &self.round {
            round.abort();
        }
    }
}

impl Question {
    /// Asks; a source that is followed tells by `tell` what it says, and ends only where it cannot go on.
    async fn ask(self, tell: impl Fn(Result<Answer, String>)) -> Result<Answer, String> {
        match self {
            Self::Etcd(members) => in_time(etcd::ask(&members)).await,
            Self::Dns { domain, srv_name, nameserver, ipv6 } => {
                in_time(dns::ask(&domain, srv_name.as_deref(), nameserver, ipv6)).await
            }
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(followed) => Err(kubernetes::follow(&followed, tell).await),
            #[cfg(not(feature = "kubernetes"))]
            Self::Kubernetes(_) => {
                drop(tell);
                Err("this etcd-lb was built without the feature `kubernetes`".into())
            }
        }
    }
}

async fn in_time(asked: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    timeout(ROUND, asked).await.unwrap_or_else(|_| Err(format!("no answer within {ROUND:?}")))
}
