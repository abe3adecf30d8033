//! Plain TCP connections that are never idle, for tests of the data path alone: every byte is checked, every
//! retransmission counted.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Host, eventually};

/// Longest wait for an echo; then the connection counts as broken. After 4 s without a path TCP tries again at 6.2 s.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Sizes of the messages, in turn: a small one, one that fills a segment, one of several segments.
const SIZES: [usize; 3] = [64, 1_400, 6_000];

/// Octets of the pattern of a transfer: a prime, so that no segment lost or sent twice goes unnoticed.
const PATTERN: usize = 65_521;

/// A server that sends back what it gets; dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    address_v6: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens on all of a host's addresses.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("listening on port {port} of {}", host.name()))?;
        let stop = Arc::<AtomicBool>::default();
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        listener.set_nonblocking(true)?;
        let acceptor = thread::spawn({
            let (stop, connections) = (Arc::clone(&stop), Arc::clone(&connections));
            move || accept(&listener, &stop, &connections)
        });
        Ok(Self {
            address: (host.address(), port).into(),
            address_v6: (host.address_v6(), port).into(),
            stop,
            connections,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same over IPv6.
    pub fn address_v6(&self) -> SocketAddr {
        self.address_v6
    }

    /// Peers of the connections it has accepted, as it sees them: with NAT, the translated address and port.
    pub fn peers(&self) -> Vec<SocketAddr> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let peers = connections.iter().filter_map(|connection| connection.peer_addr().ok());
        // Of a socket for both families.
        peers.map(|peer| (peer.ip().to_canonical(), peer.port()).into()).collect()
    }

    /// Says something on each of its connections, of its own accord; on how many it could.
    pub fn speak(&self, words: &[u8]) -> usize {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().filter(|connection| (&**connection).write_all(words).is_ok()).count()
    }

    /// Segments its side has sent again, over all its connections.
    pub fn retransmissions(&self) -> u64 {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().map(retransmissions).sum()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // An error means that it is closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
        if self.acceptor.take().is_some_and(|acceptor| acceptor.join().is_err()) {
            eprintln!("an echo server panicked");
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, connections: &Mutex<Vec<TcpStream>>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((connection, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        if let Ok(kept) = connection.try_clone() {
            connections.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        }
        thread::spawn(move || echo(connection));
    }
}

fn echo(mut connection: TcpStream) {
    let ready = connection.set_nonblocking(false).and_then(|()| connection.set_nodelay(true));
    let mut buffer = [0; 8192];
    while ready.is_ok() {
        match connection.read(&mut buffer) {
            Ok(length) if length > 0 && connection.write_all(&buffer[..length]).is_ok() => {}
            _ => break,
        }
    }
    // The server keeps a descriptor of it, which would leave it half closed.
    let _it_may_be_gone = connection.shutdown(Shutdown::Both);
}

/// What became of one busy connection.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The client's address and port.
    pub local: SocketAddr,
    /// Messages that came back whole and right.
    pub exchanges: u64,
    /// Longest time from one message's return to the next one's.
    pub longest_gap: Duration,
    /// Segments the client sent again.
    pub retransmissions: u64,
    /// When and how it broke, if it did.
    pub broken: Option<(Instant, String)>,
}

/// Sends this many octets to an echo server and gets them back, both at full rate at the same time; how long it took, and
/// how many segments the client sent again.
///
/// # Errors
///
/// If there is no connection, an octet comes back changed, or nothing moves for 5 s.
pub fn transfer(host: &Host, target: SocketAddr, octets: usize) -> Result<(Duration, u64)> {
    // Twice, so that what was received may begin anywhere in it.
    let pattern: Arc<Vec<u8>> = Arc::new((0..2 * PATTERN).map(|n| (n % PATTERN * 7 / 251) as u8).collect());
    let connected = host.run(|| TcpStream::connect_timeout(&target, TIMEOUT));
    let mut socket = connected.with_context(|| format!("from {} to {target}", host.name()))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let begun = Instant::now();
    let (mut sender, words) = (socket.try_clone()?, Arc::clone(&pattern));
    let sending = thread::spawn(move || {
        let mut left = octets;
        while left > 0 {
            let length = left.min(PATTERN);
            sender.write_all(&words[..length])?;
            left -= length;
        }
        std::io::Result::Ok(())
    });
    let (mut buffer, mut place) = (vec![0; PATTERN], 0);
    while place < octets {
        let length = socket.read(&mut buffer).with_context(|| format!("after {place} of {octets} octets"))?;
        ensure!(length > 0, "closed after {place} of {octets} octets");
        let expected = &pattern[place % PATTERN..][..length];
        ensure!(buffer[..length] == *expected, "octets from {place} on came back changed");
        place += length;
    }
    let took = begun.elapsed();
    match sending.join() {
        Ok(sent) => sent.context("sending")?,
        Err(_) => bail!("the sender panicked"),
    }
    Ok((took, retransmissions(&socket)))
}

/// Busy connections; dropping it stops them.
#[derive(Debug)]
pub struct BusyClients {
    stop: Arc<AtomicBool>,
    outcomes: Vec<Arc<Mutex<Outcome>>>,
    workers: Vec<JoinHandle<()>>,
}

impl BusyClients {
    /// Opens connections from a host to an echo server, and exchanges messages on each, with a pause of `interval`
    /// after each.
    ///
    /// # Errors
    ///
    /// If a connection cannot be made.
    pub fn start(host: &Host, target: SocketAddr, count: usize, interval: Duration) -> Result<Self> {
        let mut clients = Self { stop: Arc::default(), outcomes: Vec::new(), workers: Vec::new() };
        for number in 0..count {
            let socket = host
                .run(|| TcpStream::connect_timeout(&target, TIMEOUT))
                .with_context(|| format!("connection {number} from {} to {target}", host.name()))?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.set_write_timeout(Some(TIMEOUT))?;
            let outcome = Arc::new(Mutex::new(Outcome {
                local: socket.local_addr()?,
                exchanges: 0,
                longest_gap: Duration::ZERO,
                retransmissions: 0,
                broken: None,
            }));
            clients.outcomes.push(Arc::clone(&outcome));
            let stop = Arc::clone(&clients.stop);
            clients.workers.push(thread::spawn(move || converse(socket, &stop, &outcome, interval)));
        }
        Ok(clients)
    }

    /// What became of each connection so far.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.outcomes
            .iter()
            .map(|outcome| outcome.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }

    /// Number of connections that broke so far.
    pub fn broken(&self) -> usize {
        self.outcomes().iter().filter(|outcome| outcome.broken.is_some()).count()
    }

    /// Waits until every unbroken connection has exchanged `exchanges` messages more.
    ///
    /// # Errors
    ///
    /// If one has not within `limit`.
    pub fn wait_progress(&self, exchanges: u64, limit: Duration) -> Result<()> {
        let before = self.outcomes();
        eventually(limit, "progress of every connection", || {
            for (old, new) in before.iter().zip(self.outcomes()) {
                ensure!(
                    new.broken.is_some() || new.exchanges >= old.exchanges + exchanges,
                    "{}: {} of {exchanges} exchanges",
                    new.local,
                    new.exchanges - old.exchanges
                );
            }
            Ok(())
        })
    }

    /// Stops, and says what became of each connection.
    pub fn finish(mut self) -> Vec<Outcome> {
        self.join();
        self.outcomes()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("a busy client panicked");
            }
        }
    }
}

impl Drop for BusyClients {
    fn drop(&mut self) {
        self.join();
    }
}

fn converse(mut socket: TcpStream, stop: &AtomicBool, outcome: &Mutex<Outcome>, interval: Duration) {
    let mut last = Instant::now();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let result = exchange(&mut socket, number);
        let now = Instant::now();
        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.retransmissions = retransmissions(&socket);
        if let Err(error) = result {
            outcome.broken = Some((now, format!("{error:#}")));
            return;
        }
        outcome.exchanges += 1;
        outcome.longest_gap = outcome.longest_gap.max(now - last);
        drop(outcome);
        last = now;
        number += 1;
        thread::sleep(interval);
    }
}

/// Sends a message whose every byte depends on its number, and expects it back.
fn exchange(socket: &mut TcpStream, number: u64) -> Result<()> {
    let size = SIZES[(number % SIZES.len() as u64) as usize];
    let sent: Vec<u8> = number
        .to_be_bytes()
        .into_iter()
        .cycle()
        .zip(0_u8..=250)
        .map(|(a, b)| a ^ b)
        .cycle()
        .take(size)
        .collect();
    socket.write_all(&sent).context("sending")?;
    let mut got = vec![0; size];
    socket.read_exact(&mut got).context("receiving")?;
    if got != sent {
        bail!("message {number} came back changed");
    }
    Ok(())
}

/// `tcpi_total_retrans` of tcp(7)'s TCP_INFO.
fn retransmissions(socket: &TcpStream) -> u64 {
    use std::os::fd::AsRawFd as _;

    // SAFETY: `tcp_info` is a C struct of integers, for which zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `info`, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { info.tcpi_total_retrans.into() } else { 0 }
}
