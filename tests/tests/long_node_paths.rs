//! What the way through the balancer adds to a round trip: clients and members on its node or not, over each of the four paths.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use etcd_lb_tests::{Balancer, Config, Host, Lab, Topology, VIP, echo::EchoServer, pair::LIMIT};

const ROUNDS: usize = 15;
const TRIPS: usize = 3000;

fn connect(host: &Host, to: SocketAddr) -> TcpStream {
    let stream = host.run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The median of a round's trips, of 64 octets each.
fn round(stream: &mut TcpStream) -> Duration {
    let mut buffer = [7; 64];
    let mut times: Vec<Duration> = (0..TRIPS)
        .map(|_| {
            let begun = Instant::now();
            stream.write_all(&buffer).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[TRIPS / 2]
}

#[test]
fn what_each_of_the_four_paths_adds() {
    let topology =
        Topology::standard().without("lb2").without("etcd-2").without("etcd-3").without("client-2");
    let lab = Lab::start("paths", &topology).unwrap();
    let host = lab.host("lb1");
    // A service for each member, so that the path is known.
    let members = [("lb1", 2379), ("etcd-1", 2381)];
    let servers = members.map(|(name, port)| EchoServer::start(lab.host(name), port).unwrap());
    let [own, other] = [0, 1].map(|number: usize| {
        Config::echo(host)
            .name(members[number].0)
            .port(members[number].1)
            .backend(members[number].0, servers[number].address())
    });
    let balancer = Balancer::start(host, &format!("{}\n{}", own.text(), other.service_text())).unwrap();
    for (name, _) in members {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let mut paths = Vec::new();
    for (client, client_is) in [("client-1", "elsewhere"), ("lb1", "on the node")] {
        for (number, member_is) in [(1, "elsewhere"), (0, "on the node")] {
            let direct = connect(lab.host(client), servers[number].address());
            let through = connect(lab.host(client), (VIP, members[number].1).into());
            paths.push((client_is, member_is, [direct, through], [vec![], vec![]]));
        }
    }
    // In turns, so that what else the machine does falls on all of them.
    for _ in 0..ROUNDS {
        for (_, _, streams, times) in &mut paths {
            for (stream, times) in streams.iter_mut().zip(times.iter_mut()) {
                times.push(round(stream));
            }
        }
    }
    println!("| client | member | direct | through the VIP | added | spread of the rounds |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (client, member, _, times) in &mut paths {
        times.iter_mut().for_each(|times| times.sort_unstable());
        let [direct, through] = [0, 1].map(|which| times[which][ROUNDS / 2].as_secs_f64() * 1e6);
        let spread = |times: &[Duration]| (times[ROUNDS * 3 / 4] - times[ROUNDS / 4]).as_secs_f64() * 1e6;
        println!(
            "| {client} | {member} | {direct:.1} µs | {through:.1} µs | {:.1} µs | {:.1} and {:.1} µs |",
            through - direct,
            spread(&times[0]),
            spread(&times[1])
        );
    }
}
