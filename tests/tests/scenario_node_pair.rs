//! Clients and members on the nodes of a pair, over IPv4 and IPv6, while the VIPs move to and fro.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Config, Host, Lab, Role, Topology, VIP, VIP6,
    config::secret_file,
    echo::{BusyClients, EchoServer},
    eventually,
    held::HeldClients,
    networking::Networking,
    pair::{LIMIT, exchange},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// Moves of the VIPs, to and fro.
const MOVES: usize = if cfg!(feature = "long") { 100 } else { 10 };

/// Two nodes, each with a server, and a server elsewhere; both families.
struct Scene {
    nodes: [Balancer; 2],
    before: [Networking; 2],
    _servers: Vec<EchoServer>,
    lab: Lab,
}

impl Scene {
    fn start(name: &str) -> Self {
        let topology = Topology::empty().with(Role::Node, "lb1", 2).with(Role::Node, "lb2", 3).with(
            Role::Member,
            "etcd-1",
            11,
        );
        let lab = Lab::start(name, &topology).unwrap();
        let servers: Vec<EchoServer> = ["lb1", "lb2", "etcd-1"]
            .map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap())
            .into();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let before = ["lb1", "lb2"].map(|name| Networking::of(lab.host(name)));
        let nodes = [("lb1", "lb2", 200), ("lb2", "lb1", 100)].map(|(node, other, priority)| {
            let host = lab.host(node);
            let v4 = Config::echo(host).numbered(servers.iter().map(EchoServer::address));
            let v6 =
                Config::echo(host).name("v6").vip(VIP6).addresses(servers.iter().map(EchoServer::address_v6));
            let text = v4.pair_text((host, lab.host(other)), priority, "100ms", &key);
            let text = text
                .replace("[vrrp]\n", &format!("{}\n[vrrp]\nlink_local = \"fe80::100\"\n", v6.service_text()));
            Balancer::start(host, &text).unwrap()
        });
        let scene = Self { nodes, before, _servers: servers, lab };
        scene.wait_active(0);
        scene
    }

    fn hosts(&self) -> [&Host; 3] {
        ["lb1", "lb2", "etcd-1"].map(|name| self.lab.host(name))
    }

    /// Which node is active, once one is and the other is not, both are in sync, and their routes are as they should be.
    fn settled(&self) -> usize {
        let active = eventually(LIMIT, "one active node", || {
            let roles = [self.nodes[0].status()?["role"].clone(), self.nodes[1].status()?["role"].clone()];
            let active =
                [0, 1].into_iter().find(|&node| roles[node] == "active" && roles[1 - node] == "backup");
            active.ok_or_else(|| anyhow::anyhow!("{roles:?}"))
        })
        .unwrap();
        self.wait_active(active);
        active
    }

    /// How often a node has become active.
    fn taken_over(&self, node: usize) -> f64 {
        self.nodes[node].metric("etcd_lb_role_transitions_total", "to=\"active\"").unwrap()
    }

    /// The node is active, both are in sync, and their routes are as they should be.
    fn wait_active(&self, active: usize) {
        for (number, node) in self.nodes.iter().enumerate() {
            eventually(LIMIT, "roles, sync and routes", || {
                let status = node.status()?;
                let role = if number == active { "active" } else { "backup" };
                ensure!(status["role"] == role && status["peer"]["synced"] == true, "{role}: {status}");
                let led = status["node"]["led"].as_array().map_or(0, Vec::len);
                ensure!(led == if number == active { 2 } else { 0 }, "{} leads {led}", node.host().name());
                Ok(())
            })
            .unwrap();
            let routes = node.host().output("ip", &["route", "show", "dev", "etcdlb0"]).unwrap()
                + &node.host().output("ip", &["-6", "route", "show", "dev", "etcdlb0"]).unwrap();
            let routes =
                routes.lines().filter(|line| !line.starts_with("multicast ") && !line.starts_with("ff00::"));
            assert_eq!(routes.count(), if number == active { 2 } else { 0 }, "on {}", node.host().name());
        }
    }
}

fn vips() -> [SocketAddr; 2] {
    [IpAddr::from(VIP), VIP6.into()].map(|vip| (vip, CLIENT_PORT).into())
}

#[test]
fn clients_on_both_nodes_outlive_every_move() {
    let mut scene = Scene::start("node_pair");
    let mut busy = Vec::new();
    let mut idle = Vec::new();
    for host in scene.hosts() {
        for vip in vips() {
            busy.push(BusyClients::start(host, vip, 5, Duration::from_millis(10)).unwrap());
            idle.extend((0..3).map(|_| host.run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap()));
        }
    }
    idle.iter_mut().for_each(exchange);
    busy.iter().for_each(|busy| busy.wait_progress(10, LIMIT).unwrap());
    let unbroken = |busy: &[BusyClients], what: &str| {
        busy.iter().for_each(|busy| busy.wait_progress(5, LIMIT).unwrap());
        let broken: Vec<_> = busy.iter().flat_map(BusyClients::outcomes).filter_map(|o| o.broken).collect();
        assert!(broken.is_empty(), "{what}: {broken:?}");
    };
    for (what, act) in [
        ("killed", (|node: &mut Balancer| node.kill().unwrap()) as fn(&mut Balancer)),
        ("stopped", |node| node.stop().unwrap()),
    ] {
        act(&mut scene.nodes[0]);
        eventually(LIMIT, "the other node is active", || {
            ensure!(scene.nodes[1].status()?["role"] == "active", "it is not");
            Ok(())
        })
        .unwrap();
        unbroken(&busy, what);
        // Nobody took the routes of the node that was killed away: the data plane hands its clients over.
        for host in scene.hosts() {
            for vip in vips() {
                let since = Instant::now();
                let mut stream = eventually(LIMIT, "a new connection", || {
                    Ok(host.run(|| TcpStream::connect_timeout(&vip, Duration::from_millis(500)))?)
                })
                .unwrap();
                exchange(&mut stream);
                println!("{what}: {} connects to {vip} in {:?}", host.name(), since.elapsed());
            }
        }
        idle.iter_mut().for_each(exchange);
        scene.nodes[0].run().unwrap();
        scene.wait_active(0);
        unbroken(&busy, "it returned");
        idle.iter_mut().for_each(exchange);
    }
    for _ in 0..MOVES {
        // On a busy machine the stronger one may have taken them back by itself.
        let from = scene.settled();
        let before = scene.taken_over(1 - from);
        scene.nodes[from].cli(&["failover"]).unwrap();
        eventually(LIMIT, "the other node has taken over", || {
            ensure!(scene.taken_over(1 - from) > before, "it has not");
            Ok(())
        })
        .unwrap();
        unbroken(&busy, "failover");
    }
    scene.settled();
    idle.iter_mut().for_each(exchange);
    let outcomes: Vec<_> = busy.iter().flat_map(BusyClients::outcomes).collect();
    println!(
        "{} moves of the VIPs: 0 of {} connections broken, the longest silence {:?}",
        MOVES + 4,
        outcomes.len() + idle.len(),
        outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap()
    );
    drop(busy);
    drop(idle);
    for number in 0..2 {
        let node = &mut scene.nodes[number];
        node.stop().unwrap();
        let host = node.host().clone();
        node.cli(&["detach", "--config", node.config().to_str().unwrap()]).unwrap();
        assert!(!host.output("ip", &["-o", "link", "show"]).unwrap().contains("etcdlb0"));
        assert!(!node.pin_dir().exists(), "pins are left");
        Networking::of(&host).assert_as(&scene.before[number], "something is left");
    }
}

#[test]
fn a_client_whose_address_nobody_else_can_reach_is_reset_at_once() {
    let scene = Scene::start("node_alone");
    let host = scene.lab.host("lb1");
    host.output("ip", &["address", "add", "10.77.0.1/32", "dev", "lo"]).unwrap();
    let from = |address: [u8; 4]| {
        let stream = host.run(|| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            let [a, b, c, d] = address;
            bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
            connect(socket.as_raw_fd(), &SockaddrIn::new(10, 0, 1, 100, CLIENT_PORT)).unwrap();
            TcpStream::from(socket)
        });
        let mut stream = stream;
        exchange(&mut stream);
        stream
    };
    let alone = HeldClients::watch(vec![from([10, 77, 0, 1]), from([10, 77, 0, 1])]).unwrap();
    let mut known = from([10, 0, 1, 2]);
    let since = Instant::now();
    scene.nodes[0].cli(&["failover"]).unwrap();
    let ended = eventually(LIMIT, "the connections to end", || {
        let ends: Option<Vec<_>> = alone.ends().into_values().collect();
        ends.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .unwrap();
    assert!(ended.iter().all(|end| end.reset));
    println!("reset {:?} after the failover began", ended.iter().map(|end| end.at - since).max().unwrap());
    scene.wait_active(1);
    exchange(&mut known);
    let flows = scene.nodes[0].metric("etcd_lb_backend_resets_total", "reason=\"unreachable\"").unwrap();
    println!("{flows} counted as unreachable on the first of its backends");
}
