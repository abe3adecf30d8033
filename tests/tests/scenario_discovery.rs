//! Backends that are found: a cluster that grows and shrinks under load, and answers that must not be believed.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Role, Topology, VIP,
    dns::{DOMAIN, NameServer},
    etcd::Setup,
    eventually,
    fleet::Options,
    kube::{ApiServer, NAMESPACE, SERVICE},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// Each backend's state by name.
fn states(balancer: &Balancer) -> Result<BTreeMap<String, String>> {
    let status = balancer.status()?;
    let backends = status["services"][0]["backends"].as_array().context("backends")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(backends.iter().map(|backend| (text(&backend["name"]), text(&backend["state"]))).collect())
}

/// Waits until the backends are these, in these states, and says how long that took.
fn wait_states(balancer: &Balancer, what: &str, wanted: &[(&str, &str)]) {
    let since = Instant::now();
    let wanted: BTreeMap<_, _> =
        wanted.iter().map(|(name, state)| ((*name).into(), (*state).into())).collect();
    eventually(LIMIT, what, || {
        let states = states(balancer)?;
        ensure!(states == wanted, "{states:?}, not {wanted:?}");
        Ok(())
    })
    .unwrap();
    println!("{what}: after {:?}", since.elapsed());
}

fn ignored(balancer: &Balancer, reason: &str) -> f64 {
    balancer.metric("etcd_lb_discovery_ignored_total", &format!("reason=\"{reason}\"")).unwrap()
}

fn wait_log(balancer: &mut Balancer, words: &str) {
    eventually(LIMIT, &format!("the log says {words:?}"), || {
        let log = fs::read_to_string(balancer.process().unwrap().log())?;
        ensure!(log.contains(words), "{log}");
        Ok(())
    })
    .unwrap();
}

/// Waits until a removed member has no connection left, and sees that nobody else has lost one.
fn wait_drained(fleet: &Fleet, gone: u64) {
    eventually(LIMIT, "its connections have ended in the drain", || {
        ensure!(fleet.alive_on(gone) == 0);
        Ok(())
    })
    .unwrap();
    let broken = fleet.broken();
    assert!(broken.iter().all(|session| session.member == gone), "{broken:?}");
    println!("{} connections ended in the drain, all of them the removed member's", broken.len());
}

/// A config with what is written of the members, and how others are found.
fn config(host: &Host, cluster: &Cluster, seeds: &[&str], discovery: &str) -> String {
    let none = Config::etcd_of(host, cluster).default_algorithm().service("drain_timeout = \"2s\"");
    let seeds = seeds.iter().map(|name| cluster.member(name));
    let config = seeds.fold(none, |config, member| config.backend(member.name(), member.client_address()));
    format!("{}\n[service.discovery]\n{discovery}\n", config.text())
}

fn grows_and_shrinks(name: &str, setup: &Setup) {
    let topology = Topology::standard().without("lb2").without("client-2");
    let topology = topology.with(Role::Client, "etcd-4", 14).with(Role::Client, "etcd-5", 15);
    let lab = Lab::start(name, &topology).unwrap();
    let mut cluster = Cluster::start_as(&lab, setup).unwrap();
    let host = lab.host("lb1");
    let text = config(host, &cluster, &["etcd-1"], "interval = \"1s\"");
    let mut balancer = Balancer::start(host, &text).unwrap();
    wait_states(
        &balancer,
        "found by one seed",
        &[("etcd-1", "healthy"), ("etcd-2", "healthy"), ("etcd-3", "healthy")],
    );

    let options =
        Options { clients: 30, interval: Duration::from_millis(50), reconnect: true, ..Options::default() };
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let fleet = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();
    let mut now = vec![("etcd-1", "healthy"), ("etcd-2", "healthy"), ("etcd-3", "healthy")];
    for name in ["etcd-4", "etcd-5"] {
        let newcomer = lab.host(name);
        cluster.add_learner(newcomer).unwrap();
        now.push((name, "learner"));
        wait_states(&balancer, &format!("{name} is a learner"), &now);
        let id = member_id(&cluster, newcomer, name);
        eventually(LIMIT, "promotion", || {
            cluster.etcdctl(newcomer, &cluster.endpoints(), &["member", "promote", &id])
        })
        .unwrap();
        now.pop();
        now.push((name, "healthy"));
        wait_states(&balancer, &format!("{name} is promoted"), &now);
    }
    fleet.wait_progress(5, LIMIT).unwrap();
    assert!(fleet.broken().is_empty(), "nothing breaks while the cluster grows: {:?}", fleet.broken());
    // New connections go to the new members, too.
    let second = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();
    for name in ["etcd-4", "etcd-5"] {
        let id = member_id(&cluster, lab.host("client-1"), name);
        let id = u64::from_str_radix(&id, 16).unwrap();
        let there = second.alive_on(id);
        println!("{there} of 30 new connections are on {name}");
        assert!(there > 0, "{name} takes its share");
    }

    // Two of the first ones leave: drained by the operator, then removed.
    let mut gone = Vec::new();
    for name in ["etcd-2", "etcd-3"] {
        let client = lab.host("client-1");
        let id = member_id(&cluster, client, name);
        gone.push(u64::from_str_radix(&id, 16).unwrap());
        balancer.cli(&["drain", name]).unwrap();
        now.retain(|(now, _)| *now != name);
        let since = Instant::now();
        eventually(LIMIT, "its connections have ended in the drain", || {
            let left: usize =
                [&fleet, &second].iter().map(|fleet| fleet.alive_on(*gone.last().unwrap())).sum();
            ensure!(left == 0, "{left} are there");
            Ok(())
        })
        .unwrap();
        println!("{name} is drained after {:?} (drain_timeout 2 s)", since.elapsed());
        // Refused as unhealthy until the members have been connected for 5 s.
        eventually(LIMIT, "removing a member", || {
            cluster.etcdctl(client, &format!("https://{VIP}:{CLIENT_PORT}"), &["member", "remove", &id])
        })
        .unwrap();
        wait_states(&balancer, &format!("{name} is removed"), &now);
    }
    for fleet in [fleet, second] {
        fleet.wait_progress(5, LIMIT).unwrap();
        let broken = fleet.broken();
        let foreign: Vec<_> = broken.iter().filter(|session| !gone.contains(&session.member)).collect();
        assert!(foreign.is_empty(), "others broke: {foreign:?}");
        println!("{} connections broke, all of them the removed members' own", broken.len());
    }
    let members = balancer.metric("etcd_lb_discovery_members", "").unwrap();
    assert!((2.5..3.5).contains(&members), "{members}");
    wait_log(&mut balancer, "promoted to a voting member");
    wait_log(&mut balancer, "not named any more: it drains");

    // An agent that is restarted where nobody tells it who the others are knows them still.
    let at = now.iter().map(|(name, state)| (*name, *state)).collect::<Vec<_>>();
    balancer.kill().unwrap();
    balancer.run().unwrap();
    wait_states(&balancer, "after a restart", &at);

    // etcd's auth: the check's certificate is the user `client`, who may read nothing, and sees the list all the same.
    let etcdctl = |args: &[&str]| {
        let seed = cluster.member("etcd-1").client_url();
        cluster.etcdctl(lab.host("client-1"), &seed, args)
    };
    etcdctl(&["user", "add", "root", "--no-password"])
        .unwrap_or_else(|_| etcdctl(&["user", "add", "root:secret"]).unwrap());
    etcdctl(&["user", "add", "client:secret"]).unwrap();
    etcdctl(&["user", "grant-role", "root", "root"]).unwrap();
    etcdctl(&["auth", "enable"]).unwrap();
    let success = || balancer.metric("etcd_lb_discovery_last_success_timestamp_seconds", "").unwrap();
    let enabled = success();
    eventually(LIMIT, "the list is had under auth", || {
        ensure!(success() > enabled + 2.5, "{} after {enabled}", success());
        Ok(())
    })
    .unwrap();
    wait_states(&balancer, "with auth enabled", &at);
}

/// As `etcdctl member` wants it.
fn member_id(cluster: &Cluster, host: &Host, name: &str) -> String {
    let list = eventually(LIMIT, "the list of members", || {
        cluster.etcdctl(host, &cluster.member("etcd-1").client_url(), &["member", "list"])
    })
    .unwrap();
    let line = list.lines().find(|line| line.contains(&format!(", {name}, "))).unwrap();
    line.split(',').next().unwrap().to_owned()
}

#[test]
fn a_cluster_of_3_4_grows_and_shrinks_under_load() {
    grows_and_shrinks("discover_34", &Setup::default());
}

#[test]
fn a_cluster_of_3_5_grows_and_shrinks_under_load() {
    grows_and_shrinks("discover_35", &Setup::newer().unwrap());
}

#[test]
fn members_that_advertise_loopback_or_the_vip_are_not_believed() {
    let lab = Lab::start("discover_loop", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let urls = format!("--advertise-client-urls=https://127.0.0.1:{CLIENT_PORT},https://{VIP}:{CLIENT_PORT}");
    let cluster = Cluster::start_as(&lab, &Setup { args: vec![urls], ..Setup::default() }).unwrap();
    let host = lab.host("lb1");
    let text = config(host, &cluster, &["etcd-1", "etcd-2"], "interval = \"1s\"");
    let mut balancer = Balancer::start(host, &text).unwrap();
    eventually(LIMIT, "the answer is refused", || {
        ensure!(ignored(&balancer, "empty") > 1.5);
        Ok(())
    })
    .unwrap();
    wait_states(&balancer, "those written stay", &[("etcd-1", "healthy"), ("etcd-2", "healthy")]);
    wait_log(&mut balancer, "an answer is not believed: it names no backend that could be used");
}

#[test]
fn srv_records_are_followed_with_care() {
    let topology = Topology::standard().without("lb2").without("client-2").with(Role::Client, "dns", 53);
    let lab = Lab::start("discover_dns", &topology.with(Role::Client, "etcd-4", 14)).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let of = |name: &'static str| (name, cluster.member(name).client_address());
    let all = [of("etcd-1"), of("etcd-2"), of("etcd-3")];
    let mut dns = NameServer::start(lab.host("dns"), &all).unwrap();
    let host = lab.host("lb1");
    let lines = format!(
        "kind = \"dns\"\ninterval = \"1s\"\ndomain = \"{DOMAIN}\"\nnameserver = \"{}\"",
        dns.address()
    );
    let mut balancer = Balancer::start(host, &config(host, &cluster, &[], &lines)).unwrap();
    let names = ["etcd-1", "etcd-2", "etcd-3"].map(|name| format!("{name}.{DOMAIN}"));
    let healthy: Vec<_> = names.iter().map(|name| (name.as_str(), "healthy")).collect();
    wait_states(&balancer, "found in the DNS", &healthy);
    let options =
        Options { clients: 12, interval: Duration::from_millis(50), reconnect: true, ..Options::default() };
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let fleet = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();

    let at = |address: &str| address.parse::<SocketAddr>().unwrap();
    let lies = [
        ("lie-1", at("127.0.0.1:2379"), "loopback"),
        ("lie-2", SocketAddr::from((VIP, CLIENT_PORT)), "own_vip"),
        ("lie-3", (host.address(), CLIENT_PORT).into(), "own_host"),
        ("lie-4", at("10.0.1.11:2380"), "peer_port"),
    ];
    let records: Vec<_> = all.iter().copied().chain(lies.map(|(name, at, _)| (name, at))).collect();
    dns.serve(&records).unwrap();
    for (_, _, reason) in lies {
        eventually(LIMIT, reason, || {
            ensure!(ignored(&balancer, reason) > 0.5);
            Ok(())
        })
        .unwrap();
    }
    wait_states(&balancer, "with lies in the DNS", &healthy);
    wait_log(&mut balancer, "the VIP itself: connections would go in a circle");

    let stranger = cluster.foreign(lab.host("etcd-4")).unwrap();
    let records: Vec<_> = all.iter().copied().chain([("etcd-4", stranger.client_address())]).collect();
    dns.serve(&records).unwrap();
    eventually(LIMIT, "another cluster's member", || {
        ensure!(ignored(&balancer, "other_cluster") > 0.5);
        let states = states(&balancer)?;
        let state = states.get("etcd-4.example.com").map(String::as_str);
        ensure!(state == Some("down"), "{states:?}");
        Ok(())
    })
    .unwrap();
    wait_log(&mut balancer, "gets no connections: it is of another cluster");
    dns.serve(&all).unwrap();
    wait_states(&balancer, "without it", &healthy);

    dns.serve(&[]).unwrap();
    eventually(LIMIT, "an empty answer is refused", || {
        ensure!(ignored(&balancer, "empty") > 0.5);
        Ok(())
    })
    .unwrap();
    dns.stop();
    eventually(LIMIT, "no answer is counted", || {
        ensure!(balancer.metric("etcd_lb_discovery_failures_total", "").unwrap() > 0.5);
        Ok(())
    })
    .unwrap();
    wait_states(&balancer, "without any answer", &healthy);
    assert!(fleet.broken().is_empty(), "{:?}", fleet.broken());

    // An agent that starts while the name server is away goes on with what it knew: addresses.
    balancer.kill().unwrap();
    balancer.run().unwrap();
    let addresses = all.map(|(_, address)| address.to_string());
    let known: Vec<_> = addresses.iter().map(|address| (address.as_str(), "healthy")).collect();
    wait_states(&balancer, "after a restart without a name server", &known);
    thread::sleep(Duration::from_secs(3));
    assert!(fleet.broken().is_empty(), "{:?}", fleet.broken());

    dns.serve(&all[..2]).unwrap();
    wait_states(&balancer, "one is not named any more", &healthy[..2]);
    wait_drained(&fleet, cluster.member("etcd-3").id());
}

#[test]
fn endpoint_slices_are_followed_with_care() {
    let topology = Topology::standard().without("lb2").without("client-2").with(Role::Client, "kube", 60);
    let lab = Lab::start("discover_kube", &topology).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let of =
        |name: &'static str, ready: bool| (name, IpAddr::from(cluster.member(name).host().address()), ready);
    let mut api = ApiServer::start(lab.host("kube"), 6443).unwrap();
    api.set("a", &[of("etcd-1", true), of("etcd-2", true), of("etcd-3", false)]);
    let host = lab.host("lb1");
    let lines = format!(
        "kind = \"kubernetes\"\ninterval = \"1s\"\nnamespace = \"{NAMESPACE}\"\nservice = \"{SERVICE}\"\nkubeconfig = {:?}",
        api.kubeconfig()
    );
    let mut balancer = Balancer::start(host, &config(host, &cluster, &[], &lines)).unwrap();
    let all = [("etcd-1", "healthy"), ("etcd-2", "healthy"), ("etcd-3", "healthy")];
    wait_states(&balancer, "two are ready", &all[..2]);
    api.set("b", &[of("etcd-3", true)]);
    wait_states(&balancer, "a third is ready", &all);
    let options =
        Options { clients: 12, interval: Duration::from_millis(50), reconnect: true, ..Options::default() };
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let fleet = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();

    // The watch goes on where it was.
    api.bookmark();
    let (lists, watches) = api.asked();
    api.interrupt();
    let lies =
        ["127.0.0.1", "10.0.1.100", "10.0.1.2"].map(|lie| ("lie", lie.parse::<IpAddr>().unwrap(), true));
    api.set("lies", &lies);
    for reason in ["loopback", "own_vip", "own_host"] {
        eventually(LIMIT, reason, || {
            ensure!(ignored(&balancer, reason) > 0.5);
            Ok(())
        })
        .unwrap();
    }
    let asked = api.asked();
    assert!(asked.0 == lists && asked.1 > watches, "{asked:?}, before {:?}", (lists, watches));
    wait_states(&balancer, "lies are left out", &all);

    // What it had is gone: it lists again.
    api.expire();
    api.delete("lies");
    eventually(LIMIT, "it lists again after 410", || {
        ensure!(api.asked().0 > lists, "{:?}", api.asked());
        Ok(())
    })
    .unwrap();
    api.set("a", &[of("etcd-1", true), of("etcd-2", true), of("etcd-3", true)]);
    api.delete("b");
    api.delete("a");
    eventually(LIMIT, "an empty answer is refused", || {
        ensure!(ignored(&balancer, "empty") > 0.5);
        Ok(())
    })
    .unwrap();
    let port = api.address().port();
    drop(api);
    eventually(LIMIT, "no answer is counted", || {
        ensure!(balancer.metric("etcd_lb_discovery_failures_total", "").unwrap() > 0.5);
        Ok(())
    })
    .unwrap();
    wait_states(&balancer, "without an API server", &all);
    assert!(fleet.broken().is_empty(), "{:?}", fleet.broken());

    api = ApiServer::start(lab.host("kube"), port).unwrap();
    api.set("a", &[of("etcd-1", true), of("etcd-3", true)]);
    wait_states(&balancer, "one is not named any more", &[all[0], all[2]]);
    wait_log(&mut balancer, "not named any more: it drains");
    wait_drained(&fleet, cluster.member("etcd-2").id());
}
