//! Two balancers of one pair, their backends, and connections that must not break: for the scenarios of takeovers.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    Balancer, CLIENT_PORT, Config, Lab, Topology, VIP,
    config::secret_file,
    echo::{BusyClients, EchoServer},
    eventually,
    owner::OwnerWatch,
};

/// How long what must happen may take on a machine with other things to do.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Says something on a connection, and gets it back.
pub fn exchange(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

/// Two balancers, lb1 the stronger one, three echo servers, and a client that asks who owns the VIP.
pub struct Pair {
    pub busy: Option<BusyClients>,
    pub idle: Vec<TcpStream>,
    pub nodes: [Balancer; 2],
    pub macs: [[u8; 6]; 2],
    pub watch: OwnerWatch,
    _servers: Vec<EchoServer>,
    pub interval: Duration,
    pub lab: Lab,
}

impl Pair {
    /// Two nodes that share their flows, and clients of them; or without both.
    pub fn start(name: &str, interval: &str, clients: usize) -> Self {
        let lab = Lab::start(name, &Topology::standard().without("client-2")).unwrap();
        let servers: Vec<EchoServer> = ["etcd-1", "etcd-2", "etcd-3"]
            .into_iter()
            .map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap())
            .collect();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let config = |node: &str, other: &str, priority: u8| {
            let addresses = servers.iter().map(EchoServer::address);
            let config = Config::echo(lab.host(node)).default_algorithm().numbered(addresses);
            if clients > 0 {
                return config.pair_text((lab.host(node), lab.host(other)), priority, interval, &key);
            }
            format!("{}\n[vrrp]\npriority = {priority}\nadvert_interval = {interval:?}\n", config.text())
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
            pair.wait_copied(2 * clients);
        }
        pair
    }

    /// One that is made in the last 10 ms before its balancer dies may be lost: waits until the backup has so many.
    pub fn wait_copied(&self, flows: usize) {
        let since = Instant::now();
        eventually(LIMIT, "the backup has every flow", || {
            let used = self.nodes[1].status()?["flow_table"]["used"].as_u64();
            ensure!(used >= Some(flows as u64), "it has {used:?}");
            Ok(())
        })
        .unwrap();
        println!(
            "the backup has every flow {:?} after the last was used, as its status shows; the lag is {} ms (promised 10)",
            since.elapsed(),
            self.nodes[0].status().unwrap()["peer"]["lag_ms"]
        );
    }

    pub fn wait_synced(&self) {
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
    pub fn assert_unbroken(&mut self, what: &str) {
        let Some(busy) = &self.busy else { return };
        busy.wait_progress(3, LIMIT).unwrap();
        self.idle.iter_mut().for_each(exchange);
        let broken: Vec<_> = busy.outcomes().into_iter().filter_map(|outcome| outcome.broken).collect();
        assert!(broken.is_empty(), "{what}: {broken:?}");
    }

    pub fn wait_role(&self, node: usize, role: &str) {
        eventually(LIMIT, &format!("lb{} is {role}", node + 1), || {
            let status = self.nodes[node].status()?;
            ensure!(status["role"] == role, "it is {}", status["role"]);
            ensure!(status["fenced"] == false, "it is fenced");
            Ok(())
        })
        .unwrap();
    }

    /// When the node first answered for the VIP after `since`.
    pub fn wait_owner(&self, node: usize, since: Instant) -> Instant {
        eventually(LIMIT, &format!("lb{} answers for the VIP", node + 1), || {
            self.watch.first(self.macs[node], since).ok_or_else(|| anyhow::anyhow!("it does not"))
        })
        .unwrap()
    }

    /// After something happened to the owner: the other node takes over, and a client gets through. `promised` is compared
    /// generously, and printed.
    pub fn takeover(&mut self, what: &str, to: usize, since: Instant, promised: Duration) {
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
    pub fn connect(&self) -> Instant {
        let client = self.lab.host("client-1");
        eventually(LIMIT, "a client connects", || {
            let to = SocketAddr::from((VIP, CLIENT_PORT));
            Ok(client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)))?)
        })
        .unwrap();
        Instant::now()
    }

    pub fn assert_undisputed(&self) {
        assert_eq!(self.watch.disputed(), [0u64; 0], "two nodes answered for the VIP");
    }

    /// The stronger node is back and owns the VIP.
    pub fn restored(&mut self) {
        if self.busy.is_some() {
            self.wait_synced();
        }
        self.wait_role(0, "active");
        self.wait_role(1, "backup");
        let now = Instant::now();
        self.wait_owner(0, now);
        self.assert_unbroken("after its return");
    }

    /// Connects once more, for a connection that is watched through what follows.
    pub fn more_idle(&mut self) {
        let client = self.lab.host("client-1");
        let vip = SocketAddr::from((VIP, CLIENT_PORT));
        let mut stream = client.run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap();
        exchange(&mut stream);
        self.idle.push(stream);
    }
}
