//! The check that knows etcd, against real members over TLS with client certificates, their own certificates for servers
//! only, of both versions at hand: what the check said, how long it took, what the balancer did.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Host, Lab, Member, Role, Topology, VIP,
    etcd::Setup,
    eventually,
    held::HeldClients,
    https::Connection,
    tls::{Authority, Identity, ServerUse},
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);
/// After an event, until whatever might have been reset wrongly was reset.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// `interval` + `fall` × `timeout` of the lab's config.
const PROMISE: Duration = Duration::from_millis(1500);
/// What two shared cores may add.
const NOISE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The installed one.
    V3_4,
    /// Debian's next.
    V3_5,
}

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    balancer: Balancer,
    strangers: Vec<Member>,
    cluster: Cluster,
    client: Host,
    version: Version,
    lab: Lab,
}

/// TLS connections through the VIP that made one request and then said nothing, each with its backend.
struct Clients {
    held: HeldClients,
    backend: BTreeMap<u16, String>,
    _connections: Vec<Connection>,
}

fn scene(name: &str, version: Version) -> Scene {
    scene_of(name, version, ServerUse::ServerOnly, &[])
}

/// `etcd-4` is there for whoever comes later.
fn scene_of(name: &str, version: Version, usage: ServerUse, args: &[&str]) -> Scene {
    let topology = Topology::standard().without("lb2").without("client-2").with(Role::Client, "etcd-4", 14);
    let lab = Lab::start(name, &topology).unwrap();
    let setup = match version {
        Version::V3_4 => Setup::default(),
        Version::V3_5 => Setup::newer().unwrap(),
    };
    let args = args.iter().map(ToString::to_string).collect();
    let cluster = Cluster::start_as(&lab, &Setup { usage, args, ..setup }).unwrap();
    let host = lab.host("lb1");
    let config =
        Config::etcd(host, &cluster).backend("etcd-4", (lab.host("etcd-4").address(), CLIENT_PORT).into());
    let balancer = Balancer::start(host, &config.text()).unwrap();
    let scene = Scene {
        client: lab.host("client-1").clone(),
        balancer,
        strangers: Vec::new(),
        cluster,
        version,
        lab,
    };
    scene.wait_members_healthy();
    scene
}

impl Scene {
    fn wait_members_healthy(&self) {
        for name in ["etcd-1", "etcd-2", "etcd-3"] {
            self.balancer.wait_backend(name, "healthy", LIMIT).unwrap();
        }
    }

    /// A member that comes back to its cluster may start an election, in which another one fails: waits until that is over, as it is
    /// once no verdict was bad for twice as long as one takes.
    fn wait_members_settled(&self) {
        let mut since = Instant::now();
        eventually(LIMIT, "members settled", || {
            let states = ["etcd-1", "etcd-2", "etcd-3"].map(|name| self.backend(name).unwrap());
            if states.iter().any(|backend| backend["state"] != "healthy") {
                since = Instant::now();
            }
            ensure!(since.elapsed() > 2 * PROMISE, "only for {:?}: {states:?}", since.elapsed());
            Ok(())
        })
        .unwrap();
    }

    fn service(&self) -> Result<Value> {
        Ok(self.balancer.status()?["services"][0].clone())
    }

    fn backend(&self, name: &str) -> Result<Value> {
        let service = self.service()?;
        let backends = service["backends"].as_array().context("backends")?;
        Ok(backends.iter().find(|backend| backend["name"] == name).context("no such backend")?.clone())
    }

    /// Waits until a backend is in a state and the reason has these words; says how long that took and prints a row.
    fn wait_verdict(&self, event: &str, name: &str, state: &str, words: &[&str]) -> Duration {
        let begun = Instant::now();
        let backend = eventually(LIMIT, &format!("{event}: {name} {state}"), || {
            let backend = self.backend(name)?;
            ensure!(backend["state"] == state, "it is {backend}");
            let reason = backend["reason"].as_str().unwrap_or_default();
            ensure!(words.is_empty() || words.iter().any(|word| reason.contains(word)), "reason: {reason}");
            Ok(backend)
        })
        .unwrap();
        let took = begun.elapsed();
        println!(
            "| {:?} | {event} | {name} {state} after {} ms | {} | step {} {} ms, check {} ms |",
            self.version,
            took.as_millis(),
            backend["reason"].as_str().unwrap_or_default(),
            backend["failed_step"],
            backend["failed_step_ms"],
            backend["check_ms"],
        );
        took
    }

    /// Two clients on each member that takes connections now.
    fn clients(&self) -> Clients {
        let mut connections = Vec::new();
        let mut backend: BTreeMap<u16, String> = BTreeMap::new();
        let spread = |backend: &BTreeMap<u16, String>| {
            ["etcd-1", "etcd-2", "etcd-3"]
                .iter()
                .all(|name| backend.values().filter(|of| *of == name).count() >= 2)
        };
        while !spread(&backend) {
            assert!(connections.len() < 60, "no member is passed over: {backend:?}");
            let mut connection =
                Connection::open(&self.client, (VIP, CLIENT_PORT).into(), &self.cluster.pki, LIMIT).unwrap();
            assert_eq!(connection.request("GET", "/version", "").unwrap().status, 200);
            let flows: Value =
                serde_json::from_str(&self.balancer.cli(&["flows", "--json"]).unwrap()).unwrap();
            let local = connection.local().to_string();
            let flow =
                flows["flows"].as_array().unwrap().iter().find(|flow| flow["client"] == local.as_str());
            let of = flow.unwrap_or_else(|| panic!("no flow of {local} in {flows}"))["backend"].clone();
            backend.insert(connection.local().port(), of.as_str().unwrap().to_owned());
            connections.push(connection);
        }
        let sockets = connections.iter().map(|connection| connection.socket().try_clone().unwrap()).collect();
        Clients { held: HeldClients::watch(sockets).unwrap(), backend, _connections: connections }
    }

    /// An event that one member suffers: its verdict, and that its clients break and nobody else's.
    fn lose(&mut self, event: &str, name: &str, words: &[&str], lose: impl FnOnce(&mut Self)) {
        let clients = self.clients();
        let begun = Instant::now();
        lose(self);
        let took = self.wait_verdict(event, name, "down", words);
        eventually(LIMIT, &format!("{event}: the clients of {name} to know"), || {
            let left = clients.left_on(name);
            ensure!(left == 0, "{left} do not");
            Ok(())
        })
        .unwrap();
        let known = begun.elapsed();
        std::thread::sleep(AFTERWARDS);
        let (own, others) = clients.broken(name);
        println!(
            "| {:?} | {event} | clients: {own} of {name} reset within {} ms, {others} of {} others |",
            self.version,
            known.as_millis(),
            clients.backend.len() - own
        );
        assert_eq!(others, 0, "{event}: clients of other members");
        assert!(took <= PROMISE + NOISE + Duration::from_secs(1), "{event}: {took:?}");
        assert_eq!(self.service().unwrap()["fail_open"], false);
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String> {
        self.cluster.etcdctl(&self.client, &self.cluster.endpoints(), args)
    }

    fn follower(&self) -> String {
        let leader = self.cluster.leader().unwrap();
        self.cluster.members().iter().map(Member::name).find(|name| *name != leader).unwrap().to_owned()
    }
}

impl Clients {
    fn left_on(&self, name: &str) -> usize {
        let ends = self.held.ends();
        self.backend
            .iter()
            .filter(|(port, of)| *of == name && ends.get(port).is_none_or(Option::is_none))
            .count()
    }

    /// Those of a member that broke, and those of others.
    fn broken(&self, name: &str) -> (usize, usize) {
        let ends = self.held.ends();
        let broken = self.backend.iter().filter(|(port, _)| ends.get(port).is_some_and(Option::is_some));
        let (own, others): (Vec<_>, Vec<_>) = broken.partition(|(_, of)| *of == name);
        (own.len(), others.len())
    }
}

/// Cuts a member off from its peers, and only from them.
fn isolate(host: &Host) {
    host.output(
        "nft",
        &["add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in tcp dport \
           2380 drop; add rule inet cut in tcp sport 2380 drop; add chain inet cut out { type filter hook output priority 0; }; \
           add rule inet cut out tcp dport 2380 drop; add rule inet cut out tcp sport 2380 drop"],
    )
    .unwrap();
}

fn one_member(name: &str, version: Version) {
    let mut scene = scene(name, version);
    // A host without etcd refuses, and is nobody's concern.
    scene.wait_verdict("nothing runs there", "etcd-4", "down", &["connection refused"]);
    for member in ["etcd-1", "etcd-2", "etcd-3"] {
        let backend = scene.backend(member).unwrap();
        let id = scene.cluster.member(member).id();
        let leads = scene.cluster.member(member).status().unwrap().leader == id;
        assert_eq!(backend["leader"], leads, "{backend}");
        let prefix = if version == Version::V3_4 { "3.4." } else { "3.5." };
        assert!(backend["version"].as_str().unwrap().starts_with(prefix), "{backend}");
        assert!(backend["cluster_id"].as_str().unwrap().len() > 8, "{backend}");
        assert!(
            backend["db_size"].as_u64().unwrap() > 0 && backend["tls_not_after"].is_string(),
            "{backend}"
        );
    }
    assert!((scene.balancer.metric("etcd_lb_etcd_is_leader", "").unwrap() - 1.0).abs() < 0.1);

    // Kind `etcd` writes no raft entry.
    let index = |scene: &Scene| -> Vec<Value> {
        let status = scene.etcdctl(&["endpoint", "status", "-w", "json"]).unwrap();
        let status: Value = serde_json::from_str(&status).unwrap();
        status.as_array().unwrap().iter().map(|of| of["Status"]["raftIndex"].clone()).collect()
    };
    let before = index(&scene);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(before, index(&scene), "raft entries");
    println!("| {version:?} | 3 s of probes | raft index {} before and after |", before[0]);

    let victim = scene.follower();
    scene.lose("stopped", &victim, &["connection refused"], |scene| {
        scene.cluster.member_mut(&victim).kill().unwrap();
    });
    scene.cluster.member_mut(&victim).start().unwrap();
    scene.wait_members_healthy();

    scene.lose("frozen", &victim, &["TLS: timed out"], |scene| {
        scene.cluster.member(&victim).freeze().unwrap();
    });
    // Probes of a frozen member leave nothing behind.
    let pid = scene.balancer.process().unwrap().pid();
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = open();
    std::thread::sleep(Duration::from_secs(5));
    println!("| {version:?} | frozen for 5 s more | {before} open files before, {} after |", open());
    assert!(open() <= before + 5, "{before} open files, then {}", open());
    scene.cluster.member(&victim).thaw().unwrap();
    scene.wait_members_healthy();

    for (event, victim) in [
        ("follower cut off from its peers", scene.follower()),
        ("leader cut off from its peers", scene.cluster.leader().unwrap().to_owned()),
    ] {
        let words = ["no leader", "range: timed out", "a linearizable read is refused"];
        scene.lose(event, &victim, &words, |scene| isolate(scene.lab.host(&victim)));
        scene.lab.host(&victim).output("nft", &["delete table inet cut"]).unwrap();
        scene.wait_members_settled();
    }

    let victim = scene.follower();
    let id = format!("{:x}", scene.cluster.member(&victim).id());
    scene.lose("removed", &victim, &["connection refused", "connect", "health", "TLS"], |scene| {
        let leader = scene.cluster.leader().unwrap();
        let endpoint = format!("https://{}", scene.cluster.member(leader).client_address());
        // Refused as unhealthy until the members have been connected for 5 s.
        eventually(LIMIT, "removing a member", || {
            scene.cluster.etcdctl(&scene.client, &endpoint, &["member", "remove", &id])
        })
        .unwrap();
    });
}

fn whole_cluster(name: &str, version: Version) {
    let scene = scene(name, version);
    let clients = scene.clients();
    // Two of three freeze: nobody has a quorum.
    let victims: Vec<String> =
        scene.cluster.members().iter().map(|member| member.name().to_owned()).take(2).collect();
    for victim in &victims {
        scene.cluster.member(victim).freeze().unwrap();
    }
    scene.wait_verdict("quorum lost", "etcd-3", "down", &["no leader", "timed out", "refused"]);
    for victim in &victims {
        scene.wait_verdict("quorum lost", victim, "down", &["timed out"]);
    }
    assert_eq!(scene.service().unwrap()["fail_open"], true);
    std::thread::sleep(AFTERWARDS);
    let still = clients.broken("");
    for victim in &victims {
        scene.cluster.member(victim).thaw().unwrap();
    }
    let begun = Instant::now();
    scene.wait_members_healthy();
    let regained = begun.elapsed();
    std::thread::sleep(AFTERWARDS);
    let service = scene.service().unwrap();
    println!(
        "| {version:?} | quorum lost and regained | failing open; healthy again after {} ms | {} of {} clients broken |",
        regained.as_millis(),
        clients.broken("").1,
        clients.backend.len()
    );
    assert_eq!((still, clients.broken("")), ((0, 0), (0, 0)), "no connection is reset");
    assert_eq!(service["fail_open"], false);
}

fn newcomers(name: &str, version: Version) {
    let mut scene = scene(name, version);
    let spare = scene.lab.host("etcd-4").clone();

    let foreign = scene.cluster.foreign(&spare).unwrap();
    scene.strangers.push(foreign);
    let clients = scene.clients();
    scene.wait_verdict("foreign cluster", "etcd-4", "down", &["a foreign cluster: its cluster id is"]);
    scene.strangers.clear();
    std::fs::remove_dir_all(scene.lab.dir().join("data/etcd-4")).unwrap();

    scene.cluster.add_learner(&spare).unwrap();
    scene.wait_verdict("learner", "etcd-4", "learner", &["a learner"]);
    let id = scene.etcdctl(&["member", "list"]).unwrap();
    let id = id.lines().find(|line| line.contains("etcd-4")).unwrap().split(',').next().unwrap().to_owned();
    eventually(LIMIT, "promotion", || scene.etcdctl(&["member", "promote", &id])).unwrap();
    scene.wait_verdict("promoted", "etcd-4", "healthy", &["probe passed"]);
    assert_eq!(clients.broken(""), (0, 0), "nobody noticed");
}

fn alarm_and_auth(name: &str, version: Version) {
    // The least quota that holds what a cluster begins with.
    // An alarm of one's own choice is raised over the JSON gateway.
    let quota = "--quota-backend-bytes=1048576";
    let mut scene = scene_of(name, version, ServerUse::WithGateway, &[quota]);
    let clients = scene.clients();
    let value = "v".repeat(60_000);
    let full = (0..200).any(|number| scene.etcdctl(&["put", &format!("k{number}"), &value]).is_err());
    assert!(full, "the quota is never used up");
    for name in ["etcd-1", "etcd-2", "etcd-3"] {
        scene.wait_verdict("NOSPACE", name, "healthy", &["alarm NOSPACE"]);
        assert_eq!(scene.backend(name).unwrap()["alarms"][0], "NOSPACE");
    }
    let raised = scene.balancer.metric("etcd_lb_etcd_alarm", "NOSPACE").unwrap();
    assert!((raised - 3.0).abs() < 0.1, "{raised}");
    for number in 0..200 {
        // Some were never written.
        let _ = scene.etcdctl(&["del", &format!("k{number}")]);
        if number == 30 {
            break;
        }
    }
    let status = scene.etcdctl(&["endpoint", "status", "-w", "json"]).unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    scene.etcdctl(&["compact", &revision]).unwrap();
    scene.etcdctl(&["defrag"]).unwrap();
    scene.etcdctl(&["alarm", "disarm"]).unwrap();
    eventually(LIMIT, "the alarm gone", || {
        let raised = scene.balancer.metric("etcd_lb_etcd_alarm", "NOSPACE")?;
        ensure!(raised < 0.5, "{raised}");
        Ok(())
    })
    .unwrap();

    assert_eq!(clients.broken(""), (0, 0), "nobody noticed");

    let corrupt = "etcd-2";
    scene.lose("CORRUPT", corrupt, &["alarm CORRUPT"], |scene| {
        let member = scene.cluster.member(corrupt);
        let alarm = json!({"action": "ACTIVATE", "memberID": member.id().to_string(), "alarm": "CORRUPT"});
        let mut connection =
            Connection::open(&scene.client, member.client_address(), &scene.cluster.pki, LIMIT).unwrap();
        connection.post("/v3/maintenance/alarm", &alarm).unwrap();
    });
    scene.etcdctl(&["alarm", "disarm"]).unwrap();
    scene.wait_members_healthy();

    let clients = scene.clients();
    // The check's certificate is the user `client`, who may read nothing.
    scene
        .etcdctl(&["user", "add", "root", "--no-password"])
        .unwrap_or_else(|_| scene.etcdctl(&["user", "add", "root:secret"]).unwrap());
    scene.etcdctl(&["user", "add", "client:secret"]).unwrap();
    scene.etcdctl(&["user", "grant-role", "root", "root"]).unwrap();
    scene.etcdctl(&["auth", "enable"]).unwrap();
    for name in ["etcd-1", "etcd-2", "etcd-3"] {
        scene.wait_verdict("auth, user without rights", name, "healthy", &["permission denied"]);
    }
    std::thread::sleep(AFTERWARDS);
    assert_eq!(clients.broken(""), (0, 0), "nobody noticed");
}

/// What TLS and gRPC are said to lack; what all members share breaks no connection.
fn tls_and_kinds(name: &str, version: Version) {
    let mut scene = scene(name, version);
    let clients = scene.clients();
    let pki = scene.cluster.pki.clone();
    let host = scene.lab.host("lb1");
    let paced = "interval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"500ms\"";
    let (ca, cert) = (format!("ca_file = {:?}", pki.ca), format!("cert_file = {:?}", pki.client.cert));
    let key = format!("key_file = {:?}", pki.client.key);
    let apply = |lines: &[&str]| {
        let config = Config::etcd(host, &scene.cluster).health(&lines.join("\n"));
        scene.balancer.write_config(&config.text()).unwrap();
        scene.balancer.reload().unwrap();
    };
    let wrong = "server_name = \"etcd.example.com\"";
    for kind in ["etcd", "grpc"] {
        let kind = format!("kind = {kind:?}");
        apply(&[&kind, paced, &ca, &cert, &key]);
        scene.wait_verdict(&kind, "etcd-1", "healthy", &["probe passed"]);
        apply(&[&kind, paced, &ca, &cert, &key, wrong]);
        let words = ["lacks the SAN entry DNS:etcd.example.com; it is valid for DNS:etcd-1"];
        scene.wait_verdict(&format!("{kind}, {wrong}"), "etcd-1", "down", &words);
        apply(&[&kind, paced, &ca]);
        let words = ["the backend wants a client certificate", "the backend refuses our client certificate"];
        scene.wait_verdict(&format!("{kind} without certificate"), "etcd-1", "down", &words);
        apply(&[&kind, paced]);
        let words = ["is the port a TLS port? then set ca_file"];
        scene.wait_verdict(&format!("{kind} without TLS"), "etcd-1", "down", &words);
    }

    // Files are read anew when they change.
    apply(&["kind = \"etcd\"", paced, &ca, &cert, &key]);
    scene.wait_members_healthy();
    let stranger = Authority::create(&scene.lab.dir().join("run")).unwrap().client("client").unwrap();
    let replace = |from: &Identity| {
        for (from, to) in [(&from.key, &pki.client.key), (&from.cert, &pki.client.cert)] {
            std::fs::copy(from, to.with_extension("new")).unwrap();
            std::fs::rename(to.with_extension("new"), to).unwrap();
        }
    };
    let kept = Identity { cert: scene.lab.dir().join("kept.pem"), key: scene.lab.dir().join("kept-key.pem") };
    std::fs::copy(&pki.client.cert, &kept.cert).unwrap();
    std::fs::copy(&pki.client.key, &kept.key).unwrap();
    replace(&stranger);
    let words = ["refuses our client certificate"];
    scene.wait_verdict("client certificate of another CA", "etcd-1", "down", &words);
    replace(&kept);
    scene.wait_verdict("the right one again", "etcd-1", "healthy", &["probe passed"]);
    scene.wait_members_healthy();
    std::thread::sleep(AFTERWARDS);
    assert_eq!(clients.broken(""), (0, 0), "what all share breaks nobody's connection");
    let pid = scene.balancer.process().unwrap().pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    println!(
        "| {version:?} | {open} open files, {} |",
        status.lines().find(|l| l.starts_with("VmRSS")).unwrap()
    );
}

/// Each story on both versions.
macro_rules! of_each_version {
    ($($story:ident),*) => {
        mod v3_4 {
            $(#[test]
            fn $story() {
                super::$story(concat!(stringify!($story), "_4"), super::Version::V3_4);
            })*
        }
        mod v3_5 {
            $(#[test]
            fn $story() {
                super::$story(concat!(stringify!($story), "_5"), super::Version::V3_5);
            })*
        }
    };
}

of_each_version!(one_member, whole_cluster, newcomers, alarm_and_auth, tls_and_kinds);
