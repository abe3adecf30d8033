//! What the other node could not tell of before it was gone: connections that are adopted after a takeover.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    CLIENT_PORT, VIP,
    config::SYNC_PORT,
    eventually,
    pair::{LIMIT, Pair, exchange},
};

/// From a kill until the backup has the VIP, at an interval of 100 ms.
fn down(pair: &Pair) -> Duration {
    3 * pair.interval + pair.interval * 156 / 256
}

#[test]
fn connections_that_the_backup_was_never_told_of_go_on() {
    let mut pair = Pair::start("adopt_untold", "100ms", 10);
    pair.lab.filter(&format!("tcp dport {SYNC_PORT} drop; tcp sport {SYNC_PORT} drop")).unwrap();
    eventually(LIMIT, "the stream is given up", || {
        let status = pair.nodes[0].status()?;
        ensure!(status["peer"]["connected"] == false, "{}", status["peer"]);
        Ok(())
    })
    .unwrap();
    // Advertisements still come through: the roles stay.
    (0..40).for_each(|_| pair.more_idle());
    let told = pair.nodes[1].status().unwrap()["flow_table"]["used"].as_u64().unwrap();
    assert!(told <= 20, "the backup knows {told} flows, of which 20 are from before");

    let since = Instant::now();
    pair.nodes[0].kill().unwrap();
    pair.takeover("killed, the backup not told of 40 connections", 1, since, down(&pair));
    println!("every one of them goes on after {:?}", since.elapsed());
    let counted = |event: &str| {
        let label = format!("event=\"{event}\"");
        pair.nodes[1].metric("etcd_lb_data_plane_events_total", &label).unwrap()
    };
    let (asked, adopted) = (counted("adoption_asked"), counted("flow_adopted"));
    println!("{adopted} were adopted, backends were asked {asked} times");
    assert!((39.5..40.5).contains(&adopted), "40 were not known");

    // The first node learns of them when it comes back.
    pair.lab.filter("counter").unwrap();
    pair.nodes[0].run().unwrap();
    pair.restored();
}

#[test]
fn connections_that_begin_while_the_active_node_dies_go_on() {
    for round in 0..if cfg!(feature = "long") { 10 } else { 1 } {
        let mut pair = Pair::start(&format!("adopt_dying{round}"), "100ms", 2);
        let vip = SocketAddr::from((VIP, CLIENT_PORT));
        let client = pair.lab.host("client-1").clone();
        let stop = AtomicBool::new(false);
        let (mut streams, since) = thread::scope(|scope| {
            let begun = scope.spawn(|| {
                let mut streams = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    streams.push(client.run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap());
                }
                streams
            });
            thread::sleep(Duration::from_millis(300));
            let since = Instant::now();
            pair.nodes[0].kill().unwrap();
            pair.takeover("killed while connections begin", 1, since, down(&pair));
            stop.store(true, Ordering::Relaxed);
            (begun.join().unwrap(), since)
        });
        // A connection that is not known any more would be reset here.
        streams.iter_mut().for_each(exchange);
        let metric =
            pair.nodes[1].metric("etcd_lb_data_plane_events_total", "event=\"flow_adopted\"").unwrap();
        println!(
            "{} connections begun until the takeover, all go on after {:?}; {metric} were adopted",
            streams.len(),
            since.elapsed()
        );
    }
}
