//! Who the members of a cluster are, asked of one of them.

use std::sync::Arc;

use lb_core::config::{Backend, Service};
use tokio::time::{Instant, timeout_at};

use super::{
    Alpn, Failure, Kind, Progress, Spec, TlsSource, checks, etcd,
    messages::{MemberListRequest, MemberListResponse},
    open,
};

/// A cluster's members by the word of one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberList {
    /// Whose.
    pub cluster_id: Option<u64>,
    /// All of them, those that have not been started yet included.
    pub members: Vec<ListedMember>,
}

/// A member as the others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedMember {
    /// Empty: it has not been started yet.
    pub name: String,
    /// `--advertise-client-urls`
    pub client_urls: Vec<String>,
    /// It has no vote yet.
    pub learner: bool,
}

/// How to ask a service's backends: where clients reach them, with the files of the health check.
pub fn specs(service: &Service, backends: &[&Backend]) -> Vec<Spec> {
    let tls = service.health.probe.tls();
    let source = tls.map(|tls| Arc::new(TlsSource::new(checks::files(tls), Alpn::Http2)));
    let of_backend = |backend: &&Backend| {
        let (authority, server_name) = checks::names(service, backend.address);
        let tls = source.clone().map(|source| (source, server_name));
        Spec { address: backend.address, kind: Kind::Etcd { authority }, tls }
    };
    backends.iter().map(of_backend).collect()
}

/// How a service's backends are checked, in the config's order.
pub fn check_specs(service: &Service) -> Vec<Spec> {
    let alpn = checks::alpn(&service.health.probe);
    let source = service.health.probe.tls().map(|tls| Arc::new(TlsSource::new(checks::files(tls), alpn)));
    service.backends.iter().map(|backend| checks::spec(service, backend, source.as_ref())).collect()
}

/// Asks a member, which proves before that it has a quorum.
///
/// # Errors
/// Why there is no list, in words.
pub async fn member_list(spec: &Spec, deadline: Instant) -> Result<MemberList, String> {
    let ask = async {
        let Kind::Etcd { authority } = &spec.kind else { return Err(Failure::new("no etcd")) };
        let progress = Progress::begin();
        let client = open(spec, authority, &progress).await?;
        etcd::prove_quorum(&client, &progress).await?;
        let message = MemberListRequest { linearizable: true };
        let answer = client.call("/etcdserverpb.Cluster/MemberList", message).await;
        answer.map_err(|status| Failure::new(client.words(&status)))
    };
    let answer: MemberListResponse = match timeout_at(deadline, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => return Err(failure.reason),
        Err(_) => return Err("no answer in time".into()),
    };
    let members = answer.members.into_iter().map(|member| ListedMember {
        name: member.name,
        client_urls: member.client_urls,
        learner: member.is_learner,
    });
    Ok(MemberList { cluster_id: answer.header.map(|header| header.cluster_id), members: members.collect() })
}
