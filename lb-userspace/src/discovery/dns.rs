//! DNS SRV records as etcd's own discovery has them: `_etcd-client-ssl._tcp` and `_etcd-client._tcp` (etcd's
//! `client/pkg/srv`; RFC 2782). Priority and weight are not heeded: which backend takes a connection is decided here.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};
use lb_core::discovery::{Answer, Candidate};

/// One question to one server.
const PATIENCE: Duration = Duration::from_secs(2);
/// SRV records that are followed.
const MAX_RECORDS: usize = 256;

/// Asks for both kinds of records; an error of either, but that there are none, makes the answer void: half of it would look
/// as if backends had left.
pub(super) async fn ask(
    domain: &str,
    srv_name: Option<&str>,
    nameserver: Option<SocketAddr>,
    ipv6: bool,
) -> Result<Answer, String> {
    let resolver = resolver(nameserver)?;
    let suffix = srv_name.map(|name| format!("-{name}")).unwrap_or_default();
    let domain = domain.trim_end_matches('.');
    let mut candidates: Vec<Candidate> = Vec::new();
    for service in ["_etcd-client-ssl", "_etcd-client"] {
        let name = format!("{service}{suffix}._tcp.{domain}.");
        let records = some(resolver.srv_lookup(name.as_str()).await, &name)?;
        for record in records.iter().flat_map(Lookup::answers).take(MAX_RECORDS) {
            let RData::SRV(srv) = &record.data else { continue };
            let target = srv.target.to_utf8();
            let found = match ipv6 {
                true => resolver.ipv6_lookup(target.as_str()).await,
                false => resolver.ipv4_lookup(target.as_str()).await,
            };
            let hosts = some(found, &target)?;
            let addresses = hosts
                .iter()
                .flat_map(Lookup::answers)
                .filter_map(|record| match &record.data {
                    RData::A(a) => Some(IpAddr::V4(a.0)),
                    RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                    _ => None,
                })
                .map(|ip| SocketAddr::new(ip, srv.port));
            let name = target.trim_end_matches('.').to_owned();
            candidates.push(Candidate { name, addresses: addresses.collect(), learner: false });
        }
    }
    Ok(Answer { cluster_id: None, candidates })
}

/// An answer, or that there is none to be had.
fn some(result: Result<Lookup, NetError>, name: &str) -> Result<Option<Lookup>, String> {
    match result {
        Ok(lookup) => Ok(Some(lookup)),
        Err(error) if error.is_no_records_found() => Ok(None),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

fn resolver(nameserver: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let mut builder = match nameserver {
        Some(address) => {
            let at = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
            let server = NameServerConfig::new(address.ip(), true, connections);
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().map_err(|error| format!("/etc/resolv.conf: {error}"))?,
    };
    let options = builder.options_mut();
    // Each round asks anew: what a record's TTL says is shorter or longer than an operator's patience.
    options.cache_size = 0;
    options.timeout = PATIENCE;
    builder.build().map_err(|error| error.to_string())
}
