//! What is read from a good config.

use std::time::Duration;

use proptest::prelude::*;
use toml::de::DeValue;

use super::super::schema::{HEALTH, Need, SECTIONS, SERVICE};
use super::super::value::{FromToml, Show};
use super::super::*;
use crate::health::Timing;

/// The contract's example, every key written; one that excludes another is left out.
const WHOLE: &str = include_str!("whole.toml");

/// The least that works.
const MINIMAL: &str = r#"
interface = "eth0"

[[service]]
name = "etcd"
vip = "10.0.1.100"
port = 2379

[[service.backend]]
address = "10.0.1.10:2379"
"#;

fn read(text: &str) -> Config {
    match parse(text, "config.toml") {
        Ok((config, _)) => config,
        Err(errors) => panic!("{errors}"),
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn whole_contract_is_read() {
    let config = read(WHOLE);
    let tls = Tls {
        ca_file: "/etc/etcd-lb/ca.pem".into(),
        client: Some(ClientCertificate {
            cert_file: "/etc/etcd-lb/client.pem".into(),
            key_file: "/etc/etcd-lb/client-key.pem".into(),
        }),
        server_name: Some("etcd.example.com".into()),
    };
    let timing = Timing {
        interval: secs(1),
        fast_interval: Duration::from_millis(200),
        timeout: secs(1),
        rise: 2,
        fall: 2,
    };
    let service = Service {
        name: "etcd".into(),
        vip: "10.0.1.100".parse().unwrap(),
        port: 2379,
        mode: Mode::Nat,
        algorithm: Algorithm::Bounded,
        affinity: Affinity::None,
        source_address: "10.0.1.101".parse().unwrap(),
        allow: vec![Prefix::new("10.0.2.0".parse().unwrap(), 24).unwrap()],
        drain_timeout: secs(30),
        idle_timeout: secs(124 * 60),
        max_flows_per_client: 0,
        on_backend_down: OnBackendDown::Reset,
        fail_open: true,
        no_backend: NoBackend::Reset,
        prefer_local: false,
        health: HealthCheck {
            timing,
            port: Some(2381),
            probe: Probe::Etcd { tls: Some(tls), max_raft_lag: Some(5000) },
        },
        backends: vec![Backend {
            name: "etcd-1".into(),
            address: "10.0.1.10:2379".parse().unwrap(),
            weight: 1,
            max_connections: 0,
        }],
        discovery: Some(Discovery { source: DiscoverySource::Etcd, interval: secs(30) }),
    };
    let vrrp = Vrrp {
        router_id: 51,
        priority: 110,
        version: VrrpVersion::V3,
        advert_interval: Duration::from_millis(100),
        preempt: true,
        preempt_delay: secs(0),
        unicast_peers: vec!["10.0.1.3".parse().unwrap()],
        source: Some("10.0.1.2".parse().unwrap()),
        interface: "eth0".into(),
        link_local: Some("fe80::100".parse().unwrap()),
        checksum: VrrpChecksum::PseudoHeader,
        auth_pass: None,
        track_healthy_backends: 0,
        notify: Some("/path".into()),
    };
    assert_eq!(
        config,
        Config {
            interfaces: vec!["eth0".into()],
            node_link: Some(NodeLink::new("etcdlb0")),
            xdp_mode: XdpMode::Auto,
            max_flows: 131_072,
            hash_seed_file: Some("/etc/etcd-lb/seed".into()),
            flow_log: Some("/var/log/etcd-lb/flows.jsonl".into()),
            services: vec![service],
            vrrp: Some(vrrp),
            sync: Some(PeerSync {
                listen: "10.0.1.2:3780".parse().unwrap(),
                peers: vec!["10.0.1.3:3780".parse().unwrap()],
                key_file: "/etc/etcd-lb/sync.key".into(),
                takeover_grace: secs(10),
            }),
            api: Api {
                socket: "/run/etcd-lb/api.sock".into(),
                http_listen: Some("127.0.0.1:9479".parse().unwrap()),
                pin_dir: "/sys/fs/bpf/etcd-lb".into(),
            },
        }
    );
}

/// Whatever the contract's example shows as a default is what an unwritten key means.
#[test]
fn minimal_config_has_the_defaults() {
    let (config, warnings) = parse(MINIMAL, "config.toml").unwrap();
    let whole = read(WHOLE);
    let (service, shown) = (&config.services[0], &whole.services[0]);
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!((config.xdp_mode, config.max_flows), (whole.xdp_mode, whole.max_flows));
    assert_eq!((config.hash_seed_file, config.flow_log, config.vrrp, config.sync), (None, None, None, None));
    assert_eq!(config.api, Api { http_listen: None, ..whole.api });
    assert_eq!(service.source_address, service.vip);
    assert_eq!(service.backends[0].name, "10.0.1.10:2379");
    assert_eq!((service.backends[0].weight, service.backends[0].max_connections), (1, 0));
    assert_eq!((service.drain_timeout, service.idle_timeout), (shown.drain_timeout, shown.idle_timeout));
    assert_eq!((service.fail_open, service.no_backend), (shown.fail_open, shown.no_backend));
    assert_eq!((service.mode, service.affinity, service.prefer_local), (Mode::Nat, Affinity::None, false));
    assert_eq!((service.max_flows_per_client, service.allow.len()), (0, 0));
    assert_eq!(service.health.timing, shown.health.timing);
    assert_eq!(service.health.target(&service.backends[0]), "10.0.1.10:2379".parse().unwrap());
    assert_eq!(shown.health.target(&shown.backends[0]), "10.0.1.10:2381".parse().unwrap());

    assert_eq!((service.algorithm, service.on_backend_down), (Algorithm::Bounded, OnBackendDown::Reset));
    assert_eq!(service.health.probe, Probe::Etcd { tls: None, max_raft_lag: None });
    assert_eq!(warnings, []);
}

#[test]
fn the_http_check_has_the_defaults() {
    let text = MINIMAL.to_owned() + "[service.health]\nkind = \"http\"\n";
    let (config, warnings) = parse(&text, "config.toml").unwrap();
    let http = HttpProbe {
        path: "/health?exclude=NOSPACE".into(),
        expect_status: 200,
        expect_body: None,
        tls: None,
    };
    assert_eq!(config.services[0].health.probe, Probe::Http(http));
    assert_eq!(warnings, []);
}

#[test]
fn everything_written_gives_no_warning() {
    let text = MINIMAL.replace(
        "port = 2379",
        "port = 2379\nalgorithm = \"maglev\"\non_backend_down = \"keep\"\nhealth.kind = \"tcp\"\n\
         max_flows_per_client = 0\nprefer_local = false\nallow = [\"10.0.2.0/24\", \"10.0.3.7\"]",
    );
    let (config, warnings) = parse(&text, "config.toml").unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.services[0].health.probe, Probe::Tcp);
    assert_eq!(
        config.services[0].allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.2.0/24", "10.0.3.7/32"]
    );
}

#[test]
fn warnings_for_what_is_probably_not_meant() {
    let text = MINIMAL.replace(":2379\"", ":2380\"")
        + "[service.health]\nkind = \"tcp\"\npath = \"/health\"\ninterval = \"500ms\"\n"
        + "[sync]\nlisten = \"10.0.1.2:3780\"\npeer = \"10.0.1.3:3780\"\nkey_file = \"/k\"\n";
    let (config, warnings) = parse(&text, "c").unwrap();
    assert_eq!(config.services[0].health.timing.fast_interval, Duration::from_millis(200));
    let warnings: Vec<_> =
        warnings.iter().map(ToString::to_string).filter(|w| !w.contains("not written")).collect();
    assert_eq!(
        warnings,
        [
            "c:10:11: a backend on port 2380: that is etcd's peer port, clients use 2379",
            "c:11:1: `timeout` is longer than `interval`: a probe that takes its whole timeout delays the next one, \
             which then follows at once",
            "c:13:8: `path` has no effect with `kind = \"tcp\"`; only \"http\" uses it",
            "c:16:10: `[sync]` without `[vrrp]` shares no flow: only a node that has the VIPs in a pair sends its own",
        ]
    );
}

#[test]
fn an_unwritten_fast_interval_follows_a_short_interval() {
    let text = MINIMAL.to_owned() + "[service.health]\ninterval = \"50ms\"\ntimeout = \"50ms\"\n";
    assert_eq!(read(&text).services[0].health.timing.fast_interval, Duration::from_millis(50));
}

#[test]
fn version_2_of_vrrp() {
    let vrrp = "[vrrp]\nversion = 2\nauth_pass = \"secret\"\n";
    let vrrp = read(&(MINIMAL.to_owned() + vrrp)).vrrp.unwrap();
    assert_eq!((vrrp.version, vrrp.advert_interval), (VrrpVersion::V2, secs(1)));
    assert_eq!(vrrp.auth_pass.as_deref(), Some("secret"));
    assert_eq!(vrrp.interface, "eth0");
}

#[test]
fn durations_are_exact() {
    let cases = [
        ("200ms", Some(200_000_000)),
        ("2h", Some(7_200_000_000_000)),
        ("1h30m", Some(5_400_000_000_000)),
        ("124m", Some(7_440_000_000_000)),
        ("1m0s500ms", Some(60_500_000_000)),
        ("1d2h3m4s5ms6us7ns", Some(93_784_005_006_007)),
        ("0s", Some(0)),
        ("213503d", Some(18_446_659_200_000_000_000)),
        ("213504d", None),
        ("99999999999999999999s", None),
        ("", None),
        ("5", None),
        ("s", None),
        ("-1s", None),
        ("+1s", None),
        ("1.5s", None),
        ("1 s", None),
        ("1S", None),
        ("30m1h", None),
        ("1s1s", None),
        ("1h30", None),
        ("1sek", None),
        ("１s", None),
    ];
    for (text, nanos) in cases {
        let read = Duration::read(&DeValue::String(text.into())).ok();
        assert_eq!(read, nanos.map(Duration::from_nanos), "{text}");
    }
    let shown = ["0s", "1ns", "1500us", "200ms", "2h", "90m", "168h"];
    for text in shown {
        assert_eq!(Duration::read(&DeValue::String(text.into())).ok().unwrap().show(), text);
    }
}

#[test]
fn prefixes_contain_their_addresses() {
    let prefix = |text: &str| Prefix::read(&DeValue::String(text.to_owned().into())).ok();
    let cases = [
        ("10.0.2.0/24", "10.0.2.255", true),
        ("10.0.2.0/24", "10.0.3.0", false),
        ("10.0.2.7", "10.0.2.7", true),
        ("10.0.2.7", "10.0.2.8", false),
        ("0.0.0.0/0", "255.1.2.3", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "::1", true),
        ("::/0", "1.2.3.4", false),
        ("fd00:1::/32", "fd00:1:ffff::1", true),
        ("fd00:1::/32", "fd00:2::1", false),
        ("::1/128", "::1", true),
    ];
    for (text, address, inside) in cases {
        assert_eq!(prefix(text).unwrap().contains(address.parse().unwrap()), inside, "{address} in {text}");
    }
    for bad in [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "::/129",
        "10.0.0.0/8/8",
        "10.0.0/8",
        "10.0.0.1/8",
        "a/8",
    ] {
        assert_eq!(prefix(bad), None, "{bad}");
    }
}

/// A default in the schema that its reader refuses would be a `None` without a word.
#[test]
fn schema_is_complete() {
    let example: toml::Table = WHOLE.parse().unwrap();
    let service = example["service"][0].as_table().unwrap();
    for schema in SECTIONS {
        let written = match schema.title {
            "" => &example,
            "[[service]]" => service,
            "[service.health]" => service["health"].as_table().unwrap(),
            "[[service.backend]]" => service["backend"][0].as_table().unwrap(),
            "[service.discovery]" => service["discovery"].as_table().unwrap(),
            "[vrrp]" => example["vrrp"].as_table().unwrap(),
            "[sync]" => example["sync"].as_table().unwrap(),
            "[api]" => example["api"].as_table().unwrap(),
            other => panic!("{other}"),
        };
        for doc in schema.keys {
            assert!(!doc.doc.is_empty());
            let in_example = written.get(doc.key);
            assert!(in_example.is_some() || doc.key == "auth_pass", "{} in {}", doc.key, schema.title);
            if let Need::Default(toml) = doc.need {
                let default: toml::Table = format!("v = {toml}").parse().unwrap();
                assert_eq!(in_example, default.get("v"), "{} in {}", doc.key, schema.title);
            }
        }
    }
    assert_eq!(SERVICE.key("health").map(|doc| doc.need), Some(Need::Section(&HEALTH)));
}

/// Pieces a config is made of, in any order: nearer to the reader's branches than random text.
fn scrambled() -> impl Strategy<Value = String> {
    let lines: Vec<&'static str> = WHOLE.lines().collect();
    let values = [
        "1",
        "\"x\"",
        "[]",
        "{}",
        "true",
        "1.5",
        "-1",
        "[[1]]",
        "\"10.0.1.100\"",
        "\"::1\"",
        "1979-05-27",
        "\"1h\"",
    ];
    let line = prop_oneof![
        5 => prop::sample::select(lines.clone()).prop_map(str::to_owned),
        2 => (prop::sample::select(lines), prop::sample::select(values.to_vec()))
            .prop_map(|(line, value)| format!("{} = {value}", line.split('=').next().unwrap_or_default())),
        1 => "\\PC{0,20}",
    ];
    prop::collection::vec(line, 0..60).prop_map(|lines| lines.join("\n"))
}

/// The whole example with a piece cut out and another put in.
fn mutated() -> impl Strategy<Value = String> {
    let at = || any::<prop::sample::Index>();
    (at(), at(), "\\PC{0,8}").prop_map(|(from, to, insert)| {
        let boundaries: Vec<usize> = WHOLE.char_indices().map(|(i, _)| i).collect();
        let (a, b) = (*from.get(&boundaries), *to.get(&boundaries));
        let cut = a.max(b).min(a.min(b) + 40);
        format!("{}{insert}{}", &WHOLE[..a.min(b)], &WHOLE[WHOLE.ceil_char_boundary(cut)..])
    })
}

proptest! {
    #[test]
    fn never_panics(text in prop_oneof![".*", scrambled(), mutated()]) {
        match parse(&text, "config.toml") {
            Ok((config, warnings)) => {
                prop_assert!(!config.services.is_empty());
                prop_assert!(warnings.iter().all(|w| !w.to_string().is_empty()));
            }
            Err(errors) => {
                prop_assert!(errors.iter().count() > 0);
                prop_assert!(errors.iter().all(|e| e.line > 0 && e.column > 0 && !e.message.is_empty()));
                prop_assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
            }
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_read(nanos in any::<u64>()) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(Duration::read(&DeValue::String(duration.show().into())).ok(), Some(duration));
    }
}
