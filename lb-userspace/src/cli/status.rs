//! `etcd-lb status`

use std::{
    io::IsTerminal as _,
    path::Path,
    time::{Duration, SystemTime},
};

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
    /// Show it again each second, on a terminal in place; with --json a line each time
    #[arg(short, long)]
    watch: bool,
}

/// Between two looks of `--watch`.
const PACE: Duration = Duration::from_secs(1);

impl Status {
    pub(super) fn run(&self, socket: &Path) -> Result<(), Failure> {
        loop {
            let status: status::Status = block_on(client::get(socket, "/status"))?;
            match (self.json, self.watch) {
                (true, false) => return print_json(&status),
                (true, true) => println!("{}", serde_json::to_string(&status).unwrap_or_default()),
                (false, watch) => {
                    if watch && std::io::stdout().is_terminal() {
                        // Home, and clear to the end: ECMA-48 sections 8.3.21 and 8.3.39.
                        print!("\x1b[H\x1b[J");
                    }
                    print!("{}", render(&status, SystemTime::now(), colours()));
                }
            }
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(PACE);
        }
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
        // What a row had to cut stands below in full, where it tells more than the state.
        let tells = |backend: &&BackendStatus| backend.state != "healthy" && table.cuts(&backend.reason);
        for backend in service.backends.iter().filter(tells) {
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
    format!("peer {}: {}\n", peer.address, peer.words())
}

fn headline(service: &ServiceStatus) -> String {
    format!(
        "{}  {}  {}, {}; {} flows, {} half-open{}\n",
        service.name,
        service.endpoint(),
        service.mode,
        service.algorithm,
        units::count(service.flows),
        units::count(service.half_open),
        if service.fail_open { "; FAILING OPEN: no backend is healthy" } else { "" },
    )
}

/// Weights stand there where one is not 1, and etcd's version where one is known.
fn table(service: &ServiceStatus, now: SystemTime) -> Table {
    let has_weights = service.backends.iter().any(|backend| backend.weight != 1);
    let has_versions = service.backends.iter().any(|backend| backend.version.is_some());
    let columns = [
        ("BACKEND", Align::Left, true),
        ("ADDRESS", Align::Left, true),
        ("STATE", Align::Left, true),
        ("ETCD", Align::Left, has_versions),
        ("WEIGHT", Align::Right, has_weights),
        ("FLOWS", Align::Right, true),
        ("SLOTS", Align::Right, true),
        ("CHECKED", Align::Right, true),
        ("SINCE", Align::Right, true),
        ("REASON", Align::Left, true),
    ];
    let shown = |place: &usize| columns[*place].2;
    let heads: Vec<_> =
        (0..columns.len()).filter(shown).map(|place| (columns[place].0, columns[place].1)).collect();
    let mut table = Table::new(&heads);
    let slots: u64 = service.backends.iter().map(|backend| backend.slots).sum();
    for backend in &service.backends {
        let cells = [
            backend.name.clone(),
            backend.address.clone(),
            backend.state.clone(),
            version(backend),
            backend.weight.to_string(),
            units::count(backend.flows),
            units::percent(backend.slots, slots),
            backend.last_check_ms.map_or_else(|| "-".into(), units::milliseconds),
            timestamp::parse(&backend.since).map_or_else(|| "-".into(), |since| units::since(since, now)),
            backend.reason.clone(),
        ];
        let cells = cells.into_iter().enumerate().filter(|(place, _)| shown(place)).map(|(_, cell)| cell);
        table.row(state_colour(backend), cells);
    }
    table
}

/// `3.5.16 leader`
fn version(backend: &BackendStatus) -> String {
    let leads = backend.leader == Some(true);
    match &backend.version {
        Some(version) if leads => format!("{version} leader"),
        Some(version) => version.clone(),
        None => "-".into(),
    }
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
            leader: (state == "healthy").then_some(true),
            version: (state == "healthy").then(|| "3.5.16".into()),
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
  BACKEND  ADDRESS         STATE    ETCD           FLOWS  SLOTS  CHECKED  SINCE  REASON
  etcd-1   10.0.1.10:2379  healthy  3.5.16 leader      4   50 %   210 ms  3 min  probe passed
  etcd-2   10.0.1.11:2379  down     -                  4   50 %   210 ms  3 min  TLS: a very long r…
  etcd-2: TLS: a very long reason TLS: a very long reason TLS: a very long reason TLS: a very long
    reason TLS: a very long reason
";
        assert_eq!(text, expected);
        assert!(render(&status, now, true).contains("\x1b[31mdown"));
    }
}
