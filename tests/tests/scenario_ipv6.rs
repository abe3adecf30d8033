//! IPv6: real etcd clients through the VIP, and the agent killed, restarted and removed meanwhile.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Topology, VIP6,
    echo::{BusyClients, EchoServer},
    eventually,
    fleet::Options,
    https::Connection,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(15);
const BUSY: usize = 50;

fn vip() -> SocketAddr {
    (VIP6, CLIENT_PORT).into()
}

fn small() -> Topology {
    Topology::standard().without("lb2").without("client-2")
}

/// (sent, answered) of pings 2 ms apart, by the program alone.
fn ping(client: &Host, count: usize) -> (usize, usize) {
    let text = client
        .output("ping", &["-6", "-c", &count.to_string(), "-i", "0.002", &VIP6.to_string()])
        .unwrap_or_else(|error| format!("{error:#}"));
    (count, text.lines().filter(|line| line.contains("icmp_seq=")).count())
}

#[test]
fn etcd_through_the_ipv6_vip() {
    let lab = Lab::start("etcd6", &small()).unwrap();
    let mut cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &Config::etcd_v6(host, &cluster).text()).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", LIMIT).unwrap();
    }
    let client = lab.host("client-1");
    let endpoint = format!("https://{}", vip());
    let health = cluster.etcdctl(client, &endpoint, &["endpoint", "health"]).unwrap();
    println!("etcdctl endpoint health: {}", health.trim());
    let begun = Instant::now();
    for number in 0..100 {
        let mut connection = Connection::open(client, vip(), &cluster.pki, LIMIT).unwrap();
        let (key, value) = (format!("a2V5{number:03}A"), format!("dmFs{number:03}A"));
        connection.post("/v3/kv/put", &json!({"key": key, "value": value})).unwrap();
        let answer = connection.post("/v3/kv/range", &json!({"key": key})).unwrap();
        assert_eq!(answer["kvs"][0]["value"], json!(value), "{answer}");
        connection.close();
    }
    println!("100 connections with a put and a get each in {:?}", begun.elapsed());

    let options = Options { interval: Duration::from_millis(20), reconnect: true, ..Options::default() };
    let fleet = Fleet::start(client, vip(), &cluster.pki, options).unwrap();
    fleet.wait_progress(10, LIMIT).unwrap();
    let before = fleet.alive();
    let victim = cluster.name_of(before[0].member).unwrap().to_owned();
    let on_victim = before.iter().filter(|s| cluster.name_of(s.member) == Some(victim.as_str())).count();
    cluster.member_mut(&victim).kill().unwrap();
    eventually(LIMIT, "every client connected again", || {
        ensure!(fleet.alive().len() == 12, "{} of 12 are", fleet.alive().len());
        Ok(())
    })
    .unwrap();
    balancer.wait_backend(&victim, "down", LIMIT).unwrap();
    println!("{victim} killed: {} of 12 connections broke", fleet.broken().len());
    assert_eq!(fleet.broken().len(), on_victim, "only the victim's connections break");
    let shown = balancer.cli(&["status"]).unwrap() + &balancer.cli(&["flows"]).unwrap();
    for text in ["[fd00:1::100]:2379", "[fd00:1::11]:2379", "[fd00:1::21]:"] {
        assert!(shown.contains(text), "{text} is not shown:\n{shown}");
    }
}

#[test]
fn busy_connections_and_pings_survive_the_agent() {
    let lab = Lab::start("busy6", &small()).unwrap();
    let servers: Vec<EchoServer> =
        ["etcd-1", "etcd-2", "etcd-3"].map(|name| EchoServer::start(lab.host(name), 2379).unwrap()).into();
    let host = lab.host("lb1");
    let config = Config::echo(host)
        .vip(VIP6)
        .service("allow = [\"fd00:1::20/123\"]")
        .addresses(servers.iter().map(EchoServer::address_v6));
    let mut balancer = Balancer::start(host, &config.text()).unwrap();
    for server in &servers {
        balancer.wait_backend(&server.address_v6().to_string(), "healthy", LIMIT).unwrap();
    }
    let groups =
        |host: &Host| host.output("ip", &["-6", "maddress", "show", "dev", host.interface()]).unwrap();
    assert!(groups(host).contains("ff02::1:ff00:100"), "the VIP's group is not joined: {}", groups(host));

    let client = lab.host("client-1");
    let busy = BusyClients::start(client, vip(), BUSY, Duration::from_millis(20)).unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    balancer.kill().unwrap();
    assert!(groups(host).contains("ff02::1:ff00:100"), "the group outlives the agent");
    // A host that asks anew finds the VIP without an agent.
    client.output("ip", &["-6", "neigh", "flush", "dev", client.interface()]).unwrap();
    let (sent, answered) = ping(client, 200);
    assert_eq!(answered, sent, "pings without an agent");
    balancer.run().unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    let (sent, answered) = ping(client, 200);
    assert_eq!(answered, sent, "pings");
    for server in &servers {
        let peers = server.peers();
        let through = peers.iter().filter(|peer| peer.ip() == VIP6).count();
        assert!(through > 0, "traffic comes from the VIP: {peers:?}");
    }
    let outcomes = busy.finish();
    let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.broken.as_ref()).collect();
    let exchanges: u64 = outcomes.iter().map(|outcome| outcome.exchanges).sum();
    println!("{BUSY} connections, {exchanges} exchanges, {} broken", broken.len());
    assert!(broken.is_empty(), "{broken:?}");

    let refused =
        lab.host("etcd-1").run(|| std::net::TcpStream::connect_timeout(&vip(), Duration::from_millis(300)));
    assert!(refused.is_err(), "fd00:1::11 is not in `allow`");
    balancer.stop().unwrap();
    balancer.cli(&["detach", "--config", balancer.config().to_str().unwrap()]).unwrap();
    assert!(!groups(host).contains("ff02::1:ff00:100"), "the group is left: {}", groups(host));
}

#[test]
fn a_vip_that_another_host_has_is_refused() {
    let lab = Lab::start("taken6", &small()).unwrap();
    let server = EchoServer::start(lab.host("etcd-1"), 2379).unwrap();
    let other = lab.host("etcd-2");
    let address = format!("{VIP6}/64");
    other.output("ip", &["address", "add", &address, "dev", other.interface(), "nodad"]).unwrap();
    let host = lab.host("lb1");
    let text = Config::echo(host).vip(VIP6).addresses([server.address_v6()]).text();
    let balancer = Balancer::prepare(host, &text).unwrap();
    let output = balancer.cli_command().args(["run", "--config"]).arg(balancer.config()).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("another host owns the VIP"), "{said}");
    assert!(said.contains(&VIP6.to_string()), "{said}");
}
