//! `etcd-lb status`

use std::{path::Path, time::SystemTime};

use clap::Args;
use etcd_lb::api::{
    client,
    status::{self, BackendStatus, PeerStatus, ServiceStatus},
    timestamp,
};
use etcd_lb::units;

use super::{
    Failure, block_on, colours, print_json,
    table::{Align, Colour, Table, wrapped},
};

/// Show role, services, and backends with their health and flows
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self, socket: &Path) -> Result<(), Failure> {
        let status: status::Status = block_on(client::get(socket, "/status"))?;
        if self.json {
            return print_json(&status);
        }
        print!("{}", render(&status, SystemTime::now(), colours()));
        Ok(())
    }
}

fn render(status: &status::Status, now: SystemTime, colours: bool) -> String {
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| {
            format!("{} ({})", interface.name, interface.xdp_mode.as_deref().unwrap_or("not attached"))
        })
        .chain(status.node.iter().map(node_words))
        .collect();
    let mut text = format!(
        "{}{}, version {}, on {}; {} of {} flows\n",
        status.role.name(),
        if status.fenced { ", fenced" } else { "" },
        status.version,
        interfaces.join(", "),
        units::count(status.flow_table.used),
        units::count(status.flow_table.capacity),
    );
    text.extend(status.peer.as_ref().map(peer_line));
    for service in &status.services {
        text.push('\n');
        text.push_str(&headline(service));
        let table = table(service, now);
        text.push_str(&table.render(colours));
        // What a row had to cut stands below in full.
        for backend in service.backends.iter().filter(|backend| table.cuts(&backend.reason)) {
            text.push_str(&wrapped(&format!("{}: {}", backend.name, backend.reason)));
        }
    }
    text
}

/// The way of clients and members on this node.
fn node_words(node: &status::NodeStatus) -> String {
    let state = match (&node.xdp_mode, node.led.is_empty()) {
        (None, _) => "not attached".to_owned(),
        (Some(mode), true) => format!("{mode}, not in use"),
        (Some(mode), false) => mode.clone(),
    };
    format!("{} ({state})", node.interface)
}

/// Of several peers the worst.
fn peer_line(peer: &PeerStatus) -> String {
    let state = match (peer.connected, peer.synced) {
        (false, _) => "NOT CONNECTED: a takeover would break connections",
        (true, false) => "connected, not in sync yet",
        (true, true) => "in sync",
    };
    let lag =
        peer.lag_ms.filter(|_| peer.connected).map(|ms| format!(", {} behind", units::milliseconds(ms)));
    format!("peer {}: {state}{}\n", peer.address, lag.unwrap_or_default())
}

fn headline(service: &ServiceStatus) -> String {
    format!(
        "{}  {}:{}  {}, {}; {} flows, {} half-open{}\n",
        service.name,
        service.vip,
        service.port,
        service.mode,
        service.algorithm,
        units::count(service.flows),
        units::count(service.half_open),
        if service.fail_open { "; FAILING OPEN: no backend is healthy" } else { "" },
    )
}

fn table(service: &ServiceStatus, now: SystemTime) -> Table {
    let mut table = Table::new(&[
        ("BACKEND", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("FLOWS", Align::Right),
        ("SLOTS", Align::Right),
        ("CHECKED", Align::Right),
        ("SINCE", Align::Right),
        ("REASON", Align::Left),
    ]);
    let slots: u64 = service.backends.iter().map(|backend| backend.slots).sum();
    for backend in &service.backends {
        table.row(
            state_colour(backend),
            [
                backend.name.clone(),
                backend.address.clone(),
                backend.state.clone(),
                backend.weight.to_string(),
                units::count(backend.flows),
                units::percent(backend.slots, slots),
                backend.last_check_ms.map_or_else(|| "-".into(), units::milliseconds),
                timestamp::parse(&backend.since).map_or_else(|| "-".into(), |since| units::since(since, now)),
                backend.reason.clone(),
            ],
        );
    }
    table
}

fn state_colour(backend: &BackendStatus) -> Colour {
    match backend.state.as_str() {
        "healthy" => Colour::Green,
        "down" => Colour::Red,
        _ => Colour::Yellow,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use etcd_lb::api::status::{FlowTableStatus, InterfaceStatus, Role};

    use super::*;

    #[test]
    fn it_fits_a_hundred_columns() {
        let backend = |name: &str, address: &str, state: &str, reason: &str| BackendStatus {
            name: name.into(),
            address: address.into(),
            state: state.into(),
            reason: reason.into(),
            weight: 1,
            flows: 4,
            slots: 21_845,
            leader: None,
            version: None,
            cluster_id: None,
            learner: None,
            discovered: false,
            alarms: Vec::new(),
            db_size: None,
            tls_not_after: None,
            check_ms: Some(3),
            failed_step: (state == "down").then(|| "TLS".into()),
            failed_step_ms: (state == "down").then_some(1),
            traffic: Default::default(),
            last_check_ms: Some(210),
            since: "2026-01-01T00:00:00Z".into(),
        };
        let status = status::Status {
            version: "0.1.0".into(),
            role: Role::Standalone,
            fenced: false,
            interfaces: vec![InterfaceStatus { name: "eth0".into(), xdp_mode: Some("native".into()) }],
            node: None,
            services: vec![ServiceStatus {
                name: "etcd".into(),
                vip: "10.0.1.100".into(),
                port: 2379,
                mode: "nat".into(),
                algorithm: "maglev".into(),
                fail_open: false,
                flows: 12_345,
                half_open: 0,
                backends: vec![
                    backend("etcd-1", "10.0.1.10:2379", "healthy", "probe passed"),
                    backend("etcd-2", "10.0.1.11:2379", "down", &"TLS: a very long reason ".repeat(5)),
                ],
            }],
            flow_table: FlowTableStatus { used: 12_345, capacity: 131_072 },
            peer: None,
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 200);
        let text = render(&status, now, false);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let expected = "\
standalone, version 0.1.0, on eth0 (native); 12,345 of 131,072 flows

etcd  10.0.1.100:2379  nat, maglev; 12,345 flows, 0 half-open
  BACKEND  ADDRESS         STATE    WEIGHT  FLOWS  SLOTS  CHECKED  SINCE  REASON
  etcd-1   10.0.1.10:2379  healthy       1      4   50 %   210 ms  3 min  probe passed
  etcd-2   10.0.1.11:2379  down          1      4   50 %   210 ms  3 min  TLS: a very long reason T…
  etcd-2: TLS: a very long reason TLS: a very long reason TLS: a very long reason TLS: a very long
    reason TLS: a very long reason
";
        assert_eq!(text, expected);
        assert!(render(&status, now, true).contains("\x1b[31mdown"));
    }
}
