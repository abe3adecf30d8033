//! `mode = "dsr"`: backends that hold the VIP answer clients directly. What the guide says must be set on them is set by
//! the guide's own commands, and missed where it is left out.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP, VIP6,
    echo::{BusyClients, EchoServer},
    eventually,
};

const LIMIT: Duration = Duration::from_secs(15);
const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
const BUSY: usize = 30;
const GUIDE: &str = include_str!("../../docs/configuration.md");

/// The guide's commands for a backend, as lines of words, for another VIP than its own example's.
fn guide(vip: IpAddr) -> Vec<Vec<String>> {
    let section = GUIDE.split("## Direct server return").nth(1).unwrap();
    let v6 = section.split("With an IPv6 VIP `").nth(1).unwrap().split('`').next().unwrap();
    let block = section.split("```").nth(1).unwrap();
    let v4 = block.lines().filter_map(|line| line.strip_prefix("# "));
    let lines: Vec<&str> = if vip.is_ipv4() { v4.collect() } else { vec![v6] };
    assert!(!lines.is_empty() && GUIDE.contains("10.0.1.100/32") && GUIDE.contains("fd00:1::100/128"));
    lines
        .into_iter()
        .map(|line| line.replace("10.0.1.100", &vip.to_string()).replace("fd00:1::100", &vip.to_string()))
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

fn prepare(host: &Host, commands: &[Vec<String>]) {
    for command in commands {
        let args: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        host.output(&command[0], &args).unwrap();
    }
}

fn config(host: &Host, vip: IpAddr, servers: &[EchoServer]) -> String {
    let config = Config::tcp(host).name("echo").vip(vip).service("mode = \"dsr\"");
    let add = |config: Config, (name, server): (&&str, &EchoServer)| {
        config.backend(name, if vip.is_ipv4() { server.address() } else { server.address_v6() })
    };
    MEMBERS.iter().zip(servers).fold(config, add).text()
}

fn clients_meet_backends(vip: IpAddr, lab_name: &str) {
    let lab = Lab::start(lab_name, &Topology::standard().without("lb2").without("client-2")).unwrap();
    let servers: Vec<_> =
        MEMBERS.iter().map(|name| EchoServer::start(lab.host(name), 2379).unwrap()).collect();
    for name in MEMBERS {
        prepare(lab.host(name), &guide(vip));
    }
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &config(host, vip, &servers)).unwrap();
    for name in MEMBERS {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let client = lab.host("client-1");
    let busy =
        BusyClients::start(client, SocketAddr::new(vip, 2379), BUSY, Duration::from_millis(20)).unwrap();
    busy.wait_progress(30, LIMIT).unwrap();

    let own: IpAddr = if vip.is_ipv4() { client.address().into() } else { client.address_v6().into() };
    let mut spread = Vec::new();
    for server in &servers {
        let peers: Vec<_> = server.peers().into_iter().filter(|peer| peer.ip() == own).collect();
        spread.push(peers.len());
    }
    println!("{BUSY} connections, on the backends {spread:?}, under the client's own address {own}");
    assert_eq!(spread.iter().sum::<usize>(), BUSY, "backends see the client's own address");
    assert!(spread.iter().all(|count| *count > 0), "every backend serves");
    let (toward, back) = (
        balancer.metric("etcd_lb_backend_packets_total", "direction=\"in\"").unwrap(),
        balancer.metric("etcd_lb_backend_packets_total", "direction=\"out\"").unwrap(),
    );
    println!("packets toward backends {toward}, toward clients {back}");
    assert!(toward > 1000.0 && back == 0.0, "answers do not come by the balancer");
    assert_eq!(balancer.metric("etcd_lb_backend_flows", "").unwrap(), BUSY as f64);

    // A member's host vanishes: its connections, and no others, are reset.
    let victim = spread.iter().enumerate().max_by_key(|(_, count)| **count).unwrap().0;
    let begun = Instant::now();
    lab.plug(MEMBERS[victim], false).unwrap();
    eventually(LIMIT, "the victim's clients learn of it", || {
        ensure!(busy.broken() == spread[victim], "{} of {}", busy.broken(), spread[victim]);
        Ok(())
    })
    .unwrap();
    println!(
        "host of {} gone: its {} connections reset after {:?}",
        MEMBERS[victim],
        spread[victim],
        begun.elapsed()
    );
    balancer.wait_backend(MEMBERS[victim], "down", LIMIT).unwrap();
    let more = BusyClients::start(client, SocketAddr::new(vip, 2379), 10, Duration::from_millis(20)).unwrap();
    more.wait_progress(10, LIMIT).unwrap();
    assert_eq!(more.broken(), 0);

    // The host returns: its own half of the old connections is ended too, by the first word of the balancer's reset.
    lab.plug(MEMBERS[victim], true).unwrap();
    balancer.wait_backend(MEMBERS[victim], "healthy", LIMIT).unwrap();
    drop(more.finish());
    let broken = busy.finish().iter().filter(|outcome| outcome.broken.is_some()).count();
    assert_eq!(broken, spread[victim], "no other connection breaks");
    eventually(LIMIT, "closed connections leave the table", || {
        let flows = balancer.metric("etcd_lb_backend_flows", "").unwrap();
        ensure!(flows == 0.0, "{flows} flows");
        Ok(())
    })
    .unwrap();
}

#[test]
fn ipv4() {
    clients_meet_backends(VIP.into(), "dsr4");
}

#[test]
fn ipv6() {
    clients_meet_backends(VIP6.into(), "dsr6");
}

#[test]
fn a_backend_that_answers_arp_for_the_vip_is_told_of() {
    let lab = Lab::start("dsrarp", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let servers: Vec<_> =
        MEMBERS.iter().map(|name| EchoServer::start(lab.host(name), 2379).unwrap()).collect();
    // The address alone, without the sysctls.
    prepare(lab.host("etcd-1"), &guide(VIP.into())[..1]);
    let host = lab.host("lb1");
    let balancer = Balancer::prepare(host, &config(host, VIP.into(), &servers)).unwrap();
    let output = balancer.cli_command().args(["run", "--config"]).arg(balancer.config()).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(!output.status.success() && said.contains("another host owns the VIP"), "{said}");
}
