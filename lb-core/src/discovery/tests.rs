use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn config() -> Config {
    let text = r#"
        interface = "eth0"
        [[service]]
        name = "etcd"
        vip = "10.0.1.100"
        port = 2379
        source_address = "10.0.1.99"
        health = { kind = "tcp" }
        backend = [{ name = "seed", address = "10.0.1.11:2379", weight = 5 }]
        [service.discovery]
        kind = "etcd"
    "#;
    crate::config::parse(text, "config.toml").unwrap().0
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn candidate(name: &str, addresses: &[&str]) -> Candidate {
    Candidate { name: name.into(), addresses: addresses.iter().map(|a| at(a)).collect(), learner: false }
}

fn judged(candidates: Vec<Candidate>) -> Result<Judged, Refused> {
    let config = config();
    let own = |ip| ip == IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
    judge(&config, &config.services[0], Some(7), own, Answer { cluster_id: Some(7), candidates })
}

#[test]
fn what_cannot_be_a_backend_is_left_out_by_its_reason() {
    let cases = [
        (&["127.0.0.1:2379"][..], Ignored::Loopback),
        (&["[::1]:2379"], Ignored::Loopback),
        (&["0.0.0.0:2379"], Ignored::NotUnicast),
        (&["224.0.0.18:2379"], Ignored::NotUnicast),
        (&["255.255.255.255:2379"], Ignored::NotUnicast),
        (&["169.254.1.1:2379"], Ignored::NotUnicast),
        (&["10.0.1.100:2379"], Ignored::OwnVip),
        (&["10.0.1.99:2379"], Ignored::OwnVip),
        (&["10.0.1.2:2379"], Ignored::OwnHost),
        (&["[fd00::1]:2379"], Ignored::OtherFamily),
        (&["10.0.1.12:2380"], Ignored::PeerPort),
        (&["10.0.1.12:0"], Ignored::NoAddress),
        (&[], Ignored::NoAddress),
    ];
    for (addresses, reason) in cases {
        let bad = candidate("bad", addresses);
        let verdict = judged(vec![bad.clone(), candidate("good", &["10.0.1.12:2379"])]).unwrap();
        assert_eq!(verdict.ignored, [(bad.clone(), reason)], "{addresses:?}");
        assert_eq!(verdict.found.len(), 1);
        // Alone it is no answer at all.
        assert_eq!(judged(vec![bad]), Err(Refused::Empty), "{addresses:?}");
        assert!(!REASONS[reason.number()].is_empty() && !reason.to_string().is_empty());
    }
    assert_eq!(judged(vec![]), Err(Refused::Empty));
}

#[test]
fn a_backend_of_another_service_needs_a_source_address_of_its_own() {
    let mut config = config();
    let mut other = config.services[0].clone();
    other.port = 6443;
    config.services.push(other);
    let ask = |config: &Config| {
        let candidates = vec![candidate("a", &["10.0.1.11:2379"]), candidate("b", &["10.0.1.12:2379"])];
        let answer = Answer { cluster_id: None, candidates };
        judge(config, &config.services[1], None, |_| false, answer).unwrap()
    };
    let verdict = ask(&config);
    assert_eq!(verdict.found.len(), 1);
    assert_eq!(verdict.ignored[0].1, Ignored::OtherService);
    config.services[1].source_address = config.services[1].vip;
    assert!(ask(&config).ignored.is_empty());
}

#[test]
fn of_several_addresses_the_first_that_may_be_used_is_taken() {
    let verdict = judged(vec![
        candidate("a", &["127.0.0.1:2379", "[fd00::1]:2379", "10.0.1.12:2379", "10.0.1.13:2379"]),
        candidate("again", &["10.0.1.12:2379"]),
        candidate("", &["10.0.1.10:2379"]),
    ]);
    let found = verdict.unwrap().found;
    let found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.address)).collect();
    assert_eq!(found, [("10.0.1.10:2379", at("10.0.1.10:2379")), ("a", at("10.0.1.12:2379"))]);
}

#[test]
fn another_clusters_word_and_a_flood_are_refused() {
    let config = config();
    let answer = |cluster_id| Answer { cluster_id, candidates: vec![candidate("a", &["10.0.1.12:2379"])] };
    let ask = |pool, says| judge(&config, &config.services[0], pool, |_| false, answer(says));
    assert_eq!(ask(Some(1), Some(2)), Err(Refused::OtherCluster { says: 2, pool: 1 }));
    for (pool, says) in [(None, Some(2)), (Some(1), None), (Some(1), Some(1))] {
        assert!(ask(pool, says).is_ok());
    }
    assert_eq!(REASONS[Refused::OtherCluster { says: 2, pool: 1 }.number()], "other_cluster");
    assert_eq!(REASONS[Refused::Empty.number()], "empty");
    assert_eq!(REASONS[Ignored::OtherService.number()], "other_service");
    let many = |count: u8| (1..=count).map(|n| candidate("", &[&format!("10.0.9.{n}:2379")])).collect();
    assert!(judged(many(64)).is_ok());
    assert_eq!(judged(many(65)), Err(Refused::TooMany(65)));
}

#[test]
fn what_is_found_stands_beside_what_is_written() {
    let config = config();
    let found = |name: &str, address: &str| Found { name: name.into(), address: at(address), learner: false };
    let key = (config.services[0].vip, config.services[0].port);
    let list = vec![
        found("etcd-1", "10.0.1.11:2379"),
        found("seed", "10.0.1.12:2379"),
        found("etcd-3", "10.0.1.13:2379"),
    ];
    let in_force = effective(&config, &BTreeMap::from([(key, list)]));
    let backends: Vec<_> =
        in_force.services[0].backends.iter().map(|b| (b.name.as_str(), b.weight)).collect();
    assert_eq!(backends, [("seed", 5), ("10.0.1.12:2379", 1), ("etcd-3", 1)]);
    assert_eq!(effective(&config, &BTreeMap::new()), config);
    // Of a service that finds nobody any more.
    let mut without = config.clone();
    without.services[0].discovery = None;
    let stale = BTreeMap::from([(key, vec![found("x", "10.0.1.14:2379")])]);
    assert_eq!(effective(&without, &stale), without);
}

proptest! {
    #[test]
    fn what_is_believed_can_be_a_backend(
        addresses in proptest::collection::vec((any::<[u8; 4]>(), any::<u16>()), 0..20),
    ) {
        let candidates: Vec<_> = addresses
            .iter()
            .map(|(ip, port)| Candidate {
                name: String::new(),
                addresses: vec![SocketAddr::new(IpAddr::from(*ip), *port)],
                learner: false,
            })
            .collect();
        let count = candidates.len();
        if let Ok(verdict) = judged(candidates) {
            prop_assert!(!verdict.found.is_empty() && verdict.found.len() + verdict.ignored.len() <= count);
            for found in &verdict.found {
                let ip = found.address.ip();
                prop_assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
                prop_assert!(found.address.port() != 0);
            }
            prop_assert!(verdict.found.windows(2).all(|pair| pair[0].address < pair[1].address));
        }
    }
}
