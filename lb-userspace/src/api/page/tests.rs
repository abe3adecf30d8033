use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::api::status::{FlowTableStatus, InterfaceStatus, NodeStatus, Traffic};

fn backend(name: &str, state: &str, reason: &str) -> BackendStatus {
    BackendStatus {
        name: name.into(),
        address: "10.0.1.11:2379".into(),
        state: state.into(),
        reason: reason.into(),
        weight: 1,
        flows: 1234,
        slots: 100,
        leader: Some(true),
        version: Some("3.5.16".into()),
        cluster_id: Some("cdf818194e3a8c32".into()),
        discovered: false,
        learner: Some(false),
        alarms: vec!["NOSPACE".into()],
        db_size: Some(20 << 20),
        tls_not_after: None,
        check_ms: Some(3),
        failed_step: None,
        failed_step_ms: None,
        traffic: Traffic {
            connections_per_second: 2.5,
            bytes_in_per_second: 2048.0,
            packets_in_per_second: 12.0,
            handshake_us: Some(85),
            ..Traffic::default()
        },
        last_check_ms: Some(210),
        since: "2026-01-01T00:00:00Z".into(),
    }
}

fn status(role: Role, backends: Vec<BackendStatus>) -> Status {
    Status {
        version: "0.1.0".into(),
        role,
        fenced: false,
        interfaces: vec![InterfaceStatus { name: "eth0".into(), xdp_mode: Some("native".into()) }],
        node: Some(NodeStatus { interface: "etcdlb0".into(), xdp_mode: Some("native".into()), led: vec![] }),
        services: vec![ServiceStatus {
            name: "etcd".into(),
            vip: "10.0.1.100".into(),
            port: 2379,
            mode: "nat".into(),
            algorithm: "bounded".into(),
            fail_open: false,
            flows: 1234,
            half_open: 1,
            backends,
        }],
        flow_table: FlowTableStatus { used: 1234, capacity: 131_072 },
        peer: None,
    }
}

fn text(status: &Status) -> String {
    let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 200);
    let event = Event {
        number: 1,
        at: "2026-01-01T00:00:00.123Z".into(),
        kind: "backend".into(),
        subject: "etcd/etcd-2".into(),
        message: "healthy → down: connect: refused".into(),
    };
    whole(status, &[event], now).html
}

#[test]
fn it_says_everything_without_a_script() {
    let page = text(&status(Role::Active, vec![backend("etcd-1", "healthy", "probe passed")]));
    for words in [
        "<b class=\"good\">active</b>",
        "10.0.1.100",
        "1,234 of 131,072",
        "eth0, native",
        "etcd-1\u{2002}10.0.1.11:2379",
        "class=\"good\">healthy<",
        "3.5.16, leader, NOSPACE",
        ">20 MiB<",
        ">85 µs<",
        ">2.5<",
        "2.0 KiB/s, 12 p/s",
        ">3 min<",
        "probe passed",
        "2026-01-01 00:00:00</time>etcd/etcd-2: healthy → down: connect: refused",
    ] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
}

#[test]
fn each_state_shows() {
    let mut fenced = status(Role::Active, vec![]);
    fenced.fenced = true;
    let mut open = status(Role::Standalone, vec![backend("etcd-1", "down", "connect: refused")]);
    open.services[0].fail_open = true;
    let mut backup = status(Role::Backup, vec![backend("etcd-1", "draining", "")]);
    backup.peer =
        Some(PeerStatus { address: "10.0.1.3:3780".into(), connected: false, synced: false, lag_ms: None });
    for (status, words) in [
        (&fenced, &["<b class=\"bad\">fenced</b>", "Fenced: this node"][..]),
        (&open, &["failing open", "class=\"bad\">down<", "wide bad\">connect: refused"]),
        (&backup, &["<b class=\"\">backup</b>", "NOT CONNECTED", "class=\"warn\">draining<"]),
    ] {
        let page = text(status);
        for words in words {
            assert!(page.contains(words), "{words} is not in {page}");
        }
    }
}

#[test]
fn what_others_say_stays_text() {
    let evil = "<script>alert(1)</script>\"'&";
    let mut status = status(Role::Active, vec![backend(evil, evil, evil)]);
    status.services[0].name = evil.into();
    let page = text(&status);
    assert!(!page.contains("<script>alert"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
}

#[test]
fn it_needs_nothing_from_elsewhere() {
    let Page { html, policy } = whole(&status(Role::Active, vec![]), &[], UNIX_EPOCH);
    for word in ["http://", "https://", "src=", "href=", "url(", "@import"] {
        assert!(!html.contains(word), "{word}");
    }
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(policy.starts_with("default-src 'none'"));
    assert_ne!(policy, whole(&status(Role::Active, vec![]), &[], UNIX_EPOCH).policy, "a nonce is used once");
}
