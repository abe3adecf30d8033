//! Flow sync between nodes that differ, between three, and what follows a change of role.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Role, Topology, VIP, config::secret_file, echo::EchoServer,
    eventually, owner::OwnerWatch,
};

const LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: &str = "100ms";

/// Hosts, servers, and a key.
struct Scene {
    servers: Vec<EchoServer>,
    key: PathBuf,
    lab: Lab,
}

impl Scene {
    fn new(name: &str, topology: &Topology) -> Self {
        let lab = Lab::start(name, topology).unwrap();
        let servers =
            ["etcd-1", "etcd-2"].map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap());
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        Self { servers: servers.into(), key, lab }
    }

    fn pair(name: &str) -> Self {
        Self::new(name, &Topology::standard().without("client-2").without("etcd-3"))
    }

    fn config(&self, node: &str) -> Config {
        Config::echo(self.lab.host(node)).numbered(self.servers.iter().map(EchoServer::address))
    }

    fn text(&self, config: &Config, node: &str, other: &str, priority: u8) -> String {
        config.pair_text((self.lab.host(node), self.lab.host(other)), priority, INTERVAL, &self.key)
    }

    /// With a backend more where nobody answers, so that the first round of checks lasts.
    fn text_of_slow(&self, node: &str, other: &str, priority: u8) -> String {
        let silent = SocketAddr::from(([10, 0, 1, 99], CLIENT_PORT));
        let addresses = self.servers.iter().map(EchoServer::address).chain([silent]);
        let config = Config::echo(self.lab.host(node)).numbered(addresses);
        let text = self.text(&config, node, other, priority);
        let slow = text.replace("timeout = \"200ms\"", "timeout = \"3s\"");
        assert_ne!(text, slow);
        slow
    }

    fn start(&self, node: &str, text: &str) -> Balancer {
        Balancer::start(self.lab.host(node), text).unwrap()
    }

    fn connect(&self, port: u16) -> TcpStream {
        let to = SocketAddr::from((VIP, port));
        let mut stream = self.lab.host("client-1").run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap();
        exchange(&mut stream);
        stream
    }
}

fn exchange(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

fn log(balancer: &mut Balancer) -> String {
    fs::read_to_string(balancer.process().unwrap().log()).unwrap()
}

fn wait_log(balancer: &mut Balancer, words: &[&str]) {
    eventually(LIMIT, &format!("the log says {words:?}"), || {
        let log = log(balancer);
        ensure!(words.iter().all(|word| log.contains(word)), "{log}");
        Ok(())
    })
    .unwrap();
}

fn wait(balancer: &Balancer, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    eventually(LIMIT, what, || {
        let status = balancer.status()?;
        ensure!(is(&status), "{status}");
        Ok(())
    })
    .unwrap();
}

fn wait_synced(balancer: &Balancer) {
    wait(balancer, "in sync", |status| status["peer"]["synced"] == true);
}

#[test]
fn another_key_and_another_seed_are_refused_by_both_sides() {
    let scene = Scene::pair("sync_refused");
    let mut ours = scene.start("lb1", &scene.text(&scene.config("lb1"), "lb1", "lb2", 200));
    let other_key = scene.lab.dir().join("run").join("other.key");
    secret_file(&other_key, &[8; 32]).unwrap();
    let text = scene.text(&scene.config("lb2"), "lb2", "lb1", 100);
    let text = text.replace("sync.key", "other.key");
    let mut theirs = scene.start("lb2", &text);
    for node in [&mut ours, &mut theirs] {
        wait_log(node, &["no flow sync", "the keys differ: copy `sync.key_file` from one node to the other"]);
        let failures = node.metric("etcd_lb_sync_failures_total", "\"wrong_key\"").unwrap();
        assert!(failures >= 1.0, "{failures}");
        assert_eq!(node.status().unwrap()["peer"]["connected"], false);
    }
    theirs.stop().unwrap();

    let seed = scene.lab.dir().join("run").join("seed");
    secret_file(&seed, b"another seed, that is long enough").unwrap();
    let config = scene.config("lb2").top(&format!("hash_seed_file = {seed:?}"));
    let mut theirs = scene.start("lb2", &scene.text(&config, "lb2", "lb1", 100));
    for node in [&mut ours, &mut theirs] {
        wait_log(node, &["flow sync ended", "use the same `hash_seed_file` on both nodes"]);
        assert_eq!(node.status().unwrap()["peer"]["synced"], false);
    }
}

#[test]
fn nodes_with_other_services_share_what_both_have() {
    let scene = Scene::pair("sync_services");
    let second = EchoServer::start(scene.lab.host("etcd-1"), 6443).unwrap();
    let more = Config::echo(scene.lab.host("lb1")).name("more").port(6443).addresses([second.address()]);
    let text = scene.text(&scene.config("lb1"), "lb1", "lb2", 200);
    let text = text.replace("\n[vrrp]", &format!("\n{}\n[vrrp]", more.service_text()));
    let mut ours = scene.start("lb1", &text);
    let mut theirs = scene.start("lb2", &scene.text(&scene.config("lb2"), "lb2", "lb1", 100));
    wait_synced(&ours);
    wait_log(&mut ours, &["the other node does not have this service", "10.0.1.100:6443"]);
    wait_log(&mut theirs, &["only the other node has this service", "10.0.1.100:6443"]);
    wait(&ours, "active", |status| status["role"] == "active" && status["fenced"] == false);
    let mut stream = scene.connect(CLIENT_PORT);
    let mut lost = scene.connect(6443);
    wait(&theirs, "the shared flow is there", |status| status["flow_table"]["used"] == 1);
    ours.kill().unwrap();
    wait(&theirs, "active", |status| status["role"] == "active");
    exchange(&mut stream);
    // Nobody else has this service: its port is closed.
    lost.set_read_timeout(Some(LIMIT)).unwrap();
    let _ = lost.write_all(b"hello");
    assert!(lost.read(&mut [0; 5]).map_or(true, |read| read == 0), "it cannot go on");
}

#[test]
fn three_nodes_each_have_every_flow() {
    let topology = Topology::standard().without("client-2").without("etcd-3").with(Role::Balancer, "lb3", 4);
    let scene = Scene::new("sync_three", &topology);
    let names = ["lb1", "lb2", "lb3"];
    let text = |n: usize| {
        let others = names.iter().filter(|name| **name != names[n]);
        let peers: Vec<String> =
            others.map(|name| format!("\"{}:3780\"", scene.lab.host(name).address())).collect();
        let text = scene.text(&scene.config(names[n]), names[n], names[(n + 1) % 3], 200 - 50 * n as u8);
        let peer = text.lines().find(|line| line.starts_with("peer = ")).unwrap();
        text.replace(peer, &format!("peer = [{}]", peers.join(", ")))
    };
    let mut nodes: Vec<Balancer> = (0..3).map(|n| scene.start(names[n], &text(n))).collect();
    nodes.iter().for_each(wait_synced);
    wait(&nodes[0], "active", |status| status["role"] == "active" && status["fenced"] == false);
    let mut streams: Vec<TcpStream> = (0..10).map(|_| scene.connect(CLIENT_PORT)).collect();
    for node in &nodes[1..] {
        wait(node, "it has every flow", |status| status["flow_table"]["used"] == 10);
    }
    let watch = OwnerWatch::start(scene.lab.host("client-1")).unwrap();
    for dead in 0..2 {
        let since = Instant::now();
        nodes[dead].kill().unwrap();
        wait(&nodes[dead + 1], "the next one is active", |status| status["role"] == "active");
        streams.iter_mut().for_each(exchange);
        println!("{} killed: 10 connections go on after {:?}", names[dead], since.elapsed());
    }
    assert_eq!(watch.disputed(), [0u64; 0]);
}

#[test]
fn a_program_is_told_of_each_role_and_a_node_without_backends_yields() {
    let scene = Scene::pair("sync_notify");
    let (told, program) =
        (scene.lab.dir().join("run").join("told"), scene.lab.dir().join("run").join("notify"));
    fs::write(&program, format!("#!/bin/sh\necho \"$1\" >> {}\n", told.display())).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Its checks go to a port where nobody answers, once the firewall is up.
    let tracked = |text: String| {
        text.replace("[vrrp]\n", &format!("[vrrp]\ntrack_healthy_backends = 150\nnotify = {program:?}\n"))
    };
    let mut ours = scene.start("lb1", &tracked(scene.text(&scene.config("lb1"), "lb1", "lb2", 200)));
    let theirs = scene.start("lb2", &scene.text(&scene.config("lb2"), "lb2", "lb1", 100));
    wait_synced(&ours);
    wait(&ours, "active", |status| status["role"] == "active" && status["fenced"] == false);
    let rules = ["etcd-1", "etcd-2"].map(|host| format!("iifname \"lb1\" oifname \"{host}\" drop"));
    scene.lab.filter(&rules.join("; ")).unwrap();
    wait(&theirs, "the node that sees its backends is active", |status| status["role"] == "active");
    wait(&ours, "backup", |status| status["role"] == "backup");
    scene.lab.filter("counter").unwrap();
    wait(&ours, "active again", |status| status["role"] == "active");
    ours.stop().unwrap();
    let roles = eventually(LIMIT, "the program was told", || {
        let told = fs::read_to_string(&told)?;
        ensure!(told.ends_with("stopped\n"), "{told}");
        Ok(told)
    });
    assert_eq!(roles.unwrap(), "active\nbackup\nactive\nstopped\n");
}

#[test]
fn flows_of_a_backend_that_is_added_later_come_then() {
    let scene = Scene::pair("sync_later");
    let whole = |node: &str| scene.config(node);
    let part = Config::echo(scene.lab.host("lb2")).numbered([scene.servers[0].address()]);
    let first = scene.start("lb1", &scene.text(&whole("lb1"), "lb1", "lb2", 200));
    let second = scene.start("lb2", &scene.text(&part, "lb2", "lb1", 100));
    let used = |node: &Balancer| -> anyhow::Result<u64> {
        Ok(node.status()?["flow_table"]["used"].as_u64().unwrap_or(0))
    };
    eventually(LIMIT, "in sync", || {
        ensure!(second.status()?["peer"]["synced"] == true);
        Ok(())
    })
    .unwrap();
    let streams: Vec<_> = (0..20).map(|_| scene.connect(CLIENT_PORT)).collect();
    let of_second = scene.servers[1].peers().len() as u64;
    assert!(of_second > 0 && of_second < 20, "{of_second}");
    eventually(LIMIT, "flows to the backend that both have", || {
        ensure!(used(&second)? == 20 - of_second, "{}", used(&second)?);
        Ok(())
    })
    .unwrap();
    second.write_config(&scene.text(&whole("lb2"), "lb2", "lb1", 100)).unwrap();
    second.reload().unwrap();
    eventually(LIMIT, "flows to the backend that was added", || {
        ensure!(used(&second)? == 20, "{}", used(&second)?);
        Ok(())
    })
    .unwrap();
    let connected = first.metric("etcd_lb_sync_connected", "").unwrap();
    assert!(connected > 0.5, "the stream goes on");
    drop(streams);
}

/// A node that starts has no tables until its members have been checked once; flows may have come by then.
#[test]
fn flows_that_come_before_the_members_are_checked() {
    let scene = Scene::pair("sync_early");
    let first = scene.start("lb1", &scene.text(&scene.config("lb1"), "lb1", "lb2", 200));
    let mut streams: Vec<_> = (0..10).map(|_| scene.connect(CLIENT_PORT)).collect();
    let mut second = scene.start("lb2", &scene.text_of_slow("lb2", "lb1", 100));
    wait(&second, "all connections are known", |status| status["services"][0]["flows"] == 10);
    let text = log(&mut second);
    let at = |what: &str| text.find(what).unwrap();
    assert!(at("all flows of the other node are here") < at("ready interface"), "{text}");
    first.cli(&["failover"]).unwrap();
    wait(&second, "active", |status| status["role"] == "active");
    streams.iter_mut().for_each(exchange);
}

/// While the VIPs are held the agent restarts over maps of another size. The other node, which hears of it before the members are
/// checked and the flows carried over, keeps every connection.
#[test]
fn the_other_node_keeps_all_while_flows_are_carried_over() {
    let scene = Scene::pair("sync_migrate");
    let mut first = scene.start("lb1", &scene.text_of_slow("lb1", "lb2", 200));
    let mut second = scene.start("lb2", &scene.text_of_slow("lb2", "lb1", 100));
    wait_synced(&second);
    wait(&first, "active", |status| status["role"] == "active");
    let mut streams: Vec<_> = (0..10).map(|_| scene.connect(CLIENT_PORT)).collect();
    wait(&second, "all connections are known", |status| status["services"][0]["flows"] == 10);
    first.cli(&["hold", "--for", "20"]).unwrap();
    let other_size = format!("max_flows = 8192\n{}", scene.text_of_slow("lb1", "lb2", 200));
    first.write_config(&other_size).unwrap();
    first.stop().unwrap();
    first.run().unwrap();
    wait_synced(&first);
    wait_synced(&second);
    let status = second.status().unwrap();
    assert_eq!(
        (&status["services"][0]["flows"], &status["role"]),
        (&10.into(), &"backup".into()),
        "{status}"
    );
    let (of_first, of_second) = (log(&mut first), log(&mut second));
    assert!(of_first.contains("flows are carried over"), "{of_first}");
    assert!(!of_second.contains("to=\"active\""), "{of_second}");
    streams.iter_mut().for_each(exchange);
    first.cli(&["failover"]).unwrap();
    wait(&second, "active", |status| status["role"] == "active");
    streams.iter_mut().for_each(exchange);
}

/// The second node may be there before the first one, restarted for its new role, is active: it is told of the connections from
/// before all the same.
#[test]
fn a_node_that_was_alone_tells_of_its_connections() {
    let scene = Scene::pair("sync_alone");
    let pair = |node: &str, other: &str, priority: u8| {
        let hosts = (scene.lab.host(node), scene.lab.host(other));
        scene.config(node).pair_text(hosts, priority, "1s", &scene.key)
    };
    let mut first = scene.start("lb1", &scene.config("lb1").text());
    let mut streams: Vec<_> = (0..10).map(|_| scene.connect(CLIENT_PORT)).collect();
    first.stop().unwrap();
    first.write_config(&pair("lb1", "lb2", 200)).unwrap();
    first.run().unwrap();
    let second = scene.start("lb2", &pair("lb2", "lb1", 100));
    wait_synced(&second);
    println!("in sync, the first node is {}", first.status().unwrap()["role"]);
    wait(&second, "all connections are known", |status| status["services"][0]["flows"] == 10);
    wait(&first, "active", |status| status["role"] == "active");
    streams.iter_mut().for_each(exchange);
    first.cli(&["failover"]).unwrap();
    wait(&second, "active", |status| status["role"] == "active");
    streams.iter_mut().for_each(exchange);
}
