//! The text for Prometheus. Every series exists from the start, and no label carries a client's address.

mod page;
#[cfg(test)]
mod tests;

use std::time::{Duration, UNIX_EPOCH};

use lb_common::{
    counters::{BackendCounters, Counter, Counters, Kind},
    maps::Handshakes,
};
use lb_core::{config::NodeLink, discovery::REASONS, etcd::ALARMS, sync::Failure, vrrp::Reject};

use self::page::Page;
use super::status::{BACKEND_STATES, InterfaceStatus, PeerStatus, Role, Status};
use crate::{dataplane::Reason, discovery::Figures as DiscoveryFigures, vrrp::LATENESS_BOUNDS};

/// What the metrics are made of.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The document of `status`.
    pub status: Status,
    /// Half-open flows of all services.
    pub half_open: u64,
    /// Lines of the flow log that were lost.
    pub log_lines_lost: u64,
    /// The data plane's counters, all CPUs.
    pub counters: Counters,
    /// For each service of `status`, for each of its backends.
    pub backends: Vec<Vec<BackendFigures>>,
    /// For each service of `status`: its discovery; all 0 without.
    pub discovery: Vec<DiscoveryFigures>,
    /// The last reload.
    pub reload: ReloadFigures,
    /// Its part in a pair; all 0 without one.
    pub pair: PairFigures,
    /// Flow sync; all 0 without.
    pub sync: SyncFigures,
}

/// Figures of one backend beside its status.
#[derive(Clone, Debug, Default)]
pub struct BackendFigures {
    /// The last verdict of its check, draining or not.
    pub up: bool,
    /// Its traffic.
    pub counters: BackendCounters,
    /// How long it took to answer SYNs.
    pub handshakes: Handshakes,
    /// SYNs that it never answered.
    pub unanswered: u64,
    /// NAT ports that are not free.
    pub nat_ports: u64,
    /// Flows that the balancer ended, in the order of [`Reason::ALL`].
    pub ended: [u64; Reason::ALL.len()],
    /// Its checks.
    pub checks: CheckFigures,
    /// What its checks found out.
    pub etcd: EtcdFigures,
}

/// What is known of an etcd member; zero where nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EtcdFigures {
    /// It leads its cluster.
    pub leader: bool,
    /// It is a learner.
    pub learner: bool,
    /// Size of its database, octets.
    pub db_size: u64,
    /// Alarms of its cluster, in the order of [`ALARMS`].
    pub alarms: [bool; ALARMS.len()],
    /// When its certificate ends, seconds since 1970.
    pub not_after: u64,
}

/// Ended checks of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckFigures {
    /// Those that passed.
    pub passed: u64,
    /// Those that failed.
    pub failed: u64,
    /// How long they took.
    pub durations: Histogram,
}

/// Flow sync.
#[derive(Clone, Debug, Default)]
pub struct SyncFigures {
    /// Flows of other nodes that were put into this node's tables.
    pub flows_in: u64,
    /// Slots that other nodes were told of.
    pub flows_out: u64,
    /// Flows of other nodes that one of this node was in the way of.
    pub conflicts: u64,
    /// Connections from addresses that are no peer's.
    pub strangers: u64,
    /// Streams that could not be, by the places of [`Failure::REASONS`].
    pub failures: [u64; Failure::REASONS.len()],
}

/// A node's part in a pair.
#[derive(Clone, Debug, Default)]
pub struct PairFigures {
    /// Changes to active, backup and fault.
    pub transitions: [u64; 3],
    /// Advertisements that were not heeded, by the places of [`Reject::REASONS`].
    pub rejected: [u64; Reject::REASONS.len()],
    /// Advertisements sent, heeded, and not gone out.
    pub sent: u64,
    /// Advertisements heeded.
    pub received: u64,
    /// Advertisements that did not go out to every peer.
    pub not_sent: u64,
    /// By the places of [`LATENESS_BOUNDS`]; the last one: later than all.
    pub lateness: [u64; LATENESS_BOUNDS.len() + 1],
    /// The sum of all.
    pub lateness_sum: Duration,
}

/// The last reload of the config, or its first load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReloadFigures {
    /// The last one succeeded.
    pub successful: bool,
    /// When one last succeeded, seconds since 1970.
    pub succeeded_at: u64,
}

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

/// Upper bounds of the buckets, seconds: from a TCP handshake on one's own switch to the largest sensible timeout.
const BOUNDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

impl Histogram {
    /// Counts a duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += duration;
    }
}

/// Everything, in Prometheus' text format 0.0.4.
pub fn render(figures: &Figures) -> String {
    let mut page = Page::new();
    node(&mut page, figures);
    discovery(&mut page, figures);
    backends(&mut page, figures);
    data_plane(&mut page, figures);
    page.finish()
}

fn node(page: &mut Page, figures: &Figures) {
    let status = &figures.status;
    page.family("build_info", "gauge", "Version of the agent.");
    page.sample("build_info", &[("version", &status.version)], 1);
    page.family("role", "gauge", "Role of this node, one-hot.");
    for role in Role::ALL {
        page.sample("role", &[("role", role.name())], u64::from(status.role == role));
    }
    page.family("vip_fenced", "gauge", "1 while this node's lease is over and it does not claim the VIPs.");
    page.sample("vip_fenced", &[], u64::from(status.fenced));
    pair(page, &figures.pair);
    sync(page, &figures.sync, status.peer.as_ref());
    page.family("xdp_attached", "gauge", "1 where the program is attached, by interface and mode.");
    let far = status.node.iter().map(|node| InterfaceStatus {
        name: node.interface.clone() + NodeLink::FAR,
        xdp_mode: node.xdp_mode.clone(),
    });
    for interface in status.interfaces.iter().cloned().chain(far) {
        for mode in ["native", "generic"] {
            let attached = interface.xdp_mode.as_deref() == Some(mode);
            page.sample(
                "xdp_attached",
                &[("interface", &interface.name), ("mode", mode)],
                u64::from(attached),
            );
        }
    }
    page.family(
        "service_fail_open",
        "gauge",
        "1 while no backend is healthy and others are used in their place.",
    );
    for service in &status.services {
        page.sample("service_fail_open", &[("service", &service.name)], u64::from(service.fail_open));
    }
    page.family("flows", "gauge", "Established flows.");
    page.sample("flows", &[], status.flow_table.used);
    page.family("half_open_flows", "gauge", "Half-open flows.");
    page.sample("half_open_flows", &[], figures.half_open);
    page.family("flow_table_capacity", "gauge", "Established flows at most.");
    page.sample("flow_table_capacity", &[], status.flow_table.capacity);
    page.family("config_last_reload_successful", "gauge", "1 if the last load of the config succeeded.");
    page.sample("config_last_reload_successful", &[], u64::from(figures.reload.successful));
    page.family(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "When the config was last loaded, Unix time.",
    );
    page.sample("config_last_reload_success_timestamp_seconds", &[], figures.reload.succeeded_at);
}

fn sync(page: &mut Page, sync: &SyncFigures, peer: Option<&PeerStatus>) {
    page.family("sync_connected", "gauge", "1 while there is a stream to every peer.");
    page.sample("sync_connected", &[], u64::from(peer.is_some_and(|peer| peer.connected)));
    page.family("sync_synced", "gauge", "1 while this node and its peers have each other's flows.");
    page.sample("sync_synced", &[], u64::from(peer.is_some_and(|peer| peer.synced)));
    page.family("sync_lag_seconds", "gauge", "How long a flow takes until the slowest peer has it.");
    let lag = peer.and_then(|peer| peer.lag_ms).map_or(0.0, |ms| ms as f64 / 1000.0);
    page.line("sync_lag_seconds", &[], &lag.to_string());
    page.family("sync_flows_total", "counter", "Flows from and to other nodes.");
    for (direction, count) in [("in", sync.flows_in), ("out", sync.flows_out)] {
        page.sample("sync_flows_total", &[("direction", direction)], count);
    }
    page.family(
        "sync_conflicts_total",
        "counter",
        "Flows of other nodes that one of this node was in the way of.",
    );
    page.sample("sync_conflicts_total", &[], sync.conflicts);
    page.family(
        "sync_strangers_total",
        "counter",
        "Connections for flow sync from addresses that are no peer's.",
    );
    page.sample("sync_strangers_total", &[], sync.strangers);
    page.family("sync_failures_total", "counter", "Streams to peers that could not be, or were altered.");
    for (reason, count) in Failure::REASONS.into_iter().zip(sync.failures) {
        page.sample("sync_failures_total", &[("reason", reason)], count);
    }
}

fn pair(page: &mut Page, pair: &PairFigures) {
    page.family("role_transitions_total", "counter", "Changes of this node's role.");
    for (role, count) in [Role::Active, Role::Backup, Role::Fault].into_iter().zip(pair.transitions) {
        page.sample("role_transitions_total", &[("to", role.name())], count);
    }
    page.family("heartbeat_late_seconds", "histogram", "How late this node's VRRP advertisements went out.");
    page.lateness("heartbeat_late_seconds", pair);
    for (name, help, value) in [
        ("vrrp_sent_total", "VRRP advertisements sent.", pair.sent),
        ("vrrp_received_total", "VRRP advertisements of the other node heeded.", pair.received),
        ("vrrp_not_sent_total", "VRRP advertisements that did not go out to every peer.", pair.not_sent),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    page.family("vrrp_rejected_total", "counter", "VRRP advertisements that were not heeded.");
    for (reason, count) in Reject::REASONS.into_iter().zip(pair.rejected) {
        page.sample("vrrp_rejected_total", &[("reason", reason)], count);
    }
}

/// A metric of a service's discovery.
type DiscoveryMetric = (&'static str, &'static str, &'static str, fn(&DiscoveryFigures) -> u64);

fn discovery(page: &mut Page, figures: &Figures) {
    let all = || figures.status.services.iter().map(|service| service.name.as_str()).zip(&figures.discovery);
    let since_1970 = |figures: &DiscoveryFigures| {
        let since = figures.last_success.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_secs())
    };
    let metrics: [DiscoveryMetric; 3] = [
        (
            "discovery_last_success_timestamp_seconds",
            "gauge",
            "When an answer of the service's discovery was last believed, Unix time; 0: never.",
            since_1970,
        ),
        ("discovery_members", "gauge", "Backends that the last believed answer names.", |f| f.members as u64),
        ("discovery_failures_total", "counter", "Rounds of discovery without an answer.", |f| f.failures),
    ];
    for (name, kind, help, value) in metrics {
        page.family(name, kind, help);
        for (service, figures) in all() {
            page.sample(name, &[("service", service)], value(figures));
        }
    }
    page.family(
        "discovery_ignored_total",
        "counter",
        "Answers of discovery, and backends in them, that were not believed.",
    );
    for (service, figures) in all() {
        for (reason, count) in REASONS.into_iter().zip(figures.ignored) {
            page.sample("discovery_ignored_total", &[("service", service), ("reason", reason)], count);
        }
    }
}

/// A metric of a backend that is one number.
type BackendMetric = (&'static str, &'static str, &'static str, fn(&BackendFigures) -> u64);

/// A counter of a backend with a value a direction, in and out.
type DirectedMetric = (&'static str, &'static str, [fn(&BackendCounters) -> u64; 2]);

fn backends(page: &mut Page, figures: &Figures) {
    let all = || {
        let services = figures.status.services.iter().zip(&figures.backends);
        services.flat_map(|(service, of)| {
            service
                .backends
                .iter()
                .zip(of)
                .map(|(backend, figures)| (service.name.as_str(), backend, figures))
        })
    };
    page.family("backend_state", "gauge", "State of the backend, one-hot.");
    for (service, backend, _) in all() {
        for state in BACKEND_STATES {
            let labels = [("service", service), ("backend", &backend.name), ("state", state)];
            page.sample("backend_state", &labels, u64::from(backend.state == state));
        }
    }
    page.family("backend_weight", "gauge", "Weight of the backend.");
    for (service, backend, _) in all() {
        page.sample(
            "backend_weight",
            &[("service", service), ("backend", &backend.name)],
            backend.weight.into(),
        );
    }
    page.family("backend_flows", "gauge", "Established flows of the backend.");
    for (service, backend, _) in all() {
        page.sample("backend_flows", &[("service", service), ("backend", &backend.name)], backend.flows);
    }
    let plain: [BackendMetric; 7] = [
        ("etcd_is_leader", "gauge", "1 while the member leads its etcd cluster.", |f| f.etcd.leader.into()),
        ("etcd_is_learner", "gauge", "1 while the member is a learner.", |f| f.etcd.learner.into()),
        ("etcd_db_size_bytes", "gauge", "Size of the member's database file; 0: not known.", |f| {
            f.etcd.db_size
        }),
        (
            "backend_tls_not_after_timestamp_seconds",
            "gauge",
            "When the certificate that the backend showed last ends, Unix time; 0: none was shown.",
            |f| f.etcd.not_after,
        ),
        ("backend_up", "gauge", "1 while the backend's checks say that it is healthy.", |f| f.up.into()),
        ("backend_connections_total", "counter", "Connections begun to the backend.", |f| {
            f.counters.connections
        }),
        ("nat_ports_used", "gauge", "NAT ports toward the backend that are not free, of 64512.", |f| {
            f.nat_ports
        }),
    ];
    for (name, kind, help, value) in plain {
        page.family(name, kind, help);
        for (service, backend, figures) in all() {
            page.sample(name, &[("service", service), ("backend", &backend.name)], value(figures));
        }
    }
    let directed: [DirectedMetric; 2] = [
        (
            "backend_packets_total",
            "Packets to (in) and from (out) the backend.",
            [|c| c.packets_in, |c| c.packets_out],
        ),
        (
            "backend_bytes_total",
            "Octets to (in) and from (out) the backend, frames.",
            [|c| c.bytes_in, |c| c.bytes_out],
        ),
    ];
    for (name, help, values) in directed {
        page.family(name, "counter", help);
        for (service, backend, figures) in all() {
            for (direction, value) in ["in", "out"].into_iter().zip(values) {
                let labels =
                    [("service", service), ("backend", backend.name.as_str()), ("direction", direction)];
                page.sample(name, &labels, value(&figures.counters));
            }
        }
    }
    page.family(
        "backend_handshake_failures_total",
        "counter",
        "Handshakes that the backend did not complete.",
    );
    for (service, backend, figures) in all() {
        for (reason, value) in [("refused", figures.counters.refused), ("timeout", figures.unanswered)] {
            let labels = [("service", service), ("backend", backend.name.as_str()), ("reason", reason)];
            page.sample("backend_handshake_failures_total", &labels, value);
        }
    }
    page.family("backend_handshake_seconds", "histogram", "From a SYN to the backend's SYN-ACK.");
    for (service, backend, figures) in all() {
        let labels = [("service", service), ("backend", backend.name.as_str())];
        page.handshakes("backend_handshake_seconds", &labels, &figures.handshakes);
    }
    page.family("backend_resets_total", "counter", "Established flows of the backend that a RST ended.");
    for (service, backend, figures) in all() {
        let counters = &figures.counters;
        let by_ends = [("backend", counters.reset_by_backend), ("client", counters.reset_by_client)];
        let by_balancer = Reason::ALL.map(Reason::name).into_iter().zip(figures.ended);
        for (reason, value) in by_ends.into_iter().chain(by_balancer) {
            let labels = [("service", service), ("backend", backend.name.as_str()), ("reason", reason)];
            page.sample("backend_resets_total", &labels, value);
        }
    }
    page.family("etcd_alarm", "gauge", "1 while the alarm is raised in the member's cluster.");
    for (service, backend, figures) in all() {
        for (alarm, raised) in ALARMS.into_iter().zip(figures.etcd.alarms) {
            let labels = [("service", service), ("backend", backend.name.as_str()), ("alarm", alarm)];
            page.sample("etcd_alarm", &labels, raised.into());
        }
    }
    page.family("backend_checks_total", "counter", "Ended health checks of the backend.");
    for (service, backend, figures) in all() {
        for (result, value) in [("passed", figures.checks.passed), ("failed", figures.checks.failed)] {
            let labels = [("service", service), ("backend", backend.name.as_str()), ("result", result)];
            page.sample("backend_checks_total", &labels, value);
        }
    }
    page.family("backend_check_duration_seconds", "histogram", "How long health checks took.");
    for (service, backend, figures) in all() {
        let labels = [("service", service), ("backend", backend.name.as_str())];
        page.histogram("backend_check_duration_seconds", &labels, &figures.checks.durations);
    }
}

fn data_plane(page: &mut Page, figures: &Figures) {
    let counters = &figures.counters;
    for (name, help, value) in [
        ("flows_adopted_total", "Connections adopted after a takeover.", counters.flow_adopted),
        ("lease_revoked_total", "Leases that a stronger advertisement ended.", counters.lease_revoked),
        ("vip_conflicts_total", "ARP packets by which another host claimed a VIP.", counters.vip_conflict),
        ("events_lost_total", "Events of the data plane that the agent did not get.", counters.events_lost),
        ("flow_log_lines_lost_total", "Lines of the flow log that were not written.", figures.log_lines_lost),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    for (kind, name, label, help) in [
        (Kind::Drop, "dropped_packets_total", "reason", "Packets for a VIP that went nowhere."),
        (Kind::Reset, "reset_packets_total", "reason", "Packets for a VIP that were answered with a RST."),
        (Kind::Event, "data_plane_events_total", "event", "What else happened in the data plane."),
    ] {
        page.family(name, "counter", help);
        for counter in Counter::ALL.iter().filter(|counter| counter.kind() == kind) {
            page.sample(name, &[(label, counter.name())], counter.of(&figures.counters));
        }
    }
}
