//! How long a client is without its member after that one dies or freezes.
//!
//! The client is the same everywhere: an `etcdctl watch`, whose connection is long-lived and whose library (etcd's own) makes
//! a new one and goes on with the watch. It is given the address of a balancer, or, for etcd's own client balancer, all three
//! members. All ways have a watch on the same member, a follower, when that one is killed or frozen, while a writer puts a key
//! every 10 ms by way of the leader.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_lb_tests::{Member, etcd::METRICS_PORT, eventually, https::Connection};
use serde_json::json;

use crate::{
    Effort,
    etcd::Plane,
    peers::{Kind, Peer},
    report::Row,
};

/// A recovery that takes longer is counted as this.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two puts.
const PACE: Duration = Duration::from_millis(10);
/// Watches of a peer that may be tried until one is on the member.
const TRIES: usize = 40;

#[derive(Debug, Clone, Copy)]
enum Event {
    Dies,
    Freezes,
}

pub fn recovery(effort: Effort, haproxy: bool, etcd: bool) -> Result<Vec<Row>> {
    ensure!(etcd, "etcd or etcdctl is missing: apt-get install etcd-server etcd-client");
    let mut kinds = vec![Kind::EtcdLb];
    if haproxy {
        kinds.extend([Kind::Haproxy, Kind::HaproxyClosing]);
    }
    kinds.push(Kind::Direct);
    let mut plane = Plane::start("recovery", &kinds)?;
    let mut rows = Vec::new();
    for (event, title, goal) in [
        (
            Event::Dies,
            "a member is killed: until its client is served again",
            "< 100 ms, where the client's backoff allows",
        ),
        (Event::Freezes, "a member freezes: until its client is served again", "< 3100 ms"),
    ] {
        let mut found: Vec<Vec<f64>> = kinds.iter().map(|_| Vec::new()).collect();
        for _ in 0..effort.pick(1, 5) {
            for (found, took) in found.iter_mut().zip(once(&mut plane, event)?) {
                found.push(took.as_secs_f64() * 1e3);
            }
        }
        let mut row = Row::new("recovery", title, "ms").goal(goal);
        for (kind, samples) in kinds.iter().zip(found) {
            let name = if *kind == Kind::Direct { "etcdctl, three endpoints" } else { kind.name() };
            row = row.cell(name, samples);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// How long each way took.
fn once(plane: &mut Plane, event: Event) -> Result<Vec<Duration>> {
    let leader = plane.cluster.leader()?.to_owned();
    let members = plane.cluster.members();
    let victim =
        members.iter().find(|member| member.name() != leader).context("no follower")?.name().to_owned();
    let watches: Vec<Watch> =
        plane.peers.iter().map(|peer| watch_on(plane, peer, &victim)).collect::<Result<_>>()?;
    let writer = Writer::start(plane, &leader)?;
    thread::sleep(Duration::from_millis(300));
    let at = Instant::now();
    match event {
        Event::Dies => plane.cluster.member_mut(&victim).kill()?,
        Event::Freezes => plane.cluster.member(&victim).freeze()?,
    }
    // Whoever is not served says nothing at the end of a second, and those that are do.
    thread::sleep(Duration::from_secs(1));
    let served = |watch: &Watch| watch.last().is_some_and(|last| last.elapsed() < Duration::from_millis(200));
    while at.elapsed() < LIMIT && !watches.iter().all(served) {
        thread::sleep(Duration::from_millis(20));
    }
    let took = watches.iter().map(|watch| if served(watch) { watch.recovered(at) } else { LIMIT }).collect();
    drop(writer);
    drop(watches);
    match event {
        Event::Dies => plane.cluster.member_mut(&victim).start()?,
        Event::Freezes => plane.cluster.member(&victim).thaw()?,
    }
    plane.cluster.member_mut(&victim).wait_healthy()?;
    for balancer in plane.peers.iter().filter_map(Peer::balancer) {
        balancer.wait_backend(&victim, "healthy", LIMIT)?;
    }
    // HAProxy's checks are as frequent.
    thread::sleep(Duration::from_millis(1500));
    Ok(took)
}

/// A watch of a peer that is on this member. Those on others stay until one is, so that a balancer goes on to the next.
fn watch_on(plane: &Plane, peer: &Peer, victim: &str) -> Result<Watch> {
    let mut others = Vec::new();
    for _ in 0..TRIES {
        let before = watchers(plane)?;
        let watch = Watch::start(plane, peer)?;
        let place = eventually(Duration::from_secs(10), &format!("a watch through {}", peer.name()), || {
            let now = watchers(plane)?;
            before.iter().zip(&now).position(|(before, now)| now > before).context("no member knows of it")
        })?;
        if plane.cluster.members()[place].name() == victim {
            return Ok(watch);
        }
        others.push(watch);
    }
    bail!("{} put none of {TRIES} watches on {victim}", peer.name())
}

/// How many watchers each member has.
fn watchers(plane: &Plane) -> Result<Vec<u64>> {
    plane.cluster.members().iter().map(|member| watchers_of(plane, member)).collect()
}

fn watchers_of(plane: &Plane, member: &Member) -> Result<u64> {
    let to = SocketAddr::from((member.host().address(), METRICS_PORT));
    let mut stream = plane.client().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let value = page.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    Ok(value.context("no metric of watchers")?.parse()?)
}

/// An `etcdctl watch`, and when its events came.
struct Watch {
    child: Child,
    events: Arc<Mutex<Vec<Instant>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(plane: &Plane, peer: &Peer) -> Result<Self> {
        let endpoints = plane.endpoints(peer).join(",");
        let mut command = plane.cluster.etcdctl_command(plane.client(), &endpoints);
        // The members' certificates are not for the addresses of all peers.
        command.args(["--insecure-skip-tls-verify", "watch", "recovery"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot run etcdctl")?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let events = Arc::<Mutex<Vec<Instant>>>::default();
        let reader = thread::spawn({
            let events = Arc::clone(&events);
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if line == "PUT" {
                        events.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                    }
                }
            }
        });
        Ok(Self { child, events, reader: Some(reader) })
    }

    fn last(&self) -> Option<Instant> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// Until the end of the longest time without an event.
    fn recovered(&self, since: Instant) -> Duration {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = events.windows(2).filter(|pair| pair[1] > since);
        let longest = gaps.max_by_key(|pair| pair[1] - pair[0]);
        longest.map_or(LIMIT, |pair| pair[1] - since)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.reader.take().is_some_and(|reader| reader.join().is_err()) {
            eprintln!("the reader of a watch panicked");
        }
    }
}

/// Puts the watched key until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    fn start(plane: &Plane, leader: &str) -> Result<Self> {
        let member = plane.cluster.member(leader);
        let to = member.client_address();
        let mut connection = Connection::open(plane.client(), to, &plane.cluster.pki, LIMIT)?;
        let stop = Arc::<AtomicBool>::default();
        let worker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // "recovery" and "x" in base64, as etcd's gateway takes them.
                    connection.post("/v3/kv/put", &json!({"key": "cmVjb3Zlcnk=", "value": "eA=="}))?;
                    thread::sleep(PACE);
                }
                Ok(())
            }
        });
        Ok(Self { stop, worker: Some(worker) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.worker.take().map(crate::join) {
            eprintln!("the writer: {error:#}");
        }
    }
}
