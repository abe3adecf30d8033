use std::collections::{BTreeSet, HashSet};

use super::*;
use crate::api::status::{BackendStatus, FlowTableStatus, InterfaceStatus, ServiceStatus};

fn figures() -> Figures {
    let backend = BackendStatus {
        name: "etcd \"1\"".into(),
        address: "10.0.1.10:2379".into(),
        state: "draining".into(),
        reason: "probe passed".into(),
        weight: 3,
        flows: 7,
        slots: 65_537,
        leader: None,
        version: None,
        cluster_id: None,
        learner: None,
        alarms: Vec::new(),
        db_size: None,
        tls_not_after: None,
        discovered: false,
        check_ms: None,
        failed_step: None,
        failed_step_ms: None,
        traffic: Default::default(),
        last_check_ms: Some(12),
        since: "2026-01-01T00:00:00Z".into(),
    };
    let service = ServiceStatus {
        name: "etcd".into(),
        vip: "10.0.1.100".into(),
        port: 2379,
        mode: "nat".into(),
        algorithm: "maglev".into(),
        fail_open: false,
        flows: 7,
        half_open: 2,
        backends: vec![backend],
    };
    let mut checks = CheckFigures { passed: 2, failed: 1, ..CheckFigures::default() };
    for duration in [Duration::from_micros(900), Duration::from_millis(3), Duration::from_secs(9)] {
        checks.durations.observe(duration);
    }
    Figures {
        status: Status {
            version: "0.1.0".into(),
            role: Role::Standalone,
            fenced: false,
            interfaces: vec![InterfaceStatus { name: "eth0.5".into(), xdp_mode: Some("native".into()) }],
            node: None,
            services: vec![service],
            flow_table: FlowTableStatus { used: 7, capacity: 131_072 },
            peer: None,
        },
        half_open: 2,
        pair: PairFigures {
            transitions: [3, 2, 0],
            lateness: [5, 0, 1, 0, 0, 0, 0, 0, 0, 2],
            lateness_sum: Duration::from_millis(1500),
            ..PairFigures::default()
        },
        sync: SyncFigures::default(),
        discovery: vec![DiscoveryFigures { members: 3, ..DiscoveryFigures::default() }],
        log_lines_lost: 6,
        counters: Counters {
            events_lost: 8,
            vip_conflict: 1,
            fragment: 5,
            flow_new: 9,
            closed_port: 4,
            ..Counters::default()
        },
        backends: vec![vec![BackendFigures {
            up: true,
            counters: BackendCounters {
                packets_in: 10,
                packets_out: 11,
                refused: 1,
                reset_by_client: 4,
                ..BackendCounters::default()
            },
            handshakes: Handshakes {
                buckets: [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
                sum: 7_500_000_000,
            },
            unanswered: 3,
            nat_ports: 9,
            ended: [12, 0, 0, 0, 13, 0],
            checks,
            etcd: EtcdFigures {
                leader: true,
                db_size: 20_480,
                alarms: [true, false],
                not_after: 1_800_000_000,
                ..EtcdFigures::default()
            },
        }]],
        reload: ReloadFigures { successful: true, succeeded_at: 1_767_225_600 },
    }
}

#[test]
fn the_page_says_what_the_figures_say() {
    let page = render(&figures());
    for line in [
        "etcd_lb_build_info{version=\"0.1.0\"} 1",
        "etcd_lb_role{role=\"standalone\"} 1",
        "etcd_lb_role{role=\"active\"} 0",
        "etcd_lb_vip_fenced 0",
        "etcd_lb_xdp_attached{interface=\"eth0.5\",mode=\"native\"} 1",
        "etcd_lb_xdp_attached{interface=\"eth0.5\",mode=\"generic\"} 0",
        "etcd_lb_backend_up{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 1",
        "etcd_lb_backend_state{service=\"etcd\",backend=\"etcd \\\"1\\\"\",state=\"draining\"} 1",
        "etcd_lb_backend_state{service=\"etcd\",backend=\"etcd \\\"1\\\"\",state=\"learner\"} 0",
        "etcd_lb_backend_packets_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",direction=\"out\"} 11",
        "etcd_lb_backend_handshake_failures_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",reason=\"refused\"} 1",
        "etcd_lb_backend_checks_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",result=\"failed\"} 1",
        "etcd_lb_backend_check_duration_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"0.001\"} 1",
        "etcd_lb_backend_check_duration_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"5\"} 2",
        "etcd_lb_backend_check_duration_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"+Inf\"} 3",
        "etcd_lb_backend_check_duration_seconds_sum{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 9.0039",
        "etcd_lb_backend_handshake_failures_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",reason=\"timeout\"} 3",
        "etcd_lb_backend_handshake_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"0.00002\"} 1",
        "etcd_lb_backend_handshake_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"0.0001\"} 3",
        "etcd_lb_backend_handshake_seconds_bucket{service=\"etcd\",backend=\"etcd \\\"1\\\"\",le=\"+Inf\"} 8",
        "etcd_lb_backend_handshake_seconds_sum{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 7.5",
        "etcd_lb_backend_handshake_seconds_count{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 8",
        "etcd_lb_backend_resets_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",reason=\"client\"} 4",
        "etcd_lb_backend_resets_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",reason=\"backend_down\"} 12",
        "etcd_lb_backend_resets_total{service=\"etcd\",backend=\"etcd \\\"1\\\"\",reason=\"rebalance\"} 13",
        "etcd_lb_vip_conflicts_total 1",
        "etcd_lb_role_transitions_total{to=\"active\"} 3",
        "etcd_lb_heartbeat_late_seconds_bucket{le=\"0.001\"} 6",
        "etcd_lb_heartbeat_late_seconds_bucket{le=\"+Inf\"} 8",
        "etcd_lb_heartbeat_late_seconds_sum 1.5",
        "etcd_lb_vrrp_rejected_total{reason=\"address_list\"} 0",
        "etcd_lb_lease_revoked_total 0",
        "etcd_lb_events_lost_total 8",
        "etcd_lb_flow_log_lines_lost_total 6",
        "etcd_lb_dropped_packets_total{reason=\"fragment\"} 5",
        "etcd_lb_reset_packets_total{reason=\"closed_port\"} 4",
        "etcd_lb_data_plane_events_total{event=\"flow_new\"} 9",
        "etcd_lb_dropped_packets_total{reason=\"tail_call\"} 0",
        "etcd_lb_half_open_flows 2",
        "etcd_lb_nat_ports_used{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 9",
        "etcd_lb_etcd_is_leader{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 1",
        "etcd_lb_etcd_is_learner{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 0",
        "etcd_lb_etcd_db_size_bytes{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 20480",
        "etcd_lb_etcd_alarm{service=\"etcd\",backend=\"etcd \\\"1\\\"\",alarm=\"NOSPACE\"} 1",
        "etcd_lb_etcd_alarm{service=\"etcd\",backend=\"etcd \\\"1\\\"\",alarm=\"CORRUPT\"} 0",
        "etcd_lb_backend_tls_not_after_timestamp_seconds{service=\"etcd\",backend=\"etcd \\\"1\\\"\"} 1800000000",
        "etcd_lb_config_last_reload_success_timestamp_seconds 1767225600",
    ] {
        assert!(page.lines().any(|found| found == line), "no line {line} in\n{page}");
    }
}

#[test]
fn each_series_stands_once_after_its_type() {
    let page = render(&figures());
    let (mut seen, mut families, mut family) = (HashSet::new(), HashSet::new(), "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            assert!(families.insert(family), "{family} is declared twice");
        } else if !line.starts_with('#') {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(series.starts_with(family), "{series} stands under {family}");
            assert!(seen.insert(series), "{series} stands twice");
        }
    }
}

/// What is deployed asks for metrics that there are, and each alert has its runbook.
#[test]
fn docs_in_step_alerts_and_dashboard() {
    const ALERTS: &str = include_str!("../../../../deploy/prometheus/alerts.yml");
    const CASES: &str = include_str!("../../../../deploy/prometheus/alerts_test.yml");
    const DASHBOARD: &str = include_str!("../../../../deploy/grafana/dashboard.json");
    const RUNBOOKS: &str = include_str!("../../../../docs/alerts.md");
    let page = render(&figures());
    let families: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for (file, text) in [("alerts", ALERTS), ("cases", CASES), ("dashboard", DASHBOARD)] {
        let mut named = 0;
        for (at, _) in text.match_indices("etcd_lb_") {
            let name: String = text[at..]
                .chars()
                .take_while(|letter| letter.is_ascii_lowercase() || *letter == '_')
                .collect();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_there =
                families.contains(name.as_str()) || family.is_some_and(|name| families.contains(name));
            assert!(is_there, "{file}: there is no metric {name}");
            named += 1;
        }
        assert!(named > 15, "{file}");
    }
    let alerts: Vec<&str> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let runbooks: Vec<&str> = RUNBOOKS.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(alerts, runbooks);
    for alert in alerts {
        assert!(ALERTS.contains(&format!("docs/alerts.md#{}", alert.to_lowercase())), "{alert}");
        assert!(CASES.contains(&format!("alertname: {alert}\n")), "{alert} has no case");
    }
}

/// Every metric stands in docs/metrics.md, which `ETCD_LB_UPDATE=1 cargo test -p etcd-lb metrics` writes.
#[test]
fn docs_in_step_metrics() {
    const HEAD: &str = "# Metrics\n\n\
        Served at `/metrics` of `[api] http_listen`, in Prometheus' text format. Every series exists from the start, at 0; a service's and a\n\
        backend's as long as they are configured. No label holds a client's address. Counters begin anew when the agent does, except those\n\
        of the data plane, which live as long as that: `rate()` bears both.\n\n\
        The reasons of drops and resets are explained in [counters.md](counters.md), alerts in [alerts.md](alerts.md).\n\n\
        | metric | type | labels | what it tells |\n| --- | --- | --- | --- |\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = render(&figures());
    let mut text = HEAD.to_owned();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(help) = line.strip_prefix("# HELP ") else { continue };
        let (name, help) = help.split_once(' ').unwrap();
        let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.split(' ').nth(1)).unwrap();
        let labels: Vec<String> = match lines.peek().and_then(|line| line.split_once('{')) {
            Some((_, rest)) => rest
                .rsplit_once('}')
                .unwrap()
                .0
                .split("\",")
                .filter_map(|label| label.split_once("=\""))
                .filter(|(label, _)| *label != "le")
                .map(|(label, _)| format!("`{label}`"))
                .collect(),
            None => Vec::new(),
        };
        text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    if std::env::var_os("ETCD_LB_UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        text,
        "docs/metrics.md: see this test's head"
    );
}
