//! Real etcd clients reach a real cluster through the VIP.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
    fleet::{Options, Session},
    https::Connection,
    process::tail,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(15);

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    balancer: Balancer,
    cluster: Cluster,
    client: Host,
    lab: Lab,
}

fn vip() -> SocketAddr {
    (VIP, CLIENT_PORT).into()
}

fn endpoint() -> String {
    format!("https://{VIP}:{CLIENT_PORT}")
}

/// A cluster behind a balancer, every member healthy; `more` is added to the config.
fn scene(name: &str, more: impl FnOnce(&Lab) -> String) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2").without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let config = Config::etcd(host, &cluster).text() + &more(&lab);
    let balancer = Balancer::start(host, &config).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", LIMIT).unwrap();
    }
    Scene { client: lab.host("client-1").clone(), balancer, cluster, lab }
}

fn count_on(cluster: &Cluster, sessions: &[Session], member: &str) -> usize {
    sessions.iter().filter(|session| cluster.name_of(session.member) == Some(member)).count()
}

#[test]
fn etcdctl_and_a_thousand_puts_and_gets() {
    let scene = scene("puts", |_| String::new());
    let health = scene.cluster.etcdctl(&scene.client, &endpoint(), &["endpoint", "health"]).unwrap();
    println!("etcdctl endpoint health: {}", health.trim());
    // A new connection every ten operations, so that all members serve.
    let begun = Instant::now();
    for batch in 0..100 {
        let mut connection = Connection::open(&scene.client, vip(), &scene.cluster.pki, LIMIT).unwrap();
        for number in 0..10 {
            let key = format!("a2V5{batch:02}{number}A");
            let value = format!("dmFs{batch:02}{number}A");
            connection.post("/v3/kv/put", &json!({"key": key, "value": value})).unwrap();
            let answer = connection.post("/v3/kv/range", &json!({"key": key})).unwrap();
            assert_eq!(answer["kvs"][0]["value"], json!(value), "{answer}");
        }
        connection.close();
    }
    println!("1,000 puts and 1,000 gets over 100 connections in {:?}", begun.elapsed());
    let status = scene.balancer.status().unwrap();
    for backend in status["services"][0]["backends"].as_array().unwrap() {
        println!("{}: {} slots", backend["name"], backend["slots"]);
    }
    let metrics = scene.balancer.status().unwrap();
    assert_eq!(metrics["services"][0]["fail_open"], json!(false));
}

#[test]
fn a_watch_runs_while_members_die_and_return() {
    let mut scene = scene("watch", |_| String::new());
    let log = scene.lab.dir().join("run").join("watch.log");
    let mut command = scene.cluster.etcdctl_command(&scene.client, &endpoint());
    command.args(["watch", "--prefix", "w/"]).stdin(Stdio::null());
    let mut watch = etcd_lb_tests::Process::spawn("watch", command, &log).unwrap();
    let mut expected = 0;
    let put = |scene: &Scene, expected: &mut usize| {
        *expected += 1;
        let (key, value) = (format!("w/{expected}"), format!("value-{expected}"));
        eventually(LIMIT, "a put", || {
            scene.cluster.etcdctl(&scene.client, &endpoint(), &["put", &key, &value]).map(drop)
        })
        .unwrap();
        eventually(LIMIT, &format!("the watch to see {value}"), || {
            let seen = tail(&log, 10_000);
            ensure!(seen.lines().any(|line| line == value), "not yet; it saw {} lines", seen.lines().count());
            Ok(())
        })
        .unwrap();
    };
    // The watch has to be there before the first event.
    eventually(LIMIT, "the watch's flow", || {
        let status = scene.balancer.status()?;
        ensure!(status["flow_table"]["used"].as_u64() >= Some(1), "no flow");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    put(&scene, &mut expected);
    for name in ["etcd-1", "etcd-2", "etcd-3"] {
        let killed = Instant::now();
        scene.cluster.member_mut(name).kill().unwrap();
        scene.balancer.wait_backend(name, "down", LIMIT).unwrap();
        println!("{name} killed, down after {:?}", killed.elapsed());
        put(&scene, &mut expected);
        scene.cluster.member_mut(name).start().unwrap();
        scene.cluster.member_mut(name).wait_healthy().unwrap();
        scene.balancer.wait_backend(name, "healthy", LIMIT).unwrap();
        put(&scene, &mut expected);
    }
    watch.check_alive().unwrap();
    println!("the watch saw all {expected} events through three members' deaths");
}

#[test]
fn only_a_killed_members_connections_break_and_it_is_used_again() {
    let mut scene = scene("killed", |_| String::new());
    let options = Options { interval: Duration::from_millis(20), reconnect: true, ..Options::default() };
    let fleet = Fleet::start(&scene.client, vip(), &scene.cluster.pki, options).unwrap();
    fleet.wait_progress(10, LIMIT).unwrap();
    let before = fleet.alive();
    let victim = scene.cluster.name_of(before[0].member).unwrap().to_owned();
    let on_victim = count_on(&scene.cluster, &before, &victim);
    for member in scene.cluster.members() {
        println!("{}: {} of 12 connections", member.name(), count_on(&scene.cluster, &before, member.name()));
    }

    let killed = Instant::now();
    scene.cluster.member_mut(&victim).kill().unwrap();
    eventually(LIMIT, "every client connected again", || {
        ensure!(fleet.alive().len() == 12, "{} of 12 are", fleet.alive().len());
        Ok(())
    })
    .unwrap();
    scene.balancer.wait_backend(&victim, "down", LIMIT).unwrap();
    fleet.wait_progress(20, LIMIT).unwrap();
    let broken = fleet.broken();
    let noticed = broken.iter().filter_map(|s| s.broken.as_ref()).map(|b| b.at - killed).max().unwrap();
    println!("{victim} killed: {} of 12 connections broke, the last after {noticed:?}", broken.len());
    assert_eq!(broken.len(), on_victim, "only the victim's connections break");
    assert_eq!(count_on(&scene.cluster, &broken, &victim), on_victim);
    assert_eq!(count_on(&scene.cluster, &fleet.alive(), &victim), 0, "new connections go elsewhere");
    drop(fleet);

    scene.cluster.member_mut(&victim).start().unwrap();
    scene.cluster.member_mut(&victim).wait_healthy().unwrap();
    scene.balancer.wait_backend(&victim, "healthy", LIMIT).unwrap();
    let options = Options { clients: 24, ..options };
    let fleet = Fleet::start(&scene.client, vip(), &scene.cluster.pki, options).unwrap();
    fleet.wait_progress(5, LIMIT).unwrap();
    let again = count_on(&scene.cluster, &fleet.alive(), &victim);
    println!("after its return {victim} has {again} of 24 new connections");
    assert!(again > 0, "the returned member is used again");
}

#[test]
fn a_drained_member_gets_no_new_connections_and_keeps_its_own() {
    let scene = scene("drain", |_| String::new());
    let options = Options { interval: Duration::from_millis(20), ..Options::default() };
    let fleet = Fleet::start(&scene.client, vip(), &scene.cluster.pki, options).unwrap();
    fleet.wait_progress(5, LIMIT).unwrap();
    let drained = scene.cluster.name_of(fleet.alive()[0].member).unwrap().to_owned();
    scene.balancer.cli(&["drain", &drained]).unwrap();
    scene.balancer.wait_backend(&drained, "draining", LIMIT).unwrap();
    let later = Fleet::start(&scene.client, vip(), &scene.cluster.pki, options).unwrap();
    later.wait_progress(5, LIMIT).unwrap();
    fleet.wait_progress(20, LIMIT).unwrap();
    assert_eq!(count_on(&scene.cluster, &later.alive(), &drained), 0);
    assert_eq!(fleet.broken().len() + later.broken().len(), 0);
    scene.balancer.cli(&["undrain", &drained]).unwrap();
    scene.balancer.wait_backend(&drained, "healthy", LIMIT).unwrap();
    let output = scene.balancer.cli_output(&["drain", "nobody"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("nobody") && text.contains("etcd-1"), "{text}");
}

#[test]
fn one_vip_with_two_services() {
    let scene = scene("two", |lab| {
        let config = Config::echo(lab.host("lb1")).name("apiserver").port(6443);
        let add = |config: Config, name: &str| {
            config.backend(&format!("api-{name}"), (lab.host(name).address(), 6443).into())
        };
        ["etcd-1", "etcd-2"].into_iter().fold(config, add).service_text()
    });
    let servers = ["etcd-1", "etcd-2"].map(|name| EchoServer::start(scene.lab.host(name), 6443).unwrap());
    for name in ["api-etcd-1", "api-etcd-2"] {
        scene.balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let busy = BusyClients::start(&scene.client, (VIP, 6443).into(), 20, Duration::from_millis(1)).unwrap();
    let fleet = Fleet::start(&scene.client, vip(), &scene.cluster.pki, Options::default()).unwrap();
    busy.wait_progress(100, LIMIT).unwrap();
    fleet.wait_progress(10, LIMIT).unwrap();
    assert_eq!((busy.broken(), fleet.broken().len()), (0, 0));
    for server in &servers {
        let peers = server.peers();
        assert!(peers.iter().any(|peer| peer.ip() == VIP), "traffic comes from the VIP: {peers:?}");
    }
    let status = scene.balancer.status().unwrap();
    assert_eq!(status["services"].as_array().unwrap().len(), 2);
    assert_eq!(status["services"][1]["flows"], json!(20));
}

#[test]
fn native_and_generic_mode_seen_from_outside() {
    for (mode, link_word) in [("auto", "xdp"), ("native", "xdp"), ("generic", "xdpgeneric")] {
        let lab = Lab::start("mode", &Topology::standard().without("lb2").without("client-2")).unwrap();
        let server = EchoServer::start(lab.host("etcd-1"), 2379).unwrap();
        let host = lab.host("lb1");
        let config = Config::echo(host).top(&format!("xdp_mode = \"{mode}\"")).addresses([server.address()]);
        let balancer = Balancer::start(host, &config.text()).unwrap();
        balancer.wait_backend(&server.address().to_string(), "healthy", LIMIT).unwrap();
        let link = host.output("ip", &["link", "show", "dev", host.interface()]).unwrap();
        let words: Vec<&str> = link.split_whitespace().collect();
        assert!(words.contains(&link_word), "{mode}: {link}");
        let net = host.output("bpftool", &["net"]).unwrap();
        println!(
            "xdp_mode = {mode}: {}",
            net.lines().find(|line| line.contains("eth0")).unwrap_or("").trim()
        );
        assert!(net.contains(if mode == "generic" { "generic" } else { "driver" }), "{net}");
        let shown = balancer.status().unwrap()["interfaces"][0]["xdp_mode"].clone();
        assert_eq!(shown, json!(if mode == "generic" { "generic" } else { "native" }));
        let busy = BusyClients::start(lab.host("client-1"), vip(), 5, Duration::from_millis(1)).unwrap();
        busy.wait_progress(100, LIMIT).unwrap();
        assert_eq!(busy.broken(), 0);
    }
}

#[test]
fn maps_are_pinned_by_name_with_fields_by_name() {
    let scene = scene("pins", |_| String::new());
    let pins: Vec<String> = std::fs::read_dir(scene.balancer.pin_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in [
        "services",
        "backends",
        "maglev",
        "flows",
        "half_open",
        "ports",
        "lease",
        "counters",
        "layout",
        "xdp",
    ] {
        assert!(pins.iter().any(|pin| pin == name), "{name} is not pinned: {pins:?}");
    }
    assert!(pins.iter().any(|pin| pin.starts_with("link_")), "{pins:?}");
    let dump = Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(scene.balancer.pin_dir().join("backends"))
        .output()
        .unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    for field in ["address", "port", "service", "epoch", "hop", "mac", "flags"] {
        assert!(dump.contains(&format!("\"{field}\"")), "no field {field}: {}", &dump[..dump.len().min(600)]);
    }
    drop(scene);
}
