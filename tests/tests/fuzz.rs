//! Every fuzz target: its corpus, and mutations of it, a moment here and minutes in the long tests.

use std::time::Duration;

use etcd_lb_tests::fuzz::TARGETS;

const TIME: Duration = Duration::from_secs(if cfg!(feature = "long") { 120 } else { 2 });
const SEED: u64 = 0x5eed_0012;

fn target(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let inputs = target.fuzz(TIME, SEED);
    println!("target {name}: {inputs} inputs in {TIME:?}");
}

#[test]
fn frame() {
    target("frame");
}

#[test]
fn capture() {
    target("capture");
}

#[test]
fn config() {
    target("config");
}

#[test]
fn claimant() {
    target("claimant");
}

#[test]
fn vrrp() {
    target("vrrp");
}

#[test]
fn sync_channel() {
    target("sync-channel");
}

#[test]
fn sync_message() {
    target("sync-message");
}

#[test]
fn each_target_is_run() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, ["frame", "capture", "config", "claimant", "vrrp", "sync-channel", "sync-message"]);
}
