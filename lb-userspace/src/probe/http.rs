//! The HTTP part of a probe: one GET, its status, and what its body must contain.

use std::error::Error as _;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Incoming,
    client::conn::http1,
    header::{HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Failure, Progress, Step, tls};

/// What of a body is read: etcd's answer has 30 octets.
const MAX_BODY: usize = 64 * 1024;

/// What to ask for, and what to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSpec {
    /// `Host` header.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The only good status.
    pub expect_status: u16,
    /// What the first 64 KiB of the body must contain.
    pub expect_body: Option<String>,
}

/// Sends the request over `stream` and judges the answer.
pub(super) async fn ask<S>(stream: S, spec: &HttpSpec, step: &Progress) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    step.set(Step::Request);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| describe(&error))?;
    let request = Request::get(&spec.path)
        .header(HOST, &spec.host)
        .header(USER_AGENT, concat!("etcd-lb/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::new(format!("{:?} is no path: {error}", spec.path)))?;
    let exchange = async {
        step.set(Step::Response);
        let response = sender.send_request(request).await.map_err(|error| describe(&error))?;
        step.set(Step::Status);
        let status = response.status().as_u16();
        let expected = spec.expect_status;
        if status != expected {
            let body = excerpt(response.into_body()).await;
            return Err(Failure::new(format!("HTTP status {status}, expected {expected}{body}")));
        }
        match &spec.expect_body {
            None => Ok(()),
            Some(expected) => {
                step.set(Step::Body);
                body_contains(response.into_body(), expected).await
            }
        }
    };
    // The exchange ends first or the probe is over: the connection is only to be driven meanwhile.
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        driven = connection => match driven {
            Ok(()) => exchange.await,
            // The exchange knows of the same error; the connection's has the cause.
            Err(error) => Err(describe(&error)),
        },
    }
}

async fn body_contains(mut body: Incoming, expected: &str) -> Result<(), Failure> {
    let read = read_up_to(&mut body, MAX_BODY, |read| contains(read, expected.as_bytes())).await?;
    if contains(&read, expected.as_bytes()) {
        return Ok(());
    }
    Err(Failure::new(format!("the body does not contain {expected:?}: {}", shorten(&read))))
}

/// Reads until `enough`, the end, or `limit` octets.
async fn read_up_to(
    body: &mut Incoming,
    limit: usize,
    enough: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, Failure> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| describe(&error))?.into_data() {
            read.extend_from_slice(&data[..data.len().min(limit - read.len())]);
        }
        if read.len() == limit || enough(&read) {
            break;
        }
    }
    Ok(read)
}

/// The beginning of an unexpected answer's body, for the message: `{"health":"false"}` says more than 503.
async fn excerpt(mut body: Incoming) -> String {
    match read_up_to(&mut body, 256, |_| true).await {
        Ok(read) if !read.is_empty() => format!(": {}", shorten(&read)),
        _ => String::new(),
    }
}

fn shorten(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.trim().replace(|c: char| c.is_control(), " ");
    match line.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn contains(body: &[u8], expected: &[u8]) -> bool {
    expected.is_empty() || body.windows(expected.len()).any(|window| window == expected)
}

fn describe(error: &hyper::Error) -> Failure {
    // hyper wraps the connection's error, which wraps TLS's: the innermost one says what happened.
    if let Some(reason) = error.source().and_then(tls::reason_within) {
        return Failure::new(reason);
    }
    if error.is_incomplete_message() {
        return Failure::new(
            "the connection was closed without an answer (is the port a TLS port? then set ca_file)",
        );
    }
    if error.is_parse() {
        return Failure::new("the answer is not HTTP (is the port a TLS port? then set ca_file)");
    }
    Failure::new(match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_searched_and_shortened() {
        assert!(contains(b"{\"health\":\"true\"}", b"true"));
        assert!(!contains(b"{\"health\":\"false\"}", b"true"));
        assert!(contains(b"", b""));
        assert!(!contains(b"tru", b"true"));
        assert_eq!(shorten(b"a\nb\r\n"), "a b");
        assert_eq!(shorten("ä".repeat(200).as_bytes()).chars().count(), 101);
    }
}
