//! The lab of `docs/bgp.md`: two nodes announce the VIPs by BIRD to a router that spreads connections over both, and members answer
//! the clients behind it directly. All by the files in `deploy/bird/`. What breaks, and for how long, is printed, and held
//! generously to what the guide says.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Host, Lab, Process, Role, Topology,
    config::secret_file,
    echo::{BusyClients, EchoServer},
    eventually,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Busy connections of each family.
const BUSY: usize = 40;
const INTERVAL: Duration = Duration::from_millis(10);
const NODES: [&str; 2] = ["lb1", "lb2"];
const MEMBERS: [(&str, u8); 3] = [("etcd-1", 11), ("etcd-2", 12), ("etcd-3", 13)];
const VIPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 9, 100)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x100)),
];

fn deployed(file: &str) -> String {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/bird")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// BIRD on a host.
struct Bird {
    host: Host,
    socket: PathBuf,
    _process: Process,
}

impl Bird {
    fn start(host: &Host, config: &str) -> Self {
        let run = host.lab_dir().join("run");
        let [file, socket, pid] =
            ["conf", "ctl", "pid"].map(|end| run.join(format!("bird-{}.{end}", host.name())));
        fs::write(&file, config.replace("log syslog all", "log stderr all")).unwrap();
        // Ahead of everybody: on a busy machine BFD would take nodes for dead that live.
        let mut command = host.command("chrt");
        command
            .args(["-f", "10", "bird", "-f"])
            .arg("-c")
            .arg(&file)
            .arg("-s")
            .arg(&socket)
            .arg("-P")
            .arg(&pid);
        let process = host.spawn("bird", command).unwrap();
        Self { host: host.clone(), socket, _process: process }
    }

    fn tell(&self, words: &[&str]) {
        let args = [&["-s", self.socket.to_str().unwrap()], words].concat();
        self.host.output("birdc", &args).unwrap();
    }
}

/// Connects again and again, and remembers for how long it could not.
struct Knocker {
    stop: Arc<AtomicBool>,
    longest: Arc<Mutex<Duration>>,
    worker: Option<JoinHandle<()>>,
}

impl Knocker {
    fn start(host: &Host, target: SocketAddr) -> Self {
        let (stop, longest) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Duration>>::default());
        let worker = thread::spawn({
            let (stop, longest, host) = (Arc::clone(&stop), Arc::clone(&longest), host.clone());
            move || {
                host.run(|| {
                    let mut last = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        let connected = TcpStream::connect_timeout(&target, Duration::from_millis(100));
                        let now = Instant::now();
                        let mut longest = longest.lock().unwrap();
                        *longest = (now - last).max(*longest);
                        drop(longest);
                        if connected.is_ok() {
                            last = now;
                        }
                        thread::sleep(INTERVAL);
                    }
                });
            }
        });
        Self { stop, longest, worker: Some(worker) }
    }

    fn longest(&self) -> Duration {
        *self.longest.lock().unwrap()
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.worker.take().is_some_and(|worker| worker.join().is_err()) {
            eprintln!("a knocker panicked");
        }
    }
}

struct Scene {
    nodes: Vec<Balancer>,
    birds: Vec<Bird>,
    _router: Bird,
    _servers: Vec<EchoServer>,
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let topology = Topology::empty()
            .with(Role::Router, "router", 1)
            .also_on("router", 2, 1)
            .with_on(2, Role::Client, "client-1", 21)
            .gateway("client-1", 1);
        let topology = MEMBERS.into_iter().fold(topology, |topology, (name, last)| {
            topology.with(Role::Member, name, last).gateway(name, 1)
        });
        let topology = [("lb1", 2), ("lb2", 3)].into_iter().fold(topology, |topology, (name, last)| {
            topology.with(Role::Balancer, name, last).gateway(name, 1)
        });
        let lab = Lab::start("bgp", &topology).unwrap();
        let servers = MEMBERS
            .into_iter()
            .map(|(name, _)| {
                let host = lab.host(name);
                host.output("ip", &["address", "add", "10.0.9.100/32", "dev", "lo"]).unwrap();
                host.output("ip", &["address", "add", "fd00:9::100/128", "dev", "lo", "nodad"]).unwrap();
                let sysctls = ["net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"];
                host.output("sysctl", &["-qw", sysctls[0], sysctls[1]]).unwrap();
                EchoServer::start(host, CLIENT_PORT).unwrap()
            })
            .collect();
        // As the guide says.
        let policies = ["net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1"];
        lab.host("router").output("sysctl", &["-qw", policies[0], policies[1]]).unwrap();
        let router = Bird::start(lab.host("router"), &deployed("router.conf"));

        let seed = lab.dir().join("run").join("seed");
        secret_file(&seed, &[5; 32]).unwrap();
        let config = checked_by_connecting(&deployed("etcd-lb.toml"))
            .replace("/etc/etcd-lb/seed", seed.to_str().unwrap());
        let nodes: Vec<_> =
            NODES.into_iter().map(|name| Balancer::start(lab.host(name), &config).unwrap()).collect();
        let birds = NODES
            .into_iter()
            .map(|name| {
                let host = lab.host(name);
                let config = deployed("node.conf")
                    .replace("10.0.1.2;", &format!("{};", host.address()))
                    .replace("fd00:1::2;", &format!("{};", host.address_v6()));
                Bird::start(host, &config)
            })
            .collect();
        let scene = Self { nodes, birds, _router: router, _servers: servers, lab };
        scene.wait_paths(2);
        scene
    }

    /// By how many nodes the router leads to a VIP.
    fn paths(&self, vip: IpAddr) -> usize {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        let route = self.lab.host("router").output("ip", &[family, "route", "show", &vip.to_string()]);
        route.unwrap().matches("via ").count()
    }

    /// Waits until the router has so many paths to each VIP; how long.
    fn wait_paths(&self, count: usize) -> Duration {
        let begun = Instant::now();
        eventually(LIMIT, &format!("{count} paths to each VIP"), || {
            let paths = VIPS.map(|vip| self.paths(vip));
            ensure!(paths == [count; 2], "{paths:?}");
            Ok(())
        })
        .unwrap();
        begun.elapsed()
    }

    fn busy(&self) -> [BusyClients; 2] {
        VIPS.map(|vip| {
            let target = SocketAddr::new(vip, CLIENT_PORT);
            let busy = BusyClients::start(self.lab.host("client-1"), target, BUSY, INTERVAL).unwrap();
            busy.wait_progress(3, LIMIT).unwrap();
            busy
        })
    }

    /// Established connections of each service that a node knows, of those that are busy.
    fn known(&self, node: usize, busy: &[BusyClients; 2]) -> Result<[usize; 2]> {
        let flows = self.nodes[node].cli(&["flows", "--json"])?;
        let flows: serde_json::Value = serde_json::from_str(&flows)?;
        let flows = flows["flows"].as_array().context("flows")?;
        let known = flows.iter().filter_map(|flow| flow["client"].as_str()).collect::<Vec<_>>();
        Ok([0, 1].map(|family: usize| {
            let outcomes = busy[family].outcomes();
            outcomes.iter().filter(|outcome| known.contains(&outcome.local.to_string().as_str())).count()
        }))
    }

    /// Something happens to the first node, and what its clients and new ones notice; how many must break, if that is known.
    fn event(&mut self, what: &str, breaks: Breaks, happen: impl FnOnce(&mut Self)) -> [BusyClients; 2] {
        let busy = self.busy();
        let known = self.known(0, &busy).unwrap();
        let knockers =
            VIPS.map(|vip| Knocker::start(self.lab.host("client-1"), SocketAddr::new(vip, CLIENT_PORT)));
        let begun = Instant::now();
        happen(self);
        let expected = if breaks == Breaks::ThisNodes { known } else { [0; 2] };
        eventually(LIMIT, &format!("{what}: {expected:?} connections break"), || {
            let broken = [0, 1].map(|family: usize| busy[family].broken());
            ensure!(broken == expected, "{broken:?} broke");
            Ok(())
        })
        .unwrap();
        for busy in &busy {
            busy.wait_progress(50, LIMIT).unwrap();
        }
        for family in [0, 1] {
            let outcomes = busy[family].outcomes();
            let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.broken.as_ref()).collect();
            let told = broken.iter().map(|(at, _)| at.saturating_duration_since(begun)).max();
            let gap = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
            println!(
                "| {what} | {} | {} of {BUSY} broken, {} on this node | all know after {:.2} s | longest wait {:.2} s | \
                 nobody new gets through for {:.2} s |",
                VIPS[family],
                broken.len(),
                known[family],
                told.unwrap_or_default().as_secs_f64(),
                gap.as_secs_f64(),
                knockers[family].longest().as_secs_f64(),
            );
            assert_eq!(broken.len(), expected[family], "{what}: the other node's connections go on");
            let longest = told.unwrap_or_default().max(gap).max(knockers[family].longest());
            assert!(longest < Duration::from_secs(10), "{what}: {longest:?}");
        }
        busy
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    Nothing,
    ThisNodes,
}

/// The config with checks that echo servers pass.
fn checked_by_connecting(config: &str) -> String {
    let files = ["ca_file", "cert_file", "key_file"];
    let without: Vec<&str> =
        config.lines().filter(|line| !files.iter().any(|file| line.trim().starts_with(file))).collect();
    without.join("\n").replace("[service.health]", "[service.health]\n  kind = \"tcp\"")
}

#[test]
fn two_nodes_announce_the_vips_and_one_goes() {
    let mut scene = Scene::start();
    let busy = scene.busy();
    let known = [0, 1].map(|node: usize| scene.known(node, &busy).unwrap());
    println!("| all is well | connections of IPv4 and IPv6 on lb1 {:?}, on lb2 {:?} |", known[0], known[1]);
    for family in [0, 1] {
        assert_eq!(known[0][family] + known[1][family], BUSY);
        assert!(known.iter().all(|known| known[family] >= BUSY / 8), "both nodes have their share");
    }
    drop(busy);

    let away = Duration::from_secs(2);
    drop(scene.event("the agent killed, back after 2 s", Breaks::Nothing, |scene| {
        scene.nodes[0].kill().unwrap();
        thread::sleep(away);
        assert_eq!(scene.paths(VIPS[0]), 2, "the announcement stays");
        scene.nodes[0].run().unwrap();
    }));
    drop(scene.event("the agent stopped, back after 2 s", Breaks::Nothing, |scene| {
        scene.nodes[0].stop().unwrap();
        thread::sleep(away);
        assert_eq!(scene.paths(VIPS[0]), 2, "the announcement stays");
        scene.nodes[0].run().unwrap();
    }));
    drop(scene.event("BIRD withdraws", Breaks::ThisNodes, |scene| {
        for protocol in ["router4", "router6"] {
            scene.birds[0].tell(&["disable", protocol]);
        }
        scene.wait_paths(1);
    }));
    for protocol in ["router4", "router6"] {
        scene.birds[0].tell(&["enable", protocol]);
    }
    println!("| BIRD announces again | after {:.2} s |", scene.wait_paths(2).as_secs_f64());

    drop(scene.event("detach", Breaks::ThisNodes, |scene| {
        scene.nodes[0].stop().unwrap();
        let config = scene.nodes[0].config().to_str().unwrap().to_owned();
        scene.nodes[0].cli(&["detach", "--config", &config]).unwrap();
        scene.wait_paths(1);
    }));
    scene.nodes[0].run().unwrap();
    println!("| started again | two paths after {:.2} s |", scene.wait_paths(2).as_secs_f64());

    let survivors = scene.event("the link cut", Breaks::ThisNodes, |scene| {
        scene.lab.plug("lb1", false).unwrap();
        scene.wait_paths(1);
    });
    let newcomers = scene.busy();
    scene.lab.plug("lb1", true).unwrap();
    println!("| the link is back | two paths after {:.2} s |", scene.wait_paths(2).as_secs_f64());
    for (number, (old, new)) in survivors.iter().zip(&newcomers).enumerate() {
        let before = old.broken();
        old.wait_progress(50, LIMIT).unwrap();
        new.wait_progress(50, LIMIT).unwrap();
        println!(
            "| the link is back | {} | {} more of those from before it was cut broken, {} of {BUSY} from meanwhile |",
            VIPS[number],
            old.broken() - before,
            new.broken()
        );
        assert_eq!(old.broken(), before, "they are where they were");
        assert!(new.broken() < BUSY, "those that stay go on");
    }
}
