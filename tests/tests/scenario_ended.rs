//! Which flows the balancer ended, and why: the flow log has a line for each, and the metrics count them.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP,
    echo::BusyClients,
    eventually, flow_log,
    held::{HeldClients, HeldServer},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(15);
/// What a loaded machine may add.
const NOISE: Duration = Duration::from_secs(2);
const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    balancer: Balancer,
    servers: Vec<HeldServer>,
    client: Host,
    log: PathBuf,
    lab: Lab,
}

fn scene(name: &str, service: &str) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2")).unwrap();
    let log = lab.dir().join("run").join("flows.jsonl");
    let servers: Vec<_> =
        MEMBERS.iter().map(|name| HeldServer::start(lab.host(name), 2379, 2381).unwrap()).collect();
    let config = Config::tcp(lab.host("lb1"))
        .top(&format!("flow_log = {log:?}"))
        .service(service)
        .health("kind = \"http\"\npath = \"/\"\nport = 2381\ninterval = \"200ms\"\ntimeout = \"200ms\"");
    let config = servers
        .iter()
        .map(HeldServer::host)
        .fold(config, |config, host| config.backend(host.name(), (host.address(), 2379).into()));
    let balancer = Balancer::start(lab.host("lb1"), &config.text()).unwrap();
    for name in MEMBERS {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    Scene { client: lab.host("client-1").clone(), balancer, servers, log, lab }
}

/// The connections of one host.
struct Held {
    host: Host,
    clients: HeldClients,
}

impl Held {
    /// Those that ended, and when.
    fn ended(&self) -> Vec<(SocketAddr, Instant)> {
        let ends = self.clients.ends().into_iter();
        ends.filter_map(|(port, end)| Some(((self.host.address(), port).into(), end?.at))).collect()
    }
}

impl Scene {
    fn hold(&self, host: &Host, count: usize) -> Held {
        Held { host: host.clone(), clients: HeldClients::open(host, (VIP, 2379).into(), count).unwrap() }
    }

    fn flows_of(&self, backend: &str) -> u64 {
        let list: Value =
            serde_json::from_str(&self.balancer.cli(&["flows", "--backend", backend, "--json"]).unwrap())
                .unwrap();
        list["flows"].as_array().unwrap().iter().filter(|flow| flow["state"] == "established").count() as u64
    }

    /// No RST was an end's own.
    fn no_end_reset_any(&self) {
        for end in ["backend", "client"] {
            let resets = self.balancer.metric("etcd_lb_backend_resets_total", &format!("reason=\"{end}\""));
            assert!(resets.unwrap() < 0.5, "{end}");
        }
    }

    /// Holds log and metrics against the clients that saw their connections end, of whom there are `count`: `reason` is
    /// why.
    fn is_told(&self, reason: &str, count: u64, clients: &[&Held], known: &mut BTreeSet<SocketAddr>) {
        let ended = eventually(LIMIT, reason, || {
            let ended = clients.iter().flat_map(|clients| clients.ended());
            let new: BTreeSet<SocketAddr> =
                ended.map(|(client, _)| client).filter(|client| !known.contains(client)).collect();
            anyhow::ensure!(new.len() as u64 == count, "{} of {count} know", new.len());
            Ok(new)
        })
        .unwrap();
        let why = |line: &Value| line["event"] == "closed" && line["reason"] == reason;
        let lines = flow_log::wait(&self.log, ended.len(), LIMIT, why).unwrap();
        println!("{count} ended, {reason}; the first line: {}", lines[0]);
        let client = |line: &Value| line["client"].as_str().unwrap().parse().unwrap();
        let logged: BTreeSet<SocketAddr> = lines.iter().map(client).collect();
        assert_eq!((&logged, lines.len()), (&ended, ended.len()), "{reason}: a line for each, and once");
        for line in &lines {
            assert!(line["duration_ms"].as_u64().is_some_and(|lasted| lasted < 60_000), "{line}");
            assert!(
                MEMBERS.iter().any(|name| line["backend"] == *name) && line["service"] == "etcd",
                "{line}"
            );
        }
        let metrics = self.balancer.metrics().unwrap();
        let series = metrics.lines().filter(|line| {
            line.starts_with("etcd_lb_backend_resets_total{")
                && line.contains(&format!("reason=\"{reason}\""))
        });
        let values: Vec<u64> = series.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        assert_eq!(
            (values.len(), values.iter().sum::<u64>()),
            (MEMBERS.len(), count),
            "{reason}: {values:?}"
        );
        known.extend(ended);
    }
}

#[test]
fn each_way_to_end_flows_has_its_name_in_log_and_metrics() {
    let scene = scene("endedwhy", "drain_timeout = \"700ms\"");
    let other = scene.lab.host("client-2");
    let (first, second) = (scene.hold(&scene.client, 60), scene.hold(other, 5));
    let both = [&first, &second];
    let mut known = BTreeSet::new();

    let drained = scene.flows_of("etcd-3");
    let begun = Instant::now();
    scene.balancer.cli(&["drain", "etcd-3"]).unwrap();
    let asked = begun.elapsed();
    scene.is_told("drain_timeout", drained, &both, &mut known);
    let ends = both.iter().flat_map(|clients| clients.ended());
    let last = ends.map(|(_, at)| at).max().unwrap() - begun;
    println!("drain_timeout = 700 ms: the last client knew after {last:?}; the command took {asked:?}");
    assert!(last >= Duration::from_millis(700), "not before its time");
    assert!(last <= asked + Duration::from_millis(700 + 100) + NOISE, "{last:?}");
    scene.balancer.cli(&["undrain", "etcd-3"]).unwrap();

    let answer: Value = serde_json::from_str(&scene.balancer.cli(&["rebalance", "--json"]).unwrap()).unwrap();
    let over = answer["backends"].as_array().unwrap().iter().map(|b| b["reset"].as_u64().unwrap()).sum();
    assert!(over > 0, "{answer}");
    scene.is_told("rebalance", over, &both, &mut known);

    let left = (5 - second.ended().len()) as u64;
    scene.balancer.cli(&["reset", "--client", &other.address().to_string()]).unwrap();
    scene.is_told("command", left, &both, &mut known);

    let on_second = scene.flows_of("etcd-2");
    scene.servers[1].freeze(true);
    scene.is_told("backend_down", on_second, &both, &mut known);

    let lines = flow_log::lines(&scene.log).unwrap();
    let closed = lines.iter().filter(|line| line["event"] == "closed").count();
    assert_eq!(closed, known.len(), "nothing is logged twice, under another reason");
    scene.no_end_reset_any();
}

#[test]
fn busy_flows_are_ended_under_one_reason() {
    let scene = scene("endedbusy", "");
    let vip = (VIP, 2379).into();
    let busy = BusyClients::start(&scene.client, vip, 40, Duration::from_millis(1)).unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    let on_first = scene.flows_of("etcd-1");
    scene.balancer.cli(&["reset", "--backend", "etcd-1"]).unwrap();
    let closed = |line: &Value| line["event"] == "closed";
    let lines = flow_log::wait(&scene.log, on_first as usize, LIMIT, closed).unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    let of_command = lines.iter().filter(|line| line["reason"] == "command").count();
    println!("{} busy flows ended, {of_command} by the command; {} broke", lines.len(), busy.broken());
    assert_eq!([lines.len(), of_command, busy.broken()], [on_first as usize; 3]);
    assert_eq!(flow_log::lines(&scene.log).unwrap().iter().filter(|line| closed(line)).count(), of_command);
    scene.no_end_reset_any();
}

#[test]
fn an_agent_that_is_stopped_tells_first() {
    let mut scene = scene("endedstop", "");
    let held = scene.hold(&scene.client, 1500);
    let address = scene.client.address().to_string();
    scene.balancer.cli(&["reset", "--client", &address]).unwrap();
    let begun = Instant::now();
    scene.balancer.stop().unwrap();
    println!("{} knew when the agent had ended, after {:?}", held.ended().len(), begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "promised for SIGTERM");
    let closed = |line: &Value| line["event"] == "closed" && line["reason"] == "command";
    assert_eq!(flow_log::wait(&scene.log, 1500, LIMIT, closed).unwrap().len(), 1500);
    eventually(LIMIT, "every client knows", || {
        anyhow::ensure!(held.ended().len() == 1500, "{} do", held.ended().len());
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_idle_flow_has_its_line() {
    let scene = scene("endedidle", "idle_timeout = \"2s\"");
    let quiet = scene.hold(&scene.client, 6);
    scene.is_told("idle", 6, &[&quiet], &mut BTreeSet::new());
}
