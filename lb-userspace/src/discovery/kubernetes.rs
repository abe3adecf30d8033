//! A service's EndpointSlices (`discovery.k8s.io/v1`), followed by list and watch: kube's watcher deals with bookmarks, with
//! versions that are gone (410), and with connections that break.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::pin,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use kube::{
    Api, Client, Config, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use lb_core::discovery::{Answer, Candidate};

use super::Followed;

/// Slices of one service that are kept: each has at most 1,000 endpoints, and 64 backends are the limit anyway.
const MAX_SLICES: usize = 64;
/// etcd's client port, by the name and the number that it usually has.
const CLIENT_PORT: (&str, i32) = ("client", 2379);

/// Follows the slices until it is dropped; tells each new state and each failure. Returns where it cannot begin, with why.
pub(super) async fn follow(followed: &Followed, tell: impl Fn(Result<Answer, String>)) -> String {
    let client = match client(followed.kubeconfig.as_deref()).await {
        Ok(client) => client,
        Err(reason) => return reason,
    };
    let api: Api<EndpointSlice> = Api::namespaced(client, &followed.namespace);
    let of_service = format!("kubernetes.io/service-name={}", followed.service);
    let config = watcher::Config::default().labels(&of_service);
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    let (mut slices, mut listed) = (BTreeMap::new(), BTreeMap::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(slice)) => keep(&mut listed, slice),
            Ok(Event::InitDone) => {
                slices = std::mem::take(&mut listed);
                tell(Ok(answer(slices.values(), followed.port)));
            }
            Ok(Event::Apply(slice)) => {
                keep(&mut slices, slice);
                tell(Ok(answer(slices.values(), followed.port)));
            }
            Ok(Event::Delete(slice)) => {
                slices.remove(&slice.name_any());
                tell(Ok(answer(slices.values(), followed.port)));
            }
            // What it had is gone (410), so that it lists anew: the usual course of things.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            Err(error) => tell(Err(in_words(&error))),
        }
    }
    "the watch has ended".into()
}

async fn client(kubeconfig: Option<&Path>) -> Result<Client, String> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|error| format!("{}: {}", path.display(), in_words(&error)))?;
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            config.map_err(|error| format!("{}: {}", path.display(), in_words(&error)))?
        }
        None => Config::incluster().map_err(|error| {
            format!(
                "not in a pod ({}): set `kubeconfig` to a file that says how to reach the API",
                in_words(&error)
            )
        })?,
    };
    Client::try_from(config).map_err(|error| in_words(&error))
}

fn keep(slices: &mut BTreeMap<String, EndpointSlice>, slice: EndpointSlice) {
    let name = slice.name_any();
    if slices.len() < MAX_SLICES || slices.contains_key(&name) {
        slices.insert(name, slice);
    }
}

fn answer<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, port: u16) -> Answer {
    let mut candidates = Vec::new();
    for slice in slices {
        let Some(port) = port_of(slice.ports.as_deref().unwrap_or_default(), port) else { continue };
        let endpoints = slice.endpoints.iter().filter(|endpoint| is_ready(endpoint));
        candidates.extend(endpoints.map(|endpoint| {
            Candidate {
                name: name_of(endpoint),
                // Names (`addressType: FQDN`) are no addresses.
                addresses: endpoint
                    .addresses
                    .iter()
                    .filter_map(|address| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port)))
                    .collect(),
                learner: false,
            }
        }));
    }
    Answer { cluster_id: None, candidates }
}

/// The port that has no name but itself; of several the one named as etcd's, the VIP's own, or etcd's.
fn port_of(ports: &[EndpointPort], vip: u16) -> Option<u16> {
    let is_tcp = |port: &&EndpointPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let ports: Vec<_> = ports.iter().filter(is_tcp).collect();
    let numbered = |number: i32| ports.iter().find(|port| port.port == Some(number));
    let named =
        || ports.iter().find(|port| port.name.as_deref().is_some_and(|name| name.ends_with(CLIENT_PORT.0)));
    let only = || ports.first().filter(|_| ports.len() == 1);
    let port = only().or_else(named).or_else(|| numbered(vip.into())).or_else(|| numbered(CLIENT_PORT.1));
    u16::try_from(port?.port?).ok()
}

/// Not known counts as ready, as the API has it.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// The pod's, or its host name.
fn name_of(endpoint: &Endpoint) -> String {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
    pod.or_else(|| endpoint.hostname.clone()).unwrap_or_default()
}

/// An error with its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words += ": ";
            words += &cause_words;
        }
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{core::v1::ObjectReference, discovery::v1::EndpointConditions},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn port(name: Option<&str>, number: i32, protocol: Option<&str>) -> EndpointPort {
        EndpointPort {
            name: name.map(Into::into),
            port: Some(number),
            protocol: protocol.map(Into::into),
            ..EndpointPort::default()
        }
    }

    #[test]
    fn of_several_ports_the_clients_is_taken() {
        let client = port(Some("etcd-client"), 12_379, Some("TCP"));
        let peer = port(Some("peer"), 2380, None);
        assert_eq!(port_of(std::slice::from_ref(&peer), 2379), Some(2380), "the only one");
        assert_eq!(port_of(&[peer.clone(), client], 2379), Some(12_379), "by its name");
        assert_eq!(port_of(&[peer.clone(), port(None, 6443, None)], 6443), Some(6443), "the VIP's own");
        assert_eq!(port_of(&[peer.clone(), port(Some("a"), 2379, None)], 6443), Some(2379), "etcd's");
        assert_eq!(port_of(&[peer.clone(), port(Some("a"), 1, None)], 6443), None);
        assert_eq!(port_of(&[port(None, 2379, Some("UDP"))], 2379), None);
        assert_eq!(port_of(&[port(None, 70_000, None)], 2379), None);
        assert_eq!(port_of(&[], 2379), None);
    }

    #[test]
    fn ready_endpoints_of_all_slices_are_candidates() {
        let endpoint = |address: &str, pod: Option<&str>, ready: Option<bool>| Endpoint {
            addresses: vec![address.into()],
            conditions: Some(EndpointConditions { ready, ..EndpointConditions::default() }),
            target_ref: pod
                .map(|pod| ObjectReference { name: Some(pod.into()), ..ObjectReference::default() }),
            ..Endpoint::default()
        };
        let slice = |name: &str, endpoints: Vec<Endpoint>| EndpointSlice {
            address_type: "IPv4".into(),
            endpoints,
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            ports: Some(vec![port(Some("client"), 2379, Some("TCP"))]),
        };
        let slices = [
            slice(
                "a",
                vec![endpoint("10.0.1.11", Some("etcd-0"), Some(true)), endpoint("10.0.1.12", None, None)],
            ),
            slice(
                "b",
                vec![endpoint("10.0.1.13", Some("etcd-2"), Some(false)), endpoint("a.name", None, None)],
            ),
        ];
        let answer = answer(slices.iter(), 2379);
        let found: Vec<_> =
            answer.candidates.iter().map(|c| (c.name.as_str(), c.addresses.clone())).collect();
        let at = |ip: &str| vec![SocketAddr::new(ip.parse().unwrap(), 2379)];
        assert_eq!(found, [("etcd-0", at("10.0.1.11")), ("", at("10.0.1.12")), ("", vec![])]);
    }
}
