//! How connections spread over the backends, and what `explain` says of it.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(15);
const TARGET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP), 2379);

struct Scene {
    balancer: Balancer,
    servers: Vec<EchoServer>,
    lab: Lab,
}

/// Three backends, `algorithm` as it is unwritten.
fn scene(name: &str, service: &str) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2")).unwrap();
    let servers: Vec<EchoServer> =
        ["etcd-1", "etcd-2", "etcd-3"].map(|name| EchoServer::start(lab.host(name), 2379).unwrap()).into();
    let host = lab.host("lb1");
    let mut config = format!(
        "interface = {:?}\n[[service]]\nname = \"echo\"\nvip = \"{VIP}\"\nport = 2379\n{service}\
         on_backend_down = \"keep\"\n[service.health]\nkind = \"tcp\"\ninterval = \"200ms\"\n\
         fast_interval = \"50ms\"\ntimeout = \"200ms\"\n",
        host.interface()
    );
    for (number, server) in servers.iter().enumerate() {
        config += &format!("[[service.backend]]\nname = \"b{number}\"\naddress = \"{}\"\n", server.address());
    }
    let balancer = Balancer::start(host, &config).unwrap();
    for name in ["b0", "b1", "b2"] {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    Scene { balancer, servers, lab }
}

fn connect(scene: &Scene, client: &str) -> TcpStream {
    scene.lab.host(client).run(|| TcpStream::connect_timeout(&TARGET, LIMIT)).unwrap()
}

/// Established flows of b0, b1 and b2.
fn spread(balancer: &Balancer) -> [u64; 3] {
    let status = balancer.status().unwrap();
    [0, 1, 2].map(|n| status["services"][0]["backends"][n]["flows"].as_u64().unwrap())
}

fn explain(balancer: &Balancer, client: &str) -> Value {
    let text = balancer.cli(&["explain", client, "--json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["services"][0].clone()
}

#[test]
fn six_long_lived_connections_are_two_by_two_by_two() {
    let scene = scene("spread", "");
    assert_eq!(scene.balancer.status().unwrap()["services"][0]["algorithm"], "bounded");
    let clients =
        BusyClients::start(scene.lab.host("client-1"), TARGET, 6, Duration::from_millis(50)).unwrap();
    clients.wait_progress(2, LIMIT).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(spread(&scene.balancer), [2, 2, 2]);

    // At the same moment, as after an outage.
    let lab = &scene.lab;
    let more: Vec<TcpStream> = thread::scope(|scope| {
        let begun: Vec<_> = (0..6).map(|_| scope.spawn(|| connect(&scene, "client-2"))).collect();
        begun.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    thread::sleep(Duration::from_millis(300));
    let now = spread(&scene.balancer);
    println!("six more at the same moment: {now:?}");
    assert!(now.iter().all(|&flows| flows <= 5), "within the bound: {now:?}");
    drop((more, lab));
    assert!(clients.finish().iter().all(|outcome| outcome.broken.is_none()));
}

/// Members restart one after the other, and each one's clients connect again: the last one to return has few, until
/// connections are moved.
#[test]
fn sixty_connections_before_and_after_a_rolling_restart() {
    let mut scene = scene("rolling", "");
    let mut clients: Vec<TcpStream> = (0..60).map(|_| connect(&scene, "client-1")).collect();
    thread::sleep(Duration::from_millis(300));
    let before = spread(&scene.balancer);
    println!("60 connections one after the other: {before:?}");
    assert!(before.iter().all(|&flows| flows <= 25), "within 1.25 of 20: {before:?}");
    for number in 0..3 {
        let name = format!("b{number}");
        drop(scene.servers.remove(number));
        scene.balancer.wait_backend(&name, "down", LIMIT).unwrap();
        clients.retain(|client| !is_closed(client));
        clients.extend((clients.len()..60).map(|_| connect(&scene, "client-1")).collect::<Vec<_>>());
        let host = scene.lab.host(&format!("etcd-{}", number + 1));
        scene.servers.insert(number, EchoServer::start(host, 2379).unwrap());
        scene.balancer.wait_backend(&name, "healthy", LIMIT).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    let after = spread(&scene.balancer);
    println!("after a rolling restart: {after:?}");
    assert_eq!(after.iter().sum::<u64>(), 60);
    assert!(after.iter().all(|&flows| flows <= 37), "within 1.25 of 30, when two were left: {after:?}");
}

/// Whether the other end has closed or reset.
fn is_closed(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let mut octet = [0];
    !matches!(client.peek(&mut octet), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn explain_says_where_connections_really_go() {
    let scene = scene("explain", "");
    let host = scene.lab.host("client-1");
    let mut open = Vec::new();
    for number in 0..50u16 {
        let port = 30_000 + number;
        let client = SocketAddr::new(host.address().into(), port);
        let before = explain(&scene.balancer, &client.to_string());
        assert!(before["flow"].is_null(), "{before}");
        // netcat, for a connection from a chosen port that stays.
        let mut command = host.command("bash");
        command.args(["-c", &format!("exec python3 -c 'import socket,time\ns=socket.socket()\ns.bind((\"\",{port}))\ns.connect((\"{VIP}\",2379))\ntime.sleep(600)'")]);
        open.push(host.spawn(&format!("client-{number}"), command).unwrap());
        let after = eventually(LIMIT, "the connection", || {
            let now = explain(&scene.balancer, &client.to_string());
            ensure!(now["flow"]["state"] == "established", "{now}");
            Ok(now)
        })
        .unwrap();
        assert_eq!(before["backend"], after["backend"], "explained: {before}\nreal: {after}");
        assert_eq!(after["backend"], after["flow"]["backend"]);
    }
    let spread = spread(&scene.balancer);
    println!("50 connections: {spread:?}");
    assert!(spread.iter().all(|&flows| flows <= 21), "{spread:?}");
    println!("{}", scene.balancer.cli(&["explain", "10.0.1.21:45000"]).unwrap());
}

#[test]
fn loads_are_the_port_tables_census_after_churn_from_two_clients() {
    let scene = scene("churn", "max_flows_per_client = 10000\n");
    let kept: Vec<TcpStream> = (0..12).map(|_| connect(&scene, "client-1")).collect();
    let end = Instant::now() + Duration::from_secs(3);
    let made: usize = thread::scope(|scope| {
        let work = |client: &'static str| {
            let scene = &scene;
            move || {
                let mut made = 0;
                while Instant::now() < end {
                    let some: Vec<TcpStream> = (0..8).map(|_| connect(scene, client)).collect();
                    made += some.len();
                }
                made
            }
        };
        let workers =
            ["client-1", "client-2", "client-1", "client-2"].map(|client| scope.spawn(work(client)));
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    println!("{made} connections made and closed");
    let census: u64 = eventually(LIMIT, "only the kept connections", || {
        let flows = spread(&scene.balancer).iter().sum::<u64>();
        ensure!(flows == 12, "{flows} flows");
        Ok(flows)
    })
    .unwrap();
    // `loads` is read at once, before a sweep could correct it four times: the data plane itself lost nothing.
    let path = scene.balancer.pin_dir().join("loads");
    let dump =
        scene.balancer.host().output("bpftool", &["-j", "map", "dump", "pinned", path.to_str().unwrap()]);
    let dump: Value = serde_json::from_str(&dump.unwrap()).unwrap();
    let established = |slot: u32| -> u64 {
        let entries = dump.as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["formatted"]["key"] == slot).unwrap();
        entry["formatted"]["value"]["established"].as_u64().unwrap()
    };
    use lb_common::maps::{LOAD_TOTAL, load_of_backend, load_of_service};
    let loads: BTreeMap<&str, u64> = [
        ("backends", (0..3).map(|number| established(load_of_backend(number))).sum()),
        ("service", established(load_of_service(0))),
        ("total", established(LOAD_TOTAL)),
    ]
    .into();
    println!("loads: {loads:?}");
    assert!(loads.values().all(|&load| load == census), "{loads:?}, by the port tables {census}");
    drop(kept);
}
