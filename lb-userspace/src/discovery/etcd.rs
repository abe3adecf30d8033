//! etcd's own list of members, from whichever member answers first.
//!
//! A linearizable read on the same connection comes first: it proves that the member has a leader and a quorum, and brings
//! it up to date, so that its list is the cluster's, also in versions whose `MemberList` answers from the member's own
//! memory (before 3.5).

use std::{net::SocketAddr, time::Duration};

use hyper::Uri;
use lb_core::discovery::{Answer, Candidate};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};

use crate::probe::{MemberList, Spec, member_list};

/// A member that does not answer in this time is passed over.
const PATIENCE: Duration = Duration::from_secs(2);
/// Members of an answer that are read; etcd's own clusters have seven, learners included.
const MAX_MEMBERS: usize = 1024;
/// Client URLs of one member that are read.
const MAX_URLS: usize = 16;
/// etcd's client port, where a URL has none.
const CLIENT_PORT: u16 = 2379;

/// Asks one member after the other.
pub(super) async fn ask(members: &[Spec]) -> Result<Answer, String> {
    let mut refused = Vec::new();
    for spec in members {
        match member_list(spec, Instant::now() + PATIENCE).await {
            Ok(list) => return Ok(answer(list).await),
            Err(reason) => refused.push(format!("{}: {reason}", spec.address)),
        }
    }
    if refused.is_empty() {
        return Err("no backend is known that could be asked for its cluster's members".into());
    }
    Err(format!("no member tells who the others are: {}", refused.join("; ")))
}

async fn answer(list: MemberList) -> Answer {
    let mut candidates = Vec::new();
    // One without a name was added and has not been started yet.
    for member in list.members.into_iter().filter(|member| !member.name.is_empty()).take(MAX_MEMBERS) {
        let mut addresses = Vec::new();
        for url in member.client_urls.iter().take(MAX_URLS) {
            addresses.extend(addresses_of(url).await);
        }
        candidates.push(Candidate { name: member.name, addresses, learner: member.learner });
    }
    Answer { cluster_id: list.cluster_id, candidates }
}

/// Where a client URL leads; nowhere if it is a socket's, or its host is not known.
async fn addresses_of(url: &str) -> Vec<SocketAddr> {
    let Ok(uri) = url.parse::<Uri>() else { return vec![] };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return vec![];
    }
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(CLIENT_PORT)) else { return vec![] };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse() {
        return vec![SocketAddr::new(ip, port)];
    }
    match timeout(PATIENCE, lookup_host((host, port))).await {
        Ok(Ok(found)) => found.take(MAX_URLS).collect(),
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn client_urls_lead_to_addresses() {
        for (url, leads_to) in [
            ("https://10.0.1.11:2379", Some("10.0.1.11:2379")),
            ("http://10.0.1.11", Some("10.0.1.11:2379")),
            ("https://[fd00:1::11]:12379", Some("[fd00:1::11]:12379")),
            ("https://localhost:2379/", Some("127.0.0.1:2379")),
            ("unix:///run/etcd.sock", None),
            ("unixs://localhost:1", None),
            ("", None),
            ("not a url", None),
            ("https://", None),
            ("https://nobody.invalid:2379", None),
        ] {
            let found = addresses_of(url).await;
            match leads_to {
                Some(address) => assert!(found.contains(&address.parse().unwrap()), "{url}: {found:?}"),
                None => assert!(found.is_empty(), "{url}: {found:?}"),
            }
        }
    }
}
