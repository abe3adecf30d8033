//! A backup that joins while the active node has a crowd of connections, and takes over with all of them.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Topology, VIP,
    config::secret_file,
    crowd::{self, CrowdServer},
    echo::{BusyClients, EchoServer},
    eventually,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Of each of two clients: connections whose ends vanish without a word, and such that are kept.
const VANISHED: u16 = if cfg!(feature = "long") { 50_000 } else { 10_000 };
const KEPT: u16 = 2000;
const FLOWS: usize = 2 * (VANISHED as usize + KEPT as usize);
const FIRST_PORT: u16 = 4000;
const BUSY: usize = 20;
const CROWD_PORT: u16 = 6443;
const CLIENTS: [&str; 2] = ["client-1", "client-2"];
const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];

/// Seconds of the day of the log's first line with these words.
fn logged(balancer: &mut Balancer, words: &str) -> anyhow::Result<f64> {
    let log = fs::read_to_string(balancer.process().unwrap().log())?;
    let line = log.lines().find(|line| line.contains(words));
    let line = line.ok_or_else(|| anyhow::anyhow!("no {words:?} in the log"))?;
    let time = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).map(|(time, _)| time);
    let parts: Vec<f64> = time.unwrap_or_default().split(':').filter_map(|part| part.parse().ok()).collect();
    let [hours, minutes, seconds] = parts[..] else { anyhow::bail!("no time in {line:?}") };
    Ok((hours * 60.0 + minutes) * 60.0 + seconds)
}

fn used(balancer: &Balancer, at_least: usize) -> anyhow::Result<()> {
    let used = balancer.status()?["flow_table"]["used"].as_u64();
    ensure!(used >= Some(at_least as u64), "{used:?} of {at_least} flows");
    Ok(())
}

#[test]
fn a_joining_backup_gets_a_crowd_of_flows_and_takes_over_with_all_of_them() {
    let lab = Lab::start("crowd", &Topology::standard()).unwrap();
    let echoes = MEMBERS.map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap());
    let crowds = MEMBERS.map(|name| CrowdServer::start(lab.host(name), CROWD_PORT).unwrap());
    let key = lab.dir().join("run").join("sync.key");
    secret_file(&key, &[7; 32]).unwrap();
    let start = |node: &str, other: &str, priority: u8| {
        let config = || Config::echo(lab.host(node)).default_algorithm();
        let crowd = config().name("crowd").port(CROWD_PORT);
        let crowd = crowd.numbered(crowds.iter().map(CrowdServer::address)).service_text();
        let echo = config().numbered(echoes.iter().map(EchoServer::address));
        let pair = echo.pair_text((lab.host(node), lab.host(other)), priority, "100ms", &key);
        Balancer::start(lab.host(node), &format!("{pair}{crowd}")).unwrap()
    };
    let mut first = start("lb1", "lb2", 200);
    eventually(LIMIT, "the first node is active", || {
        ensure!(first.status()?["role"] == "active");
        Ok(())
    })
    .unwrap();

    let target = SocketAddrV4::new(VIP, CROWD_PORT);
    let begun = Instant::now();
    let between = FIRST_PORT + VANISHED;
    thread::scope(|scope| {
        for name in CLIENTS {
            let host = lab.host(name);
            scope.spawn(move || crowd::open_and_vanish(host, target, FIRST_PORT..between).unwrap());
        }
    });
    crowds.iter().for_each(CrowdServer::keep);
    let open = |name| crowd::open(lab.host(name), target, between..between + KEPT).unwrap();
    let mut kept: Vec<_> = CLIENTS.into_iter().flat_map(open).collect();
    println!("{FLOWS} connections opened in {:?}", begun.elapsed());
    eventually(LIMIT, "the first node has every flow", || used(&first, FLOWS)).unwrap();
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let busy = BusyClients::start(lab.host("client-1"), vip, BUSY, Duration::from_millis(10)).unwrap();
    busy.wait_progress(10, LIMIT).unwrap();

    let mut second = start("lb2", "lb1", 100);
    eventually(LIMIT, "the second node is in sync", || logged(&mut second, "in sync")).unwrap();
    let took =
        logged(&mut second, "in sync").unwrap() - logged(&mut second, "connected for flow sync").unwrap();
    eventually(LIMIT, "the second node has every flow", || used(&second, FLOWS + BUSY)).unwrap();
    println!("in sync with {FLOWS} flows {took:.2} s after it connected (promised 2 s)");
    assert!((0.0..10.0).contains(&took), "{took}");
    let gap = |busy: &BusyClients| busy.outcomes().iter().map(|outcome| outcome.longest_gap).max().unwrap();
    println!("longest wait of {BUSY} busy connections until then: {:?}", gap(&busy));
    assert!(gap(&busy) < Duration::from_secs(1), "the active node's traffic stalled");

    first.kill().unwrap();
    eventually(LIMIT, "the second node is active", || {
        ensure!(second.status()?["role"] == "active");
        Ok(())
    })
    .unwrap();
    let early: usize = crowds.iter().map(CrowdServer::heard).sum();
    assert_eq!(early, 0, "nobody has spoken yet");
    let begun = Instant::now();
    crowd::speak(&mut kept).unwrap();
    let mut heard = 0;
    eventually(LIMIT, "every connection goes on", || {
        heard += crowds.iter().map(CrowdServer::heard).sum::<usize>();
        ensure!(heard == kept.len(), "{heard} of {}", kept.len());
        Ok(())
    })
    .unwrap();
    println!("after a takeover all {} go on, spoken and heard in {:?}", kept.len(), begun.elapsed());
    busy.wait_progress(3, LIMIT).unwrap();
    let outcomes = busy.finish();
    let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.broken.as_ref()).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
