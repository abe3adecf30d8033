//! Health probes: one fresh connection each, and a report of how far it came.
//!
//! What a result means for a backend is decided by `lb_core::health`; this module only asks. It goes straight to the
//! member's address, past the VIP.

mod checks;
mod etcd;
mod grpc;
mod http;
mod members;
mod messages;
mod tls;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::Uri;
use lb_core::{etcd::Member, health::Outcome};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::client::TlsStream;

pub use checks::{Changed, Check, Checks};
pub use http::HttpSpec;
pub use members::{ListedMember, MemberList, check_specs, member_list, specs};
pub use tls::{Alpn, TlsFiles, TlsSource};

/// What to ask a backend.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where: the backend's address, with the check's port if that differs from the traffic's.
    pub address: SocketAddr,
    /// What.
    pub kind: Kind,
    /// With TLS: its files, and the name that the backend's certificate must have.
    pub tls: Option<(Arc<TlsSource>, String)>,
}

impl Spec {
    /// Scheme and authority of what is asked by gRPC.
    fn origin(&self, authority: &str) -> Result<Uri, Failure> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let origin = format!("{scheme}://{authority}");
        origin.parse().map_err(|error| Failure::new(format!("{origin} is no origin: {error}")))
    }
}

/// What to ask for.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Connect, and close.
    Tcp,
    /// An HTTP request.
    Http(HttpSpec),
    /// gRPC's health service; `authority` is who is asked.
    Grpc {
        /// `HOST:PORT`
        authority: String,
    },
    /// The health service, a linearizable read and the member's status.
    Etcd {
        /// `HOST:PORT`
        authority: String,
    },
}

/// The steps of a probe, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// TCP's handshake.
    Connect,
    /// TLS's handshake, and reading the files it needs.
    Tls,
    /// Sending the HTTP request.
    Request,
    /// Waiting for the response's head.
    Response,
    /// The response's body.
    Body,
    /// gRPC's health service.
    Health,
    /// A linearizable read.
    Range,
    /// HTTP's status, or what an etcd member says of itself.
    Status,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Tls => "TLS",
            Self::Request => "request",
            Self::Response => "response",
            Self::Body => "body",
            Self::Health => "health",
            Self::Range => "range",
            Self::Status => "status",
        })
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Passed, refused, or failed with the step and reason.
    pub outcome: Outcome,
    /// The step that failed, and how long it took.
    pub failed_step: Option<(Step, Duration)>,
    /// Whether the backend accepted the connection, whatever came after.
    pub accepts: bool,
    /// How long it took.
    pub duration: Duration,
    /// What it found out, whether it passed or not.
    pub found: Found,
}

/// What a probe finds out on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What the member says of itself, where it is asked.
    pub member: Option<Member>,
    /// What an operator should know, though it is no failure.
    pub remarks: Vec<String>,
    /// When the backend's certificate ends, Unix time in seconds.
    pub not_after: Option<i64>,
    /// What its certificate is valid for: its SAN entries as openssl prints them, `DNS:etcd-1`, `IP:10.0.1.10`.
    pub certificate_names: Vec<String>,
}

/// Where a probe is, and what it has found so far: what is left of it if its time is over.
struct Progress(Mutex<At>);

struct At {
    step: Step,
    since: Instant,
    failed: Option<(Step, Duration)>,
    found: Found,
}

impl Progress {
    fn begin() -> Self {
        let (step, since) = (Step::Connect, Instant::now());
        Self(Mutex::new(At { step, since, failed: None, found: Found::default() }))
    }

    /// The next step begins.
    fn set(&self, step: Step) {
        let mut at = self.lock();
        (at.step, at.since) = (step, Instant::now());
    }

    /// Of several steps at once, this is the one that failed.
    fn fail_at(&self, step: Step, took: Duration) {
        self.lock().failed = Some((step, took));
    }

    fn remark(&self, remark: String) {
        self.lock().found.remarks.push(remark);
    }

    fn learn(&self, member: Member) {
        self.lock().found.member = Some(member);
    }

    fn sees_certificate(&self, certificate: tls::Presented) {
        let found = &mut self.lock().found;
        found.not_after = Some(certificate.not_after);
        found.certificate_names = certificate.names;
    }

    fn lock(&self) -> MutexGuard<'_, At> {
        // Each change is one assignment: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step that did not go well.
#[derive(Debug)]
struct Failure {
    /// In words, for the operator.
    reason: String,
    blame: Blame,
}

/// Whose failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The backend's own.
    Own,
    /// The same, and the connection was refused.
    Refused,
    /// Perhaps all members': the cluster has no leader or no quorum.
    Shared,
}

impl Failure {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), blame: Blame::Own }
    }

    fn shared(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), blame: Blame::Shared }
    }
}

/// Asks a backend once. All steps together end at `deadline`.
pub async fn run(spec: &Spec, deadline: Instant) -> Report {
    let started = Instant::now();
    let progress = Progress::begin();
    let result = timeout_at(deadline, ask(spec, &progress)).await.unwrap_or_else(|_| {
        let at = progress.lock();
        // The steps before the read went well, so that the quorum may be what is missing.
        let blame = if at.step == Step::Range { Blame::Shared } else { Blame::Own };
        let waited = at.since.elapsed().as_millis();
        Err(Failure { reason: format!("timed out after {waited} ms"), blame })
    });
    let At { step, since, failed, found } = progress.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (step, took) = failed.unwrap_or_else(|| (step, since.elapsed()));
    let outcome = match result {
        Ok(()) => Outcome::Passed,
        Err(Failure { blame: Blame::Refused, .. }) => Outcome::Refused,
        Err(Failure { blame: Blame::Own, reason }) => Outcome::Failed(format!("{step}: {reason}")),
        Err(Failure { blame: Blame::Shared, reason }) => Outcome::Shared(format!("{step}: {reason}")),
    };
    let failed_step = (outcome != Outcome::Passed).then_some((step, took));
    Report {
        accepts: failed_step.is_none_or(|(step, _)| step != Step::Connect),
        outcome,
        failed_step,
        duration: started.elapsed(),
        found,
    }
}

async fn ask(spec: &Spec, progress: &Progress) -> Result<(), Failure> {
    match &spec.kind {
        Kind::Tcp => connect(spec.address).await.map(drop),
        Kind::Http(request) => {
            let stream = connect(spec.address).await?;
            match &spec.tls {
                None => http::ask(stream, request, progress).await,
                Some(tls) => http::ask(encrypt(stream, tls, progress).await?, request, progress).await,
            }
        }
        Kind::Grpc { authority } => grpc::ask(&open(spec, authority, progress).await?, progress).await,
        Kind::Etcd { authority } => etcd::ask(&open(spec, authority, progress).await?, progress).await,
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await.map_err(|error| Failure {
        blame: match error.kind() {
            io::ErrorKind::ConnectionRefused => Blame::Refused,
            _ => Blame::Own,
        },
        reason: error.to_string(),
    })?;
    // A probe is a few small packets each way: Nagle's and delayed ACKs' 40 ms would be most of its time.
    stream.set_nodelay(true).map_err(|error| Failure::new(error.to_string()))?;
    Ok(stream)
}

async fn encrypt(
    stream: TcpStream,
    (source, server_name): &(Arc<TlsSource>, String),
    progress: &Progress,
) -> Result<TlsStream<TcpStream>, Failure> {
    progress.set(Step::Tls);
    let (stream, presented) = tls::connect(stream, source, server_name).await?;
    if let Some(presented) = presented {
        progress.sees_certificate(presented);
    }
    Ok(stream)
}

/// A connection for gRPC.
async fn open(spec: &Spec, authority: &str, progress: &Progress) -> Result<grpc::Client, Failure> {
    let stream = connect(spec.address).await?;
    let origin = spec.origin(authority)?;
    match &spec.tls {
        None => {
            progress.set(Step::Health);
            grpc::Client::open(stream, origin).await
        }
        Some(tls) => {
            let stream = encrypt(stream, tls, progress).await?;
            progress.set(Step::Health);
            grpc::Client::open(stream, origin).await
        }
    }
}
