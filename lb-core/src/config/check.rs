//! What no value alone can tell: names and addresses that must differ from each other, or belong together.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use super::diagnostic::{Sink, Span};
use super::limits;
use super::model::{Config, Mode, Service, VrrpVersion};
use super::place::{Document, Step};

/// Reports everything in `config` that does not fit together.
pub(super) fn check(config: &Config, document: &Document<'_>, sink: &Sink<'_>) {
    let checker = Checker { config, document, sink };
    checker.amounts();
    checker.services();
    checker.loops();
    checker.shared_ports();
    checker.vrrp();
}

struct Checker<'c> {
    config: &'c Config,
    document: &'c Document<'c>,
    sink: &'c Sink<'c>,
}

impl Checker<'_> {
    fn amounts(&self) {
        let services = &self.config.services;
        let (backends, prefixes) =
            services.iter().fold((0, 0), |(b, p), s| (b + s.backends.len(), p + s.allow.len()));
        let counted = [
            ("services", services.len(), limits::MAX_SERVICES),
            ("backends", backends, limits::MAX_BACKENDS),
            ("`allow` prefixes", prefixes, limits::MAX_ALLOW),
        ];
        for (what, count, max) in counted.into_iter().filter(|(_, count, max)| count > max) {
            self.sink.error(
                &(0..0),
                format!("{count} {what} are too many; at most {max} are possible altogether"),
            );
        }
        if services.is_empty() {
            let message =
                "no service; add a [[service]] with `name`, `vip`, `port` and a [[service.backend]]";
            self.sink.error(&(0..0), message);
        }
    }

    fn services(&self) {
        let services = &self.config.services;
        self.unique(
            services.iter().enumerate().map(|(i, s)| (&s.name, self.in_service(i, "name"))),
            |name, line| {
                format!("`name` is used by two services: \"{name}\", also at line {line}; rename one")
            },
        );
        let sockets = services.iter().enumerate().map(|(i, s)| ((s.vip, s.port), self.in_service(i, "port")));
        self.unique(sockets, |(vip, port), line| {
            let socket = std::net::SocketAddr::new(vip, port);
            format!(
                "two services have the same `vip` and `port`: {socket}, also at line {line}; merge them or \
                 change one"
            )
        });
        for (index, service) in services.iter().enumerate() {
            self.service(index, service);
        }
    }

    fn service(&self, index: usize, service: &Service) {
        let error = |key: &str, message: String| self.sink.error(&self.in_service(index, key), message);
        if service.port == limits::ETCD_PEER_PORT {
            let message = "`port` is etcd's peer port: 2380; remove this service: members must reach \
                           each other directly, only client traffic (2379) is balanced";
            error("port", message.to_owned());
        }
        let finds_some = service.discovery.as_ref().is_some_and(|d| d.source != super::DiscoverySource::Etcd);
        if service.backends.is_empty() && !finds_some {
            let message = format!(
                "service \"{}\" has no backend; add a [[service.backend]] with `address`",
                service.name
            );
            self.sink.error(&self.document.place(&["service".into(), index.into()]), message);
        }
        let family = |a: IpAddr| if a.is_ipv4() { "IPv4" } else { "IPv6" };
        let of_vip = |a: IpAddr| a.is_ipv4() == service.vip.is_ipv4();
        let other = |key: &str, what: String| {
            format!("`{key}` is not of the VIP's family: {what}; the VIP is {}", family(service.vip))
        };
        if !of_vip(service.source_address) {
            error("source_address", other("source_address", format!("\"{}\"", service.source_address)));
        }
        for (number, prefix) in service.allow.iter().enumerate().filter(|(_, p)| !of_vip(p.address())) {
            let place = self.document.place(&["service".into(), index.into(), "allow".into(), number.into()]);
            self.sink.error(&place, other("allow", format!("\"{prefix}\"")));
        }
        for (number, backend) in service.backends.iter().enumerate().filter(|(_, b)| !of_vip(b.address.ip()))
        {
            let place = self.in_backend(index, number, "address");
            self.sink.error(&place, other("address", format!("\"{}\"", backend.address)));
        }
        if service.mode == Mode::Dsr {
            self.dsr(index, service);
        }
        let backends = || service.backends.iter().enumerate();
        self.unique(backends().map(|(n, b)| (&b.name, self.in_backend(index, n, "name"))), |name, line| {
            format!(
                "`name` is used by two backends of this service: \"{name}\", also at line {line}; rename one"
            )
        });
        self.unique(
            backends().map(|(n, b)| (b.address, self.in_backend(index, n, "address"))),
            |address, line| {
                format!(
                    "`address` stands twice in this service: \"{address}\", also at line {line}; remove one"
                )
            },
        );
    }

    /// Only the MAC is rewritten: what else would have to be is a mistake.
    fn dsr(&self, index: usize, service: &Service) {
        if service.source_address != service.vip {
            let message = format!(
                "`source_address` has no meaning with `mode = \"dsr\"`: \"{}\"; remove it: backends see the \
                 clients' addresses",
                service.source_address
            );
            self.sink.error(&self.in_service(index, "source_address"), message);
        }
        for (number, backend) in service.backends.iter().enumerate() {
            if backend.address.port() != service.port {
                let message = format!(
                    "`address` has another port than the service: \"{}\"; `mode = \"dsr\"` rewrites no port, so \
                     the backend must listen on port {} too",
                    backend.address, service.port
                );
                self.sink.error(&self.in_backend(index, number, "address"), message);
            }
        }
    }

    /// An address of ours cannot also be a backend's.
    fn loops(&self) {
        let services = &self.config.services;
        for (index, service) in services.iter().enumerate() {
            for (number, backend) in service.backends.iter().enumerate() {
                let ip = backend.address.ip();
                let place = self.in_backend(index, number, "address");
                if let Some(owner) = services.iter().find(|s| s.vip == ip) {
                    let message = format!(
                        "`address` is the VIP of service \"{}\": \"{}\"; that would be a loop: write the \
                         member's own address",
                        owner.name, backend.address
                    );
                    self.sink.error(&place, message);
                } else if let Some(owner) = services.iter().find(|s| s.source_address == ip) {
                    let message = format!(
                        "`address` is the `source_address` of service \"{}\": \"{}\"; that address is claimed \
                         by the balancer: choose a free one as `source_address`",
                        owner.name, backend.address
                    );
                    self.sink.error(&place, message);
                }
            }
        }
    }

    /// Two services cannot send to one backend from one address: they would use each other's NAT ports.
    fn shared_ports(&self) {
        let mut first = HashMap::new();
        for (index, service) in self.config.services.iter().enumerate() {
            for (number, backend) in service.backends.iter().enumerate() {
                let owner = *first.entry((service.source_address, backend.address)).or_insert(index);
                if owner != index {
                    let message = format!(
                        "`address` is a backend of service \"{}\" too, from the same source address {}: \"{}\"; \
                         they would share NAT ports: give one of the services a `source_address` of its own",
                        self.config.services[owner].name, service.source_address, backend.address
                    );
                    self.sink.error(&self.in_backend(index, number, "address"), message);
                }
            }
        }
    }

    fn vrrp(&self) {
        let Some(vrrp) = &self.config.vrrp else { return };
        let place = |key: &str| self.document.place(&["vrrp".into(), key.into()]);
        if let Some(service) = self.config.services.iter().find(|s| s.vip.is_ipv6()) {
            if vrrp.version == VrrpVersion::V2 {
                let message = format!("`version` 2 knows no IPv6 VIP: \"{}\"; write 3", service.vip);
                self.sink.error(&place("version"), message);
            } else if vrrp.link_local.is_none() {
                let message =
                    format!("`link_local` is missing in [vrrp]; the IPv6 VIP \"{}\" needs it", service.vip);
                self.sink.error(&place("link_local"), message);
            }
        }
    }

    /// Reports each value that came before; `message` is given the value and the line where it came first.
    fn unique<T: Hash + Eq + Copy>(
        &self,
        values: impl Iterator<Item = (T, Span)>,
        message: impl Fn(T, usize) -> String,
    ) {
        let mut first: HashMap<T, Span> = HashMap::new();
        for (value, place) in values {
            if let Some(earlier) = first.get(&value) {
                self.sink.error(&place, message(value, self.sink.line(earlier)));
            } else {
                first.insert(value, place);
            }
        }
    }

    fn in_service(&self, index: usize, key: &str) -> Span {
        self.document.place(&["service".into(), index.into(), key.into()])
    }

    fn in_backend(&self, service: usize, backend: usize, key: &str) -> Span {
        self.document.place(&[
            "service".into(),
            service.into(),
            "backend".into(),
            backend.into(),
            Step::Key(key),
        ])
    }
}
