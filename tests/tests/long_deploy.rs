//! What is deployed, by the tools that will read it.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::process::Command;

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
