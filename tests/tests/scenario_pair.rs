//! Two nodes own the VIP between them: who has it, and how long nobody has when one fails.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Host, VIP, eventually,
    frames::arp_request,
    hang::Hung,
    packet::RawSocket,
    pair::{LIMIT, Pair},
};
use lb_common::addr::Mac;
use lb_core::vrrp::{AGENT_PATIENCE, Checksum, Family, Version, VirtualRouter, packet};
use nix::sys::signal::Signal;

/// What happens to an owner, one after the other, at one interval.
fn takeovers(name: &str, interval: &str, clients: usize) {
    let mut pair = Pair::start(name, interval, clients);
    let beat = pair.interval;
    let skew = |priority: u32| beat * (256 - priority) / 256;
    let (clean, down) = (skew(100) + beat, 3 * beat + skew(100));

    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed", 1, since, down);
    if clients > 0 {
        // Of these the other node learns only when it comes back.
        (0..5).for_each(|_| pair.more_idle());
    }
    pair.nodes[0].run().unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].process().unwrap().freeze().unwrap();
    pair.takeover("hung", 1, since, down);
    thread::sleep(2 * pair.interval);
    pair.nodes[0].process().unwrap().signal(Signal::SIGCONT).unwrap();
    pair.restored();

    let since = Instant::now();
    pair.lab.plug("lb1", false).unwrap();
    pair.takeover("its link cut", 1, since, down);
    pair.lab.plug("lb1", true).unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].stop().unwrap();
    pair.takeover("stopped", 1, since, clean);
    pair.nodes[0].run().unwrap();
    pair.restored();

    let since = Instant::now();
    pair.nodes[0].cli(&["failover"]).unwrap();
    pair.takeover("failover", 1, since, clean);
    pair.wait_role(0, "backup");
    thread::sleep(5 * pair.interval);
    pair.wait_role(1, "active");
    let refused = pair.nodes[0].cli(&["failover"]).unwrap_err().to_string();
    assert!(refused.contains("is backup already"), "{refused}");
    let since = Instant::now();
    pair.nodes[1].cli(&["failover"]).unwrap();
    pair.takeover("failover back", 0, since, skew(200) + beat);
    pair.restored();

    pair.assert_undisputed();
    let rejected = pair.nodes[0].metric("etcd_lb_vrrp_rejected_total", "").unwrap();
    assert!(rejected < 0.5, "{rejected} advertisements were not heeded");
    let beats = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_count", "").unwrap();
    let late = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_bucket", "0.005\"").unwrap();
    if let Some(busy) = pair.busy.take() {
        let outcomes = busy.finish();
        let longest = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
        println!(
            "{} busy and {} idle connections, 0 broken; longest wait {longest:?}",
            outcomes.len(),
            pair.idle.len()
        );
    }
    println!("of {beats} heartbeats {late} were at most 5 ms late");
}

#[test]
fn the_vip_moves_within_its_promise_at_100_ms() {
    takeovers("pair_100", "100ms", 0);
}

#[test]
fn the_vip_moves_within_its_promise_at_20_ms() {
    takeovers("pair_20", "20ms", 20);
}

#[test]
fn no_connection_breaks_when_the_vip_moves() {
    takeovers("pair_sync", "100ms", if cfg!(feature = "long") { 100 } else { 50 });
}

#[cfg(feature = "long")]
#[test]
fn no_connection_breaks_when_the_vip_moves_slowly() {
    takeovers("pair_slow", "1000ms", 100);
}

#[test]
fn a_cut_link_between_the_nodes_heals() {
    for round in 0..if cfg!(feature = "long") { 10 } else { 1 } {
        cut_and_heal(round);
    }
}

fn cut_and_heal(round: u32) {
    let mut pair = Pair::start(&format!("pair_cut{round}"), "100ms", 20);
    let since = Instant::now();
    pair.lab.filter(r#"iifname "lb1" oifname "lb2" drop; iifname "lb2" oifname "lb1" drop"#).unwrap();
    pair.wait_role(1, "active");
    println!("cut: the weaker node serves its side after {:?}", since.elapsed());
    pair.wait_role(0, "active");
    pair.assert_unbroken("while the link is cut");
    thread::sleep(Duration::from_secs(4));
    pair.assert_unbroken("while the link is cut, and the stream is given up");
    let since = Instant::now();
    pair.lab.filter("counter").unwrap();
    pair.wait_role(1, "backup");
    println!("healed: the weaker node yields after {:?} (promised one advertisement)", since.elapsed());
    pair.wait_role(0, "active");
    pair.wait_synced();
    println!("healed: in sync after {:?} (promised 2 s)", since.elapsed());
    pair.assert_unbroken("after the link has healed");
    pair.more_idle();
    pair.wait_copied(41);
    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed after that", 1, since, 3 * pair.interval + pair.interval * 156 / 256);
}

#[test]
fn multicast_that_is_lost_in_one_direction_makes_no_two_owners() {
    let mut pair = Pair::start("pair_one_way", "100ms", 20);
    for (from, to) in [("lb1", "lb2"), ("lb2", "lb1")] {
        let rule = format!("iifname \"{from}\" oifname \"{to}\" ip daddr 224.0.0.18 drop");
        pair.lab.filter(&rule).unwrap();
        // What VRRP's packets do not tell the backup, flow sync does.
        thread::sleep(20 * pair.interval);
        pair.wait_role(0, "active");
        pair.wait_role(1, "backup");
        pair.assert_unbroken("multicast is lost in one direction");
        let since = Instant::now();
        pair.nodes[0].kill().unwrap();
        let down = 3 * pair.interval + pair.interval * 156 / 256;
        pair.takeover(&format!("killed while {to} does not hear {from}"), 1, since, down);
        pair.lab.filter("counter").unwrap();
        pair.nodes[0].run().unwrap();
        pair.restored();
    }
    pair.assert_undisputed();
}

#[test]
fn a_node_that_is_held_is_restarted_without_a_takeover() {
    let mut pair = Pair::start("pair_hold", "100ms", 20);
    let refused = pair.nodes[1].cli(&["hold"]).unwrap_err().to_string();
    assert!(refused.contains("it can be restarted at any time"), "{refused}");
    for stop in [true, false] {
        let said = pair.nodes[0].cli(&["hold", "--for", "8"]).unwrap();
        let since = Instant::now();
        if stop {
            pair.nodes[0].stop().unwrap();
        } else {
            pair.nodes[0].kill().unwrap();
        }
        thread::sleep(Duration::from_secs(2));
        pair.wait_role(1, "backup");
        pair.connect();
        pair.assert_unbroken("without its agent");
        pair.nodes[0].run().unwrap();
        pair.wait_role(0, "active");
        println!("{}; away for {:?}", said.trim(), since.elapsed());
        pair.restored();
    }
    let taken = pair.nodes[1].metric("etcd_lb_role_transitions_total", "\"active\"").unwrap();
    assert!(taken < 0.5, "the other node was active {taken} times");
    let events = pair.nodes[0].cli(&["events"]).unwrap();
    assert!(events.contains("→ active: the agent was restarted within its lease"), "{events}");
    // The lease is an ordinary one again.
    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed without a hold", 1, since, 3 * pair.interval + pair.interval * 156 / 256);
}

#[test]
fn busy_processors_make_no_takeover() {
    let mut pair = Pair::start("pair_busy", "100ms", 20);
    let before = [0, 1].map(|node| pair.nodes[node].metric("etcd_lb_role_transitions_total", "").unwrap());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box((0..10_000u64).sum::<u64>());
                }
            });
        }
        thread::sleep(Duration::from_secs(if cfg!(feature = "long") { 60 } else { 5 }));
        stop.store(true, Ordering::Relaxed);
    });
    pair.wait_role(0, "active");
    let after = [0, 1].map(|node| pair.nodes[node].metric("etcd_lb_role_transitions_total", "").unwrap());
    assert_eq!(before, after, "no role changes");
    pair.assert_unbroken("under load");
    let beats = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_count", "").unwrap();
    for bound in ["0.001", "0.01", "0.1"] {
        let label = format!("le=\"{bound}\"");
        let late = pair.nodes[0].metric("etcd_lb_heartbeat_late_seconds_bucket", &label).unwrap();
        println!("of {beats} heartbeats {late} were at most {bound} s late");
    }
}

#[test]
fn an_agent_whose_loop_hangs_gives_the_vip_up() {
    let mut pair = Pair::start("pair_loop", "100ms", 4);
    let since = Instant::now();
    let pid = pair.nodes[0].process().unwrap().pid();
    let hang = Hung::first_thread(pid, Duration::from_secs(9)).unwrap();
    // Its thread goes on advertising until it has lost patience.
    pair.takeover("its loop hangs", 1, since, AGENT_PATIENCE + 3 * pair.interval);
    assert!(pair.watch.first(pair.macs[1], since).unwrap() > since + AGENT_PATIENCE - Duration::from_secs(2));
    hang.join();
    pair.restored();
    let events = pair.nodes[0].cli(&["events"]).unwrap();
    assert!(events.contains("active → backup: this node's agent hung"), "{events}");
    pair.assert_undisputed();
}

#[test]
fn a_host_that_claims_the_vip_is_named_and_changes_nothing() {
    let mut pair = Pair::start("pair_stray", "100ms", 20);
    let client = pair.lab.host("client-1").clone();
    let socket = RawSocket::open(&client).unwrap();
    let mac = Mac::new([2, 0, 0, 0, 0, 0x66]);
    for _ in 0..if cfg!(feature = "long") { 60 } else { 3 } {
        socket.send(&arp_request(Mac::new([0xff; 6]), (mac, VIP), VIP)).unwrap();
        thread::sleep(Duration::from_secs(1));
    }
    pair.wait_role(0, "active");
    pair.wait_role(1, "backup");
    pair.assert_unbroken("another host claims the VIP");
    let conflicts = pair.nodes[0].metric("etcd_lb_vip_conflicts_total", "").unwrap();
    assert!(conflicts >= 3.0, "{conflicts}");
    let log = fs::read_to_string(pair.nodes[0].process().unwrap().log()).unwrap();
    assert!(log.contains("02:00:00:00:00:66") && log.contains("another host claims the VIP"), "{log}");
    let revoked = pair.nodes[0].metric("etcd_lb_lease_revoked_total", "").unwrap();
    assert!(revoked < 0.5, "no ARP ends a lease");
}

/// What a host would be that claimed to be of this pair.
fn forger(host: &Host) -> VirtualRouter {
    VirtualRouter {
        version: Version::V3,
        router_id: 51,
        addresses: vec![VIP.into()],
        source: host.address().into(),
        peers: vec![],
        checksum: Checksum::PseudoHeader,
        auth_pass: None,
        interval: Duration::from_millis(100),
    }
}

/// Its advertisement to the group.
fn forged(router: &VirtualRouter, mac: Mac, priority: u8) -> Vec<u8> {
    let group = Family::V4.group();
    packet::frame(router, mac, (group, packet::group_mac(Family::V4)), priority, router.interval)
}

/// Stronger advertisements in all the ways that real nodes send them: the VIP is given up, and taken again when the
/// stronger node is not heard any more.
#[test]
fn stronger_advertisements_of_every_kind_are_heeded() {
    let mut pair = Pair::start("pair_heeded", "100ms", 4);
    let client = pair.lab.host("client-1").clone();
    let socket = RawSocket::open(&client).unwrap();
    let mac = Mac::new(client.mac().unwrap());
    let good = forger(&client);
    let mut nibble = forged(&good, mac, 254);
    // The reserved bits of the interval's word, which the checksum covers.
    nibble[14 + 20 + 4] |= 0xf0;
    let check = u16::from_be_bytes([nibble[40], nibble[41]]);
    let check = check.checked_sub(0xf000).unwrap_or_else(|| check.wrapping_sub(0xf001));
    nibble[40..42].copy_from_slice(&check.to_be_bytes());
    let slow = VirtualRouter { interval: Duration::from_secs(1), ..good.clone() };
    let message_only = VirtualRouter { checksum: Checksum::Message, ..good.clone() };
    let cases = [
        ("priority 254", forged(&good, mac, 254)),
        ("priority 255", forged(&good, mac, 255)),
        ("a checksum without pseudo-header", forged(&message_only, mac, 254)),
        ("reserved bits that are set", nibble),
        ("an interval of 1 s", forged(&slow, mac, 254)),
    ];
    for (number, (what, frame)) in cases.iter().enumerate() {
        let since = Instant::now();
        socket.send(frame).unwrap();
        eventually(LIMIT, what, || {
            let revoked = pair.nodes[0].metric("etcd_lb_lease_revoked_total", "")?;
            ensure!(revoked > number as f64 + 0.5, "{revoked} leases ended");
            Ok(())
        })
        .unwrap();
        pair.wait_role(0, "active");
        println!("{what}: heeded, and active again after {:?}", since.elapsed());
        pair.assert_unbroken(what);
    }
    let log = fs::read_to_string(pair.nodes[0].process().unwrap().log()).unwrap();
    assert!(log.contains("set `checksum = \"message\"`"), "the remedy: {log}");
}

/// Advertisements that anybody on the LAN can send, to a backup of priority 100 and to an active node of 200.
#[test]
fn forged_advertisements_are_refused_by_their_names() {
    let mut pair = Pair::start("pair_forged", "100ms", 4);
    let client = pair.lab.host("client-1").clone();
    let socket = RawSocket::open(&client).unwrap();
    let good = forger(&client);
    let mac = Mac::new(client.mac().unwrap());
    let frame = |router: &VirtualRouter, priority: u8| forged(router, mac, priority);
    let other = |change: &dyn Fn(&mut VirtualRouter)| {
        let mut router = good.clone();
        change(&mut router);
        frame(&router, 254)
    };
    let bent = |at: usize, value: u8| {
        let mut frame = frame(&good, 254);
        frame[at] = value;
        // The IP header's own checksum is right: a bridge looks at it.
        frame[24..26].fill(0);
        let check = !packet::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&check.to_be_bytes());
        frame
    };
    let cases = [
        ("address_list", other(&|router| router.addresses = vec![[10, 0, 1, 101].into()])),
        ("address_list", other(&|router| router.addresses.push([10, 0, 1, 101].into()))),
        ("version", other(&|router| router.version = Version::V2)),
        ("interval_zero", other(&|router| router.interval = Duration::ZERO)),
        ("other_router", other(&|router| router.router_id = 52)),
        ("checksum", bent(14 + 20 + 6, 0xee)),
        ("hop_limit", bent(14 + 8, 254)),
        ("type", bent(14 + 20, 0x32)),
    ];
    for (reason, frame) in &cases {
        let label = format!("reason=\"{reason}\"");
        let count = |pair: &Pair, node: usize| {
            pair.nodes[node].metric("etcd_lb_vrrp_rejected_total", &label).unwrap()
        };
        let before = [0, 1].map(|node| count(&pair, node));
        socket.send(frame).unwrap();
        eventually(LIMIT, reason, || {
            for node in [0, 1] {
                ensure!(count(&pair, node) > before[node], "lb{} has not counted it", node + 1);
            }
            Ok(())
        })
        .unwrap();
        pair.wait_role(0, "active");
        pair.wait_role(1, "backup");
    }
    let log = fs::read_to_string(pair.nodes[0].process().unwrap().log()).unwrap();
    assert!(log.contains("another `router_id` if it is another pair"), "the remedy: {log}");
    pair.assert_unbroken("forged advertisements");
    pair.assert_undisputed();
}
