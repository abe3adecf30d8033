//! Upgrades to a version whose maps have another layout, and back, and to another `max_flows`: no connection breaks.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP, balancer,
    echo::{BusyClients, EchoServer},
    eventually,
    pair::exchange,
};

const LIMIT: Duration = Duration::from_secs(15);
const BUSY: usize = 50;
const IDLE: usize = 50;

fn other_layout() -> PathBuf {
    let path = balancer::binary().unwrap().with_file_name("etcd-lb-other-layout");
    assert!(path.exists(), "{} is missing: `cargo xtask test` builds it", path.display());
    path
}

fn config(host: &Host, servers: &[EchoServer], max_flows: u32) -> String {
    let config = Config::echo(host).numbered(servers.iter().map(EchoServer::address));
    config.top(&format!("max_flows = {max_flows}")).text()
}

#[test]
fn no_connection_breaks_by_another_layout() {
    let lab = Lab::start("migrate", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let servers: Vec<EchoServer> =
        ["etcd-1", "etcd-2", "etcd-3"].map(|name| EchoServer::start(lab.host(name), 2379).unwrap()).into();
    let (host, client) = (lab.host("lb1"), lab.host("client-1"));
    let standard = balancer::binary().unwrap();
    let mut balancer = Balancer::start(host, &config(host, &servers, 131_072)).unwrap();
    for name in ["b0", "b1", "b2"] {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let vip = SocketAddr::from((VIP, 2379));
    let busy = BusyClients::start(client, vip, BUSY, Duration::from_millis(5)).unwrap();
    let connect = || client.run(|| TcpStream::connect_timeout(&vip, LIMIT)).unwrap();
    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| connect()).collect();
    idle.iter_mut().for_each(exchange);
    busy.wait_progress(20, LIMIT).unwrap();

    let gap = |busy: &BusyClients| busy.outcomes().iter().map(|outcome| outcome.longest_gap).max().unwrap();
    let before = gap(&busy);
    println!("longest wait of {BUSY} busy clients before: {before:?}");
    // A map that the layouts differ in, and one that only its capacity does; killed and stopped.
    let steps: [(&str, PathBuf, u32, bool); 5] = [
        ("another layout", other_layout(), 131_072, false),
        ("the first layout again", standard.clone(), 131_072, false),
        ("more flows", standard.clone(), 262_144, true),
        ("fewer flows, another layout", other_layout(), 4096, true),
        ("as at first", standard, 131_072, false),
    ];
    for (what, binary, max_flows, killed) in steps {
        if killed { balancer.kill() } else { balancer.stop() }.unwrap();
        balancer.use_binary(&binary);
        balancer.write_config(&config(host, &servers, max_flows)).unwrap();
        let begun = Instant::now();
        balancer.run().unwrap();
        let took = begun.elapsed();
        busy.wait_progress(20, LIMIT).unwrap();
        idle.iter_mut().for_each(exchange);
        let status = balancer.status().unwrap();
        assert_eq!(status["flow_table"]["capacity"], max_flows);
        assert_eq!(status["flow_table"]["used"], BUSY + IDLE, "{what}");
        assert!(!balancer.pin_dir().join("old").exists());
        // A new one, which ends.
        exchange(&mut connect());
        let log = std::fs::read_to_string(balancer.process().unwrap().log()).unwrap();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("carried over")).collect();
        assert!(!told.is_empty(), "{log}");
        println!(
            "{what}: ready after {took:?}; longest wait so far {:?}; {}",
            gap(&busy),
            told.last().unwrap()
        );
        eventually(LIMIT, "the new one's end", || {
            let used = balancer.status()?["flow_table"]["used"].as_u64();
            ensure!(used == Some((BUSY + IDLE) as u64), "{used:?}");
            Ok(())
        })
        .unwrap();
    }
    let broken: Vec<_> = busy.finish().into_iter().filter(|outcome| outcome.broken.is_some()).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
