//! `etcdctl check perf` through the VIP and direct, in one run: five minutes, so only with `cargo xtask test --long`.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{process::Stdio, time::Duration};

use etcd_lb_tests::{Balancer, CLIENT_PORT, Cluster, Config, Lab, Topology, VIP};

const ROUNDS: usize = 2;

/// Writes per second that `check perf --load s` reached, and its verdicts.
fn check_perf(cluster: &Cluster, lab: &Lab, endpoints: &str) -> (f64, String) {
    let mut command = cluster.etcdctl_command(lab.host("client-1"), endpoints);
    let prefix = format!("--prefix=/perf/{}", endpoints.len());
    let output = command.args(["check", "perf", "--load=s", &prefix]).stdin(Stdio::null()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // The bar of the run's progress stands before the first verdict, in the same line.
    let verdicts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.find("PASS").or_else(|| line.find("FAIL")).map(|at| &line[at..]))
        .collect();
    let throughput = text
        .split_once("Throughput is ")
        .or_else(|| text.split_once("Throughput too low: "))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no throughput in: {verdicts:?}"));
    (throughput, verdicts.join("; "))
}

#[test]
fn check_perf_through_the_vip_beside_direct() {
    let lab = Lab::start("perf", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &Config::etcd(host, &cluster).text()).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", Duration::from_secs(15)).unwrap();
    }
    let vip = format!("https://{VIP}:{CLIENT_PORT}");
    let direct = cluster.endpoints();
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let (by_vip, verdict) = check_perf(&cluster, &lab, &vip);
        println!("VIP:    {verdict}");
        let (by_member, verdict) = check_perf(&cluster, &lab, &direct);
        println!("direct: {verdict}");
        ratios.push(by_vip / by_member);
    }
    println!("writes per second, VIP to direct: {ratios:.3?}");
    // Generous: this finds a balancer that is in the way, benchmarks find the rest.
    assert!(ratios.iter().all(|ratio| *ratio > 0.8), "{ratios:?}");
}
