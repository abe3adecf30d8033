//! Two nodes own the VIP between them: who has it, and how long nobody has when one fails.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Topology, VIP, echo::EchoServer, eventually, owner::OwnerWatch,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);

/// Two balancers, lb1 the stronger one, three echo servers, and a client that asks who owns the VIP.
struct Pair {
    nodes: [Balancer; 2],
    macs: [[u8; 6]; 2],
    watch: OwnerWatch,
    _servers: Vec<EchoServer>,
    interval: Duration,
    lab: Lab,
}

impl Pair {
    fn start(name: &str, interval: &str, more: &str) -> Self {
        let lab = Lab::start(name, &Topology::standard().without("client-2")).unwrap();
        let servers: Vec<EchoServer> = ["etcd-1", "etcd-2", "etcd-3"]
            .into_iter()
            .map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap())
            .collect();
        let config = |node: &str, priority: u8| {
            let config = Config::echo(lab.host(node)).numbered(servers.iter().map(EchoServer::address));
            format!(
                "{}\n[vrrp]\npriority = {priority}\nadvert_interval = {interval:?}\n{more}",
                config.text()
            )
        };
        let nodes = [("lb1", 200), ("lb2", 100)]
            .map(|(node, priority)| Balancer::start(lab.host(node), &config(node, priority)).unwrap());
        let macs = ["lb1", "lb2"].map(|node| lab.host(node).mac().unwrap());
        let watch = OwnerWatch::start(lab.host("client-1")).unwrap();
        let interval = Duration::from_millis(interval.trim_end_matches("ms").parse().unwrap());
        let pair = Self { nodes, macs, watch, _servers: servers, interval, lab };
        pair.wait_role(0, "active");
        pair.wait_role(1, "backup");
        pair.wait_owner(0, Instant::now());
        pair
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
    fn takeover(&self, what: &str, to: usize, since: Instant, promised: Duration) {
        let owned = self.wait_owner(to, since) - since;
        let connected = self.connect() - since;
        println!(
            "{what}: lb{} answers after {owned:?} (promised {promised:?}), a client connects after {connected:?}",
            to + 1
        );
        assert!(owned < promised + Duration::from_millis(500), "{what}: {owned:?}");
        self.wait_role(to, "active");
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

    /// 3 × advert + skew of a node.
    fn down(&self, node: usize) -> Duration {
        let priority = [200, 100][node];
        3 * self.interval + self.interval * (256 - priority) / 256
    }

    fn assert_undisputed(&self) {
        assert_eq!(self.watch.disputed(), [0u64; 0], "two nodes answered for the VIP");
    }

    /// The stronger node is back and owns the VIP.
    fn restored(&self) {
        self.wait_role(0, "active");
        self.wait_role(1, "backup");
        let now = Instant::now();
        self.wait_owner(0, now);
    }
}

/// What happens to an owner, one after the other, at one interval.
fn takeovers(name: &str, interval: &str) {
    let mut pair = Pair::start(name, interval, "");
    let skew = |priority: u32| pair.interval * (256 - priority) / 256;
    let clean = skew(100) + pair.interval;

    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed", 1, since, pair.down(1));
    pair.nodes[0].run().unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].process().unwrap().freeze().unwrap();
    pair.takeover("hung", 1, since, pair.down(1));
    thread::sleep(2 * pair.interval);
    pair.nodes[0].process().unwrap().signal(Signal::SIGCONT).unwrap();
    pair.restored();

    let since = Instant::now();
    pair.lab.plug("lb1", false).unwrap();
    pair.takeover("its link cut", 1, since, pair.down(1));
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
    pair.takeover("failover back", 0, since, skew(200) + pair.interval);
    pair.restored();

    pair.assert_undisputed();
    let rejected = pair.nodes[0].metric("etcd_lb_vrrp_rejected_total", "").unwrap();
    assert!(rejected < 0.5, "{rejected} advertisements were not heeded");
    let beats = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_count", "").unwrap();
    let late = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_bucket", "0.005\"").unwrap();
    println!("of {beats} heartbeats {late} were at most 5 ms late");
}

#[test]
fn the_vip_moves_within_its_promise_at_100_ms() {
    takeovers("pair_100", "100ms");
}

#[test]
fn the_vip_moves_within_its_promise_at_20_ms() {
    takeovers("pair_20", "20ms");
}
