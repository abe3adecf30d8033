//! Health probes: one fresh connection each, and a report of how far it came.
//!
//! What a result means for a backend is decided by `lb_core::health`; this module only asks. It goes straight to the
//! member's address, past the VIP.

mod checks;
mod http;
mod tls;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use lb_core::health::Outcome;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

pub use checks::{Changed, Check, Checks};
pub use http::HttpSpec;
pub use tls::{TlsFiles, TlsSource};

/// What to ask a backend.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where: the backend's address, with the check's port if that differs from the traffic's.
    pub address: SocketAddr,
    /// How.
    pub kind: Kind,
}

/// How to ask.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Connect, and close.
    Tcp,
    /// An HTTP request, over TLS where there is a source of its files.
    Http(HttpSpec, Option<(Arc<TlsSource>, String)>),
}

/// The steps of a probe, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// TCP's handshake.
    Connect,
    /// TLS's handshake, and reading the files it needs.
    Tls,
    /// Sending the request.
    Request,
    /// Waiting for the response's head.
    Response,
    /// Its status.
    Status,
    /// Its body.
    Body,
}

impl Step {
    const ALL: [Self; 6] =
        [Self::Connect, Self::Tls, Self::Request, Self::Response, Self::Status, Self::Body];
}

/// The step a probe is at: what is to blame if its time is over.
struct Progress(AtomicU8);

impl Progress {
    fn set(&self, step: Step) {
        self.0.store(step as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Step {
        Step::ALL[usize::from(self.0.load(Ordering::Relaxed)) % Step::ALL.len()]
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Tls => "TLS",
            Self::Request => "request",
            Self::Response => "response",
            Self::Status => "status",
            Self::Body => "body",
        })
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Passed, refused, or failed with the step and reason.
    pub outcome: Outcome,
    /// The step that failed.
    pub failed_step: Option<Step>,
    /// Whether the backend accepted the connection, whatever came after.
    pub accepts: bool,
    /// How long it took.
    pub duration: Duration,
}

/// A step that did not go well.
#[derive(Debug)]
struct Failure {
    /// In words, for the operator.
    reason: String,
    /// The connection was refused.
    refused: bool,
}

impl Failure {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refused: false }
    }
}

/// Asks a backend once. All steps together end at `deadline`.
pub async fn run(spec: &Spec, deadline: Instant) -> Report {
    let started = Instant::now();
    let step = Progress(AtomicU8::new(Step::Connect as u8));
    let result = timeout_at(deadline, ask(spec, &step)).await.unwrap_or_else(|_| {
        let waited = (deadline - started).as_millis();
        Err(Failure::new(format!("timed out after {waited} ms")))
    });
    let step = step.get();
    let (outcome, failed_step) = match result {
        Ok(()) => (Outcome::Passed, None),
        Err(failure) if failure.refused => (Outcome::Refused, Some(step)),
        Err(failure) => (Outcome::Failed(format!("{step}: {}", failure.reason)), Some(step)),
    };
    Report { outcome, failed_step, accepts: failed_step != Some(Step::Connect), duration: started.elapsed() }
}

async fn ask(spec: &Spec, step: &Progress) -> Result<(), Failure> {
    let stream = TcpStream::connect(spec.address).await.map_err(|error| Failure {
        refused: error.kind() == io::ErrorKind::ConnectionRefused,
        reason: error.to_string(),
    })?;
    match &spec.kind {
        Kind::Tcp => Ok(()),
        Kind::Http(request, None) => http::ask(stream, request, step).await,
        Kind::Http(request, Some((source, server_name))) => {
            step.set(Step::Tls);
            let stream = tls::connect(stream, source, server_name).await?;
            http::ask(stream, request, step).await
        }
    }
}
