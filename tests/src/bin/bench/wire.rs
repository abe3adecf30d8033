//! Rows of the wire: added latency, bulk throughput, connections per second.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::Host;
use serde_json::Value;

use crate::{
    Effort,
    peers::{Kind, Peer},
    report::Row,
    responder,
    rounds::interleave,
    site::{BULK, REQUESTS, Site},
};

/// Workers that make connections.
const WORKERS: usize = 4;

/// Round trips of 64 octets: what each way takes, and what it adds to the direct one of the same round.
pub fn latency(site: &mut Site, effort: Effort) -> Result<Vec<Row>> {
    let during = effort.pick(Duration::from_millis(300), Duration::from_secs(2));
    let client = site.client().clone();
    let found = interleave(effort, &mut site.peers, |peer| {
        responder::latency(&client, peer.target(REQUESTS), during)
    })?;
    let mut rows = Vec::new();
    for (title, pick, goal) in [
        (
            "p50",
            (|both: &(f64, f64)| both.0) as fn(&(f64, f64)) -> f64,
            "≤ 1/5 of HAProxy's, below nftables'",
        ),
        ("p99", |both| both.1, ""),
    ] {
        let whole: Vec<Vec<f64>> = found.iter().map(|rounds| rounds.iter().map(pick).collect()).collect();
        let mut round_trip = Row::new("latency", format!("round trip of 64 octets, {title}"), "µs");
        let mut added = Row::new("latency", format!("added to the round trip, {title}"), "µs").goal(goal);
        let direct = direct(&site.peers, &whole);
        for (peer, samples) in site.peers.iter().zip(&whole) {
            round_trip = round_trip.cell(peer.name(), samples.clone());
            if peer.kind != Kind::Direct {
                added = added.cell(peer.name(), samples.iter().zip(&direct).map(|(a, b)| a - b).collect());
            }
        }
        rows.extend([round_trip, added]);
    }
    Ok(rows)
}

/// iperf3, one stream.
pub fn throughput(site: &mut Site, effort: Effort) -> Result<Vec<Row>> {
    let amount = effort.pick(Amount::Octets("60M"), Amount::Seconds("4"));
    let client = site.client().clone();
    let found = interleave(effort, &mut site.peers, |peer| {
        Ok(iperf3(&client, peer.target(BULK), amount, None)?.bits_per_second / 1e9)
    })?;
    let mut row = Row::new("throughput", "bulk, one stream", "Gbit/s").goal("≥ 1.8 × HAProxy, ≥ nftables");
    for (peer, samples) in site.peers.iter().zip(found) {
        row = row.cell(peer.name(), samples);
    }
    Ok(vec![row])
}

/// Connect, one request, close.
pub fn connections(site: &mut Site, effort: Effort) -> Result<Vec<Row>> {
    let during = effort.pick(Duration::from_millis(400), Duration::from_secs(2));
    let client = site.client().clone();
    let found = interleave(effort, &mut site.peers, |peer| {
        responder::connections(&client, peer.target(REQUESTS), WORKERS, during)
    })?;
    let mut row = Row::new("connections", "connect, one request, close", "/s").goal("≥ 3 × HAProxy");
    let mut failed = Row::new("connections", "of these, connections that failed", "/s").goal("0");
    for (peer, rounds) in site.peers.iter().zip(found) {
        if let Some(error) = rounds.iter().find_map(|found| found.error.as_deref()) {
            eprintln!("connections through {}: {error}", peer.name());
        }
        row = row.cell(peer.name(), rounds.iter().map(|found| found.per_second).collect());
        failed = failed.cell(peer.name(), rounds.iter().map(|found| found.failed_per_second).collect());
    }
    Ok(vec![row, failed])
}

/// The figures of the direct way.
pub fn direct(peers: &[Peer], found: &[Vec<f64>]) -> Vec<f64> {
    let place = peers.iter().position(|peer| peer.kind == Kind::Direct);
    place.map(|place| found[place].clone()).unwrap_or_default()
}

/// What iperf3 says.
pub struct Bulk {
    /// As received.
    pub bits_per_second: f64,
    pub octets: f64,
}

/// How much iperf3 sends, as it writes it (`60M`).
#[derive(Clone, Copy)]
pub enum Amount {
    Seconds(&'static str),
    Octets(&'static str),
}

/// Sends so much, at a rate if one is given, as iperf3 writes it (`1G`).
pub fn iperf3(client: &Host, to: SocketAddr, amount: Amount, rate: Option<&str>) -> Result<Bulk> {
    let mut command = client.command("iperf3");
    command.args(["-J", "-c", &to.ip().to_string(), "-p", &to.port().to_string()]);
    match amount {
        Amount::Seconds(seconds) => command.args(["-t", seconds]),
        Amount::Octets(octets) => command.args(["-n", octets]),
    };
    if let Some(rate) = rate {
        command.args(["-b", rate]);
    }
    let output = command.stdin(Stdio::null()).output().context("cannot run iperf3")?;
    let said: Value = serde_json::from_slice(&output.stdout).context("iperf3 prints no JSON")?;
    ensure!(said["error"].is_null(), "iperf3 to {to}: {}", said["error"]);
    let sum = &said["end"]["sum_received"];
    let number = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 says no {name}"));
    Ok(Bulk { bits_per_second: number("bits_per_second")?, octets: number("bytes")? })
}
