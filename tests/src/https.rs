//! A keep-alive HTTP/1.1 connection over TLS, blocking and minimal: it must show every break as it happens, so nothing
//! in it retries or pools.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};
use serde_json::Value;

use crate::{Host, tls::Pki};

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    peer: SocketAddr,
    local: SocketAddr,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects from a host and completes the TLS handshake with the client certificate. `limit` bounds each wait, then
    /// and later.
    ///
    /// # Errors
    ///
    /// If that does not succeed.
    pub fn open(host: &Host, peer: SocketAddr, pki: &Pki, limit: Duration) -> Result<Self> {
        let socket = host
            .run(|| TcpStream::connect_timeout(&peer, limit))
            .with_context(|| format!("connecting from {} to {peer}", host.name()))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(limit))?;
        let local = socket.local_addr()?;
        let tls = ClientConnection::new(pki.config.clone(), ServerName::IpAddress(peer.ip().into()))?;
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .with_context(|| format!("TLS handshake with {peer}"))?;
        }
        Ok(Self { stream: BufReader::new(stream), peer, local })
    }

    /// The client's address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The TCP socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.stream.get_ref().sock
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    ///
    /// If the connection breaks, a wait exceeds its limit, or the answer is not HTTP.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Response> {
        let peer = self.peer;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {peer}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes()).context("sending a request")?;
        stream.flush().context("sending a request")?;
        self.read_response().with_context(|| format!("{method} {path} of {peer}"))
    }

    /// Posts JSON to etcd's gateway and parses the answer.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`], and if the answer is not 200 with JSON.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let Response { status, body } = self.request("POST", path, &body.to_string())?;
        let text = String::from_utf8_lossy(&body);
        if status != 200 {
            bail!("POST {path}: status {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("POST {path}: {text}"))
    }

    /// Closes the connection from our side.
    pub fn close(self) {
        // An error means that it is closed already.
        let _ = self.stream.get_ref().sock.shutdown(Shutdown::Both);
    }

    fn read_response(&mut self) -> Result<Response> {
        let status_line = self.read_line()?;
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .with_context(|| format!("not an HTTP status line: {status_line:?}"))?;
        let mut length = 0;
        let mut chunked = false;
        loop {
            let line = self.read_line()?.to_ascii_lowercase();
            match line.split_once(':') {
                _ if line.is_empty() => break,
                Some(("content-length", value)) => length = value.trim().parse().context("Content-Length")?,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                _ => {}
            }
        }
        let body = if chunked { self.read_chunks()? } else { self.read_exactly(length)? };
        Ok(Response { status, body })
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.read_line()?, 16).context("chunk size")?;
            body.extend(self.read_exactly(size)?);
            self.read_line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the peer closed the connection");
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
