//! etcd under load: directly, through the VIP, and through HAProxy.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, anyhow, ensure};
use etcd_lb_load::{Arrivals, Endpoint, Pace, Plan, TlsFiles};
use etcd_lb_tests::{CLIENT_PORT, Cluster, Host, Lab, VIP, eventually};

use crate::{
    Effort,
    peers::{Behind, Kind, Peer},
    report::Row,
    rounds::interleave,
    site::{self, wire_size},
};

/// Three for each member.
const CONNECTIONS: usize = 9;
/// Requests per second of the open loop: far below what the slowest way can do.
const RATE: f64 = 400.0;
const MEMBERS: [(&str, u8); 3] = [("etcd-1", 11), ("etcd-2", 12), ("etcd-3", 13)];

/// A cluster, and peers before it.
pub struct Plane {
    pub peers: Vec<Peer>,
    pub cluster: Cluster,
    pub lab: Lab,
}

impl Plane {
    pub fn start(name: &str, kinds: &[Kind]) -> Result<Self> {
        let lab = site::lab(name, kinds, &MEMBERS)?;
        wire_size(&lab, false)?;
        let cluster = Cluster::start(&lab)?;
        let members = cluster.members().iter().map(|member| member.host().address()).collect();
        let behind = Behind {
            ports: vec![CLIENT_PORT],
            members,
            checked: CLIENT_PORT,
            cluster: Some(&cluster),
            object: None,
        };
        let peers = kinds.iter().map(|kind| Peer::start(*kind, &lab, &behind)).collect::<Result<Vec<_>>>()?;
        for peer in &peers {
            let Some(balancer) = peer.balancer() else { continue };
            for member in ["etcd-1", "etcd-2", "etcd-3"] {
                balancer.wait_backend(member, "healthy", Duration::from_secs(20))?;
            }
        }
        Ok(Self { peers, cluster, lab })
    }

    pub fn client(&self) -> &Host {
        self.lab.host("client-1")
    }

    /// What clients connect to: the members themselves if nobody stands before them.
    pub fn endpoints(&self, peer: &Peer) -> Vec<String> {
        let url = |address: SocketAddr| format!("https://{address}");
        match peer.kind {
            Kind::Direct => {
                self.cluster.members().iter().map(|member| url(member.client_address())).collect()
            }
            _ => vec![url(peer.target(CLIENT_PORT))],
        }
    }

    fn plan(&self, peer: &Peer, pace: Pace, during: Duration) -> Result<Plan> {
        let endpoints =
            self.endpoints(peer).iter().map(|url| url.parse::<Endpoint>()).collect::<Result<_, _>>();
        let pki = &self.cluster.pki;
        let mut plan = Plan::new(endpoints.map_err(|error| anyhow!("{error}"))?);
        plan.tls = Some(TlsFiles {
            ca: pki.ca.clone(),
            client: Some((pki.client.cert.clone(), pki.client.key.clone())),
            // The members' certificates are for this one, and not for the other peers' addresses.
            server_name: Some(VIP.to_string()),
        });
        plan.connections = CONNECTIONS;
        plan.pace = pace;
        plan.duration = during;
        plan.warmup = during / 5;
        plan.keys = 100;
        plan.mix = "put=20,get=80".parse().map_err(|error| anyhow!("the mix: {error}"))?;
        Ok(plan)
    }
}

/// A round's figures.
struct Found {
    per_second: f64,
    /// (get p50, get p99, put p50, put p99), in µs.
    latencies: [f64; 4],
}

pub fn etcd(effort: Effort, haproxy: bool, etcd: bool) -> Result<Vec<Row>> {
    ensure!(etcd, "etcd or etcdctl is missing: apt-get install etcd-server etcd-client");
    let mut kinds = vec![Kind::Direct, Kind::EtcdLb];
    kinds.extend(haproxy.then_some(Kind::Haproxy));
    let plane = Plane::start("etcd", &kinds)?;
    let during = effort.pick(Duration::from_millis(600), Duration::from_secs(3));
    let mut peers: Vec<&Peer> = plane.peers.iter().collect();
    let found = interleave(effort, &mut peers, |peer| {
        let closed = plane.plan(peer, Pace::Closed { in_flight: 1 }, during)?;
        let open = plane.plan(peer, Pace::Open { rate: RATE, arrivals: Arrivals::Poisson }, during)?;
        let run = |plan: &Plan| {
            eventually(Duration::from_secs(5), "the load", || plane.client().run(|| etcd_lb_load::run(plan)))
        };
        let (closed, open) = (run(&closed)?, run(&open)?);
        let failed = closed.total.errors + open.total.errors + closed.wrong.count + open.wrong.count;
        ensure!(failed == 0, "{}: {failed} requests failed, or were answered wrong", peer.name());
        let [get, put] = [&open.get.latency, &open.put.latency];
        Ok(Found {
            per_second: closed.total.per_second,
            latencies: [get.p50_us, get.p99_us, put.p50_us, put.p99_us].map(|us| us as f64),
        })
    })?;
    let goal = "within 3 % of direct";
    let mut row = Row::new("etcd", "operations, 9 connections, 4 gets a put", "/s").goal(goal);
    for (peer, rounds) in plane.peers.iter().zip(&found) {
        row = row.cell(peer.name(), rounds.iter().map(|found| found.per_second).collect());
    }
    let mut rows = vec![row];
    for (number, title) in ["get, p50", "get, p99", "put, p50", "put, p99"].into_iter().enumerate() {
        let mut row = Row::new("etcd", format!("{title}, at 400/s"), "µs").goal(goal);
        for (peer, rounds) in plane.peers.iter().zip(&found) {
            row = row.cell(peer.name(), rounds.iter().map(|found| found.latencies[number]).collect());
        }
        rows.push(row);
    }
    Ok(rows)
}
