//! Resident memory, and the time from the start to the first packet served.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etcd_lb_tests::Host;

use crate::{
    Effort,
    peers::{Behind, Kind, Peer},
    report::Row,
    responder::{self, Responder},
    rounds::interleave,
    site::{self, REQUESTS},
};

/// Time for an attempt to connect: an answer takes less than a tenth of it.
const ATTEMPT: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(20);
/// After the first answer, until memory is looked at.
const SETTLED: Duration = Duration::from_millis(1000);

pub fn memory(effort: Effort, haproxy: bool) -> Result<Vec<Row>> {
    let mut kinds = vec![Kind::EtcdLb];
    kinds.extend(haproxy.then_some(Kind::Haproxy));
    let lab = site::lab("memory", &kinds, &[("etcd-1", 11), ("etcd-2", 12), ("etcd-3", 13)])?;
    let hosts = ["etcd-1", "etcd-2", "etcd-3"].map(|name| lab.host(name));
    let _responders: Vec<Responder> =
        hosts.into_iter().map(|host| Responder::start(host, REQUESTS, 8)).collect::<Result<_>>()?;
    let members = hosts.map(Host::address).to_vec();
    let behind = Behind { ports: vec![REQUESTS], members, checked: REQUESTS, cluster: None, object: None };
    let client = lab.host("client-1");
    let found = interleave(effort, &mut kinds.clone(), |kind| {
        let vip = kind.vip().context("no address")?;
        let (host, _) = kind.host().context("no host")?;
        let host = lab.host(host);
        // An address that nobody answers for yet is asked for once a second; that is not what is measured.
        let mac = host.mac()?.map(|octet| format!("{octet:02x}")).join(":");
        let neighbour =
            ["neigh", "replace", &vip.to_string(), "lladdr", &mac, "dev", "eth0", "nud", "permanent"];
        client.output("ip", &neighbour)?;
        let stop = AtomicBool::new(false);
        let (begun, peer, served) = thread::scope(|scope| {
            let asking = scope.spawn(|| first_answer(client, (vip, REQUESTS).into(), &stop));
            let begun = Instant::now();
            let peer = Peer::start(*kind, &lab, &behind);
            stop.store(peer.is_err(), Ordering::Relaxed);
            let served = asking.join().unwrap_or(None);
            (begun, peer, served)
        });
        let mut peer = peer?;
        let took = served.context("it did not serve")? - begun;
        thread::sleep(SETTLED);
        let resident = resident(peer.pid().context("it does not run")?)?;
        peer.end(&lab)?;
        Ok((resident, took.as_secs_f64() * 1e3))
    })?;
    let mut memory = Row::new("memory", "resident memory, 3 members, no connections", "MB").goal("< 20 MB");
    let mut start = Row::new("memory", "start to the first request served", "ms").goal("< 300 ms");
    for (kind, rounds) in kinds.iter().zip(found) {
        memory = memory.cell(kind.name(), rounds.iter().map(|found| found.0).collect());
        start = start.cell(kind.name(), rounds.iter().map(|found| found.1).collect());
    }
    Ok(vec![memory, start])
}

/// When a request was first answered.
fn first_answer(client: &Host, to: SocketAddr, stop: &AtomicBool) -> Option<Instant> {
    let begun = Instant::now();
    client.run(|| {
        while begun.elapsed() < LIMIT && !stop.load(Ordering::Relaxed) {
            match TcpStream::connect_timeout(&to, ATTEMPT) {
                Ok(mut stream) => {
                    let answered = stream
                        .set_read_timeout(Some(Duration::from_millis(50)))
                        .and_then(|()| responder::trip(&mut stream));
                    if answered.is_ok() {
                        return Some(Instant::now());
                    }
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    })
}

/// `VmRSS`, in MB of a million octets.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}
