//! NGINX's `stream` block (ngx_stream_core_module, ngx_stream_upstream_module).

use std::{collections::BTreeMap, net::IpAddr};

use super::{Backend, Draft, Service};

/// Options of `listen` that say nothing about connections.
const LISTENS_HARMLESSLY: [&str; 3] = ["reuseport", "so_keepalive=on", "ipv6only=on"];

#[derive(Default)]
struct Upstream {
    algorithm: Option<&'static str>,
    by_client: bool,
    fall: Option<u64>,
    backends: Vec<Backend>,
}

#[derive(Default)]
struct Server {
    line: usize,
    listens: Vec<(Option<IpAddr>, u16)>,
    upstream: Option<String>,
}

pub(super) fn read(text: &str) -> Draft {
    let mut draft = Draft::default();
    let (mut upstreams, mut servers): (BTreeMap<String, Upstream>, Vec<Server>) =
        (BTreeMap::new(), Vec::new());
    let mut open: Vec<(String, String)> = Vec::new();
    for (number, statement) in statements(text) {
        let is_block = statement.ends_with('{');
        let words: Vec<&str> = statement.trim_end_matches(['{', ';']).split_whitespace().collect();
        let in_stream = open.iter().any(|(name, _)| name == "stream");
        match (&words[..], is_block) {
            ([], _) if statement == "}" => drop(open.pop()),
            (["}"], _) => drop(open.pop()),
            ([], _) => {}
            ([name, rest @ ..], true) => {
                let of = rest.first().copied().unwrap_or_default();
                match *name {
                    "server" if in_stream => servers.push(Server { line: number, ..Server::default() }),
                    "upstream" if in_stream => drop(upstreams.insert(of.to_owned(), Upstream::default())),
                    "stream" | "events" => {}
                    _ => draft.unknown(number, &statement),
                }
                open.push(((*name).to_owned(), of.to_owned()));
            }
            (words, false) => {
                let inner = open.last().cloned().unwrap_or_default();
                let known = match inner.0.as_str() {
                    "upstream" if in_stream => upstreams
                        .get_mut(&inner.1)
                        .is_some_and(|upstream| of_upstream(upstream, number, &statement, words, &mut draft)),
                    "server" if in_stream => servers
                        .last_mut()
                        .is_some_and(|server| of_server(server, number, &statement, words, &mut draft)),
                    // What is outside is the process's own.
                    _ => !in_stream,
                };
                if !known {
                    draft.unknown(number, &statement);
                }
            }
        }
    }
    for server in servers {
        serve(&mut draft, &server, &mut upstreams);
    }
    draft
}

/// Statements with the lines that they begin in, each ended by `;`, `{` or `}`.
fn statements(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut statement, mut begun) = (Vec::new(), String::new(), 1);
    for (number, raw) in (1..).zip(text.lines()) {
        for letter in raw.split('#').next().unwrap_or_default().chars().chain(['\n']) {
            if statement.trim().is_empty() {
                begun = number;
            }
            statement.push(letter);
            if matches!(letter, ';' | '{' | '}') {
                found.push((
                    begun,
                    std::mem::take(&mut statement).split_whitespace().collect::<Vec<_>>().join(" "),
                ));
            }
        }
    }
    found
}

fn of_upstream(
    upstream: &mut Upstream,
    number: usize,
    text: &str,
    words: &[&str],
    draft: &mut Draft,
) -> bool {
    match words {
        ["least_conn"] => upstream.algorithm = Some("least-conn"),
        ["hash", "$remote_addr", ..] | ["ip_hash"] => upstream.by_client = true,
        ["zone", ..] => {}
        ["server", address, options @ ..] => {
            let Ok(address) = address.parse() else {
                draft.note(
                    number,
                    text,
                    "is not an address and port: names are found by [service.discovery] kind = \"dns\"",
                );
                return true;
            };
            if options.contains(&"backup") || options.contains(&"down") {
                draft.note(number, text, "a server that is backup or down is left out");
                return true;
            }
            let mut backend = Backend { address: Some(address), ..Backend::default() };
            for option in options {
                match option.split_once('=') {
                    Some(("weight", value)) => backend.weight = value.parse().ok(),
                    Some(("max_conns", value)) => backend.max_connections = value.parse().ok(),
                    Some(("max_fails", value)) => {
                        upstream.fall = value.parse().ok().filter(|times| (1..=100).contains(times));
                    }
                    Some(("fail_timeout", _)) => draft.note(
                        number,
                        text,
                        "`fail_timeout` has no counterpart: members are checked all the time, and come back when a check passes",
                    ),
                    _ => draft.note(number, text, format!("`{option}` has no counterpart")),
                }
            }
            upstream.backends.push(backend);
        }
        _ => return false,
    }
    true
}

fn of_server(server: &mut Server, number: usize, text: &str, words: &[&str], draft: &mut Draft) -> bool {
    match words {
        ["listen", place, options @ ..] => {
            let said = options.iter().copied().filter(|option| !LISTENS_HARMLESSLY.contains(option));
            draft.note_listening(number, text, &said.collect::<Vec<_>>());
            let found = match place.rsplit_once(':') {
                Some((host, port)) => {
                    let host = host.trim_start_matches('[').trim_end_matches(']');
                    let address = host.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
                    port.parse().ok().map(|port| (address, port))
                }
                None => place.parse().ok().map(|port| (None, port)),
            };
            server.listens.extend(found);
            found.is_some()
        }
        ["proxy_pass", name] => {
            server.upstream = Some((*name).to_owned());
            true
        }
        ["proxy_timeout", ..] => {
            draft.note(number, text, "has no counterpart: quiet connections are not cut, watches stay");
            true
        }
        ["proxy_connect_timeout", ..] => {
            draft.note(number, text, "has no counterpart: a member that refuses or is silent is left at once, see [service.health]");
            true
        }
        _ => false,
    }
}

fn serve(draft: &mut Draft, server: &Server, upstreams: &mut BTreeMap<String, Upstream>) {
    let name = server.upstream.clone().unwrap_or_default();
    let upstream = upstreams.remove(&name).filter(|upstream| !upstream.backends.is_empty());
    let (Some(upstream), Some(&(vip, port))) = (upstream, server.listens.first()) else {
        draft.note(
            server.line,
            "server",
            "leads to no upstream with addresses, or to that of another server",
        );
        return;
    };
    let mut service = Service {
        name,
        vip,
        port,
        // Its own default.
        algorithm: upstream.algorithm.or((!upstream.by_client).then_some("round-robin")),
        by_client: upstream.by_client,
        backends: upstream.backends,
        ..Service::default()
    };
    service.health.fall = upstream.fall;
    draft.services.push(service);
}
