//! The status page at `/`: made here as a whole, so that it says everything without a script too; the script only asks for
//! its inner part again.

use std::{fmt::Write as _, hash::BuildHasher as _, time::SystemTime};

use super::{
    events::Event,
    status::{BackendStatus, PeerState, PeerStatus, Role, ServiceStatus, Status},
    timestamp,
};
use crate::units;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/live.js");

/// Events that the page shows.
const EVENTS: usize = 15;

/// A page, and the value of its `Content-Security-Policy`.
#[derive(Clone, Debug)]
pub struct Page {
    /// HTML.
    pub html: String,
    /// What the page may do: its own style and script, and ask the agent.
    pub policy: String,
}

/// The whole page.
pub fn whole(status: &Status, events: &[Event], now: SystemTime) -> Page {
    // Its keys are random.
    let nonce = format!("{:016x}", std::hash::RandomState::new().hash_one(0));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>etcd-lb: {}</title>\n<style nonce=\"{nonce}\">\n{STYLE}</style>\n\
         </head>\n<body>\n<div id=\"gone\" role=\"alert\"></div>\n<header><h1>etcd-lb</h1></header>\n<main>\n{}</main>\n<script \
         nonce=\"{nonce}\">\n{SCRIPT}</script>\n</body>\n</html>\n",
        role(status).0,
        main(status, events, now)
    );
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    Page { html, policy }
}

/// What stands between `<main>` and `</main>`.
pub fn main(status: &Status, events: &[Event], now: SystemTime) -> String {
    let mut html = String::new();
    facts(&mut html, status);
    for service in &status.services {
        card(&mut html, service, now);
    }
    html += "<section class=\"card\">\n<div class=\"head\"><h2>Events</h2></div>\n<ol>\n";
    for event in events.iter().rev().take(EVENTS) {
        let Event { at, kind, subject, message, .. } = event;
        let subject = if subject.is_empty() { kind } else { subject };
        let day_and_time = at.get(..19).unwrap_or(at).replace('T', " ");
        write(
            &mut html,
            format_args!(
                "<li><time datetime=\"{}\" class=\"soft\">{}</time>{}: {}</li>\n",
                Safe(at),
                Safe(&day_and_time),
                Safe(subject),
                Safe(message)
            ),
        );
    }
    if events.is_empty() {
        html += "<li class=\"soft\">Nothing has happened since the agent began.</li>\n";
    }
    html += "</ol>\n</section>\n";
    html
}

/// The word for the role, and how it is coloured.
fn role(status: &Status) -> (&'static str, &'static str) {
    match (status.role, status.fenced) {
        (_, true) => ("fenced", "bad"),
        (Role::Active, _) => ("active", "good"),
        (Role::Backup, _) => ("backup", ""),
        (Role::Standalone, _) => ("standalone", "good"),
        (Role::Fault, _) => ("fault", "bad"),
    }
}

fn facts(html: &mut String, status: &Status) {
    let (word, class) = role(status);
    let mut fact = |name: &str, class: &str, value: &str| {
        write(
            html,
            format_args!(
                "<div><span class=\"soft\">{name}</span><b class=\"{class}\">{}</b></div>\n",
                Safe(value)
            ),
        );
    };
    fact("Role", class, word);
    let mut vips: Vec<&str> = status.services.iter().map(|service| service.vip.as_str()).collect();
    vips.dedup();
    fact("VIP", "", &vips.join(", "));
    let capacity = units::count(status.flow_table.capacity);
    fact("Connections", "", &format!("{} of {capacity}", units::count(status.flow_table.used)));
    for interface in &status.interfaces {
        let mode = interface.xdp_mode.as_deref();
        let class = if mode.is_none() { "bad" } else { "" };
        fact("Interface", class, &format!("{}, {}", interface.name, mode.unwrap_or("not attached")));
    }
    if let Some(peer) = &status.peer {
        let (class, words) = peer_words(peer);
        fact("Peer", class, &format!("{}, {words}", peer.address));
    }
    fact("Version", "", &status.version);
    let facts = std::mem::take(html);
    let fenced = if status.fenced {
        "<section class=\"card alarm\"><p>Fenced: this node's lease on the VIPs is over. It serves the connections that it knows, \
         and takes no new ones.</p></section>\n"
    } else {
        ""
    };
    *html = format!("<section class=\"facts\">\n{facts}</section>\n{fenced}");
}

fn peer_words(peer: &PeerStatus) -> (&'static str, String) {
    let class = match peer.state() {
        PeerState::Apart => "bad",
        PeerState::Syncing => "warn",
        PeerState::Synced => "good",
    };
    (class, peer.words())
}

fn card(html: &mut String, service: &ServiceStatus, now: SystemTime) {
    let ServiceStatus { name, mode, algorithm, flows, half_open, .. } = service;
    let alarm = if service.fail_open {
        " alarm\">\n<p>No backend is healthy: failing open. New connections go to backends that accept connections.</p>"
    } else {
        "\">"
    };
    write(
        html,
        format_args!(
            "<section class=\"card{alarm}\n<div class=\"head\"><h2>{}</h2><span>{}</span><span class=\"soft\">{}, {}; {} \
             connections, {} half-open</span></div>\n<table>\n<thead><tr><th>Member</th><th>State</th><th \
             class=\"num\">Connections</th><th class=\"num\">New a second</th><th class=\"num\">To the member</th><th \
             class=\"num\">To clients</th><th class=\"num\">Handshake</th><th>etcd</th><th class=\"num\">Database</th><th \
             class=\"num\">Since</th><th>Last check</th></tr></thead>\n<tbody>\n",
            Safe(name),
            Safe(&service.endpoint()),
            Safe(mode),
            Safe(algorithm),
            units::count(*flows),
            units::count(*half_open)
        ),
    );
    for backend in &service.backends {
        row(html, backend, now);
    }
    *html += "</tbody>\n</table>\n</section>\n";
}

fn row(html: &mut String, backend: &BackendStatus, now: SystemTime) {
    let traffic = &backend.traffic;
    *html += "<tr>";
    let mut cell = |of: &str, class: &str, value: &str| {
        write(html, format_args!("<td data-of=\"{of}\" class=\"{class}\">{}</td>", Safe(value)));
    };
    let class = match backend.state.as_str() {
        "healthy" => "good",
        "down" => "bad",
        _ => "warn",
    };
    let each = |octets: f64, packets: f64| {
        format!("{}/s, {} p/s", units::octets(octets.max(0.0).round() as u64), units::rate(packets))
    };
    cell("Member", "", &format!("{}\u{2002}{}", backend.name, backend.address));
    cell("State", class, &backend.state);
    cell("Connections", "num", &units::count(backend.flows));
    cell("New a second", "num", &units::rate(traffic.connections_per_second));
    cell("To the member", "num", &each(traffic.bytes_in_per_second, traffic.packets_in_per_second));
    cell("To clients", "num", &each(traffic.bytes_out_per_second, traffic.packets_out_per_second));
    cell("Handshake", "num", &traffic.handshake_us.map_or_else(|| "–".into(), units::microseconds));
    cell("etcd", "", &member(backend));
    cell("Database", "num", &backend.db_size.map_or_else(|| "–".into(), units::octets));
    let since = timestamp::parse(&backend.since).map_or_else(|| "–".into(), |since| units::since(since, now));
    cell("Since", "num", &since);
    cell("Last check", if backend.state == "down" { "wide bad" } else { "wide" }, &backend.reason);
    *html += "</tr>\n";
}

/// Version, whether it leads, and its alarms.
fn member(backend: &BackendStatus) -> String {
    let mut words: Vec<String> = backend.version.iter().cloned().collect();
    match (backend.leader, backend.learner) {
        (_, Some(true)) => words.push("learner".into()),
        (Some(true), _) => words.push("leader".into()),
        (Some(false), _) => words.push("follower".into()),
        (None, _) => {}
    }
    words.extend(backend.alarms.iter().cloned());
    if words.is_empty() { "–".into() } else { words.join(", ") }
}

/// Text that stands in HTML or in a quoted attribute: much of it comes from other hosts.
struct Safe<'a>(&'a str);

impl std::fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

fn write(html: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(arguments);
}

#[cfg(test)]
mod tests;
