//! Clients and a member on the balancer's own node, alone, over IPv4 and IPv6.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Host, Lab, Topology, VIP, VIP6,
    echo::{BusyClients, EchoServer, transfer},
    eventually,
    networking::Networking,
    pair::{LIMIT, exchange},
};
use serde_json::json;

/// Enough to fill windows and queues many times over.
const LARGE: usize = 32 << 20;

/// A balancer that has a member and clients on its node, a member elsewhere, and a client elsewhere.
struct Node {
    balancer: Balancer,
    lab: Lab,
    here: EchoServer,
    there: EchoServer,
    vip: SocketAddr,
    before: Networking,
}

impl Node {
    fn start(name: &str, vip: IpAddr, service: &str) -> Self {
        Self::start_with(name, vip, "", service)
    }

    fn start_with(name: &str, vip: IpAddr, top: &str, service: &str) -> Self {
        let topology =
            Topology::standard().without("lb2").without("etcd-2").without("etcd-3").without("client-2");
        let lab = Lab::start(name, &topology).unwrap();
        let host = lab.host("lb1");
        let [here, there] =
            ["lb1", "etcd-1"].map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap());
        let before = Networking::of(host);
        let addresses = [&here, &there].map(|server| address(server, vip));
        let config = Config::echo(host)
            .top(top)
            .vip(vip)
            .service(service)
            .backend("own", addresses[0])
            .backend("other", addresses[1]);
        let balancer = Balancer::start(host, &config.text()).unwrap();
        for name in ["own", "other"] {
            balancer.wait_backend(name, "healthy", LIMIT).unwrap();
        }
        Self { balancer, lab, here, there, vip: (vip, CLIENT_PORT).into(), before }
    }

    fn clients(&self) -> [&Host; 2] {
        [self.lab.host("client-1"), self.lab.host("lb1")]
    }

    /// Backend and client of each flow.
    fn flows(&self) -> Vec<(String, String)> {
        let text = self.balancer.cli(&["flows", "--json"]).unwrap();
        let flows: serde_json::Value = serde_json::from_str(&text).unwrap();
        let flows = flows.as_array().or_else(|| flows["flows"].as_array()).unwrap().clone();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        flows.iter().map(|flow| (text(&flow["backend"]), text(&flow["client"]))).collect()
    }

    /// Which of the four paths the flows take: client and member, each on this node or not.
    fn paths(&self) -> BTreeSet<(bool, bool)> {
        let own = address(&self.here, self.vip.ip()).ip();
        let client = |text: &str| text.parse::<SocketAddr>().unwrap().ip() == own;
        self.flows().iter().map(|(backend, c)| (client(c), backend.contains("own"))).collect()
    }
}

fn address(server: &EchoServer, vip: IpAddr) -> SocketAddr {
    if vip.is_ipv4() { server.address() } else { server.address_v6() }
}

/// All four paths, with traffic that goes on while the agent is killed, restarted and stopped.
fn four_paths(name: &str, vip: IpAddr) {
    let mut node = Node::start(name, vip, "");
    let busy =
        node.clients().map(|host| BusyClients::start(host, node.vip, 25, Duration::from_millis(5)).unwrap());
    let mut idle: Vec<TcpStream> = node
        .clients()
        .iter()
        .flat_map(|host| (0..10).map(|_| host.run(|| TcpStream::connect_timeout(&node.vip, LIMIT)).unwrap()))
        .collect();
    idle.iter_mut().for_each(exchange);
    busy.iter().for_each(|busy| busy.wait_progress(20, LIMIT).unwrap());
    assert_eq!(node.paths().len(), 4, "{:?}", node.flows());
    for server in [&node.here, &node.there] {
        assert!(server.peers().iter().any(|peer| peer.ip() == vip), "traffic comes from the VIP");
    }
    for host in node.clients() {
        // Its hash chooses the member; of eight connections both have some.
        let (mut longest, mut again) = (Duration::ZERO, 0);
        for _ in 0..8 {
            let (took, retransmitted) = transfer(host, node.vip, LARGE / 8).unwrap();
            longest = longest.max(took);
            again += retransmitted;
        }
        println!(
            "{}: 8 transfers of {} MiB to and fro, {longest:?} at most, {again} segments sent again",
            host.name(),
            LARGE >> 23
        );
    }
    node.balancer.kill().unwrap();
    busy.iter().for_each(|busy| busy.wait_progress(20, LIMIT).unwrap());
    let mut anew = node.clients()[1].run(|| TcpStream::connect_timeout(&node.vip, LIMIT)).unwrap();
    exchange(&mut anew);
    node.balancer.run().unwrap();
    busy.iter().for_each(|busy| busy.wait_progress(20, LIMIT).unwrap());
    node.balancer.stop().unwrap();
    busy.iter().for_each(|busy| busy.wait_progress(20, LIMIT).unwrap());
    idle.iter_mut().for_each(exchange);
    let broken: Vec<_> = busy.iter().flat_map(BusyClients::outcomes).filter_map(|o| o.broken).collect();
    println!(
        "agent killed, restarted, stopped: {} of 50 busy and 0 of 20 idle connections broken",
        broken.len()
    );
    assert!(broken.is_empty(), "{broken:?}");
    let host = node.lab.host("lb1");
    Networking::of(host).assert_as(&node.before, "the node's networking has changed");
    node.balancer.cli(&["detach", "--config", node.balancer.config().to_str().unwrap()]).unwrap();
    let links = host.output("ip", &["-o", "link", "show"]).unwrap();
    assert!(!links.contains("etcdlb0"), "{links}");
    Networking::of(host).assert_as(&node.before, "detach leaves something");
}

#[test]
fn clients_and_a_member_on_the_node_ipv4() {
    four_paths("node4", VIP.into());
}

#[test]
fn clients_and_a_member_on_the_node_ipv6() {
    four_paths("node6", VIP6.into());
}

#[test]
fn its_own_member_is_preferred_while_it_is_healthy() {
    let node = Node::start("near", VIP.into(), "prefer_local = true");
    let connect = |host: &Host| host.run(|| TcpStream::connect_timeout(&node.vip, LIMIT)).unwrap();
    let [remote, local] = node.clients();
    let mut kept: Vec<_> = (0..20).flat_map(|_| [connect(remote), connect(local)]).collect();
    kept.iter_mut().for_each(exchange);
    let own = format!("{}:", local.address());
    let on = |is_local: bool, backend: &str| {
        let flows = node.flows();
        flows.iter().filter(|(b, client)| b.contains(backend) && client.starts_with(&own) == is_local).count()
    };
    println!(
        "20 connections each: of the node's own clients {} on its own member, of others {}",
        on(true, "own"),
        on(false, "own")
    );
    assert_eq!((on(true, "own"), on(true, "other")), (20, 0));
    assert!(on(false, "other") > 0, "others are spread as ever");
    // Drained, it takes none.
    node.balancer.cli(&["drain", "own"]).unwrap();
    let mut more: Vec<_> = (0..5).map(|_| connect(local)).collect();
    more.iter_mut().for_each(exchange);
    assert_eq!(on(true, "other"), 5);
    drop(kept);
}

#[test]
fn what_is_said_of_the_node() {
    let node = Node::start("nodesays", VIP.into(), "");
    let host = node.lab.host("lb1");
    let route = host.output("ip", &["route", "get", &VIP.to_string()]).unwrap();
    println!("{}", route.trim());
    assert!(route.contains("dev etcdlb0") && route.contains("src 10.0.1.2"), "{route}");
    let status = node.balancer.status().unwrap();
    assert_eq!(status["interfaces"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["node"], json!({"interface": "etcdlb0", "xdp_mode": "native", "led": ["10.0.1.100"]}));
    let text = host.output("ping", &["-c", "3", "-i", "0.01", &VIP.to_string()]).unwrap();
    assert!(text.contains("3 received"), "{text}");
    // A closed port says so at once, to the node's own clients too.
    let refused = host.run(|| TcpStream::connect_timeout(&(VIP, 9).into(), LIMIT)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    // Deleted by somebody, it is made again.
    host.output("ip", &["link", "del", "etcdlb0"]).unwrap();
    let mut stream = eventually(LIMIT, "a connection", || {
        Ok(host.run(|| TcpStream::connect_timeout(&node.vip, Duration::from_millis(200)))?)
    })
    .unwrap();
    stream.write_all(b"again").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

/// Another's interface of that name is left alone and named; others are served.
#[test]
fn a_foreign_interface_of_its_name() {
    let topology =
        Topology::standard().without("lb2").without("etcd-2").without("etcd-3").without("client-2");
    let lab = Lab::start("nodename", &topology).unwrap();
    let host = lab.host("lb1");
    host.output("ip", &["link", "add", "etcdlb0", "type", "bridge"]).unwrap();
    let server = EchoServer::start(lab.host("etcd-1"), CLIENT_PORT).unwrap();
    let mut balancer =
        Balancer::start(host, &Config::echo(host).backend("other", server.address()).text()).unwrap();
    let to = (VIP, CLIENT_PORT).into();
    let mut stream = lab.host("client-1").run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap();
    exchange(&mut stream);
    let log = std::fs::read_to_string(balancer.process().unwrap().log()).unwrap();
    assert!(log.contains("interface etcdlb0 is there and is no veth pair of etcd-lb's"), "{log}");
    balancer.stop().unwrap();
    balancer.cli(&["detach", "--config", balancer.config().to_str().unwrap()]).unwrap();
    host.output("ip", &["link", "show", "dev", "etcdlb0"]).unwrap();
}

/// Where the driver has no native XDP, the far end is generic too, and the same is served.
#[test]
fn in_generic_mode_too() {
    let node = Node::start_with("nodegen", VIP.into(), "xdp_mode = \"generic\"", "");
    assert_eq!(node.balancer.status().unwrap()["node"]["xdp_mode"], "generic");
    let busy =
        node.clients().map(|host| BusyClients::start(host, node.vip, 25, Duration::from_millis(5)).unwrap());
    busy.iter().for_each(|busy| busy.wait_progress(20, LIMIT).unwrap());
    assert_eq!(node.paths().len(), 4, "{:?}", node.flows());
    for host in node.clients() {
        let (took, again) = transfer(host, node.vip, LARGE / 8).unwrap();
        println!("{}: {} MiB to and fro in {took:?}, {again} segments sent again", host.name(), LARGE >> 23);
    }
    let broken: Vec<_> = busy.iter().flat_map(BusyClients::outcomes).filter_map(|o| o.broken).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
