//! The routes, on the unix socket and over HTTP.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::JsonRejection, rejection::QueryRejection},
    http::{
        HeaderName, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};

use super::{
    capture::CaptureRequest,
    command::{
        Command, Commands, DrainRequest, Draining, FlowQuery, Gone, HoldRequest, RebalanceRequest,
        ResetRequest,
    },
    events::EventQuery,
    explain::ExplainQuery,
    page,
};

/// An agent that does not answer for this long is not well: what probes of a kubelet or Prometheus wait at most.
const PATIENCE: Duration = Duration::from_secs(1);

/// What root may ask over the unix socket.
pub fn socket_router(commands: Commands) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/flows", get(flows))
        .route("/events", get(events))
        .route("/explain", get(explain))
        .route("/drain", post(drain))
        .route("/undrain", post(undrain))
        .route("/reset", post(reset))
        .route("/rebalance", post(rebalance))
        .route("/reload", post(reload))
        .route("/failover", post(fail_over))
        .route("/hold", post(hold))
        .route("/capture", post(capture))
        .fallback(nothing_here)
        .with_state(commands)
}

/// What anybody may read over HTTP.
pub fn http_router(commands: Commands) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status.json", get(status))
        .fallback(nothing_here)
        .with_state(commands)
}

/// Makes the socket, mode 0600, in its directory, mode 0755 if it is made. A socket that an earlier agent left behind is
/// replaced: the caller holds the lock that says there is no other agent.
///
/// # Errors
/// The directory or socket cannot be made, or something else than a socket has its name.
pub fn bind_socket(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

/// The socket's name, which goes with the agent: who asks then is told that nobody is there.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The next agent removes it otherwise.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens for HTTP.
///
/// # Errors
/// The address is not ours or in use.
pub async fn bind_http(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves the unix socket until the task is aborted.
pub async fn serve_socket(listener: UnixListener, router: Router) {
    // Its errors are those of single connections; it goes on after them.
    let _ = axum::serve(listener, router).await;
}

/// Serves HTTP until the task is aborted.
pub async fn serve_http(listener: TcpListener, router: Router) {
    let _ = axum::serve(listener, router).await;
}

/// An answer that is no success.
struct Refusal(StatusCode, String);

impl Refusal {
    fn gone(error: impl Into<String>) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.into())
    }

    fn bad_request(error: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, error.into())
    }

    fn refused(error: impl Into<String>) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.into())
    }
}

impl From<Gone> for Refusal {
    fn from(error: Gone) -> Self {
        Self::gone(error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn status(State(commands): State<Commands>) -> Answer<impl Serialize> {
    commands.ask(Command::Status).await.map(Json).map_err(Refusal::from)
}

async fn flows(
    State(commands): State<Commands>,
    query: Result<Query<FlowQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Flows(query, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn explain(
    State(commands): State<Commands>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Explain(query, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn drain(commands: State<Commands>, request: Body) -> Answer<impl Serialize> {
    set_draining(commands, request, Draining::Begin).await
}

async fn undrain(commands: State<Commands>, request: Body) -> Answer<impl Serialize> {
    set_draining(commands, request, Draining::End).await
}

type Body = Result<Json<DrainRequest>, JsonRejection>;

async fn set_draining(
    State(commands): State<Commands>,
    request: Body,
    draining: Draining,
) -> Answer<impl Serialize> {
    let Json(request) = request.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer =
        commands.ask(|reply| Command::Drain(request, draining, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn reset(
    State(commands): State<Commands>,
    request: Result<Json<ResetRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(request) = request.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Reset(request, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn rebalance(
    State(commands): State<Commands>,
    request: Result<Json<RebalanceRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(request) = request.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Rebalance(request.dry_run, reply)).await;
    answer.map(Json).map_err(Refusal::from)
}

async fn reload(State(commands): State<Commands>) -> Answer<impl Serialize> {
    let answer = commands.ask(Command::Reload).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn fail_over(State(commands): State<Commands>) -> Answer<impl Serialize> {
    let answer = commands.ask(Command::FailOver).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn hold(
    State(commands): State<Commands>,
    request: Result<Json<HoldRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(request) = request.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let time = Duration::from_millis(request.ms);
    let answer = commands.ask(|reply| Command::Hold(time, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn capture(
    State(commands): State<Commands>,
    request: Result<Json<CaptureRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let Json(request) = request.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Capture(request, reply)).await.map_err(Refusal::from)?;
    answer.map(Json).map_err(Refusal::refused)
}

async fn events(
    State(commands): State<Commands>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
    let answer = commands.ask(|reply| Command::Events(query, reply)).await;
    answer.map(Json).map_err(Refusal::from)
}

/// Which part of the page is asked for.
#[derive(Deserialize)]
struct PageQuery {
    part: Option<String>,
}

async fn status_page(
    State(commands): State<Commands>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Refusal> {
    let status = commands.ask(Command::Status).await.map_err(Refusal::from)?;
    let events = commands.ask(|reply| Command::Events(EventQuery::default(), reply)).await;
    let (events, now) = (events.map_err(Refusal::from)?, SystemTime::now());
    const HTML: (HeaderName, &str) = (CONTENT_TYPE, "text/html; charset=utf-8");
    const FRESH: (HeaderName, &str) = (CACHE_CONTROL, "no-store");
    const AS_IT_IS: (HeaderName, &str) = (X_CONTENT_TYPE_OPTIONS, "nosniff");
    if query.part.as_deref() == Some("main") {
        return Ok(([HTML, FRESH, AS_IT_IS], page::main(&status, &events, now)).into_response());
    }
    let page = page::whole(&status, &events, now);
    let policy = [(CONTENT_SECURITY_POLICY, page.policy)];
    Ok(([HTML, FRESH, AS_IT_IS], policy, page.html).into_response())
}

async fn metrics(State(commands): State<Commands>) -> Result<impl IntoResponse, Refusal> {
    let text = commands.ask(Command::Metrics).await.map_err(Refusal::from)?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// The agent's loop turns.
async fn healthz(State(commands): State<Commands>) -> Result<&'static str, Refusal> {
    ask_in_time(&commands).await.map(|_| "ok\n")
}

/// The data plane is attached and every service has a backend to send new connections to.
async fn readyz(State(commands): State<Commands>) -> Result<&'static str, Refusal> {
    ask_in_time(&commands).await?.map(|()| "ready\n").map_err(Refusal::gone)
}

async fn ask_in_time(commands: &Commands) -> Result<Result<(), String>, Refusal> {
    match tokio::time::timeout(PATIENCE, commands.ask(Command::Ready)).await {
        Ok(answer) => answer.map_err(Refusal::from),
        Err(_) => Err(Refusal::gone("the agent does not answer")),
    }
}

async fn nothing_here() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "there is nothing at this path".into())
}
