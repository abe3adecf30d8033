//! What this release does not do yet. The parser knows the whole contract; what has no effect yet is refused
//! here, so that nothing is ever silently ignored. Whoever builds a missing piece deletes its lines.

use super::diagnostic::Sink;
use super::model::{Algorithm, Backend, Config, HealthKind, Service};
use super::place::{Document, Step};
use super::schema::{HEALTH, SERVICE, Schema};

/// A key whose default is not supported yet, and what it means meanwhile.
pub(super) struct OtherDefault {
    schema: &'static Schema,
    key: &'static str,
    /// In TOML.
    pub(super) toml: &'static str,
    /// The contract's default, and why it is not used.
    default: &'static str,
}

static OTHER_DEFAULTS: [OtherDefault; 2] = [
    OtherDefault { schema: &SERVICE, key: "algorithm", toml: "\"maglev\"", default: "\"bounded\"" },
    OtherDefault { schema: &HEALTH, key: "kind", toml: "\"http\"", default: "\"etcd\"" },
];

impl OtherDefault {
    pub(super) fn warning(&self) -> String {
        let Self { schema, key, toml, default } = self;
        format!(
            "`{key}` is not written in {}: its default {default} is not supported yet, so this release \
             uses {toml}; write `{key} = {toml}` to keep that after an upgrade",
            schema.title
        )
    }
}

pub(super) fn other_default(schema: &Schema, key: &str) -> Option<&'static OtherDefault> {
    OTHER_DEFAULTS.iter().find(|other| other.schema == schema && other.key == key)
}

/// Refuses what is written and not supported yet.
pub(super) fn refuse(config: &Config, document: &Document<'_>, sink: &Sink<'_>) {
    let not_yet = |path: &[Step<'_>], what: &str, fix: &str| {
        sink.error(&document.place(path), format!("{what} is not supported yet; {fix}"));
    };
    if config.vrrp.is_some() {
        not_yet(&["vrrp".into()], "[vrrp]", "remove the section: this release runs standalone");
    }
    if config.sync.is_some() {
        not_yet(&["sync".into()], "[sync]", "remove the section: this release runs standalone");
    }
    for (index, service) in config.services.iter().enumerate() {
        let path = ["service".into(), index.into()];
        refuse_in_service(service, &|key, what, fix| {
            not_yet(&[&path[..], &[key.into()]].concat(), what, fix);
        });

        let path = [&path[..], &["health".into()]].concat();
        let lag = [&path[..], &["max_raft_lag".into()]].concat();
        let kind = service.health.probe.kind();
        if matches!(kind, HealthKind::Etcd | HealthKind::Grpc) {
            let fix = r#"write "http" or "tcp""#;
            not_yet(&[&path[..], &["kind".into()]].concat(), &format!("`kind = \"{kind}\"`"), fix);
        }
        if document.is_written(&lag) {
            not_yet(&lag, "`max_raft_lag`", "remove the key");
        }
        for (number, backend) in service.backends.iter().enumerate() {
            let path = ["service".into(), index.into(), "backend".into(), number.into()];
            refuse_in_backend(backend, &|key, what, fix| {
                not_yet(&[&path[..], &[key.into()]].concat(), what, fix);
            });
        }
    }
}

fn refuse_in_backend(backend: &Backend, not_yet: &dyn Fn(&str, &str, &str)) {
    if backend.max_connections != 0 {
        let what = format!("`max_connections = {}`", backend.max_connections);
        not_yet("max_connections", &what, "remove the key or write 0, no limit");
    }
}

fn refuse_in_service(service: &Service, not_yet: &dyn Fn(&str, &str, &str)) {
    if service.algorithm != Algorithm::Maglev {
        not_yet("algorithm", &format!("`algorithm = \"{}\"`", service.algorithm), r#"write "maglev""#);
    }
    if service.max_flows_per_client != 0 {
        let what = format!("`max_flows_per_client = {}`", service.max_flows_per_client);
        not_yet("max_flows_per_client", &what, "remove the key or write 0, no limit");
    }
    if service.prefer_local {
        not_yet("prefer_local", "`prefer_local = true`", "remove the key or write false");
    }
    if service.discovery.is_some() {
        not_yet("discovery", "[service.discovery]", "remove the section and write each backend");
    }
}
