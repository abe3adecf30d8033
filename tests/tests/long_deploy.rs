//! What is deployed, by the tools that will read it.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use etcd_lb_tests::{Balancer, Cluster, Config, Lab, Topology};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(DEPLOY).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

#[test]
fn every_alert_fires_and_resolves() {
    println!("{}", run("promtool", &["check", "rules", "prometheus/alerts.yml"]));
    println!("{}", run("promtool", &["test", "rules", "prometheus/alerts_test.yml"]));
}

#[test]
fn the_unit_is_hardened() {
    let text =
        run("systemd-analyze", &["security", "--offline=true", "--threshold=35", "systemd/etcd-lb.service"]);
    println!("{}", text.lines().last().unwrap_or_default());
}

#[test]
fn the_metrics_are_as_prometheus_wants_them() {
    let lab = Lab::start("metrics", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &Config::etcd(host, &cluster).text()).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", Duration::from_secs(20)).unwrap();
    }
    let answer = balancer.metrics().unwrap();
    let (_, metrics) = answer.split_once("\r\n\r\n").unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    println!("{} series; promtool: {said:?}", metrics.lines().filter(|line| !line.starts_with('#')).count());
    assert!(output.status.success() && said.is_empty(), "{said}");
}
