//! What the data plane does and tells by itself: dead members, flow log, foreign claims, floods, jumbo frames.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
    fleet::Options,
    flow_log,
    frames::TcpFrame,
    packet::RawSocket,
};
use lb_common::{addr::Mac, tcp::SYN};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(15);

fn vip() -> SocketAddr {
    (VIP, CLIENT_PORT).into()
}

fn small() -> Topology {
    Topology::standard().without("lb2").without("client-2")
}

struct Scene {
    balancer: Balancer,
    servers: Vec<EchoServer>,
    client: Host,
    lab: Lab,
}

fn scene(name: &str, mtu: Option<u32>, top: impl FnOnce(&Lab) -> String) -> Scene {
    let lab = Lab::start(name, &small()).unwrap();
    if let Some(mtu) = mtu {
        lab.set_mtu(mtu).unwrap();
    }
    let servers: Vec<EchoServer> = ["etcd-1", "etcd-2", "etcd-3"]
        .into_iter()
        .map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap())
        .collect();
    let config =
        Config::echo(lab.host("lb1")).top(&top(&lab)).numbered(servers.iter().map(EchoServer::address));
    let balancer = Balancer::start(lab.host("lb1"), &config.text()).unwrap();
    for number in 0..servers.len() {
        balancer.wait_backend(&format!("b{number}"), "healthy", LIMIT).unwrap();
    }
    Scene { client: lab.host("client-1").clone(), balancer, servers, lab }
}

/// One attempt to connect.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    begun: Instant,
    ended: Instant,
    refused: bool,
}

/// Clients that connect, close and connect again.
struct Connectors {
    stop: Arc<AtomicBool>,
    attempts: Arc<Mutex<Vec<Attempt>>>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Connectors {
    fn start(host: &Host, count: usize) -> Self {
        let (stop, attempts) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Attempt>>>::default());
        let work = || {
            let (host, stop, attempts) = (host.clone(), Arc::clone(&stop), Arc::clone(&attempts));
            thread::spawn(move || {
                host.run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let refused = match TcpStream::connect_timeout(&vip(), LIMIT) {
                            Ok(stream) => stream.shutdown(Shutdown::Both).is_err(),
                            Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                        };
                        attempts.lock().unwrap().push(Attempt { begun, ended: Instant::now(), refused });
                        thread::sleep(Duration::from_millis(2));
                    }
                });
            })
        };
        let workers = (0..count).map(|_| work()).collect();
        Self { stop, attempts, workers }
    }

    fn finish(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::Relaxed);
        self.workers.into_iter().for_each(|worker| worker.join().unwrap());
        self.attempts.lock().unwrap().clone()
    }
}

/// Kills a member under clients that reconnect; with a fleet of established connections, or without.
fn kill_a_member(name: &str, established: bool) {
    let lab = Lab::start(name, &small()).unwrap();
    let mut cluster = Cluster::start(&lab).unwrap();
    // So that only what the data plane sees can be as fast as promised.
    let config = Config::etcd(lab.host("lb1"), &cluster).text();
    let config = config.replace("\ninterval = \"500ms\"", "\ninterval = \"5s\"");
    assert!(config.contains("interval = \"5s\""), "{config}");
    let balancer = Balancer::start(lab.host("lb1"), &config).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", LIMIT).unwrap();
    }
    let client = lab.host("client-1").clone();
    let options = Options { reconnect: true, interval: Duration::from_millis(20), ..Options::default() };
    let fleet = established.then(|| Fleet::start(&client, vip(), &cluster.pki, options).unwrap());
    let connectors = Connectors::start(&client, 3);
    thread::sleep(Duration::from_millis(300));

    let killed = Instant::now();
    cluster.member_mut("etcd-2").kill().unwrap();
    balancer.wait_backend("etcd-2", "down", LIMIT).unwrap();
    let down = Instant::now();
    thread::sleep(Duration::from_millis(500));
    let attempts = connectors.finish();

    let refused: Vec<Attempt> = attempts.iter().copied().filter(|attempt| attempt.refused).collect();
    let first = refused.iter().map(|attempt| attempt.ended).min();
    let since = first.unwrap_or(killed);
    println!(
        "{} attempts, {} refused, the first {:?} after the kill; down {:?} after {}",
        attempts.len(),
        refused.len(),
        first.map(|first| first - killed),
        down - since,
        if first.is_some() { "it" } else { "the kill" }
    );
    assert!(established || first.is_some(), "a backend that died refuses somebody, or nothing was tried");
    // New connections are kept off for 200 ms by the data plane, then by the verdict.
    let later: Vec<_> = refused
        .iter()
        .filter(|attempt| attempt.begun > since)
        .filter(|a| a.begun < since + Duration::from_millis(190) || a.begun > down)
        .collect();
    assert!(later.is_empty(), "refused after the first refusal: {later:?}");
    assert!(down - since < Duration::from_secs(1), "promised are 100 ms, it took {:?}", down - since);
    if let Some(fleet) = fleet {
        eventually(LIMIT, "every client connected again", || {
            ensure!(fleet.alive().len() == options.clients, "{} are", fleet.alive().len());
            Ok(())
        })
        .unwrap();
        let on_dead = fleet.broken().iter().all(|s| cluster.name_of(s.member) == Some("etcd-2"));
        assert!(on_dead, "only the killed member's connections break");
    }
}

#[test]
fn a_member_that_dies_refuses_one_connection_at_most_and_is_down_at_once() {
    kill_a_member("dies", false);
}

#[test]
fn a_member_that_dies_with_established_connections_is_down_at_once() {
    kill_a_member("dies_busy", true);
}

/// Waits for `count` lines of the flow log.
fn wait_lines(path: &Path, count: usize) -> Vec<Value> {
    flow_log::wait(path, count, LIMIT, |_| true).unwrap()
}

/// A connection through the VIP that has been used.
fn connect(client: &Host) -> TcpStream {
    let mut stream = client.run(|| TcpStream::connect_timeout(&vip(), LIMIT)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream
}

#[test]
fn the_flow_log_names_client_nat_port_and_backend() {
    let mut scene = scene("flow_log", None, |lab| {
        format!("flow_log = {:?}\n", lab.dir().join("run").join("flows.jsonl"))
    });
    let path = scene.lab.dir().join("run").join("flows.jsonl");
    let stream = connect(&scene.client);
    let local = stream.local_addr().unwrap();
    let seen = wait_lines(&path, 1);
    let peers: BTreeSet<SocketAddr> = scene.servers.iter().flat_map(EchoServer::peers).collect();
    let peer: SocketAddr =
        format!("{}:{}", seen[0]["source"].as_str().unwrap(), seen[0]["nat_port"]).parse().unwrap();
    println!("{}", seen[0]);
    assert!(peers.contains(&peer), "{peer} is none of {peers:?}");
    assert_eq!(seen[0]["event"], "established");
    assert_eq!(seen[0]["client"], local.to_string());
    assert_eq!((&seen[0]["service"], &seen[0]["vip"]), (&"echo".into(), &vip().to_string().into()));
    let server = scene.servers.iter().position(|server| server.peers().contains(&peer)).unwrap();
    assert_eq!(seen[0]["backend"], format!("b{server}"));
    assert_eq!(seen[0]["backend_address"], scene.servers[server].address().to_string());
    thread::sleep(Duration::from_millis(100));
    drop(stream);
    let seen = wait_lines(&path, 2);
    println!("{}", seen[1]);
    assert_eq!((&seen[1]["event"], &seen[1]["client"]), (&"closed".into(), &local.to_string().into()));
    assert_eq!(seen[1]["reason"], "closed by client");
    assert!(seen[1]["duration_ms"].as_u64().unwrap() >= 80, "{}", seen[1]);

    // Rotated, as logrotate does.
    let rotated = path.with_extension("1");
    std::fs::rename(&path, &rotated).unwrap();
    scene.balancer.process().unwrap().signal(Signal::SIGHUP).unwrap();
    eventually(LIMIT, "a new file", || {
        ensure!(path.exists(), "none");
        Ok(())
    })
    .unwrap();
    drop(connect(&scene.client));
    wait_lines(&path, 2);
    assert_eq!(flow_log::lines(&rotated).unwrap().len(), 2);

    // What happens while no agent runs is logged by the next one.
    scene.balancer.kill().unwrap();
    let away = connect(&scene.client);
    let local = away.local_addr().unwrap();
    scene.balancer.run().unwrap();
    let seen = wait_lines(&path, 3);
    assert_eq!((&seen[2]["event"], &seen[2]["client"]), (&"established".into(), &local.to_string().into()));
    drop(away);
    wait_lines(&path, 4);

    let metric = |start| scene.balancer.metric(start, "").unwrap();
    let handshakes = metric("etcd_lb_backend_handshake_seconds_count");
    assert!((handshakes - 3.0).abs() < 0.1, "{handshakes} handshakes");
    assert!(metric("etcd_lb_events_lost_total").abs() < 0.1);
    assert!(metric("etcd_lb_flow_log_lines_lost_total").abs() < 0.1);
}

#[test]
fn a_foreign_claim_is_named_and_answered() {
    let mut scene = scene("claim", None, |_| String::new());
    let socket = RawSocket::open(&scene.client).unwrap();
    let ours = scene.balancer.host().mac().unwrap();
    let foreign = [2, 0, 0, 0, 0, 0x66];
    let mut frame = vec![0xff; 6];
    frame.extend(foreign);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(foreign);
    frame.extend(VIP.octets());
    frame.extend([0; 6]);
    frame.extend(VIP.octets());
    frame.resize(60, 0);
    let begun = Instant::now();
    for _ in 0..30 {
        socket.send(&frame).unwrap();
        thread::sleep(Duration::from_millis(12));
    }
    let sent_for = begun.elapsed();
    let answers = socket
        .capture(Duration::from_millis(300), |frame| {
            !frame.outgoing && frame.bytes.get(6..14) == Some(&[&ours[..], &[8, 6]].concat()[..])
        })
        .unwrap();
    let log = std::fs::read_to_string(scene.balancer.process().unwrap().log()).unwrap();
    let warned = log.lines().filter(|line| line.contains("02:00:00:00:00:66")).count();
    println!("30 claims within {sent_for:?}: {warned} warnings, {} ARP frames in answer", answers.len());
    assert!((1..=1 + sent_for.as_secs() as usize).contains(&warned), "{log}");
    // An announcement has two forms; those of the start may still be under way.
    assert!((2..=8).contains(&answers.len()), "{} frames", answers.len());
    drop(connect(&scene.client));
}

#[test]
fn jumbo_frames_pass_in_native_mode() {
    let scene = scene("jumbo", Some(9000), |_| "xdp_mode = \"native\"\n".into());
    assert_eq!(scene.balancer.status().unwrap()["interfaces"][0]["xdp_mode"], "native");
    let mut stream = connect(&scene.client);
    let sent: Vec<u8> =
        (0..4_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let capture = RawSocket::open(&scene.client).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let begun = Instant::now();
    let got = thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).unwrap();
        got
    });
    println!("{} octets there and back in {:?}", sent.len(), begun.elapsed());
    assert!(got == sent, "the data is not what was sent");
    let jumbo = capture
        .receive(Duration::from_millis(500), |frame| !frame.outgoing && frame.bytes.len() > 8000)
        .unwrap();
    assert!(jumbo.is_some(), "no frame was larger than 8,000 octets");
    let busy = BusyClients::start(&scene.client, vip(), 5, Duration::from_millis(1)).unwrap();
    busy.wait_progress(50, LIMIT).unwrap();
    assert_eq!(busy.broken(), 0);
}

/// Ends the flood, also when the test fails meanwhile.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// SYNs from random addresses, some 30,000 a second, which leaves the lab's two cores time for others; counted in `sent`.
fn flood(client: &Host, balancer: [u8; 6], stop: &AtomicBool, sent: &AtomicU64) {
    let socket = RawSocket::open(client).unwrap();
    let own = Mac::new(client.mac().unwrap());
    let (mut batch, mut random) = (0_u32, 0x9e37_79b9_7f4a_7c15_u64);
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let [a, b, c, d, e, ..] = random.to_ne_bytes();
        let source = (Ipv4Addr::new(172, 16 | (a & 15), b, c), 1024 | u16::from_ne_bytes([d, e]));
        let syn = TcpFrame::new(source, (VIP, CLIENT_PORT), SYN).numbers(random as u32, 0);
        let syn = TcpFrame { from_mac: own, to_mac: Mac::new(balancer), ..syn };
        // A full queue is the flood's own.
        if socket.send(&syn.build()).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        batch += 1;
        if batch % 60 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_syn_flood_breaks_nothing_and_keeps_nobody_out() {
    let scene = scene("flood", None, |_| "max_flows = 1024\n".into());
    let table = u64::from(lb_common::maps::half_open_capacity(1024));
    let busy = BusyClients::start(&scene.client, vip(), 50, Duration::from_millis(20)).unwrap();
    busy.wait_progress(3, LIMIT).unwrap();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mac = scene.balancer.host().mac().unwrap();
    let attacker = scene.lab.host("client-1").clone();
    let connected = thread::scope(|scope| {
        scope.spawn(|| flood(&attacker, mac, &stop, &sent));
        let _end = Ends(&stop);
        thread::sleep(Duration::from_millis(500));
        let mut connected = Vec::new();
        while connected.len() < 3 || sent.load(Ordering::Relaxed) < 10 * table {
            let begun = Instant::now();
            drop(connect(&scene.client));
            connected.push(begun.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        connected
    });
    let sent = sent.into_inner();
    println!(
        "{sent} SYNs, {} times the half-open table's {table}; {} connections meanwhile, the slowest in {:?}",
        sent / table,
        connected.len(),
        connected.iter().max().unwrap()
    );
    busy.wait_progress(3, LIMIT).unwrap();
    let outcomes = busy.finish();
    let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.broken.as_ref()).collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(outcomes.len(), 50);
}

/// The same by hping3, whose sources are random addresses of the whole internet.
#[cfg(feature = "long")]
#[test]
fn a_flood_by_hping3_breaks_nothing_and_keeps_nobody_out() {
    let mut lab_scene = scene("hping3", None, |_| "max_flows = 1024\n".into());
    let table = f64::from(lb_common::maps::half_open_capacity(1024));
    let busy = BusyClients::start(&lab_scene.client, vip(), 50, Duration::from_millis(20)).unwrap();
    busy.wait_progress(3, LIMIT).unwrap();
    let begun_flows =
        |scene: &Scene| scene.balancer.metric("etcd_lb_data_plane_events_total", "\"flow_new\"").unwrap();
    let before = begun_flows(&lab_scene);
    let mut command = lab_scene.client.command("hping3");
    command.args([
        "--quiet",
        "--syn",
        "--interval",
        "u50",
        "--rand-source",
        "--destport",
        "2379",
        "10.0.1.100",
    ]);
    let mut attacker = lab_scene.client.spawn("hping3", command).unwrap();
    let mut connected = Vec::new();
    while connected.len() < 3 || begun_flows(&lab_scene) - before < 10.0 * table {
        let begun = Instant::now();
        drop(connect(&lab_scene.client));
        connected.push(begun.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    attacker.kill().unwrap();
    println!(
        "{} connections begun, the half-open table has {table}; {} connections meanwhile, the slowest in {:?}",
        begun_flows(&lab_scene) - before,
        connected.len(),
        connected.iter().max().unwrap()
    );
    busy.wait_progress(3, LIMIT).unwrap();
    let broken = busy.finish().into_iter().filter(|outcome| outcome.broken.is_some()).count();
    assert_eq!(broken, 0);
    lab_scene.servers.clear();
}
