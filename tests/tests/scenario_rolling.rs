//! How connections are spread after a rolling restart, and after `rebalance`.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Lab, Topology, VIP, eventually, fleet::Options,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
const CLIENTS: usize = 60;

/// Each backend's flows and bound, and how many of them `rebalance` resets or would reset.
fn spread(balancer: &Balancer, args: &[&str]) -> Vec<[u64; 3]> {
    let args = [&["rebalance", "--json"], args].concat();
    let answer: Value = serde_json::from_str(&balancer.cli(&args).unwrap()).unwrap();
    let backends = answer["backends"].as_array().unwrap().iter();
    backends.map(|backend| ["flows", "bound", "reset"].map(|name| backend[name].as_u64().unwrap())).collect()
}

/// Waits until every client is connected, and returns the spread.
fn settled(balancer: &Balancer, fleet: &Fleet, what: &str) -> Vec<[u64; 3]> {
    let spread = eventually(LIMIT, what, || {
        ensure!(fleet.alive().len() == CLIENTS, "{} clients are connected", fleet.alive().len());
        let spread = spread(balancer, &["--dry-run"]);
        let flows: u64 = spread.iter().map(|[flows, ..]| flows).sum();
        ensure!(flows == CLIENTS as u64, "{flows} flows");
        Ok(spread)
    })
    .unwrap();
    let flows: Vec<u64> = spread.iter().map(|[flows, ..]| *flows).collect();
    println!("{what}: {flows:?}, at most {}", spread[0][1]);
    spread
}

#[test]
fn after_a_rolling_restart_rebalance_restores_the_bound() {
    let lab = Lab::start("rolling", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let mut cluster = Cluster::start(&lab).unwrap();
    let names: Vec<String> = cluster.members().iter().map(|member| member.name().to_owned()).collect();
    let host = lab.host("lb1");
    let config = Config::etcd(host, &cluster).default_algorithm().text();
    let balancer = Balancer::start(host, &config).unwrap();
    for name in &names {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let options = Options {
        clients: CLIENTS,
        interval: Duration::from_millis(200),
        reconnect: true,
        ..Options::default()
    };
    let vip = (VIP, CLIENT_PORT).into();
    let fleet = Fleet::start(lab.host("client-1"), vip, &cluster.pki, options).unwrap();
    let algorithm = balancer.status().unwrap()["services"][0]["algorithm"].as_str().unwrap().to_owned();
    let bounded = algorithm == "bounded";
    println!("algorithm {algorithm}");
    let before = settled(&balancer, &fleet, "before");
    assert!(!bounded || before.iter().all(|[flows, bound, _]| flows <= bound));

    let begun = Instant::now();
    for name in &names {
        cluster.member_mut(name).stop().unwrap();
        balancer.wait_backend(name, "down", LIMIT).unwrap();
        cluster.member_mut(name).start().unwrap();
        cluster.member_mut(name).wait_healthy().unwrap();
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    println!("three members restarted in {:?}; {} connections broke", begun.elapsed(), fleet.broken().len());
    let mut now = settled(&balancer, &fleet, "after the rolling restart");

    // The pure hash sends whom it resets anywhere; the bound sends them where there is room.
    let rounds = if bounded { 1 } else { 12 };
    for round in 1..=rounds {
        if now.iter().all(|[flows, bound, _]| flows <= bound) {
            break;
        }
        let broken = fleet.broken().len();
        let reset: u64 = spread(&balancer, &[]).iter().map(|[.., reset]| reset).sum();
        eventually(LIMIT, "those that were reset know", || {
            let more = fleet.broken().len() - broken;
            ensure!(more as u64 == reset, "{more} of {reset}");
            Ok(())
        })
        .unwrap();
        now = settled(&balancer, &fleet, &format!("after `rebalance` {round}, which reset {reset}"));
    }
    assert!(now.iter().all(|[flows, bound, reset]| flows <= bound && *reset == 0), "{now:?}");
}
