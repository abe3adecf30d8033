//! What checks cost a member, and what they see while a member defragments a large database.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Topology, VIP, etcd::Setup, eventually,
    fleet::Options, https::Connection,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);
/// Size of a value that is put; etcd takes requests of up to 1.5 MiB.
const VALUE: usize = 512 * 1024;
/// So many of them make the database.
const VALUES: usize = if cfg!(feature = "long") { 600 } else { 150 };

fn topology() -> Topology {
    Topology::standard().without("lb2").without("client-2")
}

/// Checks each 100 ms, of which one decides.
fn config(host: &Host, cluster: &Cluster) -> String {
    let pki = &cluster.pki;
    Config::etcd(host, cluster)
        .health(&format!(
            "kind = \"etcd\"\ninterval = \"100ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 1\n\
             ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}",
            pki.ca, pki.client.cert, pki.client.key
        ))
        .text()
}

fn defragments(name: &str, what: &str, setup: &Setup, notice: bool) {
    let lab = Lab::start(name, &topology()).unwrap();
    let cluster = Cluster::start_as(&lab, setup).unwrap();
    let client = lab.host("client-1");
    let victim = cluster.leader().unwrap();
    let victim = cluster.members().iter().find(|member| member.name() != victim).unwrap();

    // Written and overwritten: what is there to be freed.
    let mut writer =
        Connection::open(client, victim.client_address(), &cluster.pki, Duration::from_secs(10)).unwrap();
    let value = "A".repeat(VALUE);
    let begun = Instant::now();
    for number in 0..VALUES {
        let key = format!("k{:03}", number % 256);
        let put = json!({"key": key, "value": value}).to_string();
        let answer = writer.request("POST", "/v3/kv/put", &put).unwrap();
        assert_eq!(answer.status, 200, "put {number}");
    }
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &config(host, &cluster)).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", LIMIT).unwrap();
    }
    let backend = |balancer: &Balancer| -> Value {
        let status = balancer.status().unwrap();
        let backends = status["services"][0]["backends"].as_array().unwrap().clone();
        backends.into_iter().find(|backend| backend["name"] == victim.name()).unwrap()
    };
    let size = backend(&balancer)["db_size"].as_u64().unwrap();
    println!("| {what} | {} MiB written in {:?} |", size >> 20, begun.elapsed());
    let options = Options { reconnect: true, ..Options::default() };
    let fleet = Fleet::start(client, (VIP, CLIENT_PORT).into(), &cluster.pki, options).unwrap();

    let begun = Instant::now();
    let took = thread::scope(|scope| {
        let defrag = scope.spawn(|| {
            let args = ["--command-timeout=60s", "defrag"];
            cluster.etcdctl(client, &victim.client_url(), &args).unwrap();
            begun.elapsed()
        });
        let mut seen = String::new();
        while !defrag.is_finished() {
            let now = backend(&balancer);
            let said = format!("{}: {}", now["state"].as_str().unwrap(), now["reason"].as_str().unwrap());
            if said != seen {
                println!("| {what} | {:?} | {said} |", begun.elapsed());
                seen = said;
            }
            thread::sleep(Duration::from_millis(10));
        }
        defrag.join().unwrap()
    });
    balancer.wait_backend(victim.name(), "healthy", LIMIT).unwrap();
    fleet.wait_progress(3, LIMIT).unwrap();
    let sessions = fleet.finish();
    let broken: Vec<_> = sessions.iter().filter(|session| session.broken.is_some()).collect();
    assert!(broken.iter().all(|session| session.member == victim.id()), "others broke: {broken:?}");
    let gap = sessions.iter().map(|session| session.longest_gap).max().unwrap();
    println!(
        "| {what} | defragmented in {took:?}; {} of 12 connections were reset, all of them the member's; longest wait {gap:?} |",
        broken.len()
    );
    let events = balancer.cli(&["events"]).unwrap();
    let mut lines = events.lines().filter(|line| line.contains(victim.name()));
    if notice {
        assert!(lines.any(|line| line.contains("NOT_SERVING")), "{events}");
    }
}

#[test]
fn a_member_that_tells_that_it_defragments_is_left_at_once() {
    let flag = "--experimental-stop-grpc-service-on-defrag=true".to_owned();
    let setup = Setup { args: vec![flag], ..Setup::newer().unwrap() };
    defragments("defrag_notice", "3.5, with the notice", &setup, true);
}

#[test]
fn a_member_that_does_not_tell_is_found_by_its_silence() {
    defragments("defrag_34", "3.4", &Setup::default(), false);
}

/// Counts what passes between the balancer's own address and each member: packets, octets, and connections.
fn traffic(member: &Host, balancer: &Host) -> impl Fn() -> (u64, u64, u64) {
    let address = balancer.address();
    let rules = format!(
        "add table inet count; add chain inet count in {{ type filter hook input priority 0; }}; \
         add chain inet count out {{ type filter hook output priority 0; }}; \
         add rule inet count in ip saddr {address} tcp dport {CLIENT_PORT} tcp flags & (syn|ack) == syn counter; \
         add rule inet count in ip saddr {address} tcp dport {CLIENT_PORT} counter; \
         add rule inet count out ip daddr {address} tcp sport {CLIENT_PORT} counter"
    );
    member.output("nft", &[&rules]).unwrap();
    let member = member.clone();
    move || {
        let listed: Value =
            serde_json::from_str(&member.output("nft", &["-j", "list", "table", "inet", "count"]).unwrap())
                .unwrap();
        let counters: Vec<(u64, u64)> = listed["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|object| object["rule"]["expr"].as_array())
            .filter_map(|expressions| {
                expressions.iter().find(|expression| expression.get("counter").is_some())
            })
            .map(|counter| &counter["counter"])
            .map(|counter| (counter["packets"].as_u64().unwrap(), counter["bytes"].as_u64().unwrap()))
            .collect();
        let [(connections, _), (packets_in, bytes_in), (packets_out, bytes_out)] = counters[..] else {
            panic!("{listed}")
        };
        (connections, packets_in + packets_out, bytes_in + bytes_out)
    }
}

#[test]
fn what_checks_cost_a_member() {
    let lab = Lab::start("check_cost", &topology()).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let pki = &cluster.pki;
    let count = traffic(cluster.members()[0].host(), host);
    let tls =
        format!("ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}", pki.ca, pki.client.cert, pki.client.key);
    for kind in ["etcd", "grpc", "http", "tcp"] {
        let tls = if kind == "tcp" { "" } else { &tls };
        // As the defaults have it.
        let config = Config::etcd(host, &cluster).health(&format!("kind = {kind:?}\n{tls}"));
        let balancer = Balancer::start(host, &config.text()).unwrap();
        balancer.wait_backend("etcd-1", "healthy", LIMIT).unwrap();
        let raft = || -> u64 {
            let status = cluster.etcdctl(
                lab.host("client-1"),
                &cluster.endpoints(),
                &["endpoint", "status", "-w", "json"],
            );
            let status: Value = serde_json::from_str(&status.unwrap()).unwrap();
            status[0]["Status"]["raftIndex"].as_u64().unwrap()
        };
        if kind == "etcd" {
            // The leader writes the cluster's version some seconds after its start.
            eventually(LIMIT, "the cluster is at rest", || {
                let index = raft();
                thread::sleep(Duration::from_secs(6));
                ensure!(raft() == index);
                Ok(())
            })
            .unwrap();
        }
        let (index, before, begun) = (raft(), count(), Instant::now());
        thread::sleep(Duration::from_secs(6));
        let (after, seconds) = (count(), begun.elapsed().as_secs_f64());
        let a_minute = |before: u64, after: u64| ((after - before) as f64 * 60.0 / seconds).round();
        let entries = raft() - index;
        println!(
            "| {kind} | {} connections, {} packets, {} KiB a minute and member | {entries} raft entries in {seconds:.0} s, \
             3 members |",
            a_minute(before.0, after.0),
            a_minute(before.1, after.1),
            (a_minute(before.2, after.2) / 1024.0).round()
        );
        assert!(kind == "http" || entries == 0, "{kind} writes {entries} raft entries");
        drop(balancer);
    }
}
