//! What this release does not do yet. The parser knows the whole contract; what has no effect yet is refused
//! here, so that nothing is ever silently ignored. Whoever builds a missing piece deletes its lines.

use super::diagnostic::Sink;
use super::model::{Backend, Config, HealthKind, Mode, OnBackendDown, Service};
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
    OtherDefault { schema: &SERVICE, key: "on_backend_down", toml: "\"keep\"", default: "\"reset\"" },
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

/// Refuses what is written and not supported yet. Sees what [`super::check`] sees: an address may still be of
/// another family than its VIP, which is reported there.
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
    if config.flow_log.is_some() {
        not_yet(&["flow_log".into()], "`flow_log`", "remove the key; `etcd-lb flows` shows the flows of now");
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
            refuse_in_backend(service, backend, &|key, what, fix| {
                not_yet(&[&path[..], &[key.into()]].concat(), what, fix);
            });
        }
    }
}

fn refuse_in_backend(service: &Service, backend: &Backend, not_yet: &dyn Fn(&str, &str, &str)) {
    if service.vip.is_ipv6() {
        not_yet("address", &format!("an IPv6 backend, \"{}\",", backend.address), "write an IPv4 address");
    }
}

fn refuse_in_service(service: &Service, not_yet: &dyn Fn(&str, &str, &str)) {
    if service.vip.is_ipv6() {
        not_yet("vip", &format!("an IPv6 VIP, \"{}\",", service.vip), "write an IPv4 address");
    }
    if service.vip.is_ipv6() && service.source_address != service.vip {
        let what = format!("an IPv6 source, \"{}\",", service.source_address);
        not_yet("source_address", &what, "write an IPv4 address");
    }
    if service.mode == Mode::Dsr {
        not_yet("mode", "`mode = \"dsr\"`", r#"write "nat""#);
    }
    if service.on_backend_down == OnBackendDown::Reset {
        let fix = r#"write "keep": a down backend's flows are left to their clients"#;
        not_yet("on_backend_down", "`on_backend_down = \"reset\"`", fix);
    }
    if service.prefer_local {
        not_yet("prefer_local", "`prefer_local = true`", "remove the key or write false");
    }
    if service.discovery.is_some() {
        not_yet("discovery", "[service.discovery]", "remove the section and write each backend");
    }
}
