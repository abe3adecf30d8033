//! A server that answers requests of 64 octets, and clients that count and time them.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etcd_lb_tests::Host;

use crate::stats::quantile;

/// Octets of a request, and of its answer.
const SIZE: usize = 64;
/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Trips that are not counted on a new connection.
const FIRST_TRIPS: usize = 100;

/// Threads that each serve one connection at a time.
pub struct Responder {
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Responder {
    pub fn start(host: &Host, port: u16, threads: usize) -> Result<Self> {
        let address = (host.address(), port);
        let listener = Arc::new(host.run(|| TcpListener::bind(address)).context("the responder")?);
        let serve = |_| {
            let listener = Arc::clone(&listener);
            thread::spawn(move || {
                while let Ok((connection, _)) = listener.accept() {
                    respond(connection);
                }
            })
        };
        let threads = (0..threads).map(serve).collect();
        Ok(Self { listener, threads })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Ends what waits in accept().
        // SAFETY: the listener is open, and shutdown() takes no pointers.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        for thread in self.threads.drain(..) {
            // One that serves a connection ends when its client does.
            if thread.is_finished() {
                let _it_panicked_or_not = thread.join();
            }
        }
    }
}

fn respond(mut connection: TcpStream) {
    let mut buffer = [0; SIZE];
    let mut ready = connection.set_nodelay(true).is_ok();
    while ready {
        ready = connection.read_exact(&mut buffer).and_then(|()| connection.write_all(&buffer)).is_ok();
    }
}

/// A connection from a host, TCP_NODELAY, without busy polling (the kernel's default).
pub fn connect(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = host.run(|| TcpStream::connect_timeout(&to, LIMIT)).with_context(|| format!("to {to}"))?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

/// A request and its answer.
pub fn trip(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [7; SIZE];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}

/// The median and the 99th percentile of round trips, in µs, one after the other on one connection.
pub fn latency(host: &Host, to: SocketAddr, during: Duration) -> Result<(f64, f64)> {
    let mut stream = connect(host, to)?;
    for _ in 0..FIRST_TRIPS {
        trip(&mut stream)?;
    }
    let begun = Instant::now();
    let mut times = Vec::with_capacity(100_000);
    while begun.elapsed() < during {
        let sent = Instant::now();
        trip(&mut stream)?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok((quantile(&times, 0.5), quantile(&times, 0.99)))
}

/// Connections of a round.
pub struct Connected {
    /// Those that were answered.
    pub per_second: f64,
    /// Those that were not, or never became one.
    pub failed_per_second: f64,
    /// What the first of those said.
    pub error: Option<String>,
}

/// Workers that each connect, ask once and close, one after the other.
pub fn connections(host: &Host, to: SocketAddr, workers: usize, during: Duration) -> Result<Connected> {
    let (count, begun) = (AtomicU64::new(0), Instant::now());
    let (failed, first) = (AtomicU64::new(0), Mutex::new(None));
    host.run(|| {
        thread::scope(|scope| {
            let work = || -> Result<()> {
                while begun.elapsed() < during {
                    let Err(error) = ask_once(to) else {
                        count.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    failed.fetch_add(1, Ordering::Relaxed);
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(format!("{error:#}"));
                }
                Ok(())
            };
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            join(threads.into_iter().map(thread::ScopedJoinHandle::join))
        })
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Connected {
        per_second: count.load(Ordering::Relaxed) as f64 / seconds,
        failed_per_second: failed.load(Ordering::Relaxed) as f64 / seconds,
        error: first.into_inner().unwrap_or_else(PoisonError::into_inner),
    })
}

fn ask_once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connecting")?;
    prepare(&stream)?;
    trip(&mut stream).context("asking")?;
    stream.shutdown(Shutdown::Write).context("closing")
}

/// Requests at a rate, spread over connections; how many were answered.
pub fn paced(host: &Host, to: SocketAddr, connections: u32, rate: f64, during: Duration) -> Result<u64> {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    let streams: Vec<TcpStream> = (0..connections).map(|_| connect(host, to)).collect::<Result<_>>()?;
    let pause = Duration::from_secs_f64(f64::from(connections) / rate);
    thread::scope(|scope| {
        let work = |mut stream: TcpStream, first: Duration| -> Result<()> {
            let mut due = begun + first;
            while due < begun + during {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                trip(&mut stream)?;
                count.fetch_add(1, Ordering::Relaxed);
                due += pause;
            }
            Ok(())
        };
        let threads: Vec<_> = streams
            .into_iter()
            .zip(0..)
            .map(|(stream, number)| scope.spawn(move || work(stream, pause * number / connections)))
            .collect();
        join(threads.into_iter().map(thread::ScopedJoinHandle::join))
    })?;
    Ok(count.load(Ordering::Relaxed))
}

fn join(mut threads: impl Iterator<Item = thread::Result<Result<()>>>) -> Result<()> {
    threads.try_for_each(|ended| ended.unwrap_or_else(|_| anyhow::bail!("a client panicked")))
}
