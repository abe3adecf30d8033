//! A thread of its own, in a mount and a network namespace of its own, with a BPF file system of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use etcd_lb::dataplane::{DataPlane, Error, Options};
use lb_common::{
    addr::Mac,
    election::Election,
    hash::Seed,
    maps::{Interface, Lease},
};
use lb_core::reconcile::{Affinity, Desired, DesiredAddress, DesiredBackend, DesiredService, Lan, NoBackend};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 100));
pub const PORT: u16 = 2379;
/// The least that the config allows: small maps, fast tests.
pub const MAX_FLOWS: u32 = 1024;

/// Where a test works.
pub struct Sandbox {
    /// Not there yet, on a BPF file system.
    pub pin_dir: PathBuf,
    /// On the ordinary file system.
    pub elsewhere: PathBuf,
}

/// Runs a test in a sandbox. What it makes goes with its namespaces, also if it panics.
pub fn run(test: impl FnOnce(&Sandbox) + Send) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("etcd-lb-dataplane-{}-{number}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let bpffs = dir.join("bpf");
        let elsewhere = dir.join("elsewhere");
        fs::create_dir(&bpffs).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        test(&Sandbox { pin_dir: bpffs.join("etcd-lb"), elsewhere });
    };
    let outcome = thread::scope(|scope| scope.spawn(inside).join());
    fs::remove_dir_all(&dir).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Sandbox {
    /// Opens the data plane of this build.
    pub fn open(&self) -> Result<DataPlane, Error> {
        self.open_for(MAX_FLOWS)
    }

    pub fn open_for(&self, max_flows: u32) -> Result<DataPlane, Error> {
        DataPlane::open(&Options { pin_dir: &self.pin_dir, max_flows })
    }

    /// Opens it, writes what is desired, and lets the process "die" with everything kept.
    pub fn leave_behind(&self, desired: &Desired) {
        let mut plane = self.open().unwrap();
        plane.reconcile(desired).unwrap();
        plane.keep();
    }

    pub fn pin(&self, name: &str) -> PathBuf {
        self.pin_dir.join(name)
    }

    /// Names in the pin directory, sorted.
    pub fn pinned(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.pin_dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Runs a command in the calling thread's namespaces; its stdout.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a veth pair, both ends up; the number of the first.
pub fn veth(name: &str) -> u32 {
    sh(&format!(
        "ip link add {name} type veth peer name {name}p; ip link set {name} up; ip link set {name}p up"
    ));
    ifindex(name)
}

pub fn ifindex(name: &str) -> u32 {
    sh(&format!("ip -o link show dev {name}")).split(':').next().unwrap().parse().unwrap()
}

/// One service with these hosts of 10.0.2.0/24 as backends.
pub fn desired(hosts: &[u8]) -> Desired {
    Desired {
        services: vec![DesiredService {
            vip: VIP,
            port: PORT,
            seed: Seed { key: [1, 2] },
            dsr: false,
            algorithm: lb_common::choose::Algorithm::Bounded,
            max_flows_per_client: 0,
            nat: lb_common::nat::Range::ALL,
            affinity: Affinity::None,
            allow: Vec::new(),
            near: None,
            no_backend: NoBackend::Reset,
            drain_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(7440),
            backends: hosts.iter().map(|&host| backend(host)).collect(),
        }],
        addresses: vec![DesiredAddress { address: VIP, answered_on: vec![Lan::untagged(1)] }],
        interfaces: vec![Interface { ifindex: 1, mtu: 1500, mac: Mac::new([2, 0, 0, 0, 0, 1]), flags: 0 }],
        client_routes: Default::default(),
        lease: Some(Lease::STANDALONE),
        elections: [Election::NONE; 2],
    }
}

pub fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, host], PORT))
}

fn backend(host: u8) -> DesiredBackend {
    DesiredBackend {
        address: address(host),
        source: VIP,
        max_connections: 0,
        weight: 1,
        usable: true,
        healthy: true,
        drained: false,
        hop: None,
    }
}

/// Names of what is pinned while nothing is attached.
pub fn complete_without_links(pinned: &[String]) -> bool {
    lb_common::maps::name::KEPT.iter().all(|map| pinned.iter().any(|name| name == map))
}

/// The kernel's number of a pinned map.
pub fn map_id(path: &Path) -> u32 {
    aya::maps::MapInfo::from_pin(path).unwrap().id()
}
