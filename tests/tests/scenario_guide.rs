//! The guide is true: the commands of `docs/runbooks.md` are typed in its order, at real etcd members and a pair of balancers with
//! the configs that README.md and `docs/pair.md` show, and print what it shows (`etcd_lb_tests::guide` says how loosely that is
//! compared). What clients notice of each runbook is printed.
//!
//! Not as on an operator's hosts: `systemctl`, `apt-get` and `arping` are done by the lab, paths are the lab's, and `drain_timeout` is short.
//! A command that only looks is given until it shows what the guide shows, as an operator would look again.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Fleet, Host, Lab, Role, Topology, VIP,
    balancer::binary,
    config::secret_file,
    etcd::Setup,
    eventually,
    fleet::Options,
    guide,
    guide::Step,
    tls::ServerUse,
    typed::{in_the_guide, in_the_lab, shim},
};

const RUNBOOKS: &str = include_str!("../../docs/runbooks.md");
const README: &str = include_str!("../../README.md");
const CLIENTS_PAGE: &str = include_str!("../../docs/clients.md");
const PAIR: &str = include_str!("../../docs/pair.md");
/// How long what must happen may take on a machine with other things to do.
const LIMIT: Duration = Duration::from_secs(20);
const CLIENTS: usize = 12;
/// Runbooks that break no connection, as the guide's table says.
const UNNOTICED: [&str; 7] =
    ["look", "upgrade-backup", "upgrade-active", "failover", "failback", "replace-member", "certificate"];
/// What changes nothing, so that it can be asked again.
const LOOKS: [&str; 14] = [
    "etcd-lb status",
    "etcd-lb flows",
    "etcd-lb events",
    "etcd-lb explain",
    "etcd-lb rebalance --dry-run",
    "etcd-lb doctor",
    "etcd-lb check-config",
    "etcdctl endpoint",
    "etcdctl member list",
    // These are refused while a member is new, or not in step yet.
    "etcdctl member add",
    "etcdctl member remove",
    "etcdctl member promote",
    "curl ",
    "openssl s_client",
];

/// The first block of TOML after a place in a document.
fn toml<'a>(document: &'a str, after: &str) -> &'a str {
    let rest = document.split_once(after).unwrap_or_else(|| panic!("no {after:?}")).1;
    let rest = rest.split_once("```toml\n").unwrap().1;
    rest.split_once("```").unwrap().0
}

struct Scene {
    fleet: Fleet,
    nodes: BTreeMap<String, Balancer>,
    cluster: Cluster,
    /// What a path of the guide is in the lab, by host; the longest first.
    paths: BTreeMap<String, Vec<(String, String)>>,
    newer: PathBuf,
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let topology = Topology::standard().without("client-2").with(Role::Client, "etcd-4", 14);
        let lab = Lab::start("guide", &topology).unwrap();
        let cluster = Cluster::start(&lab).unwrap();
        let run = lab.dir().join("run");
        let key = run.join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let mut nodes = BTreeMap::new();
        let mut paths: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for name in ["lb1", "lb2"] {
            let host = lab.host(name);
            let mut balancer = Balancer::prepare(host, "").unwrap();
            let sbin = run.join(format!("{name}-sbin"));
            fs::create_dir(&sbin).unwrap();
            let program = sbin.join("etcd-lb");
            fs::copy(binary().unwrap(), &program).unwrap();
            balancer.use_binary(&program);
            fs::create_dir(run.join(name)).unwrap();
            // What its operator has brought there.
            fs::copy(binary().unwrap(), run.join(name).join("etcd-lb")).unwrap();
            shim(&run.join(format!("{name}-bin")), &program, &balancer).unwrap();
            let pki = &cluster.pki;
            paths.insert(
                name.into(),
                vec![
                    ("/usr/local/sbin/etcd-lb".into(), text(&program)),
                    ("/etc/etcd-lb/config.toml".into(), text(balancer.config())),
                    ("/etc/etcd-lb/ca.crt".into(), text(&pki.ca)),
                    ("/etc/etcd-lb/client.crt".into(), text(&pki.client.cert)),
                    ("/etc/etcd-lb/client.key".into(), text(&pki.client.key)),
                    ("/etc/etcd-lb/sync.key".into(), text(&key)),
                    ("/sys/fs/bpf/etcd-lb".into(), text(balancer.pin_dir())),
                ],
            );
            nodes.insert(name.to_owned(), balancer);
        }
        for member in cluster.members() {
            let tls = |suffix: &str| lab.dir().join("tls").join(format!("{}{suffix}", member.name()));
            let files = [("server.crt", tls(".pem")), ("server.key", tls("-key.pem"))];
            let old = files.each_ref().map(|(_, path)| fs::read(path).unwrap());
            // What the authority has issued anew, brought there to be installed.
            cluster.reissue(member.name(), ServerUse::WithGateway).unwrap();
            let new = run.join(member.name()).join("new");
            fs::create_dir_all(&new).unwrap();
            for ((name, path), old) in files.iter().zip(old) {
                fs::copy(path, new.join(name)).unwrap();
                fs::write(path, old).unwrap();
            }
            let of = files.map(|(name, path)| (format!("/etc/etcd/{name}"), text(&path)));
            paths.insert(member.name().into(), of.into());
        }
        for (name, balancer) in &mut nodes {
            let config = config(name);
            balancer.write_config(&in_the_lab(&config, &paths[name])).unwrap();
            balancer.run().unwrap();
        }
        eventually(LIMIT, "the pair is in sync", || {
            for (name, role) in [("lb1", "active"), ("lb2", "backup")] {
                let status = nodes[name].status()?;
                ensure!(status["role"] == role && status["peer"]["synced"] == true, "{status}");
                let backends = status["services"][0]["backends"].as_array().context("backends")?;
                ensure!(backends.iter().all(|backend| backend["state"] == "healthy"), "{status}");
            }
            Ok(())
        })
        .unwrap();
        let options = Options {
            clients: CLIENTS,
            interval: Duration::from_millis(20),
            reconnect: true,
            timeout: Duration::from_secs(2),
        };
        let vip = SocketAddr::from((VIP, CLIENT_PORT));
        let fleet = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();
        let newer = Setup::newer().unwrap().program;
        Self { fleet, nodes, cluster, paths, newer, lab }
    }

    fn host(&self, prompt: &str) -> &Host {
        self.lab.host(if prompt == "client" { "client-1" } else { prompt })
    }

    /// The rules of the guide let in what must come in, and nobody else.
    fn firewalls(&mut self) {
        let rules: Vec<&str> =
            CLIENTS_PAGE.split("```nft\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
        let [members, balancers] = rules[..] else { panic!("{} blocks of rules", rules.len()) };
        let hosts = [
            ("etcd-1", members),
            ("etcd-2", members),
            ("etcd-3", members),
            ("lb1", balancers),
            ("lb2", balancers),
        ];
        for (host, rules) in hosts {
            self.host(host).output("nft", &[rules]).unwrap();
        }
        let member = self.cluster.member("etcd-1").client_address();
        let connect = |host: &str| self.host(host).run(|| TcpStream::connect_timeout(&member, LIMIT));
        assert_eq!(
            connect("client").unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "not past the balancer"
        );
        connect("lb1").unwrap();
        connect("etcd-2").unwrap();
        self.balancer("lb2", "restart").unwrap();
        eventually(LIMIT, "the pair is in sync again", || {
            let status = self.nodes["lb1"].status()?;
            ensure!(status["peer"]["synced"] == true, "{status}");
            let backends = status["services"][0]["backends"].as_array().context("backends")?;
            ensure!(backends.iter().all(|backend| backend["state"] == "healthy"), "{status}");
            Ok(())
        })
        .unwrap();
        self.fleet.wait_progress(10, LIMIT).unwrap();
        assert!(self.fleet.broken().is_empty(), "the rules break no connection");
        let vip = SocketAddr::from((VIP, CLIENT_PORT));
        self.host("client").run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap();
        for (host, _) in hosts {
            let table = if host.starts_with("lb") { "etcd_lb" } else { "etcd" };
            self.host(host).output("nft", &["delete", "table", "inet", table]).unwrap();
        }
    }

    /// Every client is connected and gets answers.
    fn served(&self) {
        eventually(LIMIT, "every client is served", || {
            let broken = self.fleet.broken().len();
            self.fleet.wait_progress(3, LIMIT)?;
            let alive = self.fleet.alive().len();
            ensure!(alive == CLIENTS && self.fleet.broken().len() == broken, "{alive} of {CLIENTS}");
            Ok(())
        })
        .unwrap();
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let looks = LOOKS.iter().any(|look| step.command.starts_with(look));
        if !looks {
            return guide::compare(&step.shown, &self.run(step)?);
        }
        // Not too often: each look is a process more on a busy machine.
        let begun = Instant::now();
        loop {
            let result = self.run(step).and_then(|said| guide::compare(&step.shown, &said));
            if result.is_ok() || begun.elapsed() > LIMIT {
                return result;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a command says; an error if it fails.
    fn run(&mut self, step: &Step) -> Result<String> {
        let words: Vec<&str> = step.command.split_whitespace().collect();
        match words[..] {
            ["systemctl", "disable", "--now", "etcd"] => self.member(&step.host, "stop")?,
            ["systemctl", verb, "etcd-lb"] => self.balancer(&step.host, verb)?,
            ["systemctl", verb, "etcd"] => self.member(&step.host, verb)?,
            ["apt-get", "install", .., "etcd-server"] => {
                let newer = self.newer.clone();
                self.cluster.member_mut(&step.host).use_program(&newer);
            }
            // There are two programs of that name, and neither need be here.
            ["arping", .., vip] => {
                self.host("client").output("ip", &["neighbour", "flush", "to", vip])?;
            }
            _ => return self.shell(step),
        }
        Ok(String::new())
    }

    fn balancer(&mut self, node: &str, verb: &str) -> Result<()> {
        let balancer = self.nodes.get_mut(node).with_context(|| format!("{node} is no balancer"))?;
        match verb {
            "stop" => balancer.stop(),
            "start" => balancer.run(),
            "restart" => balancer.stop().and_then(|()| balancer.run()),
            "reload" => balancer.reload().map(drop),
            _ => bail!("systemctl {verb}"),
        }
    }

    fn member(&mut self, name: &str, verb: &str) -> Result<()> {
        if verb == "start" && !self.cluster.members().iter().any(|member| member.name() == name) {
            let host = self.lab.host(name).clone();
            return self.cluster.start_added(&host);
        }
        let member = self.cluster.member_mut(name);
        match verb {
            "stop" => member.stop(),
            // systemd waits for etcd to be ready.
            "start" => member.start().and_then(|()| member.wait_healthy()),
            _ => bail!("systemctl {verb}"),
        }
    }

    fn shell(&self, step: &Step) -> Result<String> {
        let none = Vec::new();
        let paths = self.paths.get(&step.host).unwrap_or(&none);
        let host = self.host(&step.host);
        let run = self.lab.dir().join("run");
        let directory = run.join(&step.host);
        fs::create_dir_all(&directory)?;
        let mut command: Command = host.command("bash");
        let pki = &self.cluster.pki;
        command
            .args(["-c", &format!("exec 2>&1\n{}", in_the_lab(&step.command, paths))])
            .current_dir(&directory)
            .env(
                "PATH",
                format!("{}:{}", text(&run.join(format!("{}-bin", step.host))), std::env::var("PATH")?),
            )
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", format!("https://{VIP}:{CLIENT_PORT}"))
            .env("ETCDCTL_CACERT", &pki.ca)
            .env("ETCDCTL_CERT", &pki.client.cert)
            .env("ETCDCTL_KEY", &pki.client.key)
            .stdin(Stdio::null());
        let output = command.output()?;
        let said = in_the_guide(&String::from_utf8_lossy(&output.stdout), paths);
        println!("{}:{}# {}\n{said}", step.line, step.host, step.command);
        ensure!(output.status.success(), "{}: {said}", output.status);
        Ok(said)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A node's config as the guide has it: README's, and the sections of the pair.
fn config(node: &str) -> String {
    let service =
        toml(README, "## Configure").replace("port = 2379\n", "port = 2379\ndrain_timeout = \"3s\"\n");
    let pair = toml(PAIR, "## Setting it up");
    let pair = if node == "lb1" {
        pair.to_owned()
    } else {
        pair.replace("priority = 200", "priority = 100")
            .replace("10.0.1.2:", "OTHER:")
            .replace("10.0.1.3:", "10.0.1.2:")
            .replace("OTHER:", "10.0.1.3:")
    };
    format!("{service}\n{pair}\n[api]\nhttp_listen = \"127.0.0.1:9479\"\n")
}

#[test]
fn the_runbooks_do_what_they_say() {
    let runbooks = guide::runbooks(RUNBOOKS).unwrap();
    assert!(runbooks.len() >= 8, "{} runbooks", runbooks.len());
    let begun = Instant::now();
    let mut scene = Scene::start();
    println!("| the lab is up | {:.1} s |", begun.elapsed().as_secs_f64());
    scene.firewalls();
    println!("| and the firewalls are tried | {:.1} s |", begun.elapsed().as_secs_f64());
    for runbook in &runbooks {
        let (broken, begun) = (scene.fleet.broken().len(), Instant::now());
        scene.fleet.longest_wait();
        for step in &runbook.steps {
            let at = Instant::now();
            if let Err(error) = scene.step(step) {
                panic!(
                    "docs/runbooks.md:{}: {}: {}# {}\n{error:#}",
                    step.line, runbook.name, step.host, step.command
                );
            }
            if at.elapsed() > Duration::from_secs(1) {
                println!("    {:.1} s: {}", at.elapsed().as_secs_f64(), step.command);
            }
        }
        let took = begun.elapsed().as_secs_f64();
        // After it nobody has the VIP: the next one is about that.
        if runbook.name != "bypass" {
            scene.served();
        }
        let broken = scene.fleet.broken().len() - broken;
        println!(
            "| {} | {took:.1} s | {broken} of {CLIENTS} connections broken | longest wait {:.2} s |",
            runbook.name,
            scene.fleet.longest_wait().as_secs_f64()
        );
        if UNNOTICED.contains(&runbook.name.as_str()) {
            assert_eq!(broken, 0, "{}: the guide says that no connection breaks", runbook.name);
        }
    }
}
