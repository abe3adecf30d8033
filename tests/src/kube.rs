//! As much of a Kubernetes API server as a follower of EndpointSlices sees: list and watch, over plain HTTP.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{CLIENT_PORT, Host};

/// Where the slices are, and whose they are.
pub const NAMESPACE: &str = "etcd";
pub const SERVICE: &str = "etcd-client";
/// What the client has to show.
const TOKEN: &str = "a-token";

/// An endpoint: its pod, its address, and whether it is ready.
pub type Endpoint<'a> = (&'a str, IpAddr, bool);

/// The server. It ends with this.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// What happened at which version.
    events: Vec<(u64, Value)>,
    /// Watches from an older version than this are refused as gone.
    oldest: u64,
    /// Watches that began before this number of interruptions end.
    interruptions: u64,
    lists: usize,
    watches: usize,
}

impl ApiServer {
    /// Starts one without any slices.
    ///
    /// # Errors
    ///
    /// If the port is taken, or the kubeconfig cannot be written.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let address = SocketAddr::from((host.address(), port));
        let listener =
            host.run(|| TcpListener::bind(address)).with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let kubeconfig = host.lab_dir().join("run").join("kubeconfig");
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "lab", "user": {"token": TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        });
        fs::write(&kubeconfig, text.to_string())?;
        let shared = Arc::<Shared>::default();
        shared.lock().version = 1;
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    let shared = Arc::clone(&shared);
                    // One that breaks has served its client; it tries again.
                    thread::spawn(move || drop(serve(stream, &shared)));
                }
            }
        });
        Ok(Self { address, kubeconfig, shared, acceptor: Some(acceptor) })
    }

    /// How to reach it.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a slice.
    pub fn set(&self, name: &str, endpoints: &[Endpoint<'_>]) {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, address, ready)| {
                json!({
                    "addresses": [address.to_string()],
                    "conditions": {"ready": ready},
                    "targetRef": {"kind": "Pod", "name": pod},
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": version.to_string()},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "peer", "port": 2380}, {"name": "client", "port": CLIENT_PORT, "protocol": "TCP"}],
        });
        let kind =
            if state.slices.insert(name.into(), slice.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.events.push((version, json!({"type": kind, "object": slice})));
        self.shared.changed.notify_all();
    }

    /// Deletes a slice.
    pub fn delete(&self, name: &str) {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        let Some(mut slice) = state.slices.remove(name) else { return };
        slice["metadata"]["resourceVersion"] = version.to_string().into();
        state.events.push((version, json!({"type": "DELETED", "object": slice})));
        self.shared.changed.notify_all();
    }

    /// Says nothing but how far it is.
    pub fn bookmark(&self) {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"resourceVersion": version.to_string()},
        });
        state.events.push((version, json!({"type": "BOOKMARK", "object": object})));
        self.shared.changed.notify_all();
    }

    /// Ends all watches; they may go on from where they were.
    pub fn interrupt(&self) {
        self.shared.lock().interruptions += 1;
        self.shared.changed.notify_all();
    }

    /// Forgets what happened, as etcd's compaction makes it: whoever watched has to list again.
    pub fn expire(&self) {
        let mut state = self.shared.lock();
        state.version += 1;
        state.oldest = state.version;
        state.interruptions += 1;
        self.shared.changed.notify_all();
    }

    /// How many lists and watches were asked for.
    pub fn asked(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.lists, state.watches)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.lock().interruptions += 1;
        self.shared.changed.notify_all();
        if self.acceptor.take().is_some_and(|acceptor| acceptor.join().is_err()) {
            eprintln!("an API server panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut authorized = false;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            authorized |= header == format!("authorization: bearer {TOKEN}");
            if header.is_empty() {
                break;
            }
        }
        let target = request.split_whitespace().nth(1).context("no target")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parameters: BTreeMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let is_right = path == format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
            && parameters.get("labelSelector").is_some_and(|selector| {
                let selector = selector.replace("%2F", "/").replace("%3D", "=");
                selector == format!("kubernetes.io/service-name={SERVICE}")
            });
        if !authorized || !is_right {
            let code = if authorized { 404 } else { 401 };
            reply(&mut out, code, &status(code, "nothing for you here"))?;
        } else if parameters.get("watch").is_some_and(|watch| *watch == "true" || *watch == "1") {
            let from =
                parameters.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            return watch(&mut out, shared, from);
        } else {
            let mut state = shared.lock();
            state.lists += 1;
            let list = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSliceList",
                "metadata": {"resourceVersion": state.version.to_string()},
                "items": state.slices.values().collect::<Vec<_>>(),
            });
            drop(state);
            reply(&mut out, 200, &list)?;
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 410 { "Expired" } else { "NotFound" };
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn reply(out: &mut impl Write, code: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    out.write_all((head + &body).as_bytes())?;
    Ok(())
}

fn watch(out: &mut impl Write, shared: &Shared, from: u64) -> Result<()> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let mut seen = from;
    let mut state = shared.lock();
    state.watches += 1;
    let begun = state.interruptions;
    // Also a version that this server has not reached: it is another one's.
    if from < state.oldest || from > state.version {
        drop(state);
        chunk(out, &json!({"type": "ERROR", "object": status(410, "too old resource version")}))?;
        out.write_all(b"0\r\n\r\n")?;
        return Ok(());
    }
    while state.interruptions == begun {
        let news: Vec<_> = state.events.iter().filter(|(version, _)| *version > seen).cloned().collect();
        seen = state.version.max(seen);
        drop(state);
        for (_, event) in news {
            chunk(out, &event)?;
        }
        state = shared.lock();
        if state.version == seen && state.interruptions == begun {
            let waited = shared.changed.wait_timeout(state, Duration::from_millis(200));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
    // As a server that goes away: without an end.
    Ok(())
}

fn chunk(out: &mut impl Write, event: &Value) -> Result<()> {
    let line = format!("{event}\n");
    out.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
    Ok(())
}
