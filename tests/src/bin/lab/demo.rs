//! The demo: etcd through the VIP, a member's death, and the agent's, told as it happens.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Topology, VIP, eventually,
    fleet::{Options, Session},
};

use crate::narrator::Narrator;

/// Clients that stay connected: enough that each member has some.
pub(crate) const CLIENTS: usize = 12;
/// Answers awaited from every client before and after something is broken.
pub(crate) const ANSWERS: u64 = 10;
/// Longest wait for any one thing.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run() -> Result<()> {
    let mut narrator = Narrator::new();
    let mut stage = Stage::set(&mut narrator)?;
    stage.etcd_through_the_vip(&mut narrator)?;
    stage.operator_view(&mut narrator)?;
    stage.maps(&mut narrator)?;
    stage.member_dies(&mut narrator)?;
    stage.member_returns(&mut narrator)?;
    stage.agent_dies(&mut narrator)?;
    stage.becomes_a_pair(&mut narrator)?;
    stage.node_dies(&mut narrator)?;
    stage.node_returns(&mut narrator)?;
    narrator.step("Done", "The lab goes away with everything in it.");
    Ok(())
}

pub(crate) struct Stage {
    // Dropped in this order: what runs in the lab, then the lab.
    pub(crate) balancer: Balancer,
    /// The other node of the pair.
    pub(crate) other: Option<Balancer>,
    pub(crate) cluster: Cluster,
    pub(crate) client: Host,
    pub(crate) lab: Lab,
}

impl Stage {
    fn set(narrator: &mut Narrator) -> Result<Self> {
        narrator.step(
            "A three-member etcd cluster, a balancer and a client",
            "Each host is a network namespace on one bridge; etcd is real, with TLS and client certificates.",
        );
        narrator.say(&format!(
            "client-1 10.0.1.21 ──▶ VIP {VIP}:{CLIENT_PORT} ──┬── etcd-1 10.0.1.11\n\
             {0:22} on lb1 10.0.1.2 (XDP) ├── etcd-2 10.0.1.12\n\
             {0:45}└── etcd-3 10.0.1.13",
            ""
        ));
        let lab = Lab::start("demo", &Topology::standard().without("client-2"))?;
        let cluster = Cluster::start(&lab)?;
        narrator.say(&format!("The cluster is up; {} leads.", cluster.leader()?));

        narrator.step(
            "The balancer starts on lb1",
            "It loads its XDP program into the interface's driver; from then on the VIP answers.",
        );
        let host = lab.host("lb1");
        let balancer = Balancer::start(host, &Config::etcd(host, &cluster).text())?;
        for member in cluster.members() {
            balancer.wait_backend(member.name(), "healthy", LIMIT)?;
        }
        narrator.show("ip link show dev eth0", host.command("ip").args(["link", "show", "dev", "eth0"]))?;
        Ok(Self { client: lab.host("client-1").clone(), balancer, other: None, cluster, lab })
    }

    fn etcd_through_the_vip(&self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "etcd through the VIP",
            "The client knows one address. TLS passes through: the certificate it sees is the member's.",
        );
        let endpoint = format!("https://{VIP}:{CLIENT_PORT}");
        for args in [&["endpoint", "health"][..], &["put", "greeting", "hello"], &["get", "greeting"]] {
            let typed = format!("etcdctl --endpoints={endpoint} {}", args.join(" "));
            narrator.show(&typed, self.cluster.etcdctl_command(&self.client, &endpoint).args(args))?;
        }
        Ok(())
    }

    fn operator_view(&self, narrator: &mut Narrator) -> Result<()> {
        narrator
            .step("What the operator sees", "Every member's state, and every connection with its member.");
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        narrator.show("etcd-lb status", self.balancer.cli_command().arg("status"))?;
        narrator.show("etcd-lb flows", self.balancer.cli_command().arg("flows"))?;
        Ok(())
    }

    fn maps(&self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "The data plane's own tables",
            "They are pinned and typed, so the kernel's tools read them, with or without the agent.",
        );
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        let map = self.balancer.pin_dir().join("flows");
        narrator.show(
            "bpftool map dump pinned …/flows",
            self.client.command("bpftool").args(["map", "dump", "pinned"]).arg(map),
        )?;
        Ok(())
    }

    fn member_dies(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator
            .step("A member dies", "Its clients are reset at once and go on elsewhere; nobody else notices.");
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        let victim = fleet
            .sessions()
            .first()
            .and_then(|session| self.cluster.name_of(session.member))
            .context("no client")?;
        let victim = victim.to_owned();
        narrator.say(&self.spread("connections", &fleet.alive()));

        let killed = Instant::now();
        self.cluster.member_mut(&victim).kill()?;
        narrator.say(&format!("kill -9 of etcd on {victim}"));
        eventually(LIMIT, "every client connected again", || {
            ensure!(fleet.alive().len() == CLIENTS, "{} of {CLIENTS} are", fleet.alive().len());
            Ok(())
        })?;
        fleet.wait_progress(ANSWERS, LIMIT)?;

        let sessions = fleet.finish();
        let lost: Vec<&Session> = sessions.iter().filter(|session| session.broken.is_some()).collect();
        let strangers =
            lost.iter().filter(|session| self.cluster.name_of(session.member) != Some(&victim)).count();
        let noticed =
            lost.iter().filter_map(|session| session.broken.as_ref()).map(|broken| broken.at - killed).max();
        let back = sessions.iter().skip(CLIENTS).map(|session| session.opened - killed).max();
        narrator.say(&format!(
            "{} connections were on {victim} and broke, {strangers} others did.\n\
             The last client noticed after {}, and was connected to another member after {}.",
            lost.len(),
            milliseconds(noticed),
            milliseconds(back)
        ));
        let alive: Vec<Session> = sessions.into_iter().filter(|session| session.broken.is_none()).collect();
        narrator.say(&self.spread("connections now", &alive));
        ensure!(strangers == 0, "{strangers} connections to living members broke");

        self.balancer.wait_backend(&victim, "down", LIMIT)?;
        narrator.show("etcd-lb status", self.balancer.cli_command().arg("status"))?;
        Ok(())
    }

    fn member_returns(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "It returns",
            "Once its checks pass it gets new connections again; the others' stay where they are.",
        );
        for member in ["etcd-1", "etcd-2", "etcd-3"] {
            let member = self.cluster.member_mut(member);
            if !member.is_running() {
                member.start()?;
                member.wait_healthy()?;
            }
            self.balancer.wait_backend(member.name(), "healthy", LIMIT)?;
        }
        let fleet = self.fleet()?;
        narrator.say(&self.spread("new connections", &fleet.alive()));
        Ok(())
    }

    fn agent_dies(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "The agent is killed and started again",
            "The data plane lives in the kernel: established connections do not need the agent.",
        );
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        self.balancer.kill()?;
        narrator.say("kill -9 of etcd-lb");
        fleet.wait_progress(ANSWERS, LIMIT)?;
        narrator.say("Without an agent every client gets its answers.");
        self.balancer.run()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;

        let sessions = fleet.finish();
        let broken = sessions.iter().filter(|session| session.broken.is_some()).count();
        let requests: u64 = sessions.iter().map(|session| session.requests).sum();
        let gap = sessions.iter().map(|session| session.longest_gap).max();
        narrator.say(&format!(
            "It is back. {CLIENTS} connections, {requests} requests, {broken} broken; the longest time between two answers was {}.",
            milliseconds(gap)
        ));
        ensure!(broken == 0, "{broken} connections broke; logs:\n{}", self.lab.log_tails());
        Ok(())
    }

    pub(crate) fn fleet(&self) -> Result<Fleet> {
        let options = Options {
            clients: CLIENTS,
            interval: Duration::from_millis(20),
            reconnect: true,
            ..Options::default()
        };
        Fleet::start(&self.client, SocketAddr::from((VIP, CLIENT_PORT)), &self.cluster.pki, options)
    }

    /// `title: etcd-1 4, etcd-2 3, …`
    fn spread(&self, title: &str, sessions: &[Session]) -> String {
        let count = |id| sessions.iter().filter(|session| session.member == id).count();
        let parts: Vec<String> = self
            .cluster
            .members()
            .iter()
            .map(|member| format!("{} {}", member.name(), count(member.id())))
            .collect();
        format!("{title}: {}", parts.join(", "))
    }
}

pub(crate) fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "–".to_owned(), |time| format!("{} ms", time.as_millis()))
}
