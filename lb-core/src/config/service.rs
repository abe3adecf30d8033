//! Reads `[[service]]` and the sections within.

use std::net::{IpAddr, SocketAddr};

use super::limits;
use super::model::{
    Backend, ClientCertificate, Discovery, DiscoveryKind, DiscoverySource, HealthCheck, HealthKind,
    HttpProbe, Probe, Service, Tls,
};
use super::schema::{BACKEND, DISCOVERY, HEALTH};
use super::section::Section;
use crate::health::Timing;

pub(super) fn read(section: &Section<'_>) -> Option<Service> {
    let name = read_name(section);
    let vip = section.get::<IpAddr>("vip").filter(|vip| is_unicast(section, "vip", *vip));
    let port = section.within("port", &limits::PORT);
    let mode = section.get("mode");
    let algorithm = section.get("algorithm");
    let affinity = section.get("affinity");
    let source = section.optional::<IpAddr>("source_address");
    let source = source.filter(|s| s.is_none_or(|s| is_unicast(section, "source_address", s)));
    let allow = section.optional("allow");
    let drain_timeout = section.within("drain_timeout", &limits::DRAIN_TIMEOUT);
    let idle_timeout = section.within("idle_timeout", &limits::IDLE_TIMEOUT);
    let max_flows_per_client = section.within("max_flows_per_client", &limits::COUNT);
    let on_backend_down = section.get("on_backend_down");
    let fail_open = section.get("fail_open");
    let no_backend = section.get("no_backend");
    let prefer_local = section.get("prefer_local");
    let health = section.section_or_defaults("health", &HEALTH).and_then(|s| read_health(&s));
    let backends: Vec<_> = section.sections("backend", &BACKEND).iter().map(read_backend).collect();
    let discovery = section.section("discovery", &DISCOVERY).map(|s| read_discovery(&s));

    Some(Service {
        name: name?,
        vip: vip?,
        port: small(port?)?,
        mode: mode?,
        algorithm: algorithm?,
        affinity: affinity?,
        source_address: source?.unwrap_or(vip?),
        allow: allow?.unwrap_or_default(),
        drain_timeout: drain_timeout?,
        idle_timeout: idle_timeout?,
        max_flows_per_client: small(max_flows_per_client?)?,
        on_backend_down: on_backend_down?,
        fail_open: fail_open?,
        no_backend: no_backend?,
        prefer_local: prefer_local?,
        health: health?,
        backends: backends.into_iter().collect::<Option<_>>()?,
        discovery: discovery.map_or(Some(None), |d| d.map(Some))?,
    })
}

fn read_name(section: &Section<'_>) -> Option<String> {
    let name: String = section.get("name")?;
    if name.chars().count() > 64 {
        section.error("name", "is longer than 64 characters", "shorten it");
        return None;
    }
    Some(name)
}

fn read_backend(section: &Section<'_>) -> Option<Backend> {
    let address = section.get::<SocketAddr>("address").filter(|address| {
        if address.port() == 0 {
            section.error("address", "has port 0", "write the port that the backend listens on");
        } else if address.port() == limits::ETCD_PEER_PORT {
            section.warn("address", "a backend on port 2380: that is etcd's peer port, clients use 2379");
        }
        address.port() != 0 && is_unicast(section, "address", address.ip())
    });
    let name = if section.is_written("name") { read_name(section) } else { address.map(|a| a.to_string()) };
    let weight = section.get("weight").filter(|weight| {
        if *weight == 0 {
            let fix = "write 1 or more, and use `etcd-lb drain` to take a backend out of use";
            section.error("weight", "cannot be zero", fix);
        }
        *weight != 0
    });
    let weight = weight.and_then(|weight| section.in_range("weight", weight, &limits::WEIGHT));
    let max_connections = section.within("max_connections", &limits::COUNT);
    Some(Backend {
        name: name?,
        address: address?,
        weight: small(weight?)?,
        max_connections: small(max_connections?)?,
    })
}

fn read_health(section: &Section<'_>) -> Option<HealthCheck> {
    let kind = section.get("kind");
    let timing = read_timing(section);
    let port = section.optional_within("port", &limits::PORT);
    let path = section.get::<String>("path").filter(|path| {
        let good = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
        if !good {
            section.error("path", "is not a path", "begin it with / and write spaces and the like as %20");
        }
        good
    });
    let expect_status = section.within("expect_status", &limits::HTTP_STATUS);
    let expect_body = section.optional("expect_body");
    let max_raft_lag = section.optional_within("max_raft_lag", &limits::COUNT);
    let tls = read_tls(section, kind);

    let kind = kind?;
    warn_unused(section, kind, HealthKind::Http, &["path", "expect_status", "expect_body"]);
    warn_unused(section, kind, HealthKind::Etcd, &["max_raft_lag"]);
    let (path, expect_status, expect_body) = (path?, small(expect_status?)?, expect_body?);
    let (tls, max_raft_lag) = (tls?, max_raft_lag?);
    let probe = match kind {
        HealthKind::Tcp => Probe::Tcp,
        HealthKind::Http => Probe::Http(HttpProbe { path, expect_status, expect_body, tls }),
        HealthKind::Grpc => Probe::Grpc { tls },
        HealthKind::Etcd => Probe::Etcd { tls, max_raft_lag },
    };
    Some(HealthCheck { timing: timing?, port: port?.map_or(Some(None), |p| small(p).map(Some))?, probe })
}

fn read_timing(section: &Section<'_>) -> Option<Timing> {
    let interval = section.within("interval", &limits::HEALTH_INTERVAL);
    let fast_interval = section.within("fast_interval", &limits::HEALTH_FAST_INTERVAL);
    let timeout = section.within("timeout", &limits::HEALTH_TIMEOUT);
    let rise = section.within("rise", &limits::RISE_FALL);
    let fall = section.within("fall", &limits::RISE_FALL);
    let (interval, fast_interval, timeout) = (interval?, fast_interval?, timeout?);
    if fast_interval > interval && section.is_written("fast_interval") {
        section.error("fast_interval", "is longer than `interval`", "write a shorter one or remove the key");
        return None;
    }
    if timeout > interval {
        let message = "`timeout` is longer than `interval`: a probe that takes its whole timeout delays the \
                       next one, which then follows at once";
        section.warn("timeout", message);
    }
    let fast_interval = fast_interval.min(interval);
    Some(Timing { interval, fast_interval, timeout, rise: small(rise?)?, fall: small(fall?)? })
}

/// `Some(None)`: no TLS.
fn read_tls(section: &Section<'_>, kind: Option<HealthKind>) -> Option<Option<Tls>> {
    let ca_file = section.optional("ca_file");
    let cert_file = section.optional("cert_file");
    let key_file = section.optional("key_file");
    let server_name = section.optional::<String>("server_name").filter(|name| {
        let good = name
            .as_ref()
            .is_none_or(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b)));
        if !good {
            section.error(
                "server_name",
                "is not a host name or address",
                "write it as in the backend's certificate",
            );
        }
        good
    });
    let (ca_file, cert_file, key_file, server_name) = (ca_file?, cert_file?, key_file?, server_name?);

    let mut written =
        ["ca_file", "cert_file", "key_file", "server_name"].into_iter().filter(|k| section.is_written(k));
    if kind == Some(HealthKind::Tcp) {
        if let Some(key) = written.next() {
            section.error(
                key,
                "needs TLS, which `kind = \"tcp\"` does not speak",
                "remove it or write another kind",
            );
            return None;
        }
        return Some(None);
    }
    let Some(ca_file) = ca_file else {
        if let Some(key) = written.next() {
            section.error(key, "needs `ca_file`, which turns TLS on", "add `ca_file`");
            return None;
        }
        return Some(None);
    };
    let client = match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
        (None, None) => None,
        (Some(_), None) => {
            section.error("cert_file", "has no `key_file`", "add the certificate's key");
            return None;
        }
        (None, Some(_)) => {
            section.error("key_file", "has no `cert_file`", "add the key's certificate");
            return None;
        }
    };
    Some(Some(Tls { ca_file, client, server_name }))
}

fn read_discovery(section: &Section<'_>) -> Option<Discovery> {
    let kind = section.get("kind");
    let interval = section.within("interval", &limits::DISCOVERY_INTERVAL);
    let (domain, srv_name) = (section.optional("domain"), section.optional("srv_name"));
    let (namespace, service) = (section.optional("namespace"), section.optional("service"));
    let kubeconfig = section.optional("kubeconfig");
    let nameserver = section.optional::<SocketAddr>("nameserver").filter(|nameserver| {
        let good = nameserver.is_none_or(|address| address.port() != 0);
        if !good {
            section.error("nameserver", "has port 0", "write the port that it listens on, usually 53");
        }
        good
    });

    let kind = kind?;
    warn_unused(section, kind, DiscoveryKind::Dns, &["domain", "srv_name", "nameserver"]);
    warn_unused(section, kind, DiscoveryKind::Kubernetes, &["namespace", "service", "kubeconfig"]);
    let needed = |key: &'static str, value: Option<Option<String>>| {
        let value = value?;
        if value.is_none() {
            section.error("kind", &format!("needs `{key}`"), &format!("add `{key}`"));
        }
        value
    };
    let source = match kind {
        DiscoveryKind::Etcd => DiscoverySource::Etcd,
        DiscoveryKind::Dns => DiscoverySource::Dns {
            domain: needed("domain", domain)?,
            srv_name: srv_name?,
            nameserver: nameserver?,
        },
        DiscoveryKind::Kubernetes => {
            let (namespace, service) = (needed("namespace", namespace), needed("service", service));
            DiscoverySource::Kubernetes { namespace: namespace?, service: service?, kubeconfig: kubeconfig? }
        }
    };
    Some(Discovery { source, interval: interval? })
}

/// Says so where a key of one kind stands beside another.
fn warn_unused<K: Copy + PartialEq + std::fmt::Display>(
    section: &Section<'_>,
    kind: K,
    user: K,
    keys: &[&str],
) {
    if kind == user {
        return;
    }
    for key in keys.iter().filter(|key| section.is_written(key)) {
        section.warn(key, format!("`{key}` has no effect with `kind = \"{kind}\"`; only \"{user}\" uses it"));
    }
}

/// Reports an address that no host can have.
fn is_unicast(section: &Section<'_>, key: &str, address: IpAddr) -> bool {
    let what = match address {
        a if a.is_loopback() => "is a loopback address",
        a if a.is_multicast() => "is a multicast address",
        a if a.is_unspecified() => "is the unspecified address",
        IpAddr::V4(a) if a.octets()[0] == 0 => "is not a host's address",
        IpAddr::V4(a) if a.is_broadcast() => "is the broadcast address",
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => "is an IPv4 address written as IPv6",
        IpAddr::V6(a) if a.is_unicast_link_local() => "is a link-local address",
        _ => return true,
    };
    section.error(key, what, "write a unicast address that other hosts can reach");
    false
}

/// A number whose range the caller has checked to fit.
fn small<T: TryFrom<u64>>(number: u64) -> Option<T> {
    T::try_from(number).ok()
}
