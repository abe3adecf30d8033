//! Runs against a real etcd of one member.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::{
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use common::{Etcd, alone};
use etcd_lb_load::{Arrivals, Operation, Pace, Plan, Report, run, run_with};
use nix::sys::signal::Signal;

fn open(rate: f64) -> Pace {
    Pace::Open { rate, arrivals: Arrivals::Constant }
}

/// A run on a thread of its own, and who tells when it measures.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    plan: &'scope Plan,
) -> (ScopedJoinHandle<'scope, Report>, Receiver<()>) {
    let (tell, measuring) = mpsc::channel();
    let load = scope.spawn(move || run_with(plan, || tell.send(()).unwrap()).unwrap());
    (load, measuring)
}

/// Nothing failed, and nothing is missing.
fn assert_clean(report: &Report) {
    assert_eq!((report.total.errors, report.wrong.count), (0, 0), "{report}");
    assert!(report.keys_removed && report.connections.broken.is_empty(), "{report}");
    let kinds = [&report.put, &report.get, &report.watch];
    assert_eq!(kinds.iter().map(|figures| figures.answers).sum::<u64>(), report.total.answers);
}

#[test]
fn an_open_loop_makes_every_request_that_is_due() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (500, open(1000.0), Duration::from_secs(2));
    let report = run(&plan).unwrap();
    println!("{report}");
    assert_clean(&report);
    assert_eq!(report.total.answers, 2000);
    assert!([&report.put, &report.get, &report.watch].iter().all(|figures| figures.answers > 50));
    assert!(report.watch.latency.p50_us > 0 && report.cpu.user_us > 0);

    plan.pace = Pace::Open { rate: 1000.0, arrivals: Arrivals::Poisson };
    let report = run(&plan).unwrap();
    assert_clean(&report);
    // ± 5 standard deviations.
    assert!((1776..2224).contains(&report.total.answers), "{report}");
}

#[test]
fn a_closed_loop_keeps_as_many_under_way() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (4, Pace::Closed { in_flight: 4 }, Duration::from_secs(1));
    plan.threads = 2;
    let report = run(&plan).unwrap();
    println!("{report}");
    assert_clean(&report);
    assert!(report.total.per_second > 100.0, "{report}");
    // Little's law: under way = rate × time. Only what is cut off at the edges differs.
    let under_way = report.total.per_second * report.total.latency.mean_us / 1e6;
    assert!((12.0..20.0).contains(&under_way), "{under_way} under way\n{report}");
}

#[test]
fn tls_with_client_certificates() {
    let _alone = alone();
    let etcd = Etcd::start_with_tls();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (10, open(500.0), Duration::from_secs(1));
    let report = run(&plan).unwrap();
    println!("{report}");
    assert_clean(&report);
    assert_eq!(report.total.answers, 500);

    let files = plan.tls.as_mut().unwrap();
    let client = files.client.take();
    // TLS 1.3 says so only after the handshake, when requests may be under way.
    for _ in 0..10 {
        let refused = run(&plan).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("cannot use {}: TLS: ", etcd.endpoint())), "{refused}");
    }

    let files = plan.tls.as_mut().unwrap();
    (files.client, files.server_name) = (client, Some("another.example".into()));
    let refused = run(&plan).unwrap_err().to_string();
    assert!(refused.contains("another.example") && refused.ends_with("(tls)"), "{refused}");
}

/// The proof against coordinated omission: each request that was due while etcd was frozen counts its own wait, and not only
/// one for each connection.
#[test]
fn a_stall_is_seen_by_every_request_that_was_due() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut plan = etcd.plan();
    let rate = 1000.0;
    (plan.connections, plan.pace, plan.duration) = (4, open(rate), Duration::from_secs(3));
    let (report, stall) = thread::scope(|scope| {
        let (load, measuring) = spawn(scope, &plan);
        measuring.recv().unwrap();
        thread::sleep(Duration::from_secs(1));
        let stall = freeze(&etcd, Duration::from_millis(500));
        (load.join().unwrap(), stall)
    });
    println!("frozen for {stall:?}\n{report}");
    assert_clean(&report);
    assert_eq!(report.total.answers, 3000);
    let almost = stall - Duration::from_millis(20);
    assert!(report.total.latency.max_us >= almost.as_micros() as u64, "{report}");
    assert!(report.gap.us >= almost.as_micros() as u64, "{report}");
    let in_open_loop = report.total.latency.slower_than_100_ms;
    let slow = in_open_loop as f64;
    let expected = rate * (stall.as_secs_f64() - 0.1);
    assert!(slow >= expected * 0.95, "{slow} of {expected}\n{report}");
    // What waits behind them is slow too, for as long as etcd takes to catch up.
    assert!(slow <= expected + rate * 0.5, "{slow} of {expected}\n{report}");

    // What a closed loop makes of the same.
    plan.pace = Pace::Closed { in_flight: 1 };
    let report = thread::scope(|scope| {
        let (load, measuring) = spawn(scope, &plan);
        measuring.recv().unwrap();
        thread::sleep(Duration::from_secs(1));
        freeze(&etcd, Duration::from_millis(500));
        load.join().unwrap()
    });
    println!("{report}");
    assert!(report.total.latency.slower_than_100_ms < in_open_loop / 5, "{report}");
    assert!(report.gap.us >= 480_000, "{report}");
}

/// Stops it for so long; how long it was at the least.
fn freeze(etcd: &Etcd, time: Duration) -> Duration {
    etcd.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    thread::sleep(time);
    let stall = stopped.elapsed();
    etcd.signal(Signal::SIGCONT);
    stall
}

#[test]
fn an_outage_is_a_gap_and_errors_and_then_it_is_over() {
    let _alone = alone();
    let mut etcd = Etcd::start();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (4, open(500.0), Duration::from_secs(8));
    let down = Duration::from_millis(700);
    let report = thread::scope(|scope| {
        let (load, measuring) = spawn(scope, &plan);
        measuring.recv().unwrap();
        thread::sleep(Duration::from_secs(1));
        etcd.kill();
        thread::sleep(down);
        etcd.restart();
        load.join().unwrap()
    });
    println!("{report}");
    // Whatever became of them, all that were due are there.
    assert_eq!(report.total.answers + report.total.errors, 4000);
    assert_eq!((report.wrong.count, report.keys_removed), (0, true), "{report}");
    assert!(report.gap.us >= down.as_micros() as u64, "{report}");
    assert!((900_000..2_000_000).contains(&report.gap.began_us), "{report}");
    assert!(report.connections.longest_outage_us >= down.as_micros() as u64, "{report}");
    let broken: u64 = report.connections.broken.values().map(|errors| errors.count).sum();
    assert!((4..8).contains(&broken), "{report}");
    assert!(report.errors["refused"].count > 100, "{report}");
    assert!(report.connections.failed_attempts["refused"].count >= 4, "{report}");
    assert!(report.put.errors > 0 && report.get.errors > 0 && report.watch.errors > 0, "{report}");
    // It is there again, and so are its watches.
    assert!(report.total.answers > 1000 && report.watch.answers > 50, "{report}");
}

/// A connection that nothing comes by is given up, so that an end that is gone without a word costs one timeout.
#[test]
fn a_silent_connection_is_given_up() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (2, open(200.0), Duration::from_secs(4));
    plan.timeout = Duration::from_millis(300);
    let report = thread::scope(|scope| {
        let (load, measuring) = spawn(scope, &plan);
        measuring.recv().unwrap();
        thread::sleep(Duration::from_secs(1));
        freeze(&etcd, Duration::from_millis(1000));
        load.join().unwrap()
    });
    println!("{report}");
    assert_eq!(report.total.answers + report.total.errors, 800);
    assert_eq!(report.wrong.count, 0, "{report}");
    assert!(report.connections.broken["silent"].count >= 2, "{report}");
    assert!(report.errors["timeout"].count > 50, "{report}");
}

/// A backlog has a bound; what is due beyond it is counted, and not sent.
#[test]
fn a_full_backlog_is_counted() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut plan = etcd.plan();
    (plan.connections, plan.pace, plan.duration) = (2, open(500.0), Duration::from_secs(3));
    plan.backlog = 50;
    let report = thread::scope(|scope| {
        let (load, measuring) = spawn(scope, &plan);
        measuring.recv().unwrap();
        thread::sleep(Duration::from_secs(1));
        freeze(&etcd, Duration::from_millis(500));
        load.join().unwrap()
    });
    println!("{report}");
    assert_eq!(report.total.answers + report.total.errors, 1500);
    assert_eq!(report.highest_backlog, 50);
    assert!(report.errors["backlog"].count >= 150, "{report}");
}

/// Somebody else writes a key of the run: what is read then was not written, as a balancer that mixes up clusters, or a
/// cluster that loses its data, would make it.
#[test]
fn what_was_not_written_is_wrong() {
    let _alone = alone();
    let etcd = Etcd::start();
    let load = Command::new(env!("CARGO_BIN_EXE_etcd-lb-load"))
        .args(["--endpoints", &etcd.endpoint().to_string(), "--duration", "2s", "--warmup", "100ms"])
        .args(["--keys", "1", "--closed-loop", "--mix", "get=1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let key = etcd.key_of_a_run();
    thread::sleep(Duration::from_secs(1));
    etcd.etcdctl(&["put", &key, "another value"]);
    let output = load.wait_with_output().unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    println!("{report}");
    assert_eq!(output.status.code(), Some(3));
    assert!(report.wrong.count > 0 && report.get.answers > 0, "{report}");
    assert_eq!(report.wrong.example.as_deref(), Some("a value of 13 octets instead of 256"));
    assert_eq!(report.errors["wrong"], report.wrong);
}

#[test]
fn the_program_prints_a_table_or_json() {
    let _alone = alone();
    let etcd = Etcd::start();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_etcd-lb-load"))
            .args(["--endpoints", &etcd.endpoint().to_string(), "--duration", "300ms", "--warmup", "100ms"])
            .args(["--keys", "10"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = run(&["--rate", "100", "--mix", "watch=1"]);
    assert!(table.contains("wrong answers    none"), "{table}");
    let report: Report = serde_json::from_str(&run(&["--closed-loop", "--mix", "get=1", "--json"])).unwrap();
    assert!(report.get.answers > 0 && !report.load.mix.has(Operation::Put));
}
