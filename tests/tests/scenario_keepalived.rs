//! A pair of etcd-lb and a real keepalived: mastership moves as between two of a kind, in both roles.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Topology, VIP, VIP6,
    echo::EchoServer,
    eventually,
    keepalived::{Keepalived, Settings},
    owner::OwnerWatch,
};

const LIMIT: Duration = Duration::from_secs(20);
/// The VIP of the lab and its link-local companion.
const V4: &[&str] = &["10.0.1.100"];
const V6: &[&str] = &["fe80::100", "fd00:1::100"];

struct Mixed {
    ours: Option<Balancer>,
    theirs: Option<Keepalived>,
    settings: Settings<'static>,
    server: Option<EchoServer>,
    lab: Lab,
}

impl Mixed {
    /// keepalived of priority 100 is there first.
    fn start(name: &str, settings: Settings<'static>) -> Self {
        let topology = Topology::standard().without("client-2").without("etcd-2").without("etcd-3");
        let lab = Lab::start(name, &topology).unwrap();
        let server = EchoServer::start(lab.host("etcd-1"), CLIENT_PORT).unwrap();
        let theirs = Some(Keepalived::start(lab.host("lb2"), &settings).unwrap());
        let mixed = Self { ours: None, theirs, settings, server: Some(server), lab };
        mixed.wait_master("keepalived alone", Instant::now());
        mixed
    }

    /// Starts etcd-lb with a priority.
    fn ours(&mut self, priority: u8) {
        let Settings { version, interval, addresses, peer, password, .. } = self.settings;
        let is_v6 = addresses[0].contains(':');
        let host = self.lab.host("lb1");
        let config = Config::echo(host);
        let server = self.server.as_ref().unwrap();
        let config = if is_v6 {
            config.vip(VIP6).numbered([server.address_v6()])
        } else {
            config.vip(VIP).numbered([server.address()])
        };
        let ms = (interval.parse::<f64>().unwrap() * 1000.0) as u64;
        let mut vrrp = format!(
            "[vrrp]\nversion = {version}\npriority = {priority}\nadvert_interval = \"{ms}ms\"\n\
                     track_healthy_backends = 120\n"
        );
        if is_v6 {
            vrrp += "link_local = \"fe80::100\"\n";
        }
        if peer.is_some() {
            vrrp += &format!("unicast_peers = [\"{}\"]\n", self.lab.host("lb2").address());
        }
        if let Some(password) = password {
            vrrp += &format!("auth_pass = {password:?}\n");
        }
        self.ours = None;
        let text = format!("{}\n{vrrp}", config.text());
        self.ours = Some(Balancer::start(host, &text).unwrap());
    }

    fn theirs(&mut self, priority: u8) {
        self.theirs = None;
        let settings = Settings { priority, ..self.settings };
        self.theirs = Some(Keepalived::start(self.lab.host("lb2"), &settings).unwrap());
    }

    fn wait_active(&self, what: &str, since: Instant) {
        let took = eventually(LIMIT, &format!("{what}: etcd-lb is active"), || {
            let status = self.ours.as_ref().unwrap().status()?;
            ensure!(status["role"] == "active" && status["fenced"] == false, "it is {}", status["role"]);
            Ok(since.elapsed())
        });
        println!("{what}: etcd-lb is active after {:?}", took.unwrap());
        if let Some(theirs) = &self.theirs {
            eventually(LIMIT, &format!("{what}: keepalived gives the VIP up"), || {
                ensure!(!theirs.is_master()?, "it has it");
                Ok(())
            })
            .unwrap();
        }
    }

    fn wait_master(&self, what: &str, since: Instant) {
        let took = eventually(LIMIT, &format!("{what}: keepalived is master"), || {
            ensure!(self.theirs.as_ref().unwrap().is_master()?, "it is not");
            Ok(since.elapsed())
        });
        println!("{what}: keepalived is master after {:?}", took.unwrap());
        if let Some(ours) = &self.ours {
            eventually(LIMIT, &format!("{what}: etcd-lb is backup"), || {
                let status = ours.status()?;
                ensure!(status["role"] == "backup", "it is {}", status["role"]);
                Ok(())
            })
            .unwrap();
        }
    }
}

fn both_roles(name: &str, settings: Settings<'static>) {
    let mut mixed = Mixed::start(name, settings);
    mixed.ours(200);
    mixed.wait_active("the stronger etcd-lb came", Instant::now());

    let since = Instant::now();
    mixed.ours.as_mut().unwrap().kill().unwrap();
    let ours = mixed.ours.take();
    mixed.wait_master("etcd-lb killed", since);
    mixed.ours = ours;
    mixed.ours.as_mut().unwrap().run().unwrap();
    mixed.wait_active("etcd-lb is back", Instant::now());

    let since = Instant::now();
    mixed.ours.as_mut().unwrap().stop().unwrap();
    mixed.ours = None;
    mixed.wait_master("etcd-lb stopped", since);

    // Priorities that change: keepalived's by its config, ours by what it tracks.
    mixed.ours(150);
    mixed.wait_active("the stronger etcd-lb came again", Instant::now());
    for (priority, ours_wins) in [(200, false), (100, true)] {
        let since = Instant::now();
        mixed.theirs.as_ref().unwrap().reload(&Settings { priority, ..settings }).unwrap();
        let what = format!("keepalived's priority is {priority} now, against 150");
        if ours_wins { mixed.wait_active(&what, since) } else { mixed.wait_master(&what, since) }
    }
    let since = Instant::now();
    mixed.server = None;
    mixed.wait_master("etcd-lb has no healthy backend any more", since);
    let since = Instant::now();
    mixed.server = Some(EchoServer::start(mixed.lab.host("etcd-1"), CLIENT_PORT).unwrap());
    mixed.wait_active("its backend is back", since);

    // The other way round.
    mixed.ours(50);
    mixed.wait_master("the weaker etcd-lb came", Instant::now());
    let since = Instant::now();
    mixed.theirs.take().unwrap().stop().unwrap();
    mixed.wait_active("keepalived stopped", since);
    let since = Instant::now();
    mixed.theirs(100);
    mixed.wait_master("keepalived is back", since);
    let since = Instant::now();
    mixed.theirs.take().unwrap().kill().unwrap();
    mixed.wait_active("keepalived killed", since);
    let rejected = mixed.ours.as_ref().unwrap().metric("etcd_lb_vrrp_rejected_total", "").unwrap();
    assert!(rejected < 0.5, "{rejected} of keepalived's advertisements were not heeded");
}

const V3: Settings<'static> =
    Settings { version: 3, priority: 100, interval: "0.1", addresses: V4, peer: None, password: None };

#[test]
fn version_3_by_multicast() {
    both_roles("ka_v3", V3);
}

#[test]
fn version_3_by_unicast() {
    both_roles("ka_unicast", Settings { peer: Some("10.0.1.2"), ..V3 });
}

#[test]
fn version_3_over_ipv6() {
    both_roles("ka_v6", Settings { addresses: V6, ..V3 });
}

#[test]
fn version_2_with_a_password() {
    let settings = Settings { version: 2, interval: "1", password: Some("secret12"), ..V3 };
    both_roles("ka_v2", settings);
}

/// How long nobody answers for the VIP when its owner is killed: two of etcd-lb, then two of keepalived, at one interval.
#[test]
fn takeovers_beside_keepalived() {
    for (ms, interval) in [(1000, "1"), (100, "0.1"), (20, "0.02")] {
        let ours = killed_pair_of_ours(&format!("beside_ours_{ms}"), &format!("{ms}ms"));
        let theirs = killed_pair_of_keepalived(&format!("beside_ka_{ms}"), interval);
        println!("killed at {ms} ms: etcd-lb {ours:?}, keepalived {theirs:?}");
        let promise = Duration::from_millis(3 * ms + ms * 156 / 256);
        assert!(ours < promise + Duration::from_millis(500), "{ours:?}, promised {promise:?}");
    }
}

fn killed_pair_of_ours(name: &str, interval: &str) -> Duration {
    let lab = Lab::start(name, &Topology::standard().without("client-2").without("etcd-2").without("etcd-3"))
        .unwrap();
    let server = EchoServer::start(lab.host("etcd-1"), CLIENT_PORT).unwrap();
    let start = |host: &str, priority: u8| {
        let config = Config::echo(lab.host(host)).numbered([server.address()]).text();
        let vrrp = format!("[vrrp]\npriority = {priority}\nadvert_interval = {interval:?}\n");
        Balancer::start(lab.host(host), &format!("{config}\n{vrrp}")).unwrap()
    };
    let (mut stronger, weaker) = (start("lb1", 200), start("lb2", 100));
    let taken = time_takeover(&lab, || stronger.kill().unwrap());
    drop(weaker);
    taken
}

fn killed_pair_of_keepalived(name: &str, interval: &'static str) -> Duration {
    let lab = Lab::start(name, &Topology::standard().without("client-2").without("etcd-2").without("etcd-3"))
        .unwrap();
    let start = |host: &str, priority| {
        Keepalived::start(lab.host(host), &Settings { priority, interval, ..V3 }).unwrap()
    };
    let (stronger, weaker) = (start("lb1", 200), start("lb2", 100));
    let taken = time_takeover(&lab, || stronger.kill().unwrap());
    drop(weaker);
    taken
}

/// How long nobody answers for the VIP once lb1 is killed.
fn time_takeover(lab: &Lab, kill: impl FnOnce()) -> Duration {
    let watch = OwnerWatch::start(lab.host("client-1")).unwrap();
    let macs = ["lb1", "lb2"].map(|host| lab.host(host).mac().unwrap());
    wait_owner(&watch, macs[0], Instant::now());
    let since = Instant::now();
    kill();
    wait_owner(&watch, macs[1], since) - since
}

fn wait_owner(watch: &OwnerWatch, mac: [u8; 6], since: Instant) -> Instant {
    eventually(LIMIT, "the node answers for the VIP", || {
        watch.first(mac, since).ok_or_else(|| anyhow::anyhow!("{:?} does", watch.owner()))
    })
    .unwrap()
}
