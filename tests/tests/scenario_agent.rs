//! The agent dies, hangs, restarts, is replaced and reloaded under load, and no connection notices.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(15);
const BUSY: usize = 50;

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    balancer: Balancer,
    servers: Vec<EchoServer>,
    client: Host,
    lab: Lab,
}

fn scene(name: &str, topology: &Topology) -> Scene {
    let lab = Lab::start(name, topology).unwrap();
    let servers: Vec<EchoServer> = ["etcd-1", "etcd-2", "etcd-3"]
        .map(|name| EchoServer::start(lab.host(name), 2379).unwrap())
        .into_iter()
        .collect();
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &config(host, &servers)).unwrap();
    for server in &servers {
        balancer.wait_backend(&server.address().to_string(), "healthy", LIMIT).unwrap();
    }
    Scene { client: lab.host("client-1").clone(), balancer, servers, lab }
}

fn small() -> Topology {
    Topology::standard().without("lb2").without("client-2")
}

fn config(host: &Host, servers: &[EchoServer]) -> String {
    Config::echo(host).addresses(servers.iter().map(EchoServer::address)).text()
}

/// Pings the VIP 500 times a second until it is stopped; the XDP program answers each, so a lost one is a lost packet.
struct Pings {
    child: Child,
    text: JoinHandle<String>,
}

impl Pings {
    fn start(client: &Host) -> Self {
        let mut command = client.command("ping");
        command.args(["-i", "0.002", &VIP.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // Read as it comes: a full pipe would stop it.
        let text = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        Self { child, text }
    }

    /// (sent, answered). The last one sent is left out: its answer may be under way.
    fn finish(mut self) -> (usize, usize) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        let text = self.text.join().unwrap();
        let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
        let answered: std::collections::BTreeSet<usize> = text.lines().filter_map(sequence).collect();
        let last = *answered.last().unwrap_or_else(|| panic!("{text}"));
        (last, answered.len())
    }
}

/// Packets that the lab's links dropped because a queue of theirs was full.
fn ring_drops(lab: &Lab) -> u64 {
    let hosts = ["lb1", "client-1", "etcd-1", "etcd-2", "etcd-3"].map(|name| lab.host(name));
    let of = |host: &Host| {
        let text = host.output("ip", &["-s", "-j", "link", "show", "dev", host.interface()]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let stats = &json[0]["stats64"];
        stats["rx"]["dropped"].as_u64().unwrap() + stats["tx"]["dropped"].as_u64().unwrap()
    };
    hosts.into_iter().map(of).sum()
}

/// The drop counters that are not 0, by name.
fn drops(balancer: &Balancer) -> BTreeMap<&'static str, u64> {
    let dump = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(balancer.pin_dir().join("counters"))
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
    let cpus = json[0]["formatted"]["values"].as_array().unwrap();
    let drop_names = lb_common::counters::Counter::ALL
        .iter()
        .filter(|counter| counter.kind() == lb_common::counters::Kind::Drop)
        .map(|counter| counter.name());
    let sum = |name| cpus.iter().map(|cpu| cpu["value"][name].as_u64().unwrap()).sum::<u64>();
    drop_names.map(|name| (name, sum(name))).filter(|(_, count)| *count > 0).collect()
}

/// Runs `disturb` under 50 busy connections and pings; says what was lost.
fn under_load(scene: &mut Scene, what: &str, disturb: impl FnOnce(&mut Scene, &BusyClients)) {
    let vip: SocketAddr = (VIP, 2379).into();
    let busy = BusyClients::start(&scene.client, vip, BUSY, Duration::from_millis(20)).unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    let dropped = drops(&scene.balancer);
    let ring_before = ring_drops(&scene.lab);
    let pings = Pings::start(&scene.client);
    let begun = Instant::now();
    disturb(scene, &busy);
    busy.wait_progress(20, LIMIT).unwrap();
    let (sent, answered) = pings.finish();
    let outcomes = busy.finish();
    let broken = outcomes.iter().filter(|outcome| outcome.broken.is_some()).count();
    let exchanges: u64 = outcomes.iter().map(|outcome| outcome.exchanges).sum();
    let gap = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
    let retransmitted: u64 = outcomes.iter().map(|outcome| outcome.retransmissions).sum::<u64>()
        + scene.servers.iter().map(EchoServer::retransmissions).sum::<u64>();
    println!(
        "{what}: {:?}; {BUSY} connections, {exchanges} exchanges, {broken} broken, longest gap {gap:?}, \
         {retransmitted} segments sent again; {answered} of {sent} pings answered",
        begun.elapsed()
    );
    for outcome in outcomes.iter().filter(|outcome| outcome.broken.is_some()) {
        println!("  {}: {:?}", outcome.local, outcome.broken);
    }
    let ring = ring_drops(&scene.lab) - ring_before;
    println!("  {ring} packets dropped by full queues of the lab's links");
    assert_eq!(broken, 0);
    assert_eq!(drops(&scene.balancer), dropped, "packets were dropped");
    assert_eq!(sent - answered, 0, "packets were lost");
}

/// A build of etcd-lb whose XDP program is another one: `cargo xtask test` makes it.
fn other_binary() -> PathBuf {
    let path = etcd_lb_tests::balancer::binary().unwrap().with_file_name("etcd-lb-debug-log");
    assert!(path.is_file(), "{} is missing: `cargo xtask test` builds it", path.display());
    path
}

fn program_tag(balancer: &Balancer) -> String {
    let show = Command::new("bpftool")
        .args(["-j", "prog", "show", "pinned"])
        .arg(balancer.pin_dir().join("xdp"))
        .output();
    let json: serde_json::Value = serde_json::from_slice(&show.unwrap().stdout).unwrap();
    json["tag"].as_str().unwrap().to_owned()
}

/// Segments that 50 busy connections send again without a balancer between, for comparison: an echo that comes late on a
/// busy machine draws a tail loss probe (RFC 8985) although nothing was lost.
fn resent_without_a_balancer(scene: &Scene) {
    let direct = scene.servers[0].address();
    let busy = BusyClients::start(&scene.client, direct, BUSY, Duration::from_millis(20)).unwrap();
    busy.wait_progress(70, LIMIT).unwrap();
    let outcomes = busy.finish();
    let exchanges: u64 = outcomes.iter().map(|outcome| outcome.exchanges).sum();
    let resent: u64 = outcomes.iter().map(|outcome| outcome.retransmissions).sum::<u64>()
        + scene.servers[0].retransmissions();
    println!("without a balancer: {exchanges} exchanges, {resent} segments sent again");
}

#[test]
fn killed_restarted_and_replaced_under_fifty_busy_connections() {
    let mut scene = scene("replace", &small());
    resent_without_a_balancer(&scene);
    under_load(&mut scene, "nothing happens", |_, busy| busy.wait_progress(50, LIMIT).unwrap());
    under_load(&mut scene, "kill -9, then restart", |scene, busy| {
        scene.balancer.kill().unwrap();
        busy.wait_progress(50, LIMIT).unwrap();
        scene.balancer.run().unwrap();
    });
    let before = program_tag(&scene.balancer);
    let own = etcd_lb_tests::balancer::binary().unwrap();
    under_load(&mut scene, "kill -9, then another binary", |scene, busy| {
        scene.balancer.kill().unwrap();
        scene.balancer.use_binary(&other_binary());
        scene.balancer.run().unwrap();
        busy.wait_progress(50, LIMIT).unwrap();
    });
    assert_ne!(program_tag(&scene.balancer), before, "the other binary has another program");
    under_load(&mut scene, "SIGTERM, then the first binary", |scene, busy| {
        let begun = Instant::now();
        scene.balancer.stop().unwrap();
        println!("SIGTERM to exit: {:?}", begun.elapsed());
        busy.wait_progress(50, LIMIT).unwrap();
        scene.balancer.use_binary(&own);
        scene.balancer.run().unwrap();
    });
    assert_eq!(program_tag(&scene.balancer), before);
    // New connections are served by a restarted agent's data plane as before.
    let later = BusyClients::start(&scene.client, (VIP, 2379).into(), 10, Duration::from_millis(1)).unwrap();
    later.wait_progress(20, LIMIT).unwrap();
}

#[test]
fn killed_again_and_again_while_it_starts() {
    let mut scene = scene("again", &small());
    under_load(&mut scene, "killed 20 times at random moments of its start", |scene, _| {
        for round in 0..20u64 {
            if scene.balancer.process().is_some() {
                scene.balancer.kill().unwrap();
            }
            let mut command = scene.balancer.host().command(etcd_lb_tests::balancer::binary().unwrap());
            command.arg("run").arg("--config").arg(scene.balancer.config());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            thread::sleep(Duration::from_millis(17 * (round + 1)));
            child.kill().unwrap();
            child.wait().unwrap();
            if round % 5 == 4 {
                scene.balancer.run().unwrap();
            }
        }
    });
}

/// A process's memory in KiB, and how many files it has open: the least of some readings, since a probe or a
/// question that is under way has a socket of its own.
fn resident(pid: u32) -> (u64, usize) {
    let reading = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (line.split_whitespace().next().unwrap().parse::<u64>().unwrap(), files)
    };
    let mut least = reading();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(10));
        let (memory, files) = reading();
        least = (least.0.min(memory), least.1.min(files));
    }
    least
}

#[test]
fn reloaded_under_load_with_good_and_bad_files() {
    let mut scene = scene("reload", &small());
    let good = config(scene.balancer.host(), &scene.servers);
    let weight = |weight: u32| {
        good.replacen("[[service.backend]]\n", &format!("[[service.backend]]\nweight = {weight}\n"), 1)
    };
    let with = |line: &str| good.replace("port = 2379\n", &format!("port = 2379\n{line}\n"));
    let another = Config::tcp(scene.balancer.host())
        .name("another")
        .port(6443)
        .backend("a", (scene.servers[0].address().ip(), 6443).into());
    let changes = [
        weight(2),
        weight(3),
        with("drain_timeout = \"1s\"\nidle_timeout = \"1h\""),
        with("max_flows_per_client = 1000\nallow = [\"10.0.0.0/8\"]"),
        good.replace("interval = \"200ms\"", "interval = \"300ms\""),
        good.replace("\"maglev\"", "\"least-conn\""),
        format!("{good}\n{}", another.service_text()),
    ];
    let reloads = if cfg!(feature = "long") { 1000 } else { 30 };
    let mut sizes = Vec::new();
    under_load(&mut scene, &format!("{reloads} reloads, half of them bad"), |scene, _| {
        for round in 0..reloads {
            // Once each of them has been in force.
            if round == 28 || round + 1 == reloads {
                sizes.push(resident(scene.balancer.process().unwrap().pid()));
            }
            if round % 2 == 0 {
                scene.balancer.write_config(&changes[round / 2 % changes.len()]).unwrap();
                scene.balancer.reload().unwrap();
            } else {
                scene.balancer.write_config(&good.replace("algorithm", "algoritm")).unwrap();
                let output = scene.balancer.cli_output(&["reload"]).unwrap();
                assert_eq!(output.status.code(), Some(1));
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(text.contains("algoritm") && text.contains("algorithm"), "{text}");
            }
        }
    });
    let [(before, files), (after, files_after)] = sizes[..] else { panic!("{sizes:?}") };
    println!(
        "resident after 28 reloads {before} KiB, after {reloads} {after} KiB; open files {files} and {files_after}"
    );
    // An allocator's reserves come and go.
    assert!(after < before + 4096 && files_after <= files + 2, "it grows");
    scene.balancer.write_config(&good).unwrap();
    scene.balancer.reload().unwrap();
    // A backend is taken out: its connections go on until the drain timeout, the others do not notice.
    let shorter = good.replace("port = 2379\n", "port = 2379\ndrain_timeout = \"1s\"\n");
    let without_last = shorter.rfind("[[service.backend]]").map(|at| shorter[..at].to_owned()).unwrap();
    let busy = BusyClients::start(&scene.client, (VIP, 2379).into(), 30, Duration::from_millis(2)).unwrap();
    busy.wait_progress(5, LIMIT).unwrap();
    let address = scene.servers[2].address();
    let flows = scene.balancer.cli(&["flows", "--backend", &address.to_string(), "--json"]).unwrap();
    let on_last = serde_json::from_str::<serde_json::Value>(&flows).unwrap();
    let on_last = on_last.as_array().or_else(|| on_last["flows"].as_array()).unwrap();
    let clients: Vec<String> = busy.outcomes().iter().map(|outcome| outcome.local.to_string()).collect();
    let is_ours = |flow: &&serde_json::Value| clients.iter().any(|client| flow["client"] == json!(client));
    let on_last = on_last.iter().filter(is_ours).count();
    scene.balancer.write_config(&without_last).unwrap();
    scene.balancer.reload().unwrap();
    eventually(LIMIT, "the removed backend's flows to end", || {
        ensure!(busy.broken() == on_last, "{} of {on_last}", busy.broken());
        Ok(())
    })
    .unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    println!("a backend removed: {on_last} flows ended at the drain timeout, {} go on", 30 - on_last);
    assert_eq!(busy.broken(), on_last);
    eventually(LIMIT, "the removed backend to leave", || {
        let status = scene.balancer.status()?;
        ensure!(status["services"][0]["backends"].as_array().map(Vec::len) == Some(2), "{status}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_backends_new_mac_is_followed() {
    let mut scene = scene("mac", &small());
    let busy = BusyClients::start(&scene.client, (VIP, 2379).into(), 20, Duration::from_millis(5)).unwrap();
    busy.wait_progress(5, LIMIT).unwrap();
    let backend = scene.lab.host("etcd-2");
    // As a virtual machine that has moved, or a bond: the host tells its neighbours of its new MAC.
    let notify = format!("/proc/sys/net/ipv4/conf/{}/arp_notify", backend.interface());
    backend.output("sh", &["-c", &format!("echo 1 > {notify}")]).unwrap();
    let changed = Instant::now();
    backend
        .output("ip", &["link", "set", "dev", backend.interface(), "address", "02:00:00:00:99:02"])
        .unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    println!(
        "a backend's MAC changed: {} of 20 connections broken, all go on after {:?}",
        busy.broken(),
        changed.elapsed()
    );
    assert_eq!(busy.broken(), 0);
    scene.balancer.stop().unwrap();
}

#[test]
fn an_interface_that_is_deleted_and_returns_is_attached_anew_also_with_a_dot() {
    let scene = scene("dotted", &small().interface("lb1", "eth0.7"));
    let link = || {
        let status = scene.balancer.status().unwrap();
        status["interfaces"][0]["xdp_mode"].clone()
    };
    assert_eq!(link(), json!("native"));
    let vip = (VIP, 2379).into();
    let busy = BusyClients::start(&scene.client, vip, 5, Duration::from_millis(1)).unwrap();
    busy.wait_progress(10, LIMIT).unwrap();
    drop(busy);
    scene.lab.delete_interface("lb1").unwrap();
    scene.lab.restore_interface("lb1").unwrap();
    let begun = Instant::now();
    let host = scene.balancer.host();
    eventually(LIMIT, "the program on the new interface", || {
        let shown = host.output("ip", &["link", "show", "dev", "eth0.7"])?;
        ensure!(shown.split_whitespace().any(|word| word == "xdp"), "{shown}");
        Ok(())
    })
    .unwrap();
    eventually(LIMIT, "a connection", || {
        let busy = BusyClients::start(&scene.client, vip, 1, Duration::from_millis(1))?;
        busy.wait_progress(5, Duration::from_secs(2))
    })
    .unwrap();
    println!("an interface deleted and made again: served after {:?}", begun.elapsed());
}

#[test]
fn detach_takes_everything_off_and_leaves_nothing() {
    let mut scene = scene("detach", &small());
    scene.balancer.stop().unwrap();
    let host = scene.balancer.host().clone();
    let shown = host.output("ip", &["link", "show", "dev", "eth0"]).unwrap();
    assert!(
        shown.split_whitespace().any(|word| word == "xdp"),
        "a stopped agent's data plane goes on: {shown}"
    );
    let config = scene.balancer.config().to_owned();
    let mut command = host.command(etcd_lb_tests::balancer::binary().unwrap());
    let output = command.arg("detach").arg("--config").arg(&config).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = host.output("ip", &["link", "show", "dev", "eth0"]).unwrap();
    assert!(!shown.contains("xdp"), "{shown}");
    assert!(
        !scene.balancer.pin_dir().exists() || scene.balancer.pin_dir().read_dir().unwrap().next().is_none()
    );
    scene.balancer.run().unwrap();
}
