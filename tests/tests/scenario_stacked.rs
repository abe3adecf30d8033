//! Stacked control planes: three nodes with an etcd member, clients and a balancer each, beside the same layout with HAProxy and
//! keepalived.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{collections::BTreeMap, time::Duration};

use etcd_lb_tests::stacked::{By, Noticed, Stacked};
use nix::sys::signal::Signal;

const ALL: [usize; 3] = [0, 1, 2];

/// What happened, and what clients noticed of it.
struct Log {
    plane: Stacked,
    rows: Vec<(&'static str, Noticed)>,
}

impl Log {
    fn new(name: &str, by: By, balancers: usize) -> Self {
        Self { plane: Stacked::start(name, by, balancers), rows: vec![] }
    }

    /// Something happens; what the clients of these nodes notice of it.
    fn step(&mut self, what: &'static str, nodes: &[usize], act: impl FnOnce(&mut Stacked)) -> usize {
        let before = self.plane.broken_on(nodes);
        self.plane.noticed(0);
        act(&mut self.plane);
        self.plane.served_on(nodes);
        // What is late is seen too.
        std::thread::sleep(Duration::from_secs(1));
        self.plane.served_on(nodes);
        let noticed = self.plane.noticed_on(nodes, before);
        println!("{:?}: {what}: {} broken, longest wait {:?}", self.plane.by, noticed.broken, noticed.wait);
        self.rows.push((what, noticed));
        noticed.broken
    }

    fn mended(&mut self) {
        self.plane.wait_ready();
        self.plane.served();
        let ended = self.plane.revive_watches();
        if ended > 0 {
            println!("{:?}: {ended} watches were ended by members that were stopped", self.plane.by);
        }
        self.plane.put_and_see();
    }
}

/// Everything that may happen to the nodes, one after the other. Of ours it is checked what breaks.
fn everything(log: &mut Log) {
    let ours = log.plane.by == By::EtcdLb;
    let unbroken = |what: &str, broken: usize| assert!(!ours || broken == 0, "{what}: {broken} broken");
    for member in [1, 0] {
        let what = ["the active node's member killed", "another node's member killed"][member];
        let name = log.plane.names[member].clone();
        let on_it = log.plane.on_member(member);
        let broken = log.step(what, &ALL, |plane| plane.cluster.member_mut(&name).kill().unwrap());
        assert!(!ours || broken == on_it, "{what}: {broken} broken of {on_it} that were on it");
        log.plane.cluster.member_mut(&name).start().unwrap();
        log.plane.cluster.member_mut(&name).wait_healthy().unwrap();
        log.mended();
    }
    let broken = log.step("the active balancer killed", &ALL, |plane| plane.kill(0));
    unbroken("killed", broken);
    let broken = log.step("it returns and takes over", &ALL, |plane| {
        plane.run(0);
        plane.wait_ready();
    });
    unbroken("returned", broken);
    log.mended();
    let broken = log.step("the active balancer stopped", &ALL, |plane| plane.stop(0));
    unbroken("stopped", broken);
    log.plane.run(0);
    log.mended();
    // Its own clients can reach nobody; they come back when it does.
    log.step("the active node cut off: clients of the others", &[1, 2], |plane| {
        plane.lab.plug("n1", false).unwrap();
    });
    log.plane.lab.plug("n1", true).unwrap();
    log.mended();
    log.step("a rolling restart of everything", &ALL, |plane| {
        for (node, name) in ["n1", "n2", "n3"].into_iter().enumerate() {
            let has_balancer = plane.has_balancer(node);
            if has_balancer {
                plane.stop(node);
            }
            plane.cluster.member_mut(name).stop().unwrap();
            plane.cluster.member_mut(name).start().unwrap();
            plane.cluster.member_mut(name).wait_healthy().unwrap();
            if has_balancer {
                plane.run(node);
            }
            plane.wait_ready();
            plane.served();
        }
    });
    log.mended();
}

#[test]
fn every_node_is_served_whatever_happens() {
    let mut table: BTreeMap<usize, (&str, Vec<Noticed>)> = BTreeMap::new();
    for (name, by) in [("stacked", By::EtcdLb), ("stacked_ha", By::Haproxy)] {
        let mut log = Log::new(name, by, 3);
        everything(&mut log);
        for (place, (what, noticed)) in log.rows.iter().enumerate() {
            table.entry(place).or_insert((what, vec![])).1.push(*noticed);
        }
    }
    println!(
        "| 60 connections and 6 watches on 3 nodes | etcd-lb: broken, longest wait | HAProxy and keepalived |"
    );
    println!("| --- | --- | --- |");
    for (what, noticed) in table.values() {
        let cells = noticed.iter().map(|n| format!("{}, {:.2} s", n.broken, n.wait.as_secs_f64()));
        println!("| {what} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

#[test]
fn a_node_without_a_balancer_is_served_by_the_others() {
    let mut log = Log::new("stacked_two", By::EtcdLb, 2);
    everything(&mut log);
}

#[test]
fn an_agent_that_hangs_and_one_that_hands_over() {
    let mut log = Log::new("stacked_hung", By::EtcdLb, 3);
    let broken = log.step("the active agent frozen", &ALL, |plane| {
        plane.balancer(0).process().unwrap().freeze().unwrap();
    });
    assert_eq!(broken, 0);
    let broken = log.step("it goes on", &ALL, |plane| {
        plane.balancer(0).process().unwrap().signal(Signal::SIGCONT).unwrap();
        plane.wait_ready();
    });
    assert_eq!(broken, 0);
    let broken = log.step("failover", &ALL, |plane| {
        plane.balancer(0).cli(&["failover"]).unwrap();
    });
    assert_eq!(broken, 0);
}
