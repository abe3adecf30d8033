//! More than one subnet: clients and backends on different interfaces and behind routers, routers that fail over to another
//! MAC, a client that shares a backend's host, and links whose MTU is smaller than the balancer's.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Role, Topology, VIP, VIP6,
    echo::{BusyClients, EchoServer, transfer},
    eventually,
};

const LIMIT: Duration = Duration::from_secs(15);
const PORT: u16 = 2379;
const MEMBERS: [(&str, u8); 3] = [("etcd-1", 11), ("etcd-2", 12), ("etcd-3", 13)];
const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP), IpAddr::V6(VIP6)];

/// The three members on a LAN.
fn members(topology: Topology, lan: u8) -> Topology {
    MEMBERS
        .into_iter()
        .fold(topology, |topology, (name, last)| topology.with_on(lan, Role::Member, name, last))
}

fn servers(lab: &Lab) -> Vec<EchoServer> {
    MEMBERS.iter().map(|(name, _)| EchoServer::start(lab.host(name), PORT).unwrap()).collect()
}

/// A service of each family with the same backends; `source`: the last octets of a source address on a LAN.
fn config(host: &Host, servers: &[EchoServer], source: Option<(u8, u8)>) -> String {
    let of_family = |vip: IpAddr| {
        let mut config = Config::echo(host).name(if vip.is_ipv4() { "v4" } else { "v6" }).vip(vip);
        if let Some((lan, last)) = source {
            let source: IpAddr = match vip {
                IpAddr::V4(_) => Topology::address(lan, last).into(),
                IpAddr::V6(_) => Topology::address_v6(lan, last).into(),
            };
            config = config.service(&format!("source_address = \"{source}\""));
        }
        let address =
            |server: &EchoServer| if vip.is_ipv4() { server.address() } else { server.address_v6() };
        config.addresses(servers.iter().map(address))
    };
    let [v4, v6] = VIPS.map(of_family);
    v4.text() + &v6.service_text()
}

fn balancer(lab: &Lab, servers: &[EchoServer], source: Option<(u8, u8)>) -> Balancer {
    let balancer = Balancer::start(lab.host("lb1"), &config(lab.host("lb1"), servers, source)).unwrap();
    for address in servers.iter().flat_map(|server| [server.address(), server.address_v6()]) {
        balancer.wait_backend(&address.to_string(), "healthy", LIMIT).unwrap();
    }
    balancer
}

/// Busy connections of both families from a host to the VIPs.
fn busy(client: &Host, count: usize) -> [BusyClients; 2] {
    VIPS.map(|vip| {
        let vip = SocketAddr::new(vip, PORT);
        let busy = BusyClients::start(client, vip, count, Duration::from_millis(5)).unwrap();
        busy.wait_progress(9, LIMIT).unwrap();
        busy
    })
}

/// Every connection exchanges more messages, and none has broken.
fn all_go_on(busy: &[BusyClients], what: &str) {
    let begun = Instant::now();
    for busy in busy {
        busy.wait_progress(9, LIMIT).unwrap();
    }
    let all: Vec<_> = busy.iter().flat_map(BusyClients::outcomes).collect();
    let broken = all.iter().filter(|outcome| outcome.broken.is_some()).count();
    let gap = all.iter().map(|outcome| outcome.longest_gap).max();
    println!(
        "{what}: {broken} of {} connections broken, all go on after {:?}, longest gap {gap:?}",
        all.len(),
        begun.elapsed()
    );
    assert_eq!(broken, 0, "{all:?}");
}

/// Large transfers of both families, both directions at once.
fn large_transfers(client: &Host, what: &str) {
    const OCTETS: usize = 8_000_000;
    for vip in VIPS {
        let (took, again) = transfer(client, SocketAddr::new(vip, PORT), OCTETS).unwrap();
        println!("{what}, {vip}: {OCTETS} octets each way in {took:?}, {again} segments sent again");
    }
}

/// Gives an interface another MAC, of which its neighbours are told, as when a router's standby takes over its address.
fn fail_over(router: &Host, interface: &str, mac: &str) {
    for (family, notify) in [("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")] {
        let sysctl = format!("net.{family}.conf.{interface}.{notify}=1");
        router.output("sysctl", &["-qw", &sysctl]).unwrap();
    }
    router.output("ip", &["link", "set", "dev", interface, "address", mac]).unwrap();
}

fn count(balancer: &Balancer, counter: &str) -> f64 {
    balancer.metric("etcd_lb", counter).unwrap()
}

#[test]
fn clients_and_backends_on_different_interfaces() {
    let topology = Topology::empty().with(Role::Balancer, "lb1", 2).also_on("lb1", 3, 2);
    let lab = Lab::start("sides", &members(topology, 3).with(Role::Client, "client-1", 21)).unwrap();
    let servers = servers(&lab);
    let balancer = balancer(&lab, &servers, Some((3, 100)));
    let client = lab.host("client-1");
    let busy = busy(client, 20);
    all_go_on(&busy, "from one interface to the other");
    let ours = |peer: &SocketAddr| {
        peer.ip() == Topology::address(3, 100) || peer.ip() == Topology::address_v6(3, 100)
    };
    let from_us = servers.iter().flat_map(EchoServer::peers).filter(ours).count();
    assert_eq!(from_us, 40, "backends see the source address");
    large_transfers(client, "from one interface to the other");

    // Connections that were made with a larger MSS are told of the smaller MTU by the balancer itself.
    lab.set_lan_mtu(3, 1300).unwrap();
    all_go_on(&busy, "the backends' side now has an MTU of 1300");
    println!("too_big: {}", count(&balancer, "too_big"));
    large_transfers(client, "backends' side with an MTU of 1300");
}

#[test]
fn backends_behind_a_router() {
    let topology = Topology::empty()
        .with(Role::Balancer, "lb1", 2)
        .also_on("lb1", 3, 2)
        .with(Role::Client, "client-1", 21)
        .with_on(3, Role::Router, "router", 1)
        .also_on("router", 5, 1);
    let mut topology = members(topology, 5);
    for (name, _) in MEMBERS {
        topology = topology.gateway(name, 1);
    }
    let lab = Lab::start("behind", &topology).unwrap();
    for (to, via) in [
        ("10.0.5.0/24", Topology::address(3, 1).to_string()),
        ("fd00:5::/64", Topology::address_v6(3, 1).to_string()),
    ] {
        lab.host("lb1").output("ip", &["route", "add", to, "via", &via]).unwrap();
    }
    let servers = servers(&lab);
    let balancer = balancer(&lab, &servers, Some((3, 100)));
    let client = lab.host("client-1");
    let busy_connections = busy(client, 10);
    all_go_on(&busy_connections, "backends behind a router");
    large_transfers(client, "backends behind a router");

    fail_over(lab.host("router"), "eth0", "02:00:00:00:99:01");
    all_go_on(&busy_connections, "their router has another MAC");
    drop(busy_connections);

    // A source address of no subnet: the router is told the way to it, as the guide has it.
    let text = config(lab.host("lb1"), &servers, Some((9, 100)));
    for (to, via) in [
        ("10.0.9.100/32", Topology::address(3, 2).to_string()),
        ("fd00:9::100/128", Topology::address_v6(3, 2).to_string()),
    ] {
        lab.host("router").output("ip", &["route", "add", to, "via", &via]).unwrap();
    }
    balancer.write_config(&text).unwrap();
    balancer.reload().unwrap();
    let busy_connections = busy(client, 10);
    all_go_on(&busy_connections, "a source address that is routed to the balancer");
}

/// Clients on LAN 2, behind a router that is on LAN 1 with the balancer and the members.
fn clients_behind_a_router(name: &str) -> (Lab, Vec<EchoServer>, Balancer) {
    let topology = Topology::empty()
        .with(Role::Balancer, "lb1", 2)
        .gateway("lb1", 1)
        .with(Role::Router, "router", 1)
        .also_on("router", 2, 1)
        .with_on(2, Role::Client, "client-1", 21)
        .gateway("client-1", 1);
    let lab = Lab::start(name, &members(topology, 1)).unwrap();
    let servers = servers(&lab);
    let balancer = balancer(&lab, &servers, None);
    (lab, servers, balancer)
}

/// Connections that say nothing after a first exchange.
fn idle(client: &Host, count: usize) -> Vec<TcpStream> {
    let open = |vip: IpAddr| {
        let mut socket =
            client.run(|| TcpStream::connect_timeout(&SocketAddr::new(vip, PORT), LIMIT)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.write_all(b"hello").unwrap();
        socket.read_exact(&mut [0; 5]).unwrap();
        socket
    };
    VIPS.into_iter().flat_map(|vip| std::iter::repeat_n(vip, count)).map(open).collect()
}

/// The backends speak first; how long until every client has heard it.
fn hear(servers: &[EchoServer], clients: &mut [TcpStream]) -> Duration {
    let begun = Instant::now();
    let said: usize = servers.iter().map(|server| server.speak(b"news")).sum();
    assert!(said >= clients.len(), "{said}");
    for client in clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
    begun.elapsed()
}

#[test]
fn clients_behind_a_router_that_fails_over() {
    let (lab, servers, _balancer) = clients_behind_a_router("clients");
    let (client, router) = (lab.host("client-1"), lab.host("router"));
    large_transfers(client, "clients behind a router");
    let mut idle = idle(client, 10);
    println!("{} idle clients heard their backends after {:?}", idle.len(), hear(&servers, &mut idle));
    fail_over(router, "eth0", "02:00:00:00:99:01");
    println!(
        "their router has another MAC: {} idle clients heard their backends after {:?}",
        idle.len(),
        hear(&servers, &mut idle)
    );

    let busy = busy(client, 10);
    all_go_on(&busy, "clients behind a router");
    fail_over(router, "eth0", "02:00:00:00:99:02");
    all_go_on(&busy, "their router has another MAC");
}

/// Octets that a host has received by its first interface.
fn received(host: &Host) -> u64 {
    let text = host.output("ip", &["-s", "-j", "link", "show", "dev", host.interface()]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
}

#[test]
fn the_route_says_which_router_packets_to_clients_go_to() {
    // Clients send by the one router, and the balancer's route to them is by the other.
    let topology = Topology::empty()
        .with(Role::Balancer, "lb1", 2)
        .gateway("lb1", 3)
        .with(Role::Router, "toward", 1)
        .also_on("toward", 2, 1)
        .with(Role::Router, "back", 3)
        .also_on("back", 2, 3)
        .with_on(2, Role::Client, "client-1", 21)
        .gateway("client-1", 1);
    let lab = Lab::start("route", &members(topology, 1)).unwrap();
    let servers = servers(&lab);
    let _balancer = balancer(&lab, &servers, None);
    let (client, toward, back) = (lab.host("client-1"), lab.host("toward"), lab.host("back"));
    // What each router gets from the balancer's side while something is done.
    let during = |work: &dyn Fn()| {
        let before = (received(toward), received(back));
        work();
        (received(toward) - before.0, received(back) - before.1)
    };
    let got = during(&|| large_transfers(client, "by another router than the client's"));
    println!("octets toward clients, by the clients' router and by the route's: {got:?}");
    assert!(got.0 < 1_000_000 && got.1 > 15_000_000, "{got:?}");

    let busy = busy(client, 10);
    let got = during(&|| all_go_on(&busy, "by another router than the client's"));
    assert!(got.1 > 10 * got.0, "{got:?}");
    for (family, via) in
        [("-4", Topology::address(1, 1).to_string()), ("-6", Topology::address_v6(1, 1).to_string())]
    {
        lab.host("lb1").output("ip", &[family, "route", "replace", "default", "via", &via]).unwrap();
    }
    eventually(LIMIT, "live flows follow the route", || {
        let got = during(&|| all_go_on(&busy, "the route changed"));
        println!("octets toward clients, by the new route's router and by the old one's: {got:?}");
        ensure!(got.0 > 10 * got.1, "{got:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_client_on_a_backends_host() {
    let lab = Lab::start("hairpin", &Topology::standard().without("lb2")).unwrap();
    let servers = servers(&lab);
    let _balancer = balancer(&lab, &servers, None);
    let busy = busy(lab.host("etcd-1"), 15);
    all_go_on(&busy, "clients on a backend's host");
    let own = servers[0].peers().iter().filter(|peer| VIPS.contains(&peer.ip())).count();
    println!("{own} of 30 connections are on that host's own backend");
    assert!(own > 0 && own < 30);
    large_transfers(lab.host("etcd-1"), "a client on a backend's host");
}

#[test]
fn a_smaller_mtu_on_the_clients_path() {
    let topology = Topology::empty()
        .with(Role::Balancer, "lb1", 2)
        .gateway("lb1", 1)
        .with(Role::Router, "near", 1)
        .also_on("near", 2, 1)
        .with_on(2, Role::Router, "far", 2)
        .gateway("far", 1)
        .also_on("far", 4, 1)
        .with_on(4, Role::Client, "client-1", 21)
        .gateway("client-1", 1);
    let lab = Lab::start("path", &members(topology, 1)).unwrap();
    for (to, via) in [
        ("10.0.4.0/24", Topology::address(2, 2).to_string()),
        ("fd00:4::/64", Topology::address_v6(2, 2).to_string()),
    ] {
        lab.host("near").output("ip", &["route", "add", to, "via", &via]).unwrap();
    }
    // Neither the client nor the balancer sees this link: only the routers on both sides of it do.
    lab.set_lan_mtu(2, 1300).unwrap();
    let servers = servers(&lab);
    let balancer = balancer(&lab, &servers, None);
    let client = lab.host("client-1");
    let translated = count(&balancer, "icmp_translated");
    large_transfers(client, "a link of MTU 1300 on the way");
    let translated = count(&balancer, "icmp_translated") - translated;
    println!("{translated} ICMP errors went on to the backends");
    assert!(translated > 0.0, "the routers' answers go through the balancer");
    let busy = busy(client, 10);
    all_go_on(&busy, "a link of MTU 1300 on the way");
}

#[test]
fn a_router_that_is_dead_holds_up_a_first_start_and_no_restart() {
    let topology = Topology::empty().with(Role::Balancer, "lb1", 2).with(Role::Client, "client-1", 21);
    let lab = Lab::start("deadrouter", &members(topology, 1)).unwrap();
    let dead = Topology::address(1, 99).to_string();
    lab.host("lb1").output("ip", &["route", "add", "10.9.0.0/16", "via", &dead]).unwrap();
    let servers = servers(&lab);
    let begun = Instant::now();
    let mut balancer = balancer(&lab, &servers, None);
    let first = begun.elapsed();
    let busy = busy(lab.host("client-1"), 5);
    let restart = |balancer: &mut Balancer| {
        balancer.kill().unwrap();
        let begun = Instant::now();
        balancer.run().unwrap();
        begun.elapsed()
    };
    let again = (0..3).map(|_| restart(&mut balancer)).min().unwrap();
    println!("started beside a dead router after {first:?}, restarted after {again:?}");
    // The first waits 3 s for the router; a restart does not, and a data plane that is there loads sooner too.
    assert!(first >= Duration::from_secs(3) && again < first - Duration::from_secs(1));
    all_go_on(&busy, "three restarts beside a dead router");
}
