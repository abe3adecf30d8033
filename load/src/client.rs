//! One connection to etcd: tonic's codec on hyper's HTTP/2, on a TCP stream that is watched.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt as _, stream};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    header::{HeaderValue, USER_AGENT},
    http::uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use tonic::{Status, Streaming, body::Body};
use tonic_prost::ProstCodec;

use crate::{
    Endpoint,
    failure::{Failure, Kind, closed},
    messages::{
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
        WatchCreateRequest, WatchRequest, WatchResponse,
    },
    stream::{Line, Watched},
};

/// Requests of a connection that were given up and are remembered, so that late answers to them break no rule.
const REMEMBERED: usize = 4096;

/// Who may make requests on a connection, several at once.
#[derive(Clone)]
pub struct Client {
    grpc: tonic::client::Grpc<Requests>,
    line: Arc<Line>,
    given_up: Arc<Notify>,
}

/// Who keeps a connection; dropping it closes it.
pub struct Connected {
    /// Makes requests on it.
    pub client: Client,
    driver: JoinHandle<()>,
}

/// Connects, and begins HTTP/2.
///
/// # Errors
///
/// Why there is no connection. That the other end speaks HTTP/2 is known only from its first answer.
pub async fn connect(
    endpoint: &Endpoint,
    tls: Option<(&Arc<ClientConfig>, Option<&str>)>,
) -> Result<Connected, Failure> {
    let of_io = |error| Failure::of_io(&error);
    let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await.map_err(of_io)?;
    stream.set_nodelay(true).map_err(of_io)?;
    let (true, Some((config, server_name))) = (endpoint.is_tls(), tls) else {
        return begin(stream, endpoint).await;
    };
    let server_name = server_name.unwrap_or(endpoint.host()).to_owned();
    let name =
        ServerName::try_from(server_name).map_err(|error| Failure::new(Kind::Tls, error.to_string()))?;
    let stream = TlsConnector::from(config.clone()).connect(name, stream).await.map_err(of_io)?;
    begin(stream, endpoint).await
}

async fn begin<S>(stream: S, endpoint: &Endpoint) -> Result<Connected, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let line = Arc::new(Line::default());
    let stream = TokioIo::new(Watched::new(stream, line.clone()));
    let (sender, connection) = http2::Builder::new(Spawn)
        .max_concurrent_reset_streams(REMEMBERED)
        .handshake(stream)
        .await
        .map_err(|error| line.broken().cloned().unwrap_or_else(|| Failure::of_http2(&error)))?;
    let ended = line.clone();
    let driver = tokio::spawn(async move {
        let result = connection.await;
        // Unless the stream has said why.
        ended.breaks(result.map_or_else(|error| Failure::of_http2(&error), |()| closed()));
    });
    let grpc = tonic::client::Grpc::with_origin(Requests(sender), endpoint.origin().clone());
    Ok(Connected { client: Client { grpc, line, given_up: Arc::default() }, driver })
}

impl Connected {
    /// Waits until the connection is of no more use: why.
    pub async fn ended(&mut self) -> Failure {
        tokio::select! {
            _ = &mut self.driver => {}
            () = self.client.given_up.notified() => self.client.line.breaks(Failure::new(
                Kind::Silent,
                "nothing came by the connection while a request waited for as long as requests may",
            )),
        }
        self.client.line.broken().cloned().unwrap_or_else(closed)
    }

    /// Closes it for this reason, which its requests are told.
    pub fn close(self, failure: Failure) {
        self.client.line.breaks(failure);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Whether it broke.
    pub fn is_broken(&self) -> bool {
        self.line.broken().is_some()
    }

    /// A number that is another one after anything came by the connection.
    pub fn heard(&self) -> u64 {
        self.line.heard()
    }

    /// Says that the connection is dead, though nothing has said so.
    pub fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Writes a key.
    ///
    /// # Errors
    ///
    /// What etcd answers, or why it does not.
    pub async fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<PutResponse, Failure> {
        self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    ///
    /// What etcd answers, or why it does not.
    pub async fn get(&self, key: Vec<u8>) -> Result<RangeResponse, Failure> {
        self.call("/etcdserverpb.KV/Range", RangeRequest { key }).await
    }

    /// Deletes the keys from `key` to before `range_end`.
    ///
    /// # Errors
    ///
    /// What etcd answers, or why it does not.
    pub async fn delete(&self, key: Vec<u8>, range_end: Vec<u8>) -> Result<DeleteRangeResponse, Failure> {
        self.call("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest { key, range_end }).await
    }

    /// Begins to watch a key, from a revision, or from now on if it is 0.
    ///
    /// # Errors
    ///
    /// What etcd answers, or why it does not.
    pub async fn watch(&self, key: Vec<u8>, start_revision: i64) -> Result<Events, Failure> {
        let create = WatchRequest { create_request: Some(WatchCreateRequest { key, start_revision }) };
        // A stream that ends would end the watch.
        let requests = stream::iter([create]).chain(stream::pending());
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| self.broke(&error))?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        match grpc.streaming(tonic::Request::new(requests), path, codec).await {
            Ok(response) => Ok(Events { responses: response.into_inner(), client: self.clone() }),
            Err(status) => Err(self.failure(&status)),
        }
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| self.broke(&error))?;
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(tonic::Request::new(message), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure(&status))
    }

    fn failure(&self, status: &Status) -> Failure {
        Failure::of_answer(status).unwrap_or_else(|| self.broke(status))
    }

    /// Why the connection broke: as the stream told, since HTTP/2 knows less.
    fn broke(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        self.line.broken().cloned().unwrap_or_else(|| Failure::of_http2(error))
    }
}

/// What a watch brings.
pub struct Events {
    responses: Streaming<WatchResponse>,
    client: Client,
}

impl Events {
    /// The next response; none at the stream's end.
    ///
    /// # Errors
    ///
    /// Why there are no more.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>, Failure> {
        self.responses.message().await.map_err(|status| self.client.failure(&status))
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
        let agent = HeaderValue::from_static(concat!("etcd-lb-load/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        Box::pin(self.0.send_request(request))
    }
}

/// Where hyper's tasks go: they end with their connection or their request.
#[derive(Clone)]
struct Spawn;

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}
