//! Configs of HAProxy, keepalived and NGINX's stream module, as one of ours; what has no counterpart is said line by line.
//!
//! Each reader fills a [`Draft`] from the directives that it knows, and notes every other line.

mod haproxy;
mod keepalived;
mod nginx;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// Whose config is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `haproxy.cfg`
    Haproxy,
    /// `keepalived.conf`
    Keepalived,
    /// `nginx.conf` with a `stream` block.
    Nginx,
}

/// What the file may not say.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The VIP, where a proxy listens on all addresses.
    pub vip: Option<IpAddr>,
    /// The interface.
    pub interface: Option<String>,
}

/// A config in the making.
#[derive(Debug, Default)]
struct Draft {
    interface: Option<String>,
    services: Vec<Service>,
    vrrp: Option<Vrrp>,
    /// Line, what stands there, and what is to be known about it.
    notes: Vec<(usize, String, String)>,
}

#[derive(Debug, Default)]
struct Service {
    name: String,
    vip: Option<IpAddr>,
    port: u16,
    algorithm: Option<&'static str>,
    by_client: bool,
    health: Health,
    backends: Vec<Backend>,
}

#[derive(Debug, Default)]
struct Health {
    kind: Option<&'static str>,
    path: Option<String>,
    expect_status: Option<u64>,
    expect_body: Option<String>,
    port: Option<u64>,
    /// Milliseconds.
    interval: Option<u64>,
    timeout: Option<u64>,
    rise: Option<u64>,
    fall: Option<u64>,
    ca_file: Option<String>,
    pem_file: Option<String>,
}

#[derive(Debug, Default)]
struct Backend {
    name: Option<String>,
    address: Option<SocketAddr>,
    weight: Option<u64>,
    max_connections: Option<u64>,
}

#[derive(Debug, Default)]
struct Vrrp {
    router_id: Option<u64>,
    priority: Option<u64>,
    version: Option<u64>,
    /// Milliseconds.
    advert_interval: Option<u64>,
    nopreempt: bool,
    source: Option<IpAddr>,
    unicast_peers: Vec<IpAddr>,
    auth_pass: Option<String>,
    interface: Option<String>,
    addresses: Vec<IpAddr>,
}

impl Draft {
    fn note(&mut self, line: usize, text: &str, why: impl Into<String>) {
        self.notes.push((line, text.trim().to_owned(), why.into()));
    }

    /// Options of a line that says where to listen.
    fn note_listening(&mut self, line: usize, text: &str, options: &[&str]) {
        if options.contains(&"ssl") {
            self.note(
                line,
                text,
                "`ssl` has no counterpart: TLS passes through, clients see the members' certificates",
            );
        } else if !options.is_empty() {
            self.note(line, text, format!("`{}` has no counterpart", options.join(" ")));
        }
    }

    fn unknown(&mut self, line: usize, text: &str) {
        self.note(line, text, "has no counterpart");
    }
}

/// Reads a config of another program, and writes ours.
///
/// # Errors
/// What is missing to make one, and how to say it.
pub fn import(kind: Kind, text: &str, given: &Given) -> Result<String, String> {
    let mut draft = match kind {
        Kind::Haproxy => haproxy::read(text),
        Kind::Keepalived => keepalived::read(text),
        Kind::Nginx => nginx::read(text),
    };
    draft.interface = given.interface.clone().or(draft.interface);
    for service in &mut draft.services {
        service.vip = service.vip.or(given.vip);
        if service.vip.is_none() {
            return Err(format!(
                "\"{}\" listens on all addresses: say which is the VIP, `--vip ADDRESS` (with keepalived the one in \
                 virtual_ipaddress)",
                service.name
            ));
        }
    }
    if draft.services.is_empty() && draft.vrrp.is_none() {
        return Err(
            "nothing to import: there is no TCP service in it that leads to servers by address".into()
        );
    }
    Ok(render(&draft))
}

fn render(draft: &Draft) -> String {
    let mut text = String::from(
        "# Imported. Look through the notes at the end, then `etcd-lb check-config` and `etcd-lb doctor`.\n",
    );
    // What comes alone is appended to a config that has the rest.
    if !draft.services.is_empty() {
        match &draft.interface {
            Some(interface) => line(&mut text, format_args!("interface = {interface:?}\n\n")),
            None => text += "interface = \"eth0\"          # which one it is the file does not say\n\n",
        }
    }
    for service in &draft.services {
        render_service(&mut text, service);
    }
    if let Some(vrrp) = &draft.vrrp {
        render_vrrp(&mut text, vrrp);
    }
    if !draft.notes.is_empty() {
        text += "\n# Notes\n";
    }
    for (number, what, why) in &draft.notes {
        line(&mut text, format_args!("# line {number}: `{what}`: {why}\n"));
    }
    text
}

fn render_service(text: &mut String, service: &Service) {
    line(text, format_args!("[[service]]\nname = {:?}\n", service.name));
    if let Some(vip) = service.vip {
        line(text, format_args!("vip = \"{vip}\"\n"));
    }
    line(text, format_args!("port = {}\n", service.port));
    if let Some(algorithm) = service.algorithm {
        line(text, format_args!("algorithm = {algorithm:?}\n"));
    }
    if service.by_client {
        *text += "affinity = \"client-ip\"\n";
    }
    let health = &service.health;
    *text += "\n  [service.health]\n";
    line(text, format_args!("  kind = {:?}\n", health.kind.unwrap_or("tcp")));
    if health.kind.is_none_or(|kind| kind == "tcp") {
        *text += "  # A check that only connects misses members that are frozen, learners or without a quorum. Better, with the\n  # \
                  files of a client of etcd: kind = \"etcd\", ca_file, cert_file, key_file\n";
    }
    if health.kind == Some("etcd") && health.ca_file.is_none() {
        *text += "  # Without ca_file the check speaks no TLS, and members that do are down: give it, and where they ask for client\n  # \
                  certificates cert_file and key_file too.\n";
    }
    let strings = [
        ("path", &health.path),
        ("expect_body", &health.expect_body),
        ("ca_file", &health.ca_file),
        ("cert_file", &health.pem_file),
        ("key_file", &health.pem_file),
    ];
    for (key, value) in strings.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        line(text, format_args!("  {key} = {value:?}\n"));
    }
    for (key, value) in [("interval", health.interval), ("timeout", health.timeout)] {
        if let Some(ms) = value {
            line(text, format_args!("  {key} = \"{ms}ms\"\n"));
        }
    }
    let numbers = [
        ("expect_status", health.expect_status),
        ("port", health.port),
        ("rise", health.rise),
        ("fall", health.fall),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            line(text, format_args!("  {key} = {value}\n"));
        }
    }
    for backend in &service.backends {
        *text += "\n  [[service.backend]]\n";
        if let Some(name) = &backend.name {
            line(text, format_args!("  name = {name:?}\n"));
        }
        if let Some(address) = backend.address {
            line(text, format_args!("  address = \"{address}\"\n"));
        }
        for (key, value) in [("weight", backend.weight), ("max_connections", backend.max_connections)] {
            if let Some(value) = value {
                line(text, format_args!("  {key} = {value}\n"));
            }
        }
    }
    *text += "\n";
}

fn render_vrrp(text: &mut String, vrrp: &Vrrp) {
    *text += "[vrrp]\n";
    for (key, value) in
        [("router_id", vrrp.router_id), ("priority", vrrp.priority), ("version", vrrp.version)]
    {
        if let Some(value) = value {
            line(text, format_args!("{key} = {value}\n"));
        }
    }
    if let Some(ms) = vrrp.advert_interval {
        line(text, format_args!("advert_interval = \"{ms}ms\"\n"));
    }
    if vrrp.nopreempt {
        *text += "preempt = false\n";
    }
    if let Some(source) = vrrp.source {
        line(text, format_args!("source = \"{source}\"\n"));
    }
    if !vrrp.unicast_peers.is_empty() {
        let peers: Vec<String> = vrrp.unicast_peers.iter().map(|peer| format!("\"{peer}\"")).collect();
        line(text, format_args!("unicast_peers = [{}]\n", peers.join(", ")));
    }
    if let Some(pass) = &vrrp.auth_pass {
        line(text, format_args!("auth_pass = {pass:?}\n"));
    }
    if let Some(interface) = &vrrp.interface {
        line(text, format_args!("interface = {interface:?}\n"));
    }
    let addresses: Vec<String> = vrrp.addresses.iter().map(ToString::to_string).collect();
    line(
        text,
        format_args!(
            "# virtual_ipaddress: {}: the services' `vip`, all of them and no other\n",
            addresses.join(", ")
        ),
    );
    *text += "\n# With two nodes of ours no connection breaks at a takeover; beside keepalived there is no flow sync.\n# [sync]\n# \
              listen = \"THIS NODE:3780\"\n# peer = \"THE OTHER NODE:3780\"\n# key_file = \"/etc/etcd-lb/sync.key\"\n";
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(arguments);
}

/// Milliseconds, of a number with a unit or in the program's own one, ms each.
fn milliseconds(text: &str, own: u64) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let unit = match text.get(digits..)? {
        "" => own,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// An interval and a timeout in the ranges that ours have.
fn in_range(ms: u64) -> u64 {
    ms.clamp(50, 3_600_000)
}
