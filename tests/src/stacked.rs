//! A stacked control plane: nodes that each run an etcd member, clients and a balancer. Balanced by etcd-lb, or by HAProxy and
//! keepalived for comparison.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Process, Role, Topology, VIP,
    config::secret_file,
    eventually, fleet,
    keepalived::{Keepalived, Settings},
    pair::LIMIT,
    process::tail,
};

/// Long-lived clients of each node.
pub const CLIENTS: usize = 20;
/// Watches of each node, which say nothing until something is put.
pub const WATCHES: usize = 2;
/// Between two advertisements.
const INTERVAL: &str = "100ms";

/// Who balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    EtcdLb,
    Haproxy,
}

/// A node's balancer.
enum Front {
    EtcdLb(Balancer),
    Haproxy(Option<(Keepalived, Process)>),
}

/// The plane.
pub struct Stacked {
    pub fleets: Vec<Fleet>,
    watches: Vec<(Process, PathBuf)>,
    fronts: Vec<Front>,
    pub cluster: Cluster,
    puts: usize,
    pub names: Vec<String>,
    pub by: By,
    pub lab: Lab,
}

/// What clients noticed of something that happened.
#[derive(Clone, Copy, Debug)]
pub struct Noticed {
    /// Connections that broke.
    pub broken: usize,
    /// The longest time that a client waited for an answer.
    pub wait: Duration,
}

impl Stacked {
    /// Three nodes with a member and clients each, of which the first `balancers` have a balancer; the first is the strongest.
    pub fn start(name: &str, by: By, balancers: usize) -> Self {
        let nodes = [("n1", 2), ("n2", 3), ("n3", 4)];
        let topology =
            nodes.into_iter().fold(Topology::empty(), |t, (name, last)| t.with(Role::Node, name, last));
        let lab = Lab::start(name, &topology).unwrap();
        let cluster = Cluster::start(&lab).unwrap();
        let names: Vec<String> = nodes.map(|(name, _)| name.to_owned()).into();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let mut plane =
            Self { fleets: vec![], watches: vec![], fronts: vec![], cluster, puts: 0, names, by, lab };
        for number in 0..balancers {
            let front = match by {
                By::EtcdLb => {
                    let text = plane.etcd_lb(number, balancers, &key.display().to_string());
                    Front::EtcdLb(Balancer::start(plane.host(number), &text).unwrap())
                }
                By::Haproxy => Front::Haproxy(Some(plane.haproxy(number))),
            };
            plane.fronts.push(front);
        }
        plane.wait_ready();
        for number in 0..3 {
            let options = fleet::Options {
                clients: CLIENTS,
                interval: Duration::from_millis(20),
                reconnect: true,
                ..fleet::Options::default()
            };
            let fleet = eventually(LIMIT, "a first connection", || {
                Fleet::start(plane.host(number), vip(), &plane.cluster.pki, options)
            })
            .unwrap();
            plane.fleets.push(fleet);
            for watch in 0..WATCHES {
                let log = plane.lab.dir().join("run").join(format!("watch-{number}-{watch}.log"));
                plane.watches.push((plane.watch(number, &log), log));
            }
        }
        plane.served();
        // Only then do the members know of the watches.
        std::thread::sleep(Duration::from_millis(500));
        plane.put_and_see();
        plane.noticed(0);
        plane
    }

    pub fn host(&self, number: usize) -> &Host {
        self.lab.host(&self.names[number])
    }

    /// The agent of a node.
    pub fn balancer(&mut self, number: usize) -> &mut Balancer {
        match &mut self.fronts[number] {
            Front::EtcdLb(balancer) => balancer,
            Front::Haproxy(_) => panic!("that is HAProxy"),
        }
    }

    fn etcd_lb(&self, number: usize, of: usize, key: &str) -> String {
        let host = self.host(number);
        let mut config = Config::etcd_of(host, &self.cluster).default_algorithm();
        for member in self.cluster.members() {
            config = config.backend(member.name(), member.client_address());
        }
        let others: Vec<String> = (0..of)
            .filter(|other| *other != number)
            .map(|other| format!("\"{}:3780\"", self.host(other).address()))
            .collect();
        format!(
            "{}\n[vrrp]\nrouter_id = 51\npriority = {}\nadvert_interval = {INTERVAL:?}\n[sync]\nlisten = \"{}:3780\"\npeer = \
             [{}]\nkey_file = {key:?}\n",
            // Three of everything on one machine: a member that is slow is not to be taken for dead.
            config.text().replace("\ntimeout = \"500ms\"", "\ntimeout = \"1s\""),
            200 - 50 * number,
            host.address(),
            others.join(", "),
        )
    }

    /// As HAProxy's manual advises for TCP with checks over TLS; its checks ask as often as ours, and it ends connections to
    /// a member that is down, as ours does.
    fn haproxy(&self, number: usize) -> (Keepalived, Process) {
        let host = self.host(number);
        let pki = &self.cluster.pki;
        let run = self.lab.dir().join("run");
        let pem = run.join(format!("{}-client.pem", host.name()));
        let both = [&pki.client.cert, &pki.client.key].map(|file| fs::read_to_string(file).unwrap()).concat();
        if !pem.exists() {
            secret_file(&pem, both.as_bytes()).unwrap();
        }
        let servers: String = self
            .cluster
            .members()
            .iter()
            .map(|member| format!("  server {} {}\n", member.name(), member.client_address()))
            .collect();
        let config = run.join(format!("{}-haproxy.cfg", host.name()));
        let text = format!(
            "global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 2h\n  timeout server 2h\n  timeout check 1s\n  \
             option clitcpka\n  option srvtcpka\n  option redispatch\nfrontend etcd\n  bind {VIP}:{CLIENT_PORT} transparent\n  \
             default_backend members\nbackend members\n  balance leastconn\n  option httpchk GET /health?exclude=NOSPACE\n  \
             http-check expect status 200\n  default-server check check-ssl verify required ca-file {} crt {} inter 500ms \
             fastinter 100ms fall 2 rise 2 on-marked-down shutdown-sessions\n{servers}",
            pki.ca.display(),
            pem.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = host.command("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        let process = host.spawn("haproxy", command).unwrap();
        let addresses = [VIP.to_string()];
        let settings = Settings {
            version: 3,
            priority: u8::try_from(200 - 50 * number).unwrap(),
            interval: "0.1",
            addresses: &[&addresses[0]],
            peer: None,
            password: None,
        };
        (Keepalived::start(host, &settings).unwrap(), process)
    }

    /// Kills a node's balancer: agent, or HAProxy and keepalived.
    pub fn kill(&mut self, number: usize) {
        match &mut self.fronts[number] {
            Front::EtcdLb(balancer) => balancer.kill().unwrap(),
            Front::Haproxy(both) => {
                let (keepalived, mut haproxy) = both.take().unwrap();
                keepalived.kill().unwrap();
                haproxy.kill().unwrap();
            }
        }
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self, number: usize) {
        match &mut self.fronts[number] {
            Front::EtcdLb(balancer) => balancer.stop().unwrap(),
            Front::Haproxy(both) => {
                let (keepalived, mut haproxy) = both.take().unwrap();
                keepalived.stop().unwrap();
                haproxy.kill().unwrap();
            }
        }
    }

    /// Starts it again.
    pub fn run(&mut self, number: usize) {
        if self.by == By::Haproxy {
            self.fronts[number] = Front::Haproxy(Some(self.haproxy(number)));
        } else {
            self.balancer(number).run().unwrap();
        }
    }

    pub fn has_balancer(&self, number: usize) -> bool {
        number < self.fronts.len()
    }

    /// Every node that has a balancer is ready, and the strongest one is active.
    pub fn wait_ready(&mut self) {
        for number in 0..self.fronts.len() {
            let role = if number == 0 { "active" } else { "backup" };
            match &self.fronts[number] {
                Front::EtcdLb(balancer) => eventually(LIMIT, "every node is in sync", || {
                    let status = balancer.status()?;
                    ensure!(status["role"] == role, "n{} is {}", number + 1, status["role"]);
                    ensure!(status["peer"]["synced"] == true, "{}", status["peer"]);
                    let states: Vec<_> = status["services"][0]["backends"]
                        .as_array()
                        .map(|backends| backends.iter().map(|backend| backend["state"].clone()).collect())
                        .unwrap_or_default();
                    ensure!(states.iter().all(|state| state == "healthy"), "{states:?}");
                    Ok(())
                })
                .unwrap(),
                Front::Haproxy(both) => {
                    let (keepalived, _) = both.as_ref().unwrap();
                    eventually(LIMIT, "the strongest keepalived has the VIP", || {
                        ensure!(keepalived.is_master()? == (number == 0), "n{}", number + 1);
                        Ok(())
                    })
                    .unwrap();
                }
            }
        }
    }

    /// Every client of these nodes is connected and gets answers.
    pub fn served_on(&self, nodes: &[usize]) {
        for &node in nodes {
            let fleet = &self.fleets[node];
            eventually(LIMIT, &format!("every client of n{} is served", node + 1), || {
                let alive = fleet.alive().len();
                ensure!(alive == CLIENTS, "{alive} of {CLIENTS}");
                Ok(())
            })
            .unwrap();
            fleet.wait_progress(5, LIMIT).unwrap();
        }
    }

    /// Every client is.
    pub fn served(&self) {
        self.served_on(&[0, 1, 2]);
    }

    /// What the clients of these nodes noticed since this was last asked; `before`: connections broken by then.
    pub fn noticed_on(&self, nodes: &[usize], before: usize) -> Noticed {
        let waits = nodes.iter().map(|&node| self.fleets[node].longest_wait());
        let wait = waits.max().unwrap_or_default();
        Noticed { broken: self.broken_on(nodes) - before, wait }
    }

    /// The same of all.
    pub fn noticed(&self, before: usize) -> Noticed {
        self.noticed_on(&[0, 1, 2], before)
    }

    /// Connections of these nodes' clients that broke so far.
    pub fn broken_on(&self, nodes: &[usize]) -> usize {
        nodes.iter().map(|&node| self.fleets[node].broken().len()).sum()
    }

    fn watch(&self, node: usize, log: &Path) -> Process {
        let mut command = self.cluster.etcdctl_command(self.host(node), &format!("https://{}", vip()));
        command.args(["watch", "--prefix", "w/"]).stdin(Stdio::null());
        Process::spawn("watch", command, log).unwrap()
    }

    /// Starts watches again that have ended; how many had. etcd 3.4 cancels those of a member that ends in an orderly way,
    /// and its `etcdctl` gives up then.
    pub fn revive_watches(&mut self) -> usize {
        let ended: Vec<usize> =
            (0..self.watches.len()).filter(|&number| self.watches[number].0.check_alive().is_err()).collect();
        for &number in &ended {
            let log = self.watches[number].1.clone();
            self.watches[number].0 = self.watch(number / WATCHES, &log);
        }
        if !ended.is_empty() {
            // Only then do the members know of them.
            std::thread::sleep(Duration::from_millis(500));
        }
        ended.len()
    }

    /// Puts something from each node, which every watch sees.
    pub fn put_and_see(&mut self) {
        for node in 0..3 {
            self.puts += 1;
            let (key, value) = (format!("w/{}", self.puts), format!("value-{}", self.puts));
            let endpoint = format!("https://{}", vip());
            eventually(LIMIT, "a put", || {
                self.cluster.etcdctl(self.host(node), &endpoint, &["put", &key, &value]).map(drop)
            })
            .unwrap();
            for (_, log) in &self.watches {
                eventually(LIMIT, &format!("a watch sees {value}"), || {
                    let text = tail(log, 100_000);
                    ensure!(text.lines().any(|line| line == value), "{}: {text}", log.display());
                    Ok(())
                })
                .unwrap();
            }
        }
    }

    /// How many of the clients' connections are on a member.
    pub fn on_member(&self, node: usize) -> usize {
        let id = self.cluster.member(&self.names[node]).id();
        self.fleets.iter().map(|fleet| fleet.alive_on(id)).sum()
    }
}

/// The VIP's endpoint.
pub fn vip() -> SocketAddr {
    (VIP, CLIENT_PORT).into()
}

/// When something was done, for a title.
pub fn after(since: Instant) -> String {
    format!("{:.2} s", since.elapsed().as_secs_f64())
}
