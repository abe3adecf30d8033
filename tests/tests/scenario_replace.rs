//! HAProxy and keepalived by the usual recipe, replaced node by node: the commands of docs/migration.md are typed in its order, with
//! etcd clients through the VIP, and print what it shows. What clients see of each step is printed.
//!
//! `systemctl` is done by the lab, paths are the lab's, and what the guide has an operator write into a file the test writes.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Fleet, Host, Lab, Process, Topology, VIP,
    balancer::binary,
    config::secret_file,
    eventually,
    fleet::Options,
    guide::{self, Step},
    keepalived::{Keepalived, Settings},
    pair::LIMIT,
    typed::{in_the_guide, in_the_lab, shim},
};

const GUIDE: &str = include_str!("../../docs/migration.md");
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-core/src/import/tests");
const CLIENTS: usize = 20;
const VIPS: &[&str] = &["10.0.1.100"];
/// Given until it shows what the guide shows, as an operator would look again.
const LOOKS: &str = "etcd-lb status";

/// A node, and what of it runs.
struct Node {
    host: Host,
    keepalived: Option<Keepalived>,
    haproxy: Option<Process>,
    balancer: Balancer,
    paths: Vec<(String, String)>,
}

impl Node {
    /// With keepalived and HAProxy as the recipe has them.
    fn start(host: &Host, priority: u8, key: &Path) -> Self {
        let run = host.lab_dir().join("run");
        let of = |name: &str| run.join(format!("{}-{name}", host.name()));
        let recipe = fs::read_to_string(format!("{RECIPES}/haproxy.cfg")).unwrap();
        fs::write(of("recipe.cfg"), &recipe).unwrap();
        // There is no syslog in a network namespace, and no process there needs 20,000 descriptors.
        let proxy = recipe.replace("    log /dev/log local0\n", "").replace("maxconn 20000", "maxconn 200");
        fs::write(of("haproxy.cfg"), proxy).unwrap();
        let vrrp = fs::read_to_string(format!("{RECIPES}/keepalived.conf")).unwrap();
        let vrrp = vrrp.replace("priority 110", &format!("priority {priority}"));
        fs::write(of("recipe.conf"), vrrp).unwrap();

        let mut command = host.command("haproxy");
        command.args(["-db", "-f"]).arg(of("haproxy.cfg"));
        let haproxy = host.spawn("haproxy", command).unwrap();
        let settings = Settings {
            version: 2,
            priority,
            interval: "1",
            addresses: VIPS,
            peer: None,
            password: Some("1111"),
        };
        let keepalived = Keepalived::start(host, &settings).unwrap();
        let balancer = Balancer::prepare(host, "").unwrap();
        shim(&of("bin"), &binary().unwrap(), &balancer).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let paths = vec![
            ("/etc/keepalived/keepalived.conf".into(), text(&of("recipe.conf"))),
            ("/etc/haproxy/haproxy.cfg".into(), text(&of("recipe.cfg"))),
            ("/etc/etcd-lb/config.toml".into(), text(balancer.config())),
            ("/etc/etcd-lb/sync.key".into(), text(key)),
        ];
        Self { host: host.clone(), keepalived: Some(keepalived), haproxy: Some(haproxy), balancer, paths }
    }

    /// What a command says; an error if it fails.
    fn run(&mut self, step: &Step) -> Result<String> {
        let words: Vec<&str> = step.command.split_whitespace().collect();
        match words[..] {
            ["systemctl", "disable", "--now", ref units @ ..] => {
                for unit in units {
                    match *unit {
                        "keepalived" => self.keepalived.take().context("stopped already")?.stop()?,
                        "haproxy" => self.haproxy.take().context("stopped already")?.kill()?,
                        other => bail!("{other} is no unit"),
                    }
                }
            }
            ["systemctl", "start", "etcd-lb"] => self.balancer.run()?,
            ["systemctl", "stop", "etcd-lb"] => self.balancer.stop()?,
            ["systemctl", "restart", "etcd-lb"] => {
                self.balancer.stop()?;
                self.balancer.run()?;
            }
            _ => return self.shell(step),
        }
        Ok(String::new())
    }

    fn shell(&self, step: &Step) -> Result<String> {
        let bin = self.host.lab_dir().join("run").join(format!("{}-bin", self.host.name()));
        let mut command = self.host.command("bash");
        command.args(["-c", &format!("exec 2>&1\n{}", in_the_lab(&step.command, &self.paths))]);
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH")?)).stdin(Stdio::null());
        let output = command.output()?;
        let said = in_the_guide(&String::from_utf8_lossy(&output.stdout), &self.paths);
        println!("{}:{}# {}\n{said}", step.line, step.host, step.command);
        ensure!(output.status.success(), "{}: {said}", output.status);
        Ok(said)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let begun = Instant::now();
        loop {
            let result = self.run(step).and_then(|said| guide::compare(&step.shown, &said));
            if result.is_ok() || !step.command.starts_with(LOOKS) || begun.elapsed() > LIMIT {
                return result;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes the guide's section into the config, and what of it is the lab's.
    fn add_sync(&self) {
        let section = GUIDE.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let section = if self.host.name() == "lb1" {
            section.to_owned()
        } else {
            let swapped = section.replace("10.0.1.2:", "OTHER:").replace("10.0.1.3:", "10.0.1.2:");
            swapped.replace("OTHER:", "10.0.1.3:")
        };
        let config = fs::read_to_string(self.balancer.config()).unwrap();
        self.balancer.write_config(&format!("{config}\n{}", in_the_lab(&section, &self.paths))).unwrap();
    }
}

struct Clients {
    fleet: Fleet,
    broken: usize,
}

impl Clients {
    /// What they noticed of a step, once all are served again: connections broken.
    fn after(&mut self, step: &str) -> usize {
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
        println!(
            "| {step} | {new} of {CLIENTS} connections broken | longest wait {:.2} s |",
            wait.as_secs_f32()
        );
        new
    }
}

#[test]
fn node_by_node() {
    let lab = Lab::start("replace", &Topology::standard().without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let key = lab.dir().join("run").join("sync.key");
    secret_file(&key, &[7; 32]).unwrap();
    let mut nodes: BTreeMap<&str, Node> = [("lb1", 110), ("lb2", 100)]
        .map(|(name, priority)| (name, Node::start(lab.host(name), priority, &key)))
        .into();
    eventually(LIMIT, "keepalived of lb1 has the VIP", || {
        let masters = nodes.values().map(|node| node.keepalived.as_ref().unwrap().is_master());
        ensure!(masters.collect::<Result<Vec<_>>>()? == [true, false]);
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

    for part in guide::runbooks(GUIDE).unwrap() {
        for step in &part.steps {
            let node = nodes.get_mut(step.host.as_str()).unwrap();
            if let Err(error) = node.step(step) {
                panic!("docs/migration.md:{}: {}: {}\n{error:#}", step.line, part.name, step.command);
            }
            // On both nodes, says the guide.
            if part.name == "import" {
                nodes.get_mut("lb2").unwrap().step(&Step { host: "lb2".into(), ..step.clone() }).unwrap();
            }
        }
        if part.name == "import" {
            nodes.values().for_each(Node::add_sync);
        }
        if part.name == "backup" {
            let keepalived = nodes["lb1"].keepalived.as_ref().unwrap();
            // Longer than it would take either of them to find out about the other.
            thread::sleep(Duration::from_secs(4));
            assert!(keepalived.is_master().unwrap());
        }
        let broken = clients.after(&part.name);
        // keepalived hands the VIP over, and what HAProxy had ends with it: each client connects again, once.
        assert_eq!(broken, if part.name == "active" { CLIENTS } else { 0 }, "{}", part.name);
    }
}
