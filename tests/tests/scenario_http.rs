//! The read-only HTTP listener, and what it says when backends fail.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP,
    echo::{BusyClients, EchoServer},
    eventually,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(15);
const LISTEN: &str = "10.0.1.2:9479";

/// Status and body of a GET.
fn get(host: &Host, path: &str) -> Result<(u16, String)> {
    let address: SocketAddr = LISTEN.parse()?;
    let mut stream = host.run(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {LISTEN}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.split(' ').nth(1).unwrap_or("0").parse()?, body.to_owned()))
}

/// The value of a series whose name and labels begin so.
fn series(metrics: &str, start: &str) -> f64 {
    let line = metrics
        .lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no {start} in {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

struct Scene {
    balancer: Balancer,
    servers: Vec<EchoServer>,
    lab: Lab,
}

fn scene(name: &str, service: &str) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2").without("client-2")).unwrap();
    let servers: Vec<EchoServer> = ["etcd-1", "etcd-2"]
        .into_iter()
        .map(|name| EchoServer::start(lab.host(name), 2379).unwrap())
        .collect();
    let host = lab.host("lb1");
    let config = Config::echo(host).service(service).numbered(servers.iter().map(EchoServer::address));
    let balancer = Balancer::start(host, &config.text()).unwrap();
    for name in ["b0", "b1"] {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    Scene { balancer, servers, lab }
}

#[test]
fn every_endpoint_answers_and_counts_what_happens() {
    let scene = scene("http", "");
    let host = scene.balancer.host();
    assert_eq!(get(host, "/healthz").unwrap().0, 200);
    assert_eq!(get(host, "/readyz").unwrap().0, 200);
    assert_eq!(get(host, "/nonsense").unwrap().0, 404);
    let status: Value = serde_json::from_str(&get(host, "/status.json").unwrap().1).unwrap();
    assert_eq!(status["role"], json!("standalone"));
    assert_eq!(status["peer"], Value::Null);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for key in ["version", "role", "fenced", "interfaces", "services", "flow_table", "peer"] {
        assert!(keys(&status).iter().any(|k| k == key), "status lacks {key}");
    }
    for key in [
        "name",
        "address",
        "state",
        "reason",
        "weight",
        "flows",
        "slots",
        "leader",
        "version",
        "cluster_id",
        "last_check_ms",
        "since",
    ] {
        assert!(
            keys(&status["services"][0]["backends"][0]).iter().any(|k| k == key),
            "a backend lacks {key}"
        );
    }

    let before = get(host, "/metrics").unwrap().1;
    // Every series exists from the start.
    for name in [
        "build_info{version=",
        "role{role=\"standalone\"} 1",
        "role{role=\"active\"} 0",
        "vip_fenced 0",
        "backend_up{service=\"echo\",backend=\"b0\"} 1",
        "backend_state{",
        "backend_weight{",
        "backend_flows{",
        "backend_connections_total{",
        "backend_packets_total{",
        "backend_bytes_total{",
        "backend_checks_total{",
        "backend_check_duration_seconds_bucket{",
        "backend_handshake_failures_total{",
        "service_fail_open{",
        "flows 0",
        "half_open_flows 0",
        "flow_table_capacity 131072",
        "nat_ports_used{",
        "config_last_reload_successful 1",
        "config_last_reload_success_timestamp_seconds ",
        "xdp_attached{interface=\"eth0\",mode=\"native\"} 1",
    ] {
        let name = format!("etcd_lb_{name}");
        assert!(before.lines().any(|line| line.starts_with(&name)), "no {name} in\n{before}");
    }
    for counter in lb_common::counters::Counter::ALL {
        assert!(before.contains(&format!("\"{}\"", counter.name())), "no series for {}", counter.name());
    }
    for line in before.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(
            before.contains(&format!("# TYPE {family} ")) || before.contains(&format!("# TYPE {name} ")),
            "{name} has no TYPE"
        );
    }

    let busy =
        BusyClients::start(scene.lab.host("client-1"), (VIP, 2379).into(), 10, Duration::from_millis(5))
            .unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    let after = get(host, "/metrics").unwrap().1;
    assert_eq!(series(&after, "etcd_lb_flows "), 10.0);
    let packets = |number| {
        series(&after, &format!("etcd_lb_backend_packets_total{{service=\"echo\",backend=\"b{number}\""))
    };
    assert!(packets(0) + packets(1) > 400.0);
    drop(busy);
    drop(scene.servers);
}

#[test]
fn failing_open_and_no_backend_are_shown_and_done() {
    let mut scene = scene("failopen", "no_backend = \"reset\"\n");
    let connect = |lab: &Lab| {
        let address: SocketAddr = (VIP, 2379).into();
        lab.host("client-1").run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))
    };
    connect(&scene.lab).unwrap();
    scene.servers.clear();
    let fail_open =
        |balancer: &Balancer| balancer.status().map(|status| status["services"][0]["fail_open"].clone());
    eventually(LIMIT, "failing open", || {
        ensure!(fail_open(&scene.balancer)? == json!(true), "not yet");
        Ok(())
    })
    .unwrap();
    // The backends' own kernels refuse.
    let error = connect(&scene.lab).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    for name in ["b0", "b1"] {
        scene.balancer.cli(&["drain", name]).unwrap();
    }
    let error = connect(&scene.lab).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    let metrics = get(scene.balancer.host(), "/metrics").unwrap().1;
    assert!(series(&metrics, "etcd_lb_reset_packets_total{reason=\"no_backend_reset\"}") >= 1.0, "{metrics}");
    for name in ["b0", "b1"] {
        scene.balancer.cli(&["undrain", name]).unwrap();
    }
    scene.servers = ["etcd-1", "etcd-2"]
        .into_iter()
        .map(|name| EchoServer::start(scene.lab.host(name), 2379).unwrap())
        .collect();
    eventually(LIMIT, "the backends again", || {
        ensure!(fail_open(&scene.balancer)? == json!(false), "still failing open");
        Ok(())
    })
    .unwrap();
    connect(&scene.lab).unwrap();
}
