//! Long-lived etcd clients that count what breaks.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{Host, etcd::Status, eventually, https::Connection, tls::Pki};

/// A read that any member answers by itself, so that a gap measures the way to the member, not an election.
const REQUEST: &str = r#"{"key":"aw==","serializable":true}"#;
/// Time between attempts to connect again.
const RETRY: Duration = Duration::from_millis(50);

/// How the clients behave.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Number of clients, a connection and a thread each.
    pub clients: usize,
    /// Time between an answer and the next request.
    pub interval: Duration,
    /// Longest wait for an answer; then the connection counts as broken.
    pub timeout: Duration,
    /// Whether a client whose connection broke makes a new one.
    pub reconnect: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clients: 12,
            interval: Duration::from_millis(50),
            timeout: Duration::from_secs(5),
            reconnect: false,
        }
    }
}

/// One connection's life.
#[derive(Debug, Clone)]
pub struct Session {
    /// The number of its client, from 0.
    pub client: usize,
    /// The client's address and port.
    pub local: SocketAddr,
    /// The id of the member at its other end.
    pub member: u64,
    /// When it was ready for requests.
    pub opened: Instant,
    /// Requests answered.
    pub requests: u64,
    /// Longest time from one answer to the next.
    pub longest_gap: Duration,
    /// How it broke, if it did.
    pub broken: Option<Broken>,
}

/// A break.
#[derive(Debug, Clone)]
pub struct Broken {
    /// When the client noticed.
    pub at: Instant,
    /// What it saw.
    pub error: String,
}

/// Clients at work; dropping it stops them.
#[derive(Debug)]
pub struct Fleet {
    stop: Arc<AtomicBool>,
    sessions: Arc<Mutex<Vec<Session>>>,
    waits: Arc<Mutex<Vec<Wait>>>,
    workers: Vec<JoinHandle<()>>,
}

/// How long a client has waited for answers, over all its connections.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// The last answer.
    since: Instant,
    longest: Duration,
}

impl Fleet {
    /// Connects the clients from a host, one after the other, and sets them to work.
    ///
    /// # Errors
    ///
    /// If a first connection cannot be made.
    pub fn start(host: &Host, target: SocketAddr, pki: &Pki, options: Options) -> Result<Self> {
        let wait = Wait { since: Instant::now(), longest: Duration::ZERO };
        let mut fleet = Self {
            stop: Arc::default(),
            sessions: Arc::default(),
            waits: Arc::new(Mutex::new(vec![wait; options.clients])),
            workers: Vec::new(),
        };
        for client in 0..options.clients {
            let worker = Worker {
                client,
                host: host.clone(),
                target,
                pki: pki.clone(),
                options,
                stop: Arc::clone(&fleet.stop),
                sessions: Arc::clone(&fleet.sessions),
                waits: Arc::clone(&fleet.waits),
            };
            let first = worker.connect()?;
            fleet.workers.push(thread::spawn(move || worker.work(first)));
        }
        Ok(fleet)
    }

    /// Every connection so far, in the order they were made.
    pub fn sessions(&self) -> Vec<Session> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connections that broke so far.
    pub fn broken(&self) -> Vec<Session> {
        self.sessions().into_iter().filter(|session| session.broken.is_some()).collect()
    }

    /// How many of the connections that live are on a member.
    pub fn alive_on(&self, member: u64) -> usize {
        self.alive().iter().filter(|session| session.member == member).count()
    }

    /// The connections that live.
    pub fn alive(&self) -> Vec<Session> {
        self.sessions().into_iter().filter(|session| session.broken.is_none()).collect()
    }

    /// The longest time that a client has waited for an answer since this was last asked, the time to connect again
    /// included.
    pub fn longest_wait(&self) -> Duration {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = waits.iter().map(|wait| wait.longest.max(wait.since.elapsed())).max();
        waits.iter_mut().for_each(|wait| wait.longest = Duration::ZERO);
        longest.unwrap_or_default()
    }

    /// Waits until every living connection has had `requests` more answers.
    ///
    /// # Errors
    ///
    /// If one has not within `limit`.
    pub fn wait_progress(&self, requests: u64, limit: Duration) -> Result<()> {
        let before = self.sessions();
        eventually(limit, "progress of every client", || {
            for (old, new) in before.iter().zip(self.sessions()) {
                ensure!(
                    new.broken.is_some() || new.requests >= old.requests + requests,
                    "client {} got {} of {requests} answers",
                    new.client,
                    new.requests - old.requests
                );
            }
            Ok(())
        })
    }

    /// Stops the clients and returns every connection they made.
    pub fn finish(mut self) -> Vec<Session> {
        self.join();
        self.sessions()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("a client panicked");
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.join();
    }
}

struct Worker {
    client: usize,
    host: Host,
    target: SocketAddr,
    pki: Pki,
    options: Options,
    stop: Arc<AtomicBool>,
    sessions: Arc<Mutex<Vec<Session>>>,
    waits: Arc<Mutex<Vec<Wait>>>,
}

impl Worker {
    /// Opens a connection, learns which member is at its other end, and enters it; returns it with its index.
    fn connect(&self) -> Result<(Connection, usize)> {
        let mut connection = Connection::open(&self.host, self.target, &self.pki, self.options.timeout)?;
        let member = Status::over(&mut connection)?.member_id;
        let session = Session {
            client: self.client,
            local: connection.local(),
            member,
            opened: Instant::now(),
            requests: 0,
            longest_gap: Duration::ZERO,
            broken: None,
        };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.push(session);
        Ok((connection, sessions.len() - 1))
    }

    fn work(&self, first: (Connection, usize)) {
        let mut current = Some(first);
        while !self.stop.load(Ordering::Relaxed) {
            match current.take() {
                Some((connection, index)) => {
                    self.use_up(connection, index);
                    if !self.options.reconnect {
                        return;
                    }
                }
                None => match self.connect() {
                    Ok(next) => current = Some(next),
                    Err(_) => thread::sleep(RETRY),
                },
            }
        }
    }

    /// Sends requests until the connection breaks or the fleet stops.
    fn use_up(&self, mut connection: Connection, index: usize) {
        let mut last = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let answer = connection.request("POST", "/v3/kv/range", REQUEST).and_then(|response| {
                ensure!(response.status == 200, "status {}", response.status);
                Ok(())
            });
            let now = Instant::now();
            if answer.is_ok() {
                let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
                let wait = &mut waits[self.client];
                wait.longest = wait.longest.max(now - wait.since);
                wait.since = now;
            }
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let session = &mut sessions[index];
            if let Err(error) = answer {
                session.broken = Some(Broken { at: now, error: format!("{error:#}") });
                return;
            }
            session.requests += 1;
            session.longest_gap = session.longest_gap.max(now - last);
            drop(sessions);
            last = now;
            thread::sleep(self.options.interval);
        }
        connection.close();
    }
}
