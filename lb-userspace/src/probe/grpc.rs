//! gRPC over one fresh connection: tonic's codec on hyper's HTTP/2, so that TLS stays the probe's own.

use std::{
    error::Error as _,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Request, Response, Uri,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    header::{HeaderValue, USER_AGENT},
    http::uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::timeout,
};
use tonic::{Code, Status, body::Body};
use tonic_prost::ProstCodec;

use super::{
    Failure, Progress, Step,
    messages::{HealthCheckRequest, HealthCheckResponse, ServingStatus},
    tls,
};

/// How long the end of a probe's connection may take: GOAWAY and TLS's close. A frozen peer takes neither.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that requests can be made on, several at once.
#[derive(Clone)]
pub(super) struct Client {
    requests: tonic::client::Grpc<Requests>,
    broken: Broken,
    /// What to look at where the connection breaks without a word.
    hint: &'static str,
    _tasks: Arc<Tasks>,
}

/// What ended the connection, in words, where that is TLS's doing: h2 keeps an error's text only.
type Broken = Arc<OnceLock<String>>;

impl Client {
    /// Begins HTTP/2 on `stream`; `origin` is scheme and authority of what is asked.
    pub(super) async fn open<S>(stream: S, origin: Uri) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tls = origin.scheme_str() == Some("https");
        let broken = Broken::default();
        let tasks = Arc::new(Tasks::default());
        let stream = Watched { stream, broken: broken.clone() };
        let (sender, connection) = http2::handshake(Spawn(Arc::downgrade(&tasks)), TokioIo::new(stream))
            .await
            .map_err(|error| Failure::new(broken.get().cloned().unwrap_or_else(|| error.to_string())))?;
        tasks.spawn(async move {
            // What breaks it breaks its requests too, and they tell.
            let _ = connection.await;
        });
        let requests = tonic::client::Grpc::with_origin(Requests(sender), origin);
        let hint = if tls {
            "does it refuse the client certificate? check cert_file and key_file"
        } else {
            "is the port a TLS port? then set ca_file"
        };
        Ok(Self { requests, broken, hint, _tasks: tasks })
    }

    /// One request, one answer.
    pub(super) async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut requests = self.requests.clone();
        requests.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        requests.unary(tonic::Request::new(message), path, codec).await.map(tonic::Response::into_inner)
    }

    /// `grpc.health.v1.Health/Check` of the server as a whole.
    pub(super) async fn check(&self) -> Result<ServingStatus, Status> {
        let message = HealthCheckRequest { service: String::new() };
        let answer: HealthCheckResponse = self.call("/grpc.health.v1.Health/Check", message).await?;
        Ok(answer.status())
    }

    /// Why a request failed, in words.
    pub(super) fn words(&self, status: &Status) -> String {
        if let Some(reason) = self.broken.get() {
            return reason.clone();
        }
        if !is_answer(status) {
            let mut innermost: &dyn std::error::Error = status;
            while let Some(source) = innermost.source() {
                innermost = source;
            }
            return format!("the backend did not answer in HTTP/2: {innermost} ({})", self.hint);
        }
        match (status.code(), status.message()) {
            (code, "") => format!("gRPC status {code:?}"),
            (_, message) => message.to_owned(),
        }
    }
}

/// Whether a status came from the other end, and not from a connection that broke.
pub(super) fn is_answer(status: &Status) -> bool {
    status.source().is_none()
}

/// Kind `grpc`: the health service says that it is serving.
pub(super) async fn ask(client: &Client, progress: &Progress) -> Result<(), Failure> {
    progress.set(Step::Health);
    match client.check().await {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(Failure::new(not_serving(status))),
        Err(status) if status.code() == Code::Unimplemented => {
            Err(Failure::new("the backend has no gRPC health service (grpc.health.v1): use another kind"))
        }
        Err(status) => Err(Failure::new(client.words(&status))),
    }
}

/// An answer other than SERVING, in words.
pub(super) fn not_serving(status: ServingStatus) -> &'static str {
    match status {
        ServingStatus::Serving => "SERVING",
        ServingStatus::NotServing => {
            "NOT_SERVING: the member asks for no clients, as while it defragments its database"
        }
        ServingStatus::Unknown => "UNKNOWN: the member does not know yet whether it serves",
        ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN: the health service knows of no server",
    }
}

/// hyper's sender as what tonic expects.
#[derive(Clone)]
struct Requests(SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Requests {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let agent = HeaderValue::from_static(concat!("etcd-lb/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        Box::pin(self.0.send_request(request))
    }
}

/// The tasks of a connection; when its last request is done they may end it in order, but not stay.
#[derive(Default)]
struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // A set has no state between two that a panic could leave.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let mut tasks = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let all = async { while tasks.join_next().await.is_some() {} };
                // What is left is aborted with the set.
                let _ = timeout(LINGER, all).await;
            });
        }
    }
}

/// Where hyper's tasks go; weak, since the connection that holds it is one of them.
#[derive(Clone)]
struct Spawn(Weak<Tasks>);

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // Without anybody who could wait for it, a request's task has no use.
        if let Some(tasks) = self.0.upgrade() {
            tasks.spawn(task);
        }
    }
}

/// A stream that remembers TLS's reason for its end.
struct Watched<S> {
    stream: S,
    broken: Broken,
}

impl<S> Watched<S> {
    fn note<T>(&self, result: &io::Result<T>) {
        if let Err(error) = result
            && let Some(reason) = tls::reason_within(error)
        {
            // The first reason is the one.
            let _ = self.broken.set(reason);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.note(&result);
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, octets));
        if result.is_err() {
            // A peer that refuses us says why before it closes: the alert may be there to be read.
            let mut rest = [0; 256];
            if let Poll::Ready(read) =
                Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut rest))
            {
                self.note(&read);
            }
        }
        self.note(&result);
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
