//! Asking a running agent over its unix socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, client::conn::http1, header::CONTENT_TYPE};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// What an answer may take: a reload with a thousand backends takes well under a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// No good answer came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error(
        "cannot reach the agent at {}: {reason}\n\
         is it running? see `systemctl status etcd-lb`; if its socket is elsewhere, give --socket PATH",
        socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// GETs `path`.
///
/// # Errors
/// The agent cannot be reached, or refuses.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Error> {
    ask(socket, Method::GET, path, Bytes::new()).await
}

/// POSTs `body` to `path`.
///
/// # Errors
/// The agent cannot be reached, or refuses.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, Error> {
    let body = serde_json::to_vec(body).map_err(|error| Error::Refused(error.to_string()))?;
    ask(socket, Method::POST, path, body.into()).await
}

/// `path` with a query of the fields that are set.
pub fn with_query(path: &str, query: &impl Serialize) -> String {
    let fields = serde_json::to_value(query).ok();
    let fields = fields.as_ref().and_then(|value| value.as_object()).into_iter().flatten();
    let pairs: Vec<_> = fields
        .map(|(key, value)| {
            format!("{key}={}", encoded(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        })
        .collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// Percent-encoded, but for what RFC 3986 section 2.3 leaves unreserved.
fn encoded(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, Error> {
    let unreachable = |reason: String| Error::Unreachable { socket: socket.to_owned(), reason };
    let (status, answer) = tokio::time::timeout(PATIENCE, exchange(socket, method, path, body))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| unreachable(reason(&error)))?;
    if !status.is_success() {
        let refusal: Result<Refusal, _> = serde_json::from_slice(&answer);
        return Err(Error::Refused(
            refusal.map_or_else(|_| format!("the agent answered {status}"), |r| r.error),
        ));
    }
    serde_json::from_slice(&answer).map_err(|error| {
        Error::Refused(format!("the agent's answer is not understood (is it of another version?): {error}"))
    })
}

#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> io::Result<(hyper::StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "etcd-lb")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let answer = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok((status, answer))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".into(),
        io::ErrorKind::ConnectionRefused => "nobody listens on the socket".into(),
        io::ErrorKind::PermissionDenied => "permission denied (the socket is root's)".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::command::FlowQuery;

    #[test]
    fn queries_hold_what_is_set() {
        let mut query = FlowQuery::default();
        assert_eq!(with_query("/flows", &query), "/flows");
        query.backend = Some("a b&c".into());
        query.nat_port = Some(7);
        assert_eq!(with_query("/flows", &query), "/flows?backend=a%20b%26c&nat_port=7");
    }
}
