//! Real etcd through a pair: puts, long-lived clients and watches, while the VIP moves.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Process, Topology, VIP, config::secret_file,
    eventually, fleet::Options, owner::OwnerWatch, process::tail,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
/// Clients that ask all the time, and watches that say nothing until something is put.
const CLIENTS: usize = if cfg!(feature = "long") { 100 } else { 20 };
const WATCHES: usize = if cfg!(feature = "long") { 20 } else { 4 };
/// How often everything happens.
const ROUNDS: usize = if cfg!(feature = "long") { 10 } else { 1 };

struct Scene {
    watches: Vec<(Process, PathBuf)>,
    nodes: [Balancer; 2],
    cluster: Cluster,
    client: Host,
    puts: usize,
    lab: Lab,
}

impl Scene {
    fn start(name: &str) -> Self {
        let lab = Lab::start(name, &Topology::standard().without("client-2")).unwrap();
        let cluster = Cluster::start(&lab).unwrap();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let nodes = [("lb1", "lb2", 200), ("lb2", "lb1", 100)].map(|(node, other, priority)| {
            let (node, other) = (lab.host(node), lab.host(other));
            let config = Config::etcd(node, &cluster).default_algorithm();
            Balancer::start(node, &config.pair_text((node, other), priority, "100ms", &key)).unwrap()
        });
        let client = lab.host("client-1").clone();
        let mut scene = Self { watches: vec![], nodes, cluster, client, puts: 0, lab };
        scene.restored();
        for number in 0..WATCHES {
            let log = scene.lab.dir().join("run").join(format!("watch-{number}.log"));
            let mut command = scene.cluster.etcdctl_command(&scene.client, &endpoint());
            command.args(["watch", "--prefix", "w/"]).stdin(Stdio::null());
            scene.watches.push((Process::spawn("watch", command, &log).unwrap(), log));
        }
        eventually(LIMIT, "every watch has its flow", || {
            let flows = scene.flows(0);
            ensure!(flows.len() >= WATCHES, "{}", flows.len());
            Ok(())
        })
        .unwrap();
        // Only then do the members know of them.
        thread::sleep(Duration::from_millis(500));
        scene.put();
        scene
    }

    /// Puts something, which every watch sees.
    fn put(&mut self) {
        self.puts += 1;
        let (key, value) = (format!("w/{}", self.puts), format!("value-{}", self.puts));
        eventually(LIMIT, "a put", || {
            self.cluster.etcdctl(&self.client, &endpoint(), &["put", &key, &value]).map(drop)
        })
        .unwrap();
        for (_, log) in &self.watches {
            eventually(LIMIT, &format!("a watch sees {value}"), || {
                ensure!(tail(log, 10_000).lines().any(|line| line == value), "not yet");
                Ok(())
            })
            .unwrap();
        }
    }

    fn wait_role(&self, node: usize, role: &str) {
        eventually(LIMIT, &format!("lb{} is {role} and in sync", node + 1), || {
            let status = self.nodes[node].status()?;
            ensure!(status["role"] == role && status["fenced"] == false, "it is {}", status["role"]);
            Ok(())
        })
        .unwrap();
    }

    fn restored(&self) {
        for node in &self.nodes {
            eventually(LIMIT, "in sync", || {
                let status = node.status()?;
                ensure!(status["peer"]["synced"] == true, "{}", status["peer"]);
                Ok(())
            })
            .unwrap();
        }
        self.wait_role(0, "active");
        self.wait_role(1, "backup");
    }

    /// Clients' ends of the established flows that a node knows.
    fn flows(&self, node: usize) -> BTreeSet<String> {
        let text = self.nodes[node].cli(&["flows", "--json"]).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let flows = list["flows"].as_array().unwrap().iter();
        flows
            .filter(|flow| flow["state"] == "established")
            .map(|flow| flow["client"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn endpoint() -> String {
    format!("https://{VIP}:{CLIENT_PORT}")
}

#[test]
fn watches_and_clients_outlive_every_takeover() {
    let mut scene = Scene::start("pair_etcd");
    let options = Options { clients: CLIENTS, interval: Duration::from_millis(20), ..Options::default() };
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let fleet = Fleet::start(&scene.client, vip, &scene.cluster.pki, options).unwrap();
    fleet.wait_progress(5, LIMIT).unwrap();
    let watch = OwnerWatch::start(&scene.client).unwrap();
    let macs = ["lb1", "lb2"].map(|node| scene.lab.host(node).mac().unwrap());
    type Trouble = fn(&mut Balancer);
    let troubles: [(&str, Trouble, Trouble); 4] = [
        ("killed", |node| node.kill().unwrap(), |node| node.run().unwrap()),
        (
            "hung",
            |node| node.process().unwrap().freeze().unwrap(),
            |node| node.process().unwrap().signal(Signal::SIGCONT).unwrap(),
        ),
        ("stopped", |node| node.stop().unwrap(), |node| node.run().unwrap()),
        (
            "failover",
            |node| drop(node.cli(&["failover"]).unwrap()),
            // The other node keeps the VIP until it is killed.
            |_| {},
        ),
    ];
    let mut times = troubles.map(|(what, ..)| (what, Vec::new()));
    for _ in 0..ROUNDS {
        for (number, (what, break_it, mend_it)) in troubles.into_iter().enumerate() {
            let before = scene.flows(0);
            assert!(before.len() >= CLIENTS + WATCHES, "{} flows", before.len());
            let since = Instant::now();
            break_it(&mut scene.nodes[0]);
            let taken = eventually(LIMIT, "lb2 answers for the VIP", || {
                watch.first(macs[1], since).ok_or_else(|| anyhow::anyhow!("it does not"))
            });
            times[number].1.push(taken.unwrap() - since);
            scene.wait_role(1, "active");
            fleet.wait_progress(3, LIMIT).unwrap();
            scene.put();
            let after = scene.flows(1);
            let lost: Vec<_> = before.difference(&after).collect();
            // A put has a connection of its own, which ends.
            assert!(lost.len() <= 1, "{what}: {lost:?} of {} are gone", before.len());
            mend_it(&mut scene.nodes[0]);
            if what == "failover" {
                scene.nodes[1].cli(&["failover"]).unwrap();
            }
            scene.restored();
            fleet.wait_progress(3, LIMIT).unwrap();
            scene.put();
        }
    }
    for (what, mut times) in times {
        times.sort();
        println!(
            "{what}: the other node answers after {:?}, at most {:?}",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
    let broken = fleet.broken().len();
    let gap = fleet.finish().iter().map(|session| session.longest_gap).max().unwrap();
    println!(
        "{CLIENTS} clients and {WATCHES} watches through {} moves of the VIP: {broken} broken; longest wait {gap:?}",
        8 * ROUNDS
    );
    assert_eq!(broken, 0);
    for (process, _) in &mut scene.watches {
        process.check_alive().unwrap();
    }
    assert_eq!(watch.disputed(), [0u64; 0], "two nodes answered for the VIP");
}
