//! `doctor`: nothing on a healthy node, and each fault that is planted, by name.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{process::Command, time::Duration};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Lab, Role, Topology, VIP,
    balancer::binary,
    etcd::Setup,
    eventually,
    keepalived::{Keepalived, Settings},
    pair::LIMIT,
    tls::{Authority, ServerUse},
};
use serde_json::Value;

struct Scene {
    balancer: Balancer,
    cluster: Cluster,
    lab: Lab,
}

/// What `doctor` finds, and its exit status.
struct Found {
    status: i32,
    findings: Vec<Value>,
}

impl Found {
    /// All that is not in order.
    fn troubles(&self) -> Vec<String> {
        let of = |finding: &&Value| finding["level"] != "ok";
        let words = |finding: &Value| {
            ["level", "subject", "what", "why", "fix"]
                .map(|key| finding[key].as_str().unwrap_or_default().to_owned())
                .join(" | ")
        };
        self.findings.iter().filter(of).map(words).collect()
    }

    /// There is one with these words, and it says what to do.
    fn assert_has(&self, level: &str, words: &[&str]) {
        let troubles = self.troubles();
        let found = troubles
            .iter()
            .find(|trouble| trouble.starts_with(level) && words.iter().all(|word| trouble.contains(word)));
        println!("{}", found.map_or("-", String::as_str));
        assert!(found.is_some(), "{level} {words:?} is not in {troubles:#?}");
        assert!(!found.unwrap().ends_with("| "), "it does not say what to do");
        assert_eq!(self.status, i32::from(troubles.iter().any(|trouble| trouble.starts_with("error"))));
    }
}

impl Scene {
    fn start(name: &str, setup: &Setup) -> Self {
        let topology = Topology::standard().without("lb2").with(Role::Router, "etcd-4", 14);
        let lab = Lab::start(name, &topology).unwrap();
        let cluster = Cluster::start_as(&lab, setup).unwrap();
        let config = Config::etcd(lab.host("lb1"), &cluster).text();
        let balancer = Balancer::prepare(lab.host("lb1"), &config).unwrap();
        Self { balancer, cluster, lab }
    }

    fn doctor(&self) -> Found {
        self.doctor_by(|command| command)
    }

    fn doctor_by(&self, wrap: impl FnOnce(Command) -> Command) -> Found {
        let mut command = self.balancer.host().command(binary().unwrap());
        command.args(["doctor", "--json"]).arg(self.balancer.config());
        let output = wrap(command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let findings: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        Found { status: output.status.code().unwrap(), findings: findings.as_array().unwrap().clone() }
    }

    fn write(&self, change: impl FnOnce(String) -> String) {
        let text = Config::etcd(self.balancer.host(), &self.cluster).text();
        self.balancer.write_config(&change(text)).unwrap();
    }
}

#[test]
fn a_healthy_node_and_faults_of_its_members() {
    let mut scene = Scene::start("doctor_members", &Setup::default());
    let found = scene.doctor();
    assert!(found.troubles().is_empty() && found.status == 0, "{:#?}", found.troubles());
    println!("a healthy node: {} looked at, nothing found", found.findings.len());
    let host = scene.balancer.host().clone();
    let shown = host
        .output(binary().unwrap().to_str().unwrap(), &["doctor", scene.balancer.config().to_str().unwrap()]);
    println!("{}", shown.unwrap());

    scene.cluster.reissue("etcd-1", ServerUse::WithoutVips).unwrap();
    scene.doctor().assert_has(
        "error",
        &["member etcd-1", "SAN entry IP:10.0.1.100", "it is valid for", "issue it anew"],
    );
    scene.cluster.reissue("etcd-1", ServerUse::Expired).unwrap();
    scene.doctor().assert_has("error", &["member etcd-1", "expired"]);
    scene.cluster.reissue("etcd-1", ServerUse::WithGateway).unwrap();
    let other = Authority::create(&scene.lab.dir().join("run")).unwrap().pki().unwrap();
    let ca = scene.cluster.pki.ca.display().to_string();
    scene.write(|text| text.replace(&ca, &other.ca.display().to_string()));
    scene
        .doctor()
        .assert_has("error", &["member etcd-2", "authority in ca_file, but by another of the same name"]);
    let (cert, key) = (&scene.cluster.pki.client.cert, &scene.cluster.pki.client.key);
    let (cert, key) = (format!("cert_file = {cert:?}"), format!("key_file = {key:?}"));
    scene.write(|text| text.replace(&cert, "").replace(&key, ""));
    scene.doctor().assert_has("error", &["member etcd-1", "client certificate"]);

    let spare = scene.lab.host("etcd-4").clone();
    let with_spare = |text: String| {
        text + &format!(
            "\n[[service.backend]]\nname = \"etcd-4\"\naddress = \"{}:{CLIENT_PORT}\"\n",
            spare.address()
        )
    };
    scene.write(with_spare);
    scene.doctor().assert_has("error", &["member etcd-4", "connect", "--listen-client-urls"]);
    let foreign = scene.cluster.foreign(&spare).unwrap();
    scene.doctor().assert_has("error", &["member etcd-4", "foreign cluster"]);
    drop(foreign);
    std::fs::remove_dir_all(spare.lab_dir().join("data").join("etcd-4")).unwrap();
    scene.cluster.add_learner(&spare).unwrap();
    eventually(LIMIT, "the learner answers", || {
        let found = scene.doctor();
        let troubles = found.troubles();
        ensure!(troubles.iter().any(|trouble| trouble.contains("is a learner")), "{troubles:?}");
        Ok(())
    })
    .unwrap();
    scene.doctor().assert_has("warning", &["member etcd-4", "is a learner", "etcdctl member promote"]);
}

#[test]
fn a_full_member() {
    let setup = Setup { args: vec!["--quota-backend-bytes=1048576".into()], ..Setup::default() };
    let scene = Scene::start("doctor_full", &setup);
    let client = scene.lab.host("client-1");
    let endpoints = scene.cluster.endpoints();
    let value = "x".repeat(100_000);
    let full = (0..100)
        .any(|n| scene.cluster.etcdctl(client, &endpoints, &["put", &format!("fill/{n}"), &value]).is_err());
    assert!(full, "the quota is never used up");
    eventually(LIMIT, "the alarm", || {
        let troubles = scene.doctor().troubles();
        ensure!(troubles.iter().any(|trouble| trouble.contains("NOSPACE")), "{troubles:?}");
        Ok(())
    })
    .unwrap();
    scene.doctor().assert_has("warning", &["member etcd-", "alarm NOSPACE", "etcdctl compact"]);
}

#[test]
fn faults_of_the_host_and_its_network() {
    let scene = Scene::start("doctor_host", &Setup::default());
    let host = scene.balancer.host().clone();
    host.output("ethtool", &["-K", "eth0", "tx", "on"]).unwrap();
    scene.doctor().assert_has("error", &["interface eth0", "checksum offload", "ethtool -K eth0 tx off"]);
    host.output("ethtool", &["-K", "eth0", "tx", "off"]).unwrap();

    let pass = scene.lab.dir().join("bpf").join("pass");
    host.output("ip", &["link", "set", "dev", "eth0", "xdp", "pinned", pass.to_str().unwrap()]).unwrap();
    scene.doctor().assert_has("error", &["interface eth0", "another XDP program", "eth0 xdp off"]);
    host.output("ip", &["link", "set", "dev", "eth0", "xdp", "off"]).unwrap();

    scene.write(|text| text + "\n[api]\npin_dir = \"/run/etcd-lb-nowhere\"\n");
    scene.doctor().assert_has("error", &["pin_dir", "BPF file system", "mount -t bpf bpf"]);
    scene.write(|text| text);

    let without = |capability: &'static str| {
        move |inner: Command| {
            let mut command = host.command("setpriv");
            let drop = format!("-{capability}");
            command.args(["--bounding-set", &drop, "--inh-caps", &drop]);
            command.arg(inner.get_program()).args(inner.get_args());
            command
        }
    };
    let found = scene.doctor_by(without("net_raw"));
    found.assert_has("error", &["capabilities", "CAP_NET_RAW"]);

    let other = scene.lab.host("etcd-4");
    other.output("ip", &["address", "add", &format!("{VIP}/32"), "dev", "eth0"]).unwrap();
    scene.doctor().assert_has("error", &["VIP 10.0.1.100", "is in use", "02:00:0a:00:01:0e"]);
    other.output("ip", &["address", "del", &format!("{VIP}/32"), "dev", "eth0"]).unwrap();

    scene.write(|text| text + "\n[vrrp]\nadvert_interval = \"1s\"\n");
    let addresses = ["10.0.1.200"];
    let settings = Settings {
        version: 3,
        priority: 90,
        interval: "1",
        addresses: &addresses,
        peer: None,
        password: None,
    };
    let keepalived = Keepalived::start(other, &settings).unwrap();
    eventually(LIMIT, "it advertises", || {
        ensure!(keepalived.is_master()?, "not yet");
        Ok(())
    })
    .unwrap();
    scene.doctor().assert_has("error", &["VRID 51", "10.0.1.14", "advertises other addresses", "10.0.1.200"]);
    keepalived.stop().unwrap();

    // A node that serves is as healthy as one that does not yet.
    scene.write(|text| text);
    let mut balancer = scene.balancer;
    balancer.run().unwrap();
    balancer.wait_backend("etcd-1", "healthy", LIMIT).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let scene = Scene { balancer, ..scene };
    let found = scene.doctor();
    assert!(found.troubles().is_empty() && found.status == 0, "{:#?}", found.troubles());
    assert!(
        found.findings.iter().any(|finding| finding["what"].as_str().unwrap().contains("XDP in native mode"))
    );
}
