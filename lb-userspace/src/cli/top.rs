//! `etcd-lb top`

use std::{
    io::IsTerminal as _,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use etcd_lb::{
    api::{
        client,
        events::{Event, EventQuery},
        status::{BackendStatus, PeerState, Role, ServiceStatus, Status},
        timestamp,
    },
    units,
};
use ratatui::{
    Frame,
    crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::{Failure, values};

/// Show services, backends and their traffic as they are, and the last events; q ends it
#[derive(Debug, Args)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0,
          value_parser = values::seconds::<1, 36_000>, allow_negative_numbers = true)]
    interval: f64,
}

/// What is shown.
struct View {
    status: Status,
    events: Vec<Event>,
    /// Since when the agent does not answer, and what was said then.
    silent: Option<(Instant, String)>,
}

impl Top {
    pub(super) fn run(&self, socket: &Path) -> Result<(), Failure> {
        if !std::io::stdout().is_terminal() {
            let hint = "`top` needs a terminal; for programs there is `etcd-lb status --json`";
            return Err(Failure::Operation(hint.into()));
        }
        // Before the screen is taken: an agent that is not there is told as by any command.
        let (status, events) = look(socket)?;
        let mut view = View { status, events, silent: None };
        let mut terminal = ratatui::init();
        let ended = self.show(&mut terminal, socket, &mut view);
        ratatui::restore();
        ended.map_err(|error| Failure::Operation(format!("the terminal: {error}")))
    }

    fn show(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        socket: &Path,
        view: &mut View,
    ) -> std::io::Result<()> {
        let pace = Duration::from_secs_f64(self.interval);
        loop {
            terminal.draw(|frame| draw(frame, view, SystemTime::now()))?;
            let until = Instant::now() + pace;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                if event::poll(left)? {
                    match event::read()? {
                        Input::Key(key) if key.kind == KeyEventKind::Press => {
                            let is_end = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                                || (key.code == KeyCode::Char('c')
                                    && key.modifiers.contains(KeyModifiers::CONTROL));
                            if is_end {
                                return Ok(());
                            }
                        }
                        Input::Resize(..) => break,
                        _ => {}
                    }
                }
            }
            match look(socket) {
                Ok((status, events)) => *view = View { status, events, silent: None },
                Err(failure) => {
                    let since = view.silent.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                    view.silent = Some((since, failure.to_string()));
                }
            }
        }
    }
}

fn look(socket: &Path) -> Result<(Status, Vec<Event>), Failure> {
    super::block_on(async {
        let status = client::get(socket, "/status").await?;
        let events = client::get(socket, &client::with_query("/events", &EventQuery::default())).await?;
        Ok((status, events))
    })
}

fn draw(frame: &mut Frame<'_>, view: &View, now: SystemTime) {
    let status = &view.status;
    let heights = status.services.iter().map(|service| {
        let lines = service.backends.len() + 3 + usize::from(service.fail_open);
        Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX))
    });
    let parts: Vec<Constraint> =
        [Constraint::Length(2)].into_iter().chain(heights).chain([Constraint::Min(3)]).collect();
    let areas = Layout::vertical(parts).split(frame.area());
    frame.render_widget(Paragraph::new(head(view)), areas[0]);
    for (service, area) in status.services.iter().zip(areas.iter().skip(1)) {
        draw_service(frame, service, *area, now);
    }
    if let Some(area) = areas.last() {
        draw_events(frame, &view.events, *area);
    }
}

fn head(view: &View) -> Vec<Line<'static>> {
    let status = &view.status;
    let (word, colour) = match (status.role, status.fenced) {
        (_, true) => ("fenced", Color::Red),
        (Role::Fault, _) => ("fault", Color::Red),
        (Role::Active, _) => ("active", Color::Green),
        (Role::Standalone, _) => ("standalone", Color::Green),
        (Role::Backup, _) => ("backup", Color::Reset),
    };
    let mut words = vec![
        Span::styled(word, Style::new().fg(colour).add_modifier(Modifier::BOLD)),
        Span::raw(format!(
            "  etcd-lb {}  {} of {} connections",
            status.version,
            units::count(status.flow_table.used),
            units::count(status.flow_table.capacity)
        )),
    ];
    if let Some(peer) = &status.peer {
        let colour = match peer.state() {
            PeerState::Apart => Color::Red,
            PeerState::Syncing => Color::Yellow,
            PeerState::Synced => Color::Green,
        };
        words.push(Span::raw(format!("  peer {} ", peer.address)));
        words.push(Span::styled(peer.words(), Style::new().fg(colour)));
    }
    if let Some((since, reason)) = &view.silent {
        let silence = format!("  no answer for {} s: {reason}", since.elapsed().as_secs());
        words.push(Span::styled(silence, Style::new().fg(Color::Red)));
    }
    vec![Line::from(words)]
}

fn draw_service(frame: &mut Frame<'_>, service: &ServiceStatus, area: Rect, now: SystemTime) {
    let title = format!(
        " {}  {}  {}, {}; {} connections, {} half-open ",
        service.name,
        service.endpoint(),
        service.mode,
        service.algorithm,
        units::count(service.flows),
        units::count(service.half_open)
    );
    let mut block = Block::bordered().title(title);
    if service.fail_open {
        block = block
            .title_bottom(" no backend is healthy: failing open ")
            .border_style(Style::new().fg(Color::Red));
    }
    let is_narrow = area.width < WIDE;
    let kept = |place: &usize| !is_narrow || ![SYN_ACK, ETCD].contains(place);
    let names = service.backends.iter().map(|backend| backend.name.chars().count()).max().unwrap_or(0);
    let name_width = u16::try_from(names).unwrap_or(u16::MAX).clamp(7, if is_narrow { 14 } else { 22 });
    let columns = [
        ("BACKEND", Constraint::Length(name_width)),
        ("STATE", Constraint::Length(8)),
        ("CONN", Constraint::Length(7)),
        ("NEW/S", Constraint::Length(6)),
        ("IN", Constraint::Length(11)),
        ("OUT", Constraint::Length(11)),
        ("SYN-ACK", Constraint::Length(8)),
        ("ETCD", Constraint::Length(17)),
        ("SINCE", Constraint::Length(7)),
        ("REASON", Constraint::Fill(1)),
    ];
    let places: Vec<usize> = (0..columns.len()).filter(kept).collect();
    let header = Row::new(places.iter().map(|&place| columns[place].0));
    let header = header.style(Style::new().add_modifier(Modifier::DIM));
    let rows = service.backends.iter().map(|backend| {
        let mut cells: Vec<_> = cells(backend, now).into_iter().map(Some).collect();
        Row::new(
            places
                .iter()
                .filter_map(|&place| cells.get_mut(place).and_then(Option::take))
                .collect::<Vec<_>>(),
        )
    });
    let widths: Vec<Constraint> = places.iter().map(|&place| columns[place].1).collect();
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

/// Below so many columns some are left out.
const WIDE: u16 = 110;
/// Places of those columns.
const SYN_ACK: usize = 6;
const ETCD: usize = 7;

fn cells(backend: &BackendStatus, now: SystemTime) -> [Cell<'static>; 10] {
    let traffic = &backend.traffic;
    let colour = match backend.state.as_str() {
        "healthy" => Color::Green,
        "down" => Color::Red,
        _ => Color::Yellow,
    };
    let rate = |octets: f64| format!("{}/s", units::octets(octets.max(0.0).round() as u64));
    let mut etcd: Vec<String> = backend.version.iter().cloned().collect();
    etcd.extend(backend.leader.filter(|leads| *leads).map(|_| "leader".into()));
    etcd.extend(backend.alarms.iter().cloned());
    let since = timestamp::parse(&backend.since).map_or_else(|| "-".into(), |since| units::since(since, now));
    [
        Cell::from(backend.name.clone()),
        Cell::from(backend.state.clone()).style(Style::new().fg(colour)),
        Cell::from(units::count(backend.flows)),
        Cell::from(units::rate(traffic.connections_per_second)),
        Cell::from(rate(traffic.bytes_in_per_second)),
        Cell::from(rate(traffic.bytes_out_per_second)),
        Cell::from(traffic.handshake_us.map_or_else(|| "-".into(), units::microseconds)),
        Cell::from(etcd.join(" ")),
        Cell::from(since),
        Cell::from(backend.reason.clone()),
    ]
}

fn draw_events(frame: &mut Frame<'_>, events: &[Event], area: Rect) {
    let room = usize::from(area.height.saturating_sub(2));
    let lines = events.iter().rev().take(room).map(|event| {
        let time = event.at.get(11..19).unwrap_or(&event.at).to_owned();
        let subject = if event.subject.is_empty() { &event.kind } else { &event.subject };
        Line::from(vec![
            Span::styled(time, Style::new().add_modifier(Modifier::DIM)),
            Span::raw(format!("  {subject}: {}", event.message)),
        ])
    });
    let block = Block::bordered().title(" events ").title_bottom(" q ends ");
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use etcd_lb::api::status::{FlowTableStatus, PeerStatus, Traffic};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn backend(name: &str, state: &str, reason: &str) -> BackendStatus {
        let text = serde_json::json!({
            "name": name, "address": "10.0.1.11:2379", "state": state, "reason": reason, "weight": 1, "flows": 1234,
            "slots": 100, "leader": state == "healthy", "version": "3.5.16", "cluster_id": null, "last_check_ms": 210,
            "since": "2026-01-01T00:00:00Z",
        });
        let mut backend: BackendStatus = serde_json::from_value(text).unwrap();
        backend.traffic = Traffic {
            connections_per_second: 2.5,
            bytes_in_per_second: 2048.0,
            bytes_out_per_second: 1_500_000.0,
            handshake_us: Some(85),
            ..Traffic::default()
        };
        backend
    }

    #[test]
    fn it_fits_terminals_of_eighty_and_of_a_hundred_and_sixty_columns() {
        let status = Status {
            version: "0.1.0".into(),
            role: Role::Active,
            fenced: false,
            interfaces: vec![],
            node: None,
            services: vec![ServiceStatus {
                name: "etcd".into(),
                vip: "10.0.1.100".into(),
                port: 2379,
                mode: "nat".into(),
                algorithm: "bounded".into(),
                fail_open: false,
                flows: 1234,
                half_open: 0,
                backends: vec![
                    backend("etcd-1", "healthy", "probe passed"),
                    backend("etcd-2", "down", "connect: refused"),
                ],
            }],
            flow_table: FlowTableStatus { used: 1234, capacity: 131_072 },
            peer: Some(PeerStatus {
                address: "10.0.1.3:3780".into(),
                connected: true,
                synced: true,
                lag_ms: Some(1),
            }),
        };
        let event = Event {
            number: 1,
            at: "2026-01-01T08:05:09.123Z".into(),
            kind: "backend".into(),
            subject: "etcd/etcd-2".into(),
            message: "healthy → down: connect: refused".into(),
        };
        let view = View { status, events: vec![event], silent: None };
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 200);
        for (width, wanted) in [
            (
                80,
                &[
                    "active  etcd-lb 0.1.0  1,234 of 131,072",
                    "in sync",
                    "etcd-1",
                    "healthy",
                    "1,234",
                    "2.0 KiB/s",
                ][..],
            ),
            (
                160,
                &[
                    "1.4 MiB/s",
                    "85 µs",
                    "3.5.16 leader",
                    "3 min",
                    "connect: refused",
                    "08:05:09  etcd/etcd-2: healthy → down",
                ],
            ),
        ] {
            let mut terminal = Terminal::new(TestBackend::new(width, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &view, now)).unwrap();
            let shown = terminal.backend().to_string();
            for words in wanted {
                assert!(shown.contains(words), "{words} is not in\n{shown}");
            }
        }
    }
}
