//! docs/install.md is true: its commands are typed in its order, on machines with systemd and with a real cluster, and print what it
//! shows. What clients notice of each part is printed.
//!
//! Not as on an operator's hosts: `editor` and `scp` are done by the test, and the packages of the guide's versions are those
//! of [`super::packages`].

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_lb_tests::{
    CLIENT_PORT, Cluster, Fleet, Lab, Topology, VIP, eventually,
    fleet::Options,
    guide::{self, Step},
    machine::{Init, Machine},
    netns::output,
};

use super::{CONFIG, LIMIT, assert_detached, assert_runs_installed, machines, packages};

const GUIDE: &str = include_str!("../../../docs/install.md");
const CLIENTS: usize = 12;
/// What a node has by then: where an operator has brought the packages and the files, and types.
const DESK: &str = "/var/cache";
/// Given until it shows what the guide shows, as an operator would look again.
const LOOKS: [&str; 3] = ["etcd-lb status", "systemctl status", "etcdctl "];

struct Scene {
    fleet: Option<Fleet>,
    machines: Vec<Machine>,
    cluster: Cluster,
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let lab = Lab::start("guide", &Topology::standard().without("client-2")).unwrap();
        let cluster = Cluster::start(&lab).unwrap();
        let machines = machines(&lab, &["lb1", "lb2"], Init::Systemd);
        let pki = &cluster.pki;
        for (file, name) in
            [(&pki.ca, "ca.crt"), (&pki.client.cert, "client.crt"), (&pki.client.key, "client.key")]
        {
            fs::copy(file, machines[0].file(DESK).join(name)).unwrap();
        }
        Self { fleet: None, machines, cluster, lab }
    }

    fn machine(&self, name: &str) -> Result<&Machine> {
        let found = self.machines.iter().find(|machine| machine.host().name() == name);
        found.with_context(|| format!("{name} is no machine"))
    }

    fn step(&self, step: &Step) -> Result<()> {
        let looks = LOOKS.iter().any(|look| step.command.starts_with(look));
        let begun = Instant::now();
        loop {
            let result = self.run(step).and_then(|said| guide::compare(&step.shown, &said));
            if result.is_ok() || !looks || begun.elapsed() > LIMIT {
                return result;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn run(&self, step: &Step) -> Result<String> {
        let words: Vec<&str> = step.command.split_whitespace().collect();
        match words[..] {
            ["editor", CONFIG] => self.edit(&step.host).map(|()| String::new()),
            ["scp", "-p", _, "root@10.0.1.3:/etc/etcd-lb/"] => {
                let files = |name| Ok::<_, anyhow::Error>(self.machine(name)?.file("/etc/etcd-lb"));
                output(Command::new("cp").arg("-rpT").arg(files(&step.host)?).arg(files("lb2")?))
            }
            _ => self.shell(step),
        }
    }

    /// The example is that of this lab; a key means that the sections of the pair are to be written.
    fn edit(&self, node: &str) -> Result<()> {
        let machine = self.machine(node)?;
        if !machine.file("/etc/etcd-lb/sync.key").exists() {
            return Ok(());
        }
        let first = GUIDE.split("```").find_map(|part| part.strip_prefix("toml\n")).context("no sections")?;
        let second = first.replace("priority = 200", "priority = 100").replace("10.0.1.2:", "FIRST:");
        let second = second.replace("10.0.1.3:", "10.0.1.2:").replace("FIRST:", "10.0.1.3:");
        let sections = if node == "lb1" { first } else { &second };
        let config = machine.file(CONFIG);
        Ok(fs::write(&config, format!("{}\n{sections}", fs::read_to_string(&config)?))?)
    }

    fn shell(&self, step: &Step) -> Result<String> {
        let typed = format!("exec 2>&1 </dev/null; cd {DESK}; {}", installed(&step.command));
        let mut command = if step.host == "client" {
            let pki = &self.cluster.pki;
            let mut command = self.lab.host("client-1").command("bash");
            command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", format!("https://{VIP}:{CLIENT_PORT}"));
            command.env("ETCDCTL_CACERT", &pki.ca).env("ETCDCTL_CERT", &pki.client.cert);
            command.env("ETCDCTL_KEY", &pki.client.key);
            command
        } else {
            let mut command = self.machine(&step.host)?.command("env");
            command.args(["LC_ALL=C.UTF-8", "bash"]);
            command
        };
        let result = command.args(["-c", &typed]).output()?;
        let said = String::from_utf8_lossy(&result.stdout).into_owned();
        println!("{}:{}# {}\n{said}", step.line, step.host, step.command);
        // They say by their status that a service does not run, or that there is no such file.
        let may_fail = ["systemctl status", "ls "].iter().any(|look| step.command.starts_with(look));
        if !may_fail && !result.status.success() {
            bail!("{}: {said}", result.status);
        }
        Ok(said)
    }

    /// Connections that broke so far.
    fn broken(&self) -> usize {
        self.fleet.as_ref().map_or(0, |fleet| fleet.broken().len())
    }

    /// Every client is connected and gets answers; how long the longest wait was since this was asked last.
    fn served(&self) -> Duration {
        let Some(fleet) = &self.fleet else { return Duration::ZERO };
        eventually(LIMIT, "every client is served", || {
            let alive = fleet.alive().len();
            ensure!(alive == CLIENTS, "{alive} of {CLIENTS}");
            fleet.wait_progress(3, LIMIT)
        })
        .unwrap();
        fleet.longest_wait()
    }
}

/// The guide's packages by the names that they have here.
fn installed(command: &str) -> String {
    let name = |package: &std::path::Path| package.file_name().unwrap().to_str().unwrap().to_owned();
    let newer = command.replace("etcd-lb_0.2.0-1_amd64.deb", "NEWER");
    newer
        .replace("etcd-lb_0.1.0-1_amd64.deb", &name(&packages().older))
        .replace("NEWER", &name(&packages().newer))
}

#[test]
fn by_the_guide() {
    let parts = guide::runbooks(GUIDE).unwrap();
    assert!(parts.len() >= 10, "{} parts", parts.len());
    let mut scene = Scene::start();
    for part in &parts {
        let (broken, begun) = (scene.broken(), Instant::now());
        for step in &part.steps {
            if let Err(error) = scene.step(step) {
                panic!(
                    "docs/install.md:{}: {}: {}# {}\n{error:#}",
                    step.line, part.name, step.host, step.command
                );
            }
        }
        let took = begun.elapsed().as_secs_f64();
        let wait = scene.served().as_secs_f64();
        let broken = scene.broken() - broken;
        println!(
            "| {} | {took:.1} s | {broken} of {CLIENTS} connections broken | longest wait {wait:.2} s |",
            part.name
        );
        assert_eq!(broken, 0, "{}: the guide says that no connection breaks", part.name);
        match part.name.as_str() {
            "client" => {
                let options = Options {
                    clients: CLIENTS,
                    interval: Duration::from_millis(20),
                    reconnect: true,
                    ..Options::default()
                };
                let vip = SocketAddr::from((VIP, CLIENT_PORT));
                let client = scene.lab.host("client-1");
                scene.fleet = Some(Fleet::start(client, vip, &scene.cluster.pki, options).unwrap());
            }
            "upgrade" | "back" => scene.machines.iter().for_each(assert_runs_installed),
            "remove" => assert_detached(&scene.machines[0]),
            _ => {}
        }
    }
}
