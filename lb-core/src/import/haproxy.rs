//! `haproxy.cfg` (HAProxy Configuration Manual, sections 2.1 and 4).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{Backend, Draft, Health, Service, in_range, milliseconds};

/// A backend's part, before it is known who leads to it.
#[derive(Default)]
struct Pool {
    algorithm: Option<&'static str>,
    by_client: bool,
    health: Health,
    /// Of `server` and `default-server`.
    checks: bool,
    checks_by_tls: bool,
    backends: Vec<Backend>,
}

#[derive(Default)]
struct Front {
    name: String,
    binds: Vec<(Option<IpAddr>, u16)>,
    pool: Option<String>,
    is_http: bool,
    line: usize,
}

enum Section {
    None,
    Defaults,
    Front(usize),
    Pool(String),
    /// `listen`: both.
    Both(usize, String),
}

pub(super) fn read(text: &str) -> Draft {
    let mut draft = Draft::default();
    let (mut fronts, mut pools): (Vec<Front>, BTreeMap<String, Pool>) = (Vec::new(), BTreeMap::new());
    let (mut section, mut defaults_http, mut timeout) = (Section::None, false, None);
    for (number, raw) in (1..).zip(text.lines()) {
        let code = raw.split('#').next().unwrap_or_default();
        let words: Vec<&str> = code.split_whitespace().collect();
        let [first, rest @ ..] = &words[..] else { continue };
        let name = rest.first().copied().unwrap_or_default().to_owned();
        let front = |fronts: &mut Vec<Front>| {
            fronts.push(Front {
                name: name.clone(),
                is_http: defaults_http,
                line: number,
                ..Front::default()
            });
            fronts.len() - 1
        };
        match *first {
            "global" => section = Section::None,
            "defaults" => section = Section::Defaults,
            "frontend" => section = Section::Front(front(&mut fronts)),
            "backend" => {
                pools.entry(name.clone()).or_default();
                section = Section::Pool(name);
            }
            "listen" => {
                let place = front(&mut fronts);
                fronts[place].pool = Some(name.clone());
                pools.entry(name.clone()).or_default();
                section = Section::Both(place, name);
            }
            "timeout" if rest.first() == Some(&"check") => {
                timeout = rest.get(1).and_then(|text| milliseconds(text, 1));
            }
            "timeout" if rest.first() == Some(&"connect") => draft.note(
                number,
                code,
                "has no counterpart: a member that refuses or is silent is left at once, see [service.health]",
            ),
            "timeout" => draft.note(
                number,
                code,
                "has no counterpart: quiet connections are not cut, watches stay; see `idle_timeout` for dead ones",
            ),
            "mode" => match &section {
                Section::Defaults => defaults_http = name == "http",
                Section::Front(place) | Section::Both(place, _) => fronts[*place].is_http = name == "http",
                _ => {}
            },
            _ => {
                let known = match &section {
                    Section::None | Section::Defaults => false,
                    Section::Front(place) => of_front(&mut fronts[*place], number, code, &words, &mut draft),
                    Section::Pool(name) => {
                        pools.get_mut(name).is_some_and(|pool| of_pool(pool, number, code, &words, &mut draft))
                    }
                    Section::Both(place, name) => {
                        of_front(&mut fronts[*place], number, code, &words, &mut draft)
                            || pools.get_mut(name).is_some_and(|pool| of_pool(pool, number, code, &words, &mut draft))
                    }
                };
                if !known {
                    unknown(&mut draft, number, code, &words);
                }
            }
        }
    }
    for front in fronts {
        serve(&mut draft, &front, &mut pools, timeout);
    }
    draft
}

/// Notes what has no counterpart, and what comes near it.
fn unknown(draft: &mut Draft, number: usize, code: &str, words: &[&str]) {
    match words {
        ["log", ..] | ["option", "tcplog"] => draft.note(
            number,
            code,
            "has no counterpart: the journal has what changes, `flow_log` who was connected",
        ),
        ["maxconn", ..] => {
            draft.note(number, code, "has no counterpart: `max_flows` bounds all connections");
        }
        _ => draft.unknown(number, code),
    }
}

impl Pool {
    /// The kind of check, now that all lines are read, and what belongs to it.
    fn settle(&mut self) {
        let health = &mut self.health;
        let by_http = health.kind == Some("http");
        // What HAProxy asks by HTTP, etcd's own service answers better; but not on a port for metrics.
        if self.checks_by_tls && !(by_http && health.port.is_some()) {
            health.kind = Some("etcd");
        }
        if health.kind != Some("http") {
            (health.path, health.expect_status, health.expect_body) = (None, None, None);
        }
        if !self.checks_by_tls {
            (health.ca_file, health.pem_file) = (None, None);
        }
    }
}

/// Makes services of a frontend.
fn serve(draft: &mut Draft, front: &Front, pools: &mut BTreeMap<String, Pool>, timeout: Option<u64>) {
    if front.is_http {
        draft.note(
            front.line,
            &front.name,
            "is of mode http, which has no counterpart: only TCP is balanced",
        );
        return;
    }
    let pool =
        front.pool.as_ref().and_then(|name| pools.remove(name)).filter(|pool| !pool.backends.is_empty());
    let Some(mut pool) = pool else {
        draft.note(
            front.line,
            &front.name,
            "leads to no servers with addresses, or to those of another frontend",
        );
        return;
    };
    pool.health.timeout = timeout.map(in_range);
    pool.settle();
    if !pool.checks {
        draft.note(front.line, &front.name, "its servers are not checked; here every backend is");
    }
    let Some(&(vip, port)) = front.binds.first() else {
        draft.note(front.line, &front.name, "binds to no port");
        return;
    };
    for (address, port) in front.binds.iter().skip(1) {
        let at = address.map_or_else(|| "*".into(), |address| address.to_string());
        draft.note(
            front.line,
            &front.name,
            format!("binds to {at}:{port} too: write one more [[service]] for it"),
        );
    }
    draft.services.push(Service {
        name: front.name.clone(),
        vip,
        port,
        algorithm: pool.algorithm,
        by_client: pool.by_client,
        health: pool.health,
        backends: pool.backends,
    });
}

fn of_front(front: &mut Front, number: usize, code: &str, words: &[&str], draft: &mut Draft) -> bool {
    match words {
        ["bind", place, options @ ..] => {
            draft.note_listening(number, code, options);
            let found: Vec<_> = place.split(',').filter_map(bound).collect();
            front.binds.extend(&found);
            !found.is_empty()
        }
        ["default_backend", name] => {
            front.pool = Some((*name).to_owned());
            true
        }
        ["option", "tcplog" | "dontlognull" | "clitcpka" | "srvtcpka"] => true,
        _ => false,
    }
}

fn bound(place: &str) -> Option<(Option<IpAddr>, u16)> {
    let (host, port) = place.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
    Some((address, port.parse().ok()?))
}

fn of_pool(pool: &mut Pool, number: usize, code: &str, words: &[&str], draft: &mut Draft) -> bool {
    let health = &mut pool.health;
    match words {
        ["balance", algorithm, ..] => {
            match *algorithm {
                "roundrobin" | "static-rr" => pool.algorithm = Some("round-robin"),
                "leastconn" => pool.algorithm = Some("least-conn"),
                "source" => pool.by_client = true,
                _ => draft.note(
                    number,
                    code,
                    "has no counterpart: the default, consistent hashing with bounded loads",
                ),
            }
            true
        }
        ["option", "tcp-check"] => {
            health.kind = health.kind.or(Some("tcp"));
            true
        }
        ["option", "httpchk", rest @ ..] => {
            health.kind = Some("http");
            health.path = rest.iter().find(|word| word.starts_with('/')).map(|path| (*path).to_owned());
            true
        }
        ["option", "tcplog" | "dontlognull" | "clitcpka" | "srvtcpka" | "redispatch"] => true,
        ["http-check", "expect", "status", status] => {
            health.expect_status = status.parse().ok();
            health.expect_status.is_some()
        }
        ["http-check", "expect", "string", text @ ..] => {
            health.expect_body = Some(text.join(" ").replace("\\ ", " ").trim_matches('"').to_owned());
            true
        }
        // A GET, as ours is; the version of HTTP does not matter.
        ["http-check", "send", options @ ..] => {
            let of = |name: &str| {
                options.iter().position(|word| *word == name).and_then(|place| options.get(place + 1))
            };
            health.path = of("uri").map(|path| (*path).to_owned()).or(health.path.take());
            of("meth").is_none_or(|method| *method == "GET")
                && options.iter().all(|word| !["hdr", "body"].contains(word))
        }
        ["default-server", options @ ..] => {
            server_options(pool, &mut Backend::default(), number, code, options, draft);
            true
        }
        ["server", name, address, options @ ..] => {
            let Ok(address) = address.parse::<SocketAddr>() else {
                draft.note(
                    number,
                    code,
                    "is not an address and port: names are found by [service.discovery] kind = \"dns\"",
                );
                return true;
            };
            let mut backend =
                Backend { name: Some((*name).to_owned()), address: Some(address), ..Backend::default() };
            if options.contains(&"backup") || options.contains(&"disabled") {
                draft.note(number, code, "a server that is backup or disabled is left out");
                return true;
            }
            server_options(pool, &mut backend, number, code, options, draft);
            pool.backends.push(backend);
            true
        }
        _ => false,
    }
}

fn server_options(
    pool: &mut Pool,
    backend: &mut Backend,
    number: usize,
    code: &str,
    options: &[&str],
    draft: &mut Draft,
) {
    let health = &mut pool.health;
    let mut words = options.iter();
    let mut verifies = true;
    let (mut by_tls, mut elsewhere) = (false, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().unwrap_or_default();
        match *word {
            "check" => pool.checks = true,
            "check-ssl" => pool.checks_by_tls = true,
            "port" => {
                elsewhere = true;
                health.port = value().parse().ok();
            }
            "verify" => verifies = value() != "none",
            "ca-file" => health.ca_file = Some(value().to_owned()),
            "crt" => health.pem_file = Some(value().to_owned()),
            "inter" => health.interval = milliseconds(value(), 1).map(in_range),
            "rise" => health.rise = value().parse().ok(),
            "fall" => health.fall = value().parse().ok(),
            "weight" => backend.weight = value().parse().ok().filter(|weight| *weight > 0),
            "maxconn" => backend.max_connections = value().parse().ok(),
            "ssl" => {
                by_tls = true;
                draft.note(
                    number,
                    code,
                    "`ssl` has no counterpart: TLS passes through, from the client to the member",
                );
            }
            "addr" | "alpn" | "check-alpn" | "check-sni" | "cookie" | "downinter" | "error-limit"
            | "fastinter" | "id" | "init-addr" | "maxqueue" | "observe" | "on-error" | "resolve-prefer"
            | "resolvers" | "slowstart" | "sni" | "source" | "track" => {
                elsewhere |= *word == "addr";
                let value = value();
                draft.note(number, code, format!("`{word} {value}` has no counterpart"));
            }
            // Its default here.
            "on-marked-down" => drop(value()),
            other => draft.note(number, code, format!("`{other}` has no counterpart")),
        }
    }
    // HAProxy's checks speak TLS where its connections do, unless they go elsewhere: then `check-ssl` says so.
    pool.checks_by_tls |= by_tls && !elsewhere;
    if !verifies {
        draft.note(number, code, "`verify none`: certificates are always verified here; give ca_file");
    }
}
