//! Two nodes own the VIP between them: who has it, and how long nobody has when one fails.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
    owner::OwnerWatch,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const SYNC_PORT: u16 = 3780;

/// A file that only its owner can read.
fn secret_file(path: &Path, contents: &[u8]) {
    fs::write(path, contents).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Says something on a connection, and gets it back.
fn exchange(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

/// Two balancers, lb1 the stronger one, three echo servers, and a client that asks who owns the VIP.
struct Pair {
    busy: Option<BusyClients>,
    idle: Vec<TcpStream>,
    nodes: [Balancer; 2],
    macs: [[u8; 6]; 2],
    watch: OwnerWatch,
    _servers: Vec<EchoServer>,
    interval: Duration,
    lab: Lab,
}

impl Pair {
    /// Two nodes that share their flows, and clients of them; or without both.
    fn start(name: &str, interval: &str, clients: usize) -> Self {
        let lab = Lab::start(name, &Topology::standard().without("client-2")).unwrap();
        let servers: Vec<EchoServer> = ["etcd-1", "etcd-2", "etcd-3"]
            .into_iter()
            .map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap())
            .collect();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]);
        let config = |node: &str, other: &str, priority: u8| {
            let config = Config::echo(lab.host(node)).numbered(servers.iter().map(EchoServer::address));
            let vrrp = format!("[vrrp]\npriority = {priority}\nadvert_interval = {interval:?}\n");
            let address = |node: &str| SocketAddr::from((lab.host(node).address(), SYNC_PORT));
            let (listen, peer) = (address(node), address(other));
            let sync = format!("[sync]\nlisten = \"{listen}\"\npeer = \"{peer}\"\nkey_file = {key:?}\n");
            format!("{}\n{vrrp}{}", config.text(), if clients > 0 { sync } else { String::new() })
        };
        let nodes = [("lb1", "lb2", 200), ("lb2", "lb1", 100)].map(|(node, other, priority)| {
            Balancer::start(lab.host(node), &config(node, other, priority)).unwrap()
        });
        let macs = ["lb1", "lb2"].map(|node| lab.host(node).mac().unwrap());
        let watch = OwnerWatch::start(lab.host("client-1")).unwrap();
        let interval = Duration::from_millis(interval.trim_end_matches("ms").parse().unwrap());
        let mut pair =
            Self { nodes, macs, watch, busy: None, idle: vec![], _servers: servers, interval, lab };
        pair.wait_role(0, "active");
        pair.wait_role(1, "backup");
        pair.wait_owner(0, Instant::now());
        if clients > 0 {
            pair.wait_synced();
            let client = pair.lab.host("client-1");
            let vip = SocketAddr::from((VIP, CLIENT_PORT));
            let busy = BusyClients::start(client, vip, clients, Duration::from_millis(10)).unwrap();
            let connect = || client.run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap();
            pair.idle = (0..clients).map(|_| connect()).collect();
            pair.idle.iter_mut().for_each(exchange);
            pair.busy = Some(busy);
        }
        pair
    }

    fn wait_synced(&self) {
        for node in &self.nodes {
            eventually(LIMIT, "the nodes are in sync", || {
                let status = node.status()?;
                ensure!(status["peer"]["synced"] == true, "{}", status["peer"]);
                Ok(())
            })
            .unwrap();
        }
    }

    /// Every connection goes on: the busy ones by themselves, the idle ones when they are used.
    fn assert_unbroken(&mut self, what: &str) {
        let Some(busy) = &self.busy else { return };
        busy.wait_progress(3, LIMIT).unwrap();
        self.idle.iter_mut().for_each(exchange);
        let broken: Vec<_> = busy.outcomes().into_iter().filter_map(|outcome| outcome.broken).collect();
        assert!(broken.is_empty(), "{what}: {broken:?}");
    }

    fn wait_role(&self, node: usize, role: &str) {
        eventually(LIMIT, &format!("lb{} is {role}", node + 1), || {
            let status = self.nodes[node].status()?;
            ensure!(status["role"] == role, "it is {}", status["role"]);
            ensure!(status["fenced"] == false, "it is fenced");
            Ok(())
        })
        .unwrap();
    }

    /// When the node first answered for the VIP after `since`.
    fn wait_owner(&self, node: usize, since: Instant) -> Instant {
        eventually(LIMIT, &format!("lb{} answers for the VIP", node + 1), || {
            self.watch.first(self.macs[node], since).ok_or_else(|| anyhow::anyhow!("it does not"))
        })
        .unwrap()
    }

    /// After something happened to the owner: the other node takes over, and a client gets through. `promised` is compared
    /// generously, and printed.
    fn takeover(&mut self, what: &str, to: usize, since: Instant, promised: Duration) {
        let owned = self.wait_owner(to, since) - since;
        let connected = self.connect() - since;
        println!(
            "{what}: lb{} answers after {owned:?} (promised {promised:?}), a client connects after {connected:?}",
            to + 1
        );
        assert!(owned < promised + Duration::from_millis(500), "{what}: {owned:?}");
        self.wait_role(to, "active");
        self.assert_unbroken(what);
    }

    /// Connects through the VIP, at once again where that fails; when it did.
    fn connect(&self) -> Instant {
        let client = self.lab.host("client-1");
        eventually(LIMIT, "a client connects", || {
            let to = SocketAddr::from((VIP, CLIENT_PORT));
            Ok(client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)))?)
        })
        .unwrap();
        Instant::now()
    }

    fn assert_undisputed(&self) {
        assert_eq!(self.watch.disputed(), [0u64; 0], "two nodes answered for the VIP");
    }

    /// The stronger node is back and owns the VIP.
    fn restored(&mut self) {
        if self.busy.is_some() {
            self.wait_synced();
        }
        self.wait_role(0, "active");
        self.wait_role(1, "backup");
        let now = Instant::now();
        self.wait_owner(0, now);
        self.assert_unbroken("after its return");
    }
}

/// What happens to an owner, one after the other, at one interval.
fn takeovers(name: &str, interval: &str, clients: usize) {
    let mut pair = Pair::start(name, interval, clients);
    let beat = pair.interval;
    let skew = |priority: u32| beat * (256 - priority) / 256;
    let (clean, down) = (skew(100) + beat, 3 * beat + skew(100));

    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed", 1, since, down);
    pair.nodes[0].run().unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].process().unwrap().freeze().unwrap();
    pair.takeover("hung", 1, since, down);
    thread::sleep(2 * pair.interval);
    pair.nodes[0].process().unwrap().signal(Signal::SIGCONT).unwrap();
    pair.restored();

    let since = Instant::now();
    pair.lab.plug("lb1", false).unwrap();
    pair.takeover("its link cut", 1, since, down);
    pair.lab.plug("lb1", true).unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].stop().unwrap();
    pair.takeover("stopped", 1, since, clean);
    pair.nodes[0].run().unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].cli(&["failover"]).unwrap();
    pair.takeover("failover", 1, since, clean);
    pair.wait_role(0, "backup");
    thread::sleep(5 * pair.interval);
    pair.wait_role(1, "active");
    let refused = pair.nodes[0].cli(&["failover"]).unwrap_err().to_string();
    assert!(refused.contains("is backup already"), "{refused}");
    let since = Instant::now();
    pair.nodes[1].cli(&["failover"]).unwrap();
    pair.takeover("failover back", 0, since, skew(200) + beat);
    pair.restored();

    pair.assert_undisputed();
    let rejected = pair.nodes[0].metric("etcd_lb_vrrp_rejected_total", "").unwrap();
    assert!(rejected < 0.5, "{rejected} advertisements were not heeded");
    let beats = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_count", "").unwrap();
    let late = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_bucket", "0.005\"").unwrap();
    if let Some(busy) = pair.busy.take() {
        let outcomes = busy.finish();
        let longest = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
        println!(
            "{} busy and {} idle connections, 0 broken; longest wait {longest:?}",
            outcomes.len(),
            pair.idle.len()
        );
    }
    println!("of {beats} heartbeats {late} were at most 5 ms late");
}

#[test]
fn the_vip_moves_within_its_promise_at_100_ms() {
    takeovers("pair_100", "100ms", 0);
}

#[test]
fn the_vip_moves_within_its_promise_at_20_ms() {
    takeovers("pair_20", "20ms", 0);
}

#[test]
fn no_connection_breaks_when_the_vip_moves() {
    takeovers("pair_sync", "100ms", 50);
}
