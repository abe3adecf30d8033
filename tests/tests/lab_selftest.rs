//! The lab itself, without a balancer: what a scenario relies on when it says that nothing else broke.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use etcd_lb_tests::{
    Cluster, Fleet, Lab, Role, Topology,
    echo::{BusyClients, EchoServer},
    etcd::Status,
    eventually,
    fleet::Options,
    https::Connection,
    packet::RawSocket,
    state,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn etcd_over_tls_and_only_a_dead_members_connections_break() {
    let lab = Lab::start("selftest", &Topology::standard()).unwrap();
    let mut cluster = Cluster::start(&lab).unwrap();
    let client = lab.host("client-1");

    cluster.etcdctl(client, &cluster.endpoints(), &["endpoint", "health"]).unwrap();
    cluster.etcdctl(client, &cluster.endpoints(), &["put", "k", "v"]).unwrap();
    assert_eq!(cluster.etcdctl(client, &cluster.endpoints(), &["get", "k"]).unwrap(), "k\nv\n");
    assert!(cluster.leader().unwrap().starts_with("etcd-"));

    let options = Options { clients: 2, interval: Duration::from_millis(10), ..Options::default() };
    let fleets: Vec<(String, Fleet)> = cluster
        .members()
        .iter()
        .map(|member| {
            let fleet = Fleet::start(client, member.client_address(), &cluster.pki, options).unwrap();
            (member.name().to_owned(), fleet)
        })
        .collect();
    for (name, fleet) in &fleets {
        fleet.wait_progress(5, LIMIT).unwrap();
        assert!(fleet.sessions().iter().all(|session| cluster.name_of(session.member) == Some(name)));
    }

    let killed = Instant::now();
    cluster.member_mut("etcd-2").kill().unwrap();
    for (name, fleet) in &fleets {
        let expected = if name == "etcd-2" { 2 } else { 0 };
        eventually(LIMIT, "broken connections", || {
            anyhow::ensure!(fleet.broken().len() == expected, "{name}: {}", fleet.broken().len());
            Ok(())
        })
        .unwrap();
        fleet.wait_progress(20, LIMIT).unwrap();
        assert_eq!(fleet.broken().len(), expected, "{name}");
    }
    let noticed = fleets[1].1.broken()[0].broken.clone().unwrap().at - killed;
    println!("a client of the killed member noticed after {noticed:?}");

    cluster.member_mut("etcd-2").start().unwrap();
    cluster.member_mut("etcd-2").wait_healthy().unwrap();
}

#[test]
fn a_frozen_member_lets_clients_hang_until_it_thaws() {
    let lab = Lab::start("freeze", &Topology::standard().without("lb1").without("lb2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let member = cluster.member("etcd-1");
    let client = lab.host("client-1");
    let mut connection =
        Connection::open(client, member.client_address(), &cluster.pki, Duration::from_millis(300)).unwrap();
    member.freeze().unwrap();
    assert!(Status::over(&mut connection).is_err());
    member.thaw().unwrap();
    eventually(LIMIT, "an answer", || member.status()).unwrap();
}

#[test]
fn two_labs_at_once_share_addresses_and_nothing_else() {
    let topology = Topology::empty().with(Role::Client, "a", 1).with(Role::Client, "b", 2);
    let labs = [Lab::start("twin", &topology).unwrap(), Lab::start("twin", &topology).unwrap()];
    assert_ne!(labs[0].id(), labs[1].id());
    let servers: Vec<EchoServer> =
        labs.iter().map(|lab| EchoServer::start(lab.host("b"), 7).unwrap()).collect();
    let target = servers[0].address();
    assert_eq!(target, servers[1].address());

    let clients: Vec<BusyClients> = labs
        .iter()
        .map(|lab| BusyClients::start(lab.host("a"), target, 3, Duration::from_millis(1)).unwrap())
        .collect();
    for clients in &clients {
        clients.wait_progress(50, LIMIT).unwrap();
    }
    let [first, second] = labs;
    drop(second);
    clients[0].wait_progress(50, LIMIT).unwrap();
    assert_eq!(clients[0].broken(), 0);
    assert_eq!(servers[0].peers().len(), 3);
    assert!(first.dir().exists());
}

#[test]
fn unplugged_and_deleted_interfaces_return() {
    let topology = Topology::empty()
        .with(Role::Balancer, "lb1", 2)
        .with(Role::Client, "c", 21)
        .interface("lb1", "eth0.7");
    let lab = Lab::start("wire", &topology).unwrap();
    let ping = || lab.host("c").output("ping", &["-c1", "-W1", "10.0.1.2"]);
    eventually(LIMIT, "ping", ping).unwrap();

    lab.plug("lb1", false).unwrap();
    assert!(ping().is_err());
    lab.plug("lb1", true).unwrap();
    eventually(LIMIT, "ping after plugging in", ping).unwrap();

    lab.delete_interface("lb1").unwrap();
    assert!(lab.host("lb1").mac().is_err());
    lab.restore_interface("lb1").unwrap();
    eventually(LIMIT, "ping after the interface's return", ping).unwrap();
}

#[test]
fn frames_cross_the_bridge_unchanged_with_full_checksums() {
    let topology = Topology::empty().with(Role::Client, "a", 1).with(Role::Client, "b", 2);
    let lab = Lab::start("frames", &topology).unwrap();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (from, to) = (RawSocket::open(a).unwrap(), RawSocket::open(b).unwrap());

    // An experimental EtherType (RFC 7042), which no stack answers.
    let mut frame = [&b.mac().unwrap()[..], &a.mac().unwrap()[..], &[0x88, 0xb5]].concat();
    frame.extend(0..200);
    from.send(&frame).unwrap();
    let got = to.receive(LIMIT, |seen| seen.bytes == frame).unwrap();
    assert!(!got.expect("the frame").outgoing);

    let server = EchoServer::start(b, 7).unwrap();
    let clients = BusyClients::start(a, server.address(), 1, Duration::from_millis(1)).unwrap();
    clients.wait_progress(10, LIMIT).unwrap();
    let tcp = to.capture(Duration::from_millis(100), |seen| seen.bytes[12..14] == [8, 0]).unwrap();
    assert!(tcp.len() > 4, "{} frames", tcp.len());
    for seen in tcp {
        assert_eq!(tcp_checksum(&seen.bytes[14..]), 0xffff, "{seen:?}");
    }
}

/// One's complement sum of an IPv4 packet's pseudo-header and TCP segment; 0xffff if its checksum is right.
fn tcp_checksum(packet: &[u8]) -> u32 {
    let header = usize::from(packet[0] & 0xf) * 4;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let mut bytes = packet[12..20].to_vec();
    bytes.extend([0, 6]);
    bytes.extend(((length - header) as u16).to_be_bytes());
    bytes.extend(&packet[header..length]);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let mut id = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::start("panic", &Topology::standard()).unwrap();
        lab.id().clone_into(&mut id);
        let _cluster = Cluster::start(&lab).unwrap();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_gone(&id);
}

#[test]
fn a_half_failed_construction_leaves_nothing_behind() {
    let twice = Topology::empty().with(Role::Client, "a", 1).with(Role::Client, "a", 2);
    let error = Lab::start_as("selftest_half", &twice).unwrap_err();
    assert!(format!("{error:#}").contains("two hosts are named a"), "{error:#}");
    assert_gone("selftest_half");
}

#[test]
fn an_id_is_taken_once() {
    let topology = Topology::empty().with(Role::Client, "a", 1);
    let lab = Lab::start_as("selftest_taken", &topology).unwrap();
    let error = Lab::start_as("selftest_taken", &topology).unwrap_err();
    assert!(format!("{error:#}").contains("exists already"), "{error:#}");
    assert!(lab.host("a").output("ip", &["link", "show", "eth0"]).is_ok());
}

#[test]
fn ctrl_c_and_sigterm_take_the_lab_down() {
    for (id, signal) in [("selftest_int", Signal::SIGINT), ("selftest_term", Signal::SIGTERM)] {
        let mut child = hold(id);
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32));
        assert_gone(id);
    }
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    let id = "selftest_killed";
    let mut child = hold(id);
    assert!(!state::list().iter().find(|found| found.id == id).unwrap().is_stale());
    child.kill().unwrap();
    child.wait().unwrap();
    // Another test that starts a lab meanwhile may have removed it already.
    let _other = Lab::start("reaper", &Topology::empty()).unwrap();
    eventually(LIMIT, "removal", || {
        anyhow::ensure!(!state::dir(id).exists(), "still there");
        Ok(())
    })
    .unwrap();
    assert_gone(id);
}

/// Another process with a lab, as `cargo xtask lab up --hold` has.
fn hold(id: &str) -> std::process::Child {
    let child = Command::new(env!("CARGO_BIN_EXE_etcd-lb-lab"))
        .args(["up", id, "--bare", "--hold"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let last_host = std::path::PathBuf::from("/run/netns").join(state::netns_name(id, "client-2"));
    eventually(LIMIT, "lab of the other process", || Ok(fs::metadata(&last_host)?)).unwrap();
    child
}

#[track_caller]
fn assert_gone(id: &str) {
    assert!(!state::dir(id).exists(), "files of {id}");
    let prefix = state::netns_name(id, "");
    let names: Vec<String> = fs::read_dir("/run/netns")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    assert!(names.is_empty(), "namespaces {names:?}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&format!("/{id}/")), "mounts of {id}: {mounts}");
    assert!(!mounts.contains(&prefix), "mounts of {id}: {mounts}");
    let processes = processes_naming(&format!("/{id}/"));
    assert!(processes.is_empty(), "processes of {id}: {processes:?}");
}

/// Command lines that hold a path of the lab.
fn processes_naming(part: &str) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(part))
        .collect()
}

#[test]
fn status_over_a_connection_names_the_member() {
    let topology = Topology::empty().with(Role::Member, "etcd-1", 11).with(Role::Client, "c", 21);
    let lab = Lab::start("status", &topology).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let target: SocketAddr = cluster.member("etcd-1").client_address();
    let mut connection = Connection::open(lab.host("c"), target, &cluster.pki, LIMIT).unwrap();
    let status = Status::over(&mut connection).unwrap();
    assert_eq!(status.member_id, cluster.member("etcd-1").id());
    assert_eq!(status.leader, status.member_id);
}
