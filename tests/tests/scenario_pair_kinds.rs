//! Pairs of other kinds: IPv6, both families, unicast, without preemption; beside another pair, and with a peer that has
//! another list of addresses.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Lab, Role, Topology, VIP, VIP6,
    config::secret_file,
    echo::EchoServer,
    eventually,
    pair::{LIMIT, exchange},
};

const OTHER_VIP: [u8; 4] = [10, 0, 1, 101];
/// What VRRP wants beside a VIP of IPv6.
const LINK_LOCAL: &str = "link_local = \"fe80::100\"";

/// Hosts, echo servers, and what nodes are made of.
struct Scene {
    servers: Vec<EchoServer>,
    lab: Lab,
}

impl Scene {
    fn new(name: &str, topology: &Topology) -> Self {
        let lab = Lab::start(name, topology).unwrap();
        let servers = ["etcd-1", "etcd-2", "etcd-3"];
        let servers = servers.map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap());
        secret_file(&lab.dir().join("run").join("sync.key"), &[7; 32]).unwrap();
        Self { servers: servers.into(), lab }
    }

    fn standard(name: &str) -> Self {
        Self::new(name, &Topology::standard().without("client-2"))
    }

    /// A service on a VIP.
    fn service(&self, node: &str, vip: impl Into<IpAddr>) -> Config {
        let vip = vip.into();
        let address =
            |server: &EchoServer| if vip.is_ipv6() { server.address_v6() } else { server.address() };
        Config::echo(self.lab.host(node))
            .default_algorithm()
            .name(&format!("on {vip}"))
            .vip(vip)
            .numbered(self.servers.iter().map(address))
    }

    /// A node of a pair with a priority; `more`: lines of `[vrrp]`, `last`: what the config ends with.
    fn node(
        &self,
        names: [&str; 2],
        priority: u8,
        vip: impl Into<IpAddr>,
        more: &str,
        last: &str,
    ) -> Balancer {
        let (host, other) = (self.lab.host(names[0]), self.lab.host(names[1]));
        let key = self.lab.dir().join("run").join("sync.key");
        let text = self.service(names[0], vip).pair_text((host, other), priority, "100ms", &key);
        let text = text.replace("\n[sync]", &format!("\n{more}\n[sync]"));
        Balancer::start(host, &format!("{text}\n{last}")).unwrap()
    }

    /// The stronger node, and the weaker one.
    fn pair(
        &self,
        vip: impl Into<IpAddr> + Copy,
        more: [&str; 2],
        last: impl Fn(&str) -> String,
    ) -> [Balancer; 2] {
        let nodes = [
            self.node(["lb1", "lb2"], 200, vip, more[0], &last("lb1")),
            self.node(["lb2", "lb1"], 100, vip, more[1], &last("lb2")),
        ];
        wait_role(&nodes[0], "active");
        wait_role(&nodes[1], "backup");
        nodes.iter().for_each(wait_synced);
        nodes
    }

    fn connect(&self, vip: impl Into<IpAddr>) -> TcpStream {
        let to = SocketAddr::new(vip.into(), CLIENT_PORT);
        let client = self.lab.host("client-1");
        let mut stream = eventually(LIMIT, "a client connects", || {
            Ok(client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))?)
        })
        .unwrap();
        exchange(&mut stream);
        stream
    }
}

fn wait_role(node: &Balancer, role: &str) {
    eventually(LIMIT, &format!("{} is {role}", node.host().name()), || {
        let status = node.status()?;
        ensure!(
            status["role"] == role && status["fenced"] == false,
            "{} {}",
            status["role"],
            status["fenced"]
        );
        Ok(())
    })
    .unwrap();
}

fn wait_synced(node: &Balancer) {
    eventually(LIMIT, "the nodes are in sync", || {
        let status = node.status()?;
        ensure!(status["peer"]["synced"] == true, "{}", status["peer"]);
        Ok(())
    })
    .unwrap();
}

fn wait_flows(node: &Balancer, flows: usize) {
    eventually(LIMIT, "every flow is there", || {
        let used = node.status()?["flow_table"]["used"].as_u64();
        ensure!(used >= Some(flows as u64), "{used:?} of {flows}");
        Ok(())
    })
    .unwrap();
}

fn log(node: &mut Balancer) -> String {
    fs::read_to_string(node.process().unwrap().log()).unwrap()
}

fn nothing(_: &str) -> String {
    String::new()
}

/// The active node is killed and comes back; the connections go on.
fn survives(scene: &Scene, nodes: &mut [Balancer; 2], vips: &[IpAddr]) {
    let mut streams: Vec<_> = vips.iter().flat_map(|vip| (0..10).map(|_| scene.connect(*vip))).collect();
    wait_flows(&nodes[1], streams.len());
    let since = Instant::now();
    nodes[0].kill().unwrap();
    wait_role(&nodes[1], "active");
    streams.iter_mut().for_each(exchange);
    println!("killed: every one of {} connections goes on after {:?}", streams.len(), since.elapsed());
    streams.extend(vips.iter().map(|vip| scene.connect(*vip)));
    nodes[0].run().unwrap();
    wait_role(&nodes[0], "active");
    wait_role(&nodes[1], "backup");
    streams.iter_mut().for_each(exchange);
}

#[test]
fn a_vip_of_ipv6() {
    let scene = Scene::standard("kind_v6");
    let mut nodes = scene.pair(VIP6, [LINK_LOCAL; 2], nothing);
    survives(&scene, &mut nodes, &[VIP6.into()]);
}

#[test]
fn vips_of_both_families_move_together() {
    let scene = Scene::standard("kind_both");
    let mut nodes = scene.pair(VIP, [LINK_LOCAL; 2], |node| scene.service(node, VIP6).service_text());
    survives(&scene, &mut nodes, &[VIP.into(), VIP6.into()]);
    nodes[0].cli(&["failover"]).unwrap();
    wait_role(&nodes[1], "active");
    drop([scene.connect(VIP), scene.connect(VIP6)]);
}

#[test]
fn by_unicast() {
    let scene = Scene::standard("kind_unicast");
    let peers =
        ["lb2", "lb1"].map(|peer| format!("unicast_peers = [\"{}\"]", scene.lab.host(peer).address()));
    let mut nodes = scene.pair(VIP, [&peers[0], &peers[1]], nothing);
    survives(&scene, &mut nodes, &[VIP.into()]);
}

#[test]
fn without_preemption_the_vip_stays_where_it_is() {
    let scene = Scene::standard("kind_stay");
    let mut nodes = scene.pair(VIP, ["preempt = false"; 2], nothing);
    nodes[0].kill().unwrap();
    wait_role(&nodes[1], "active");
    nodes[0].run().unwrap();
    wait_role(&nodes[0], "backup");
    nodes.iter().for_each(wait_synced);
    thread::sleep(Duration::from_secs(2));
    wait_role(&nodes[1], "active");
    nodes[1].cli(&["failover"]).unwrap();
    wait_role(&nodes[0], "active");
}

#[test]
fn a_node_that_returns_waits_for_preempt_delay() {
    let scene = Scene::standard("kind_delay");
    let mut nodes = scene.pair(VIP, ["preempt_delay = \"3s\"", ""], nothing);
    nodes[0].kill().unwrap();
    wait_role(&nodes[1], "active");
    let since = Instant::now();
    nodes[0].run().unwrap();
    wait_role(&nodes[0], "active");
    println!("with preempt_delay = 3s it takes over {:?} after its start", since.elapsed());
    assert!(since.elapsed() > Duration::from_secs(3));
}

#[test]
fn two_pairs_with_one_vrid_are_told_and_go_on() {
    let topology = Topology::standard().without("client-2");
    let topology = topology.with(Role::Balancer, "lb3", 4).with(Role::Balancer, "lb4", 5);
    let scene = Scene::new("kind_vrid", &topology);
    let [first, second] = scene.pair(VIP, [""; 2], nothing);
    let mut streams = vec![scene.connect(VIP)];
    // Stronger than the first pair, were it one of them.
    let third = scene.node(["lb3", "lb4"], 250, OTHER_VIP, "", "");
    let fourth = scene.node(["lb4", "lb3"], 150, OTHER_VIP, "", "");
    wait_role(&third, "active");
    wait_role(&fourth, "backup");
    streams.push(scene.connect(OTHER_VIP));
    let mut nodes = [first, second, third, fourth];
    for node in &mut nodes {
        eventually(LIMIT, "the other pair is noticed", || {
            let rejected = node.metric("etcd_lb_vrrp_rejected_total", "reason=\"address_list\"")?;
            ensure!(rejected > 9.5, "{rejected}");
            let log = log(node);
            ensure!(log.contains("another `router_id` if it is another pair"), "{log}");
            Ok(())
        })
        .unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    for (node, role) in nodes.iter().zip(["active", "backup", "active", "backup"]) {
        wait_role(node, role);
        let moved = node.metric("etcd_lb_role_transitions_total", "\"active\"").unwrap();
        assert!(moved < 1.5, "{}: {moved} times active", node.host().name());
        let revoked = node.metric("etcd_lb_lease_revoked_total", "").unwrap();
        assert!(revoked < 0.5, "{}: {revoked} leases revoked", node.host().name());
    }
    streams.iter_mut().for_each(exchange);
}

#[test]
fn a_peer_with_another_list_is_heeded_and_told() {
    let scene = Scene::standard("kind_list");
    // The weaker node lacks a VIP.
    let more = |node: &str| match node {
        "lb1" => scene.service(node, OTHER_VIP).service_text(),
        _ => String::new(),
    };
    let mut nodes = scene.pair(VIP, [""; 2], more);
    // The active one hears no advertisements; flow sync tells it.
    let words =
        ["the other node does not have this service", "the peer advertises other addresses than this node"];
    for (node, words) in nodes.iter_mut().zip(words) {
        eventually(LIMIT, "the difference is told", || {
            let log = log(node);
            ensure!(log.contains(words), "{log}");
            Ok(())
        })
        .unwrap();
    }
    survives(&scene, &mut nodes, &[VIP.into()]);
}
