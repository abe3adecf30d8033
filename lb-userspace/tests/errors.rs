//! The text of every error by which the agent refuses to start, or a command fails before it reaches the agent: what, where, and
//! what to do about it. The match in each list does not compile once a kind is missing.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{fmt::Display, io, net::SocketAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use etcd_lb::{agent, api::client, dataplane, netlink, secret};
use lb_common::addr::Mac;
use lb_core::reconcile;

fn refused() -> io::Error {
    io::Error::from_raw_os_error(1)
}

fn all<E: Display>(errors: impl IntoIterator<Item = E>) -> String {
    errors.into_iter().map(|error| format!("{error}\n")).collect::<Vec<_>>().join("\n")
}

#[test]
fn agent() {
    use agent::Error;
    let errors = [
        Error::Config("config.toml:1:13: not valid TOML".into()),
        Error::Locked(agent::lock::Error::Held {
            key: "socket",
            path: "/run/a.sock.lock".into(),
            pid: Some(7),
        }),
        Error::Locked(agent::lock::Error::Held { key: "pin_dir", path: "/sys/fs/bpf/a".into(), pid: None }),
        Error::Locked(agent::lock::Error::Io { path: "/run/a.sock.lock".into(), source: refused() }),
        Error::VipInUse {
            vip: [10, 0, 1, 100].into(),
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            interface: "eth0".into(),
        },
        Error::VipProbe { vip: [10, 0, 1, 100].into(), interface: "eth0".into(), source: refused() },
        Error::Network(netlink::Error::Open(refused())),
        Error::DataPlane(dataplane::Error::NoInterface { interface: "eth9".into() }),
        Error::Socket { socket: "/run/a.sock".into(), source: refused() },
        Error::Http { address: SocketAddr::from(([127, 0, 0, 1], 9479)), source: refused() },
        Error::Runtime(refused()),
    ];
    for error in &errors {
        match error {
            Error::Config(_)
            | Error::Locked(agent::lock::Error::Held { .. } | agent::lock::Error::Io { .. })
            | Error::VipInUse { .. }
            | Error::VipProbe { .. }
            | Error::Network(_)
            | Error::DataPlane(_)
            | Error::Socket { .. }
            | Error::Http { .. }
            | Error::Runtime(_) => {}
        }
    }
    insta::assert_snapshot!(all(errors));
}

#[test]
fn data_plane() {
    use dataplane::Error;
    let dir = PathBuf::from("/sys/fs/bpf/etcd-lb");
    let errors = [
        Error::Capabilities { missing: "CAP_BPF CAP_NET_ADMIN".into() },
        Error::Refused { what: "load an XDP program", source: refused() },
        Error::NotBpffs { dir: dir.clone(), mount: "/sys/fs/bpf".into() },
        Error::PinDir { what: "create the directory", path: dir.clone(), source: refused() },
        Error::Layout {
            dir: dir.clone(),
            differences: vec!["map `flows` has values of 64 octets, not 72".into()],
            max_flows: Some(65_536),
        },
        Error::Object { what: "map `flows`".into() },
        Error::Load(Box::new(EbpfError::NoBTF)),
        Error::Program { name: "xdp", source: Box::new(ProgramError::NotLoaded) },
        Error::Map { map: "flows", source: MapError::InvalidName { name: "flows".into() } },
        Error::MapCall { what: "read", map: "flows", source: refused() },
        Error::NoInterface { interface: "eth9".into() },
        Error::Occupied {
            interface: "eth0".into(),
            program: "`other` (7)".into(),
            remedy: "ip link set dev eth0 xdp off".into(),
        },
        Error::NoNative { interface: "eth0".into(), driver: "e1000".into(), source: refused() },
        Error::Attach { interface: "eth0".into(), driver: "e1000".into(), source: refused() },
        Error::Plan(reconcile::Error::TooManyServices),
    ];
    for error in &errors {
        match error {
            Error::Capabilities { .. }
            | Error::Refused { .. }
            | Error::NotBpffs { .. }
            | Error::PinDir { .. }
            | Error::Layout { .. }
            | Error::Object { .. }
            | Error::Load(_)
            | Error::Program { .. }
            | Error::Map { .. }
            | Error::MapCall { .. }
            | Error::NoInterface { .. }
            | Error::Occupied { .. }
            | Error::NoNative { .. }
            | Error::Attach { .. }
            | Error::Plan(_) => {}
        }
    }
    insta::assert_snapshot!(all(errors));
}

#[test]
fn what_does_not_fit_into_the_maps() {
    use reconcile::Error;
    let backend = SocketAddr::from(([10, 0, 1, 11], 2379));
    let errors = [
        Error::TooManyServices,
        Error::TooManyBackends,
        Error::TooManyPrefixes(20_000),
        Error::TooManyRoutes(5000),
        Error::TooManyAddresses(2000),
        Error::Interfaces(3, 1027),
        Error::SameService { vip: [10, 0, 1, 100].into(), port: 2379 },
        Error::SameBackend { backend, source_address: [10, 0, 1, 100].into() },
    ];
    insta::assert_snapshot!(all(errors));
}

#[test]
fn client() {
    let errors = [
        client::Error::Unreachable {
            socket: "/run/etcd-lb/api.sock".into(),
            reason: "there is no such socket".into(),
        },
        client::Error::Refused("there is no backend with this name".into()),
    ];
    for error in &errors {
        match error {
            client::Error::Unreachable { .. } | client::Error::Refused(_) => {}
        }
    }
    insta::assert_snapshot!(all(errors));
}

#[test]
fn secrets() {
    let errors = [
        secret::Error::Read { path: "/etc/etcd-lb/sync.key".into(), source: refused() },
        secret::Error::Exposed { path: "/etc/etcd-lb/sync.key".into(), mode: 0o644 },
    ];
    for error in &errors {
        match error {
            secret::Error::Read { .. } | secret::Error::Exposed { .. } => {}
        }
    }
    insta::assert_snapshot!(all(errors));
}
