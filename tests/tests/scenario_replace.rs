//! HAProxy and keepalived by the usual recipe, replaced node by node as docs/migration.md says: what clients see of it.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Fleet, Host, Lab, Process, Topology, VIP,
    balancer::binary,
    config::{SYNC_PORT, secret_file},
    eventually,
    fleet::Options,
    keepalived::{Keepalived, Settings},
    pair::LIMIT,
};

const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-core/src/import/tests");
const CLIENTS: usize = 20;
const VIPS: &[&str] = &["10.0.1.100"];

/// keepalived and HAProxy of a node, as the recipe has them.
fn theirs(host: &Host, priority: u8) -> (Keepalived, Process) {
    let run = host.lab_dir().join("run");
    let config = run.join(format!("{}-haproxy.cfg", host.name()));
    // There is no syslog in a network namespace, and no process there needs 20,000 descriptors.
    let recipe = fs::read_to_string(format!("{RECIPES}/haproxy.cfg")).unwrap();
    fs::write(
        &config,
        recipe.replace("    log /dev/log local0\n", "").replace("maxconn 20000", "maxconn 200"),
    )
    .unwrap();
    let mut command = host.command("haproxy");
    command.args(["-db", "-f"]).arg(&config);
    let haproxy = host.spawn("haproxy", command).unwrap();
    let settings =
        Settings { version: 2, priority, interval: "1", addresses: VIPS, peer: None, password: Some("1111") };
    (Keepalived::start(host, &settings).unwrap(), haproxy)
}

fn import(args: &[&str]) -> String {
    let output = Command::new(binary().unwrap()).arg("import").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The config as `import` makes it, with the node's own priority, and flow sync from the start; without a grace, since what
/// HAProxy had nobody can go on with, and its clients are to be told at once.
fn imported(host: &Host, other: &Host, priority: u8) -> String {
    let vip = VIP.to_string();
    let proxy = import(&["haproxy", &format!("{RECIPES}/haproxy.cfg"), "--vip", &vip, "--interface", "eth0"]);
    let vrrp = import(&["keepalived", &format!("{RECIPES}/keepalived.conf")]);
    let own = vrrp.replace("priority = 110", &format!("priority = {priority}"));
    assert!(own.contains(&format!("priority = {priority}")), "{own}");
    let address = |host: &Host| SocketAddr::from((host.address(), SYNC_PORT));
    let key = host.lab_dir().join("run").join("sync.key");
    format!(
        "{proxy}{own}\n[sync]\nlisten = \"{}\"\npeer = \"{}\"\nkey_file = {key:?}\n\
         takeover_grace = \"0s\"\n",
        address(host),
        address(other)
    )
}

struct Clients {
    fleet: Fleet,
    broken: usize,
}

impl Clients {
    /// What they noticed of a step, once all are served again.
    fn after(&mut self, step: &str) -> (usize, Duration) {
        eventually(LIMIT, step, || {
            let alive = self.fleet.alive().len();
            ensure!(alive == CLIENTS, "{alive} of {CLIENTS}");
            Ok(())
        })
        .unwrap();
        self.fleet.wait_progress(5, LIMIT).unwrap();
        let broken = self.fleet.broken().len();
        let (new, wait) = (broken - self.broken, self.fleet.longest_wait());
        self.broken = broken;
        println!("{step}: {new} of {CLIENTS} connections broken, longest wait {:.2} s", wait.as_secs_f32());
        (new, wait)
    }
}

#[test]
fn node_by_node() {
    let lab = Lab::start("replace", &Topology::standard().without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    secret_file(&lab.dir().join("run").join("sync.key"), &[7; 32]).unwrap();
    let (lb1, lb2) = (lab.host("lb1"), lab.host("lb2"));
    let (first, mut first_proxy) = theirs(lb1, 110);
    let (second, mut second_proxy) = theirs(lb2, 100);
    eventually(LIMIT, "keepalived of lb1 has the VIP", || {
        ensure!(first.is_master()? && !second.is_master()?);
        Ok(())
    })
    .unwrap();
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let options = Options {
        clients: CLIENTS,
        interval: Duration::from_millis(20),
        reconnect: true,
        ..Options::default()
    };
    let fleet = eventually(LIMIT, "a first connection", || {
        Fleet::start(lab.host("client-1"), vip, &cluster.pki, options)
    })
    .unwrap();
    let mut clients = Clients { fleet, broken: 0 };
    clients.after("HAProxy and keepalived on both");

    // 1. The backup first.
    second.stop().unwrap();
    second_proxy.kill().unwrap();
    let ours_second = Balancer::start(lb2, &imported(lb2, lb1, 100)).unwrap();
    eventually(LIMIT, "etcd-lb is keepalived's backup", || {
        let status = ours_second.status()?;
        ensure!(status["role"] == "backup" && first.is_master()?, "{}", status["role"]);
        let backends = status["services"][0]["backends"].as_array().unwrap();
        ensure!(backends.iter().all(|backend| backend["state"] == "healthy"), "{backends:?}");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let (broken, _) = clients.after("1. the backup is replaced");
    assert_eq!(broken, 0);

    // 2. Then the active one: keepalived hands the VIP over, and what HAProxy had ends with it.
    first.stop().unwrap();
    first_proxy.kill().unwrap();
    eventually(LIMIT, "etcd-lb has the VIP", || {
        let role = ours_second.status()?["role"].clone();
        ensure!(role == "active", "{role}");
        Ok(())
    })
    .unwrap();
    let (broken, _) = clients.after("2. keepalived and HAProxy are stopped on the active node");
    assert_eq!(broken, CLIENTS, "each client connects again, once");

    // 3. etcd-lb there: stronger, and it takes the VIP once it has the flows.
    let ours_first = Balancer::start(lb1, &imported(lb1, lb2, 110)).unwrap();
    eventually(LIMIT, "the stronger node has the VIP", || {
        let roles = [ours_first.status()?["role"].clone(), ours_second.status()?["role"].clone()];
        ensure!(roles[0] == "active" && roles[1] == "backup", "{roles:?}");
        Ok(())
    })
    .unwrap();
    let (broken, _) = clients.after("3. etcd-lb starts there, and takes the VIP");
    assert_eq!(broken, 0);

    // From here on a takeover breaks nothing.
    ours_first.cli(&["failover"]).unwrap();
    let (broken, _) = clients.after("4. a takeover");
    assert_eq!(broken, 0);
}
