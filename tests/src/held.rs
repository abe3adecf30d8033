//! Connections that say nothing by themselves, watched at both ends: when does each end learn that it is over, and how?

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::Host;

/// Between two looks at every connection: short beside what is measured.
const PAUSE: Duration = Duration::from_millis(2);

/// How a connection ended, as one end saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// When it was seen.
    pub at: Instant,
    /// By a RST (ECONNRESET), and not by a FIN.
    pub reset: bool,
}

type Ends = Arc<Mutex<BTreeMap<u16, Option<Ended>>>>;

/// A member that accepts, echoes and answers health checks until it is frozen.
#[derive(Debug)]
pub struct HeldServer {
    host: Host,
    stop: Arc<AtomicBool>,
    frozen: Arc<AtomicBool>,
    ends: Ends,
    workers: Vec<JoinHandle<()>>,
}

impl HeldServer {
    /// Listens on a port of all addresses, and for health checks by HTTP on another.
    ///
    /// # Errors
    ///
    /// If a port is taken.
    pub fn start(host: &Host, port: u16, health_port: u16) -> Result<Self> {
        let listen = |port: u16| -> Result<TcpListener> {
            let bound = host.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
            let listener = bound.with_context(|| format!("listening on {port} of {}", host.name()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let (traffic, health) = (listen(port)?, listen(health_port)?);
        let (stop, frozen) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let ends = Ends::default();
        let workers = vec![
            thread::spawn({
                let (stop, frozen, ends) = (Arc::clone(&stop), Arc::clone(&frozen), Arc::clone(&ends));
                move || hold(&traffic, &stop, &frozen, &ends)
            }),
            thread::spawn({
                let (stop, frozen) = (Arc::clone(&stop), Arc::clone(&frozen));
                move || answer(&health, &stop, &frozen)
            }),
        ];
        Ok(Self { host: host.clone(), stop, frozen, ends, workers })
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Stops answering; its kernel keeps the connections, as of a process that got SIGSTOP. Or goes on.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// The connections it has accepted, by the peer's port, and how each ended.
    pub fn ends(&self) -> BTreeMap<u16, Option<Ended>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for HeldServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        join(&mut self.workers);
    }
}

/// Clients that hold connections and say nothing.
#[derive(Debug)]
pub struct HeldClients {
    stop: Arc<AtomicBool>,
    ends: Ends,
    workers: Vec<JoinHandle<()>>,
}

impl HeldClients {
    /// Opens connections, and has one message echoed on each, so that both ends have sent and acknowledged something.
    ///
    /// # Errors
    ///
    /// If one cannot be made.
    pub fn open(host: &Host, target: SocketAddr, count: usize) -> Result<Self> {
        let mut sockets = Vec::with_capacity(count);
        for number in 0..count {
            let connected = host.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)));
            let mut socket =
                connected.with_context(|| format!("connection {number} from {} to {target}", host.name()))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.write_all(b"hello")?;
            socket.read_exact(&mut [0; 5]).context("no echo")?;
            sockets.push(socket);
        }
        Self::watch(sockets)
    }

    /// Watches connections that are there, and that say nothing any more.
    ///
    /// # Errors
    ///
    /// If one has ended already.
    pub fn watch(sockets: Vec<TcpStream>) -> Result<Self> {
        let with_port = |socket: TcpStream| {
            socket.set_nonblocking(true)?;
            anyhow::Ok((socket.local_addr()?.port(), socket))
        };
        let mut sockets: Vec<_> = sockets.into_iter().map(with_port).collect::<Result<_>>()?;
        let ends = Ends::new(Mutex::new(sockets.iter().map(|(port, _)| (*port, None)).collect()));
        let stop = Arc::<AtomicBool>::default();
        let worker = thread::spawn({
            let (stop, ends) = (Arc::clone(&stop), Arc::clone(&ends));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    sockets.retain_mut(|(port, socket)| watch(socket, *port, false, &ends));
                    thread::sleep(PAUSE);
                }
            }
        });
        Ok(Self { stop, ends, workers: vec![worker] })
    }

    /// The connections by the client's port, and how each ended.
    pub fn ends(&self) -> BTreeMap<u16, Option<Ended>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for HeldClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        join(&mut self.workers);
    }
}

fn join(workers: &mut Vec<JoinHandle<()>>) {
    for worker in workers.drain(..) {
        if worker.join().is_err() {
            eprintln!("a watcher of held connections panicked");
        }
    }
}

fn hold(listener: &TcpListener, stop: &AtomicBool, frozen: &AtomicBool, ends: &Ends) {
    let mut sockets = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        while let Ok((socket, peer)) = listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                ends.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.port(), None);
                sockets.push((peer.port(), socket));
            }
        }
        let echoes = !frozen.load(Ordering::Relaxed);
        sockets.retain_mut(|(port, socket)| watch(socket, *port, echoes, ends));
        thread::sleep(PAUSE);
    }
}

/// Looks at a connection, and whether it goes on. What is not echoed stays in the kernel, but the socket's error shows.
fn watch(socket: &mut TcpStream, port: u16, echoes: bool, ends: &Ends) -> bool {
    let mut buffer = [0; 8192];
    let reset = if echoes {
        match socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => return socket.write_all(&buffer[..length]).is_ok(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    } else {
        match (socket.take_error(), socket.peek(&mut buffer[..1])) {
            (Ok(Some(error)), _) | (_, Err(error)) if error.kind() != ErrorKind::WouldBlock => {
                error.kind() == ErrorKind::ConnectionReset
            }
            (_, Ok(0)) => false,
            _ => return true,
        }
    };
    let ended = Ended { at: Instant::now(), reset };
    ends.lock().unwrap_or_else(PoisonError::into_inner).insert(port, Some(ended));
    false
}

fn answer(listener: &TcpListener, stop: &AtomicBool, frozen: &AtomicBool) {
    // Those of the frozen are kept open, unanswered.
    let mut asked = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok((mut socket, _)) = listener.accept() {
            if frozen.load(Ordering::Relaxed) {
                asked.push(socket);
                continue;
            }
            let ready = socket.set_nonblocking(false);
            let limit = socket.set_read_timeout(Some(Duration::from_millis(200)));
            if ready.is_ok() && limit.is_ok() && socket.read(&mut [0; 1024]).is_ok() {
                // The prober may have gone: then it counts the check as failed by itself.
                let _ =
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        } else {
            thread::sleep(PAUSE);
        }
    }
}
