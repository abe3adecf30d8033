//! `capture`: both sides of what XDP rewrites, as tshark reads it; filters, bounds, upgrades, load; and nothing left behind.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Lab, Process, Topology, VIP,
    echo::{BusyClients, EchoServer, transfer},
    eventually,
    netns::output,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(15);

/// One line of tshark: a packet on one side of the XDP program.
#[derive(Clone, Debug)]
struct Seen {
    interface: String,
    comment: String,
    source: String,
    destination: String,
    checksums: String,
    octets: usize,
}

impl Seen {
    /// The packet's number: that by which its two sides belong together.
    fn number(&self) -> u64 {
        self.comment.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap()
    }

    fn is_before(&self) -> bool {
        self.interface.ends_with(":before")
    }
}

/// What tshark reads in a file, checksums checked.
fn tshark(file: &Path) -> Vec<Seen> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-T", "fields"]);
    for field in [
        "frame.interface_name",
        "frame.comment",
        "ip.src",
        "tcp.srcport",
        "ip.dst",
        "tcp.dstport",
        "ip.checksum.status",
        "tcp.checksum.status",
        "frame.cap_len",
    ] {
        command.args(["-e", field]);
    }
    let text = output(command.arg("-r").arg(file).stdin(Stdio::null())).unwrap();
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Seen {
                interface: fields[0].into(),
                comment: fields[1].into(),
                source: format!("{}:{}", fields[2], fields[3]),
                destination: format!("{}:{}", fields[4], fields[5]),
                checksums: format!("{} {}", fields[6], fields[7]),
                octets: fields[8].parse().unwrap(),
            }
        })
        .collect()
}

/// A capture under way.
struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Begins it, and waits until it sees packets.
    fn start(balancer: &Balancer, args: &[&str]) -> Self {
        let name = format!("capture-{}", args.join("").replace(|c: char| !c.is_alphanumeric(), ""));
        let file = balancer.host().lab_dir().join(format!("{name}.pcapng"));
        let mut command = balancer.cli_command();
        command.arg("capture").arg("--write").arg(&file).args(args);
        let process = balancer.host().spawn(&name, command).unwrap();
        let mut capture = Self { process, file };
        eventually(LIMIT, "the capture begins", || {
            capture.process.check_alive()?;
            ensure!(capture.said().contains("capturing on"), "{}", capture.said());
            Ok(())
        })
        .unwrap();
        capture
    }

    fn said(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// Ends it as Ctrl-C does.
    fn end(self) -> (Vec<Seen>, String) {
        self.process.signal(Signal::SIGINT).unwrap();
        self.ended()
    }

    /// Waits until it fails, and returns what it said.
    fn failed(mut self) -> String {
        assert_eq!(self.process.wait(LIMIT).unwrap().code(), Some(1), "{}", self.said());
        self.said()
    }

    /// Waits until it ends by itself.
    fn ended(mut self) -> (Vec<Seen>, String) {
        let status = self.process.wait(LIMIT).unwrap();
        assert!(status.success(), "{}", self.said());
        (tshark(&self.file), self.said())
    }
}

/// The pins of captures.
fn pins(balancer: &Balancer) -> Vec<String> {
    let names = fs::read_dir(balancer.pin_dir()).unwrap().map(|file| file.unwrap().file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("capture_"))
        .collect()
}

/// Nothing of a capture is left: the interface runs the entry, as it did before.
fn assert_nothing_left(balancer: &Balancer) {
    let links = balancer.host().output("bpftool", &["net", "list"]).unwrap();
    let programs = output(Command::new("bpftool").args(["prog", "list"])).unwrap();
    let running = links.split(" id ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let line = programs.lines().find(|line| line.starts_with(&format!("{running}:"))).unwrap();
    assert!(line.contains("name xdp "), "{line}");
    assert!(pins(balancer).is_empty(), "{:?}", pins(balancer));
}

#[test]
fn both_sides_of_etcds_connections_are_seen() {
    let lab = Lab::start("capture_etcd", &Topology::standard().without("lb2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let balancer = Balancer::start(host, &Config::etcd(host, &cluster).text()).unwrap();
    for member in cluster.members() {
        balancer.wait_backend(member.name(), "healthy", LIMIT).unwrap();
    }
    let vip = format!("https://{VIP}:{CLIENT_PORT}");
    let client = lab.host("client-1");

    let capture = Capture::start(&balancer, &["--client", &client.address().to_string()]);
    cluster.etcdctl(client, &vip, &["put", "a", "1"]).unwrap();
    cluster.etcdctl(lab.host("client-2"), &vip, &["put", "b", "2"]).unwrap();
    assert_eq!(cluster.etcdctl(client, &vip, &["get", "a", "--print-value-only"]).unwrap().trim(), "1");
    let (seen, said) = capture.end();
    println!("{} lines; {}", seen.len(), said.trim());
    assert!(said.contains(" 0 lost"), "{said}");

    let members: Vec<String> = cluster.members().iter().map(|m| m.client_address().to_string()).collect();
    let vip_end = format!("{VIP}:{CLIENT_PORT}");
    let mut pairs: BTreeMap<u64, (Option<Seen>, Option<Seen>)> = BTreeMap::new();
    for packet in seen {
        // 1: tshark has checked it, and it is right.
        assert_eq!(packet.checksums, "1 1", "{packet:?}");
        let pair = pairs.entry(packet.number()).or_default();
        let side = if packet.is_before() { &mut pair.0 } else { &mut pair.1 };
        assert!(side.replace(packet).is_none(), "two packets of one number");
    }
    let (mut to_members, mut to_client) = (0, 0);
    for (before, after) in pairs.values() {
        let (Some(before), Some(after)) = (before, after) else {
            panic!("one side only: {before:?} {after:?}")
        };
        assert_eq!(before.octets, after.octets);
        let is_client = |end: &str| end.starts_with(&format!("{}:", client.address()));
        if before.destination == vip_end {
            assert!(
                is_client(&before.source) && members.contains(&after.destination),
                "{before:?} {after:?}"
            );
            assert!(after.source.starts_with(&format!("{VIP}:")), "{after:?}");
            to_members += 1;
        } else {
            assert!(members.contains(&before.source), "{before:?}");
            assert!(after.source == vip_end && is_client(&after.destination), "{before:?} {after:?}");
            to_client += 1;
        }
        assert!(
            after.comment.contains("XDP_TX") || after.comment.contains("XDP_REDIRECT"),
            "{}",
            after.comment
        );
    }
    println!("{to_members} packets to members, {to_client} to the client, both sides of each");
    assert!(to_members >= 15 && to_client >= 15);
    assert_nothing_left(&balancer);
}

#[test]
fn filters_bounds_and_upgrades() {
    let lab = Lab::start("capture_bounds", &Topology::standard().without("lb2").without("etcd-3")).unwrap();
    let servers = ["etcd-1", "etcd-2"].map(|name| EchoServer::start(lab.host(name), 2379).unwrap());
    let host = lab.host("lb1");
    let config = Config::echo(host).numbered(servers.iter().map(EchoServer::address));
    let mut balancer = Balancer::prepare(host, &config.text()).unwrap();

    // Before there is anything to see.
    let refused = balancer.cli_output(&["capture"]).unwrap();
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));

    balancer.run().unwrap();
    for name in ["b0", "b1"] {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    let vip = SocketAddr::from((VIP, 2379));
    let busy = BusyClients::start(lab.host("client-1"), vip, 16, Duration::from_millis(5)).unwrap();
    busy.wait_progress(20, LIMIT).unwrap();

    // A backend by its name; as many packets as were asked for, cut to what was asked for.
    let capture = Capture::start(&balancer, &["--backend", "b1", "--packets", "100", "--snaplen", "64"]);
    let (seen, _) = capture.ended();
    let numbers: std::collections::BTreeSet<u64> = seen.iter().map(Seen::number).collect();
    assert_eq!((numbers.len(), seen.len()), (100, 200));
    let of_b1 = servers[1].address().to_string();
    for packet in &seen {
        assert!(packet.octets <= 64);
        let other = servers[0].address().to_string();
        assert!(packet.source != other && packet.destination != other, "{packet:?}");
    }
    assert!(seen.iter().any(|packet| packet.destination == of_b1));

    // A port too.
    let port = seen
        .iter()
        .find(|packet| packet.is_before() && packet.destination == vip.to_string())
        .unwrap()
        .source
        .clone();
    let (seen, _) = Capture::start(&balancer, &["--client", &port, "--packets", "20"]).ended();
    assert!(
        seen.iter().all(|p| !p.is_before() || p.source == port || p.destination != vip.to_string()),
        "{seen:?}"
    );
    assert!(
        seen.iter().all(|p| p.is_before() || p.destination == port || p.source != vip.to_string()),
        "{seen:?}"
    );

    // Time ends it too; a client that says nothing, nothing.
    let (seen, said) = Capture::start(&balancer, &["--client", "192.0.2.1", "--seconds", "0.5"]).ended();
    assert!(seen.is_empty() && said.contains("0 packets captured"), "{said}");

    // What XDP leaves alone, only if it is asked for.
    let pings = |args: &[&str]| {
        let capture = Capture::start(&balancer, args);
        lab.host("client-1").output("ping", &["-c", "3", "-i", "0.1", &host.address().to_string()]).unwrap();
        let (seen, _) = capture.end();
        seen.iter().filter(|packet| packet.is_before() && packet.comment.contains("XDP_PASS")).count()
    };
    assert_eq!(pings(&["--seconds", "20", "--packets", "0"]), 0);
    assert!(pings(&["--passed", "--seconds", "21", "--packets", "0"]) >= 3);

    // One at a time.
    let capture = Capture::start(&balancer, &["--packets", "0", "--seconds", "0"]);
    let refused = balancer.cli_output(&["capture", "--write", "/dev/null"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("one at a time"), "{said}");

    // A reader that is killed: the agent ends the capture.
    assert_eq!(pins(&balancer).len(), 3, "{:?}", pins(&balancer));
    drop(capture);
    let ended = || {
        ensure!(pins(&balancer).is_empty(), "{:?}", pins(&balancer));
        Ok(())
    };
    eventually(LIMIT, "the capture ends", ended).unwrap();
    assert_nothing_left(&balancer);

    // The agent is stopped: it ends the capture, and the reader says so.
    let capture = Capture::start(&balancer, &["--packets", "0", "--seconds", "30"]);
    balancer.stop().unwrap();
    assert!(pins(&balancer).is_empty());
    let said = capture.failed();
    assert!(said.contains("the capture ended: cannot reach the agent"), "{said}");
    balancer.run().unwrap();

    // The agent is killed: what it left goes on serving, and the next agent clears it away.
    let capture = Capture::start(&balancer, &["--packets", "0", "--seconds", "31"]);
    balancer.kill().unwrap();
    let said = capture.failed();
    assert!(said.contains("the capture ended: "), "{said}");
    assert_eq!(pins(&balancer).len(), 3);
    busy.wait_progress(100, LIMIT).unwrap();
    balancer.run().unwrap();
    busy.wait_progress(20, LIMIT).unwrap();
    assert_nothing_left(&balancer);
    let broken: Vec<_> = busy.finish().into_iter().filter(|outcome| outcome.broken.is_some()).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn under_load_memory_is_bounded_and_what_is_lost_is_counted() {
    let lab = Lab::start("capture_load", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let server = EchoServer::start(lab.host("etcd-1"), 2379).unwrap();
    let host = lab.host("lb1");
    let config = Config::echo(host).numbered([server.address()]);
    let balancer = Balancer::start(host, &config.text()).unwrap();
    balancer.wait_backend("b0", "healthy", LIMIT).unwrap();

    // A reader that reads nothing for a while: the pipe is full, then the ring buffer, and the rest is lost.
    let mut command = balancer.cli_command();
    command.args(["capture", "--packets", "0", "--seconds", "0"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually(LIMIT, "the capture begins", || {
        ensure!(pins(&balancer).len() == 3, "{:?}", pins(&balancer));
        Ok(())
    })
    .unwrap();
    let vip = SocketAddr::from((VIP, 2379));
    let (_, retransmitted) = transfer(lab.host("client-1"), vip, 32 << 20).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    // Now all that there is.
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let octets = std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    println!(
        "32 MiB to and fro, {retransmitted} retransmitted; peak {peak} KiB; {octets} octets; {}",
        said.trim()
    );
    assert!(peak < 64 << 10, "{peak} KiB");
    assert!(!said.contains(" 0 lost") && said.contains("--snaplen"), "{said}");
    assert_nothing_left(&balancer);
}
