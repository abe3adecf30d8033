use std::{collections::BTreeSet, net::Ipv4Addr};

use lb_common::{
    addr::{Mac, Port},
    maps::{
        self, BACKEND_LEAVING, Filter, Interface, Lease, NO_BACKEND, NextHop, ReturnKey, SERVICE_ALLOW,
        ServiceKey,
    },
};
use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::{actual::return_key, *};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 100));
const OTHER_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 101));

#[test]
fn equal_states_need_no_writes() {
    let desired = desired([service(VIP, 2379, [1, 2, 3])]);
    let actual = converge(&desired, Actual::default());
    assert_eq!(plan(&desired, &actual), []);
}

#[test]
fn a_new_service_is_opened_last() {
    let changes = plan(&desired([service(VIP, 2379, [1])]), &Actual::default());
    let at = |wanted: fn(&Change) -> bool| changes.iter().position(wanted).unwrap();
    let order = [
        at(|c| matches!(c, Change::Backend(..))),
        at(|c| matches!(c, Change::PortTable(..))),
        at(|c| matches!(c, Change::Return(..))),
        at(|c| matches!(c, Change::Maglev(..))),
        at(|c| matches!(c, Change::Service(..))),
        at(|c| matches!(c, Change::ServicePort(..))),
        at(|c| matches!(c, Change::Vip(..))),
        at(|c| matches!(c, Change::Filter(..))),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(order[7], changes.len() - 1);
}

#[test]
fn a_removed_backend_leaves_the_table_at_once_and_its_number_when_its_flows_ended() {
    let actual = converge(&desired([service(VIP, 2379, [1, 2])]), Actual::default());
    let number = number_of(&actual, VIP, 2);
    let smaller = desired([service(VIP, 2379, [1])]);

    let mut actual = converge(&smaller, actual);
    assert!(actual.maglev[&0].iter().all(|&owner| owner != number && owner != NO_BACKEND));
    assert_eq!(actual.backends[&number].flags & BACKEND_LEAVING, BACKEND_LEAVING);
    assert!(actual.reserved.contains_key(&number));

    actual.ended.insert(number);
    let actual = converge(&smaller, actual);
    assert!(!actual.reserved.contains_key(&number));
    assert!(!actual.returns.values().any(|&n| n == number));
    assert_eq!(actual.used_backends().count(), 1);
}

#[test]
fn a_backend_that_comes_back_while_leaving_keeps_number_and_epoch() {
    let both = desired([service(VIP, 2379, [1, 2])]);
    let mut before = converge(&both, Actual::default());
    let number = number_of(&before, VIP, 2);
    before.backends.get_mut(&number).unwrap().epoch = 9;
    let left = converge(&desired([service(VIP, 2379, [1])]), before.clone());
    assert_eq!(converge(&both, left), before);
}

#[test]
fn a_number_given_to_another_backend_has_another_epoch() {
    let mut actual = converge(&desired([service(VIP, 2379, [1])]), Actual::default());
    actual.backends.get_mut(&0).unwrap().epoch = 4;
    actual = converge(&desired([service(VIP, 2379, [])]), actual);
    actual.ended.insert(0);
    actual = converge(&desired([service(VIP, 2379, [])]), actual);
    actual = converge(&desired([service(VIP, 2379, [7])]), actual);
    assert_eq!(number_of(&actual, VIP, 7), 0);
    assert_eq!(actual.backends[&0].epoch, 5);
}

#[test]
fn a_removed_service_stays_for_its_flows_without_taking_new_ones() {
    let two = desired([service(VIP, 2379, [1]), service(OTHER_VIP, 6443, [2])]);
    let mut one = desired([service(VIP, 2379, [1])]);
    one.addresses.retain(|address| address.address == VIP);
    let actual = converge(&two, Actual::default());
    let answered = actual.vips.clone();

    let mut actual = converge(&one, actual);
    assert_eq!(actual.service_ports.len(), 2);
    assert!(actual.maglev[&1].iter().all(|&owner| owner == NO_BACKEND));
    assert_eq!(actual.vips, answered);

    actual.ended.insert(number_of(&actual, OTHER_VIP, 2));
    let actual = converge(&one, actual);
    assert_eq!(actual.service_ports.len(), 1);
    assert!(actual.vips.keys().all(|key| key.address == VIP.into()));
}

#[test]
fn a_backend_that_moves_to_another_service_keeps_its_table_and_loses_its_flows() {
    let actual = converge(&desired([service(VIP, 2379, [1])]), Actual::default());
    let actual = converge(&desired([service(VIP, 2380, [1])]), actual);
    assert_eq!(actual.used_backends().count(), 1);
    assert_eq!((actual.backends[&0].epoch, actual.backends[&0].service), (1, 1));
    assert_eq!(actual.service_ports.len(), 1);
}

#[test]
fn an_unknown_next_hop_keeps_the_last_known_one() {
    let mut with_hop = desired([service(VIP, 2379, [1])]);
    let hop = NextHop { ifindex: 3, mac: Mac::new([2, 0, 0, 0, 0, 1]), ..NextHop::UNKNOWN };
    with_hop.services[0].backends[0].hop = Some(hop);
    let actual = converge(&with_hop, Actual::default());
    let actual = converge(&desired([service(VIP, 2379, [1])]), actual);
    assert_eq!(actual.backends[&0].hop, hop);
}

#[test]
fn ports_of_services_on_a_source_address_are_reserved_in_its_tables() {
    let mut both = desired([service(VIP, 2379, [1]), service(OTHER_VIP, 6443, [2])]);
    both.services[1].backends[0].source = VIP;
    let actual = converge(&both, Actual::default());
    for table in actual.reserved.values() {
        assert_eq!(*table, BTreeSet::from([2379]));
    }
}

#[test]
fn a_prefix_has_one_key() {
    let mut with_allow = desired([service(VIP, 2379, [1])]);
    let prefix = |address: [u8; 4]| Prefix { address: IpAddr::from(address), length: 8 };
    with_allow.services[0].allow = vec![prefix([10, 1, 2, 3]), prefix([10, 9, 9, 9])];
    let actual = converge(&with_allow, Actual::default());
    let (length, data) = *actual.allow.first().unwrap();
    assert_eq!(actual.allow.len(), 1);
    assert_eq!(length, 32 + 96 + 8);
    assert_eq!(data.address.to_ip(), IpAddr::from([10, 0, 0, 0]));
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let shared = desired([service(VIP, 2379, [1]), service(VIP, 6443, [1])]);
    let error = Planner::default().plan(&shared, &Actual::default()).unwrap_err();
    assert!(error.to_string().contains("10.0.2.1:2379"), "{error}");
    let twice = desired([service(VIP, 2379, [1]), service(VIP, 2379, [2])]);
    assert!(matches!(Planner::default().plan(&twice, &Actual::default()), Err(Error::SameService { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_history_converges_keeps_numbers_and_is_safe_at_every_step(
        history in vec((any_desired(), any::<bool>()), 1..6)
    ) {
        let mut planner = Planner::default();
        let mut actual = Actual::default();
        for (desired, end_leaving) in history {
            if end_leaving {
                actual.ended = leaving(&actual);
            }
            let before = actual.clone();
            for change in planner.plan(&desired, &actual).unwrap() {
                actual.apply(&change);
                check_safe(&actual)?;
            }
            prop_assert_eq!(planner.plan(&desired, &actual).unwrap(), vec![]);
            // A planner that remembers nothing sees the same.
            prop_assert_eq!(plan(&desired, &actual), vec![]);
            check_holds(&desired, &actual)?;
            check_numbers(&before, &actual)?;
        }
    }
}

/// What must hold between any two writes, so that no packet meets half a change.
fn check_safe(actual: &Actual) -> Result<(), TestCaseError> {
    for number in actual.service_ports.values() {
        prop_assert!(actual.services.contains_key(number));
        prop_assert!(actual.maglev.contains_key(number));
    }
    for (service, table) in &actual.maglev {
        for owner in owners(table) {
            if owner == NO_BACKEND {
                continue;
            }
            prop_assert!(actual.reserved.contains_key(&owner), "a table names {owner} without port table");
            // Of another service for moments, if it moves: its flows are reset then anyway.
            prop_assert!(actual.used_backends().any(|(number, _)| number == owner), "{owner} of {service}");
            prop_assert!(actual.returns.values().any(|&number| number == owner));
        }
    }
    for number in actual.returns.values() {
        prop_assert!(actual.reserved.contains_key(number));
        prop_assert!(actual.used_backends().any(|(used, _)| used == *number));
    }
    for (number, service) in &actual.services {
        let prefix = u32::from(*number).to_be_bytes();
        let listed = actual.allow.iter().any(|(_, data)| data.service == prefix);
        prop_assert!(service.flags & SERVICE_ALLOW == 0 || listed, "a list that nobody is on");
    }
    Ok(())
}

/// Who has a slot: by a flag each, since a tree of 65,537 slots at every step would take a minute.
fn owners(table: &[u16]) -> BTreeSet<u16> {
    let mut has_slot = vec![false; usize::from(u16::MAX) + 1];
    table.iter().for_each(|&owner| has_slot[usize::from(owner)] = true);
    (0..=u16::MAX).filter(|&owner| has_slot[usize::from(owner)]).collect()
}

/// Everything desired is there.
fn check_holds(desired: &Desired, actual: &Actual) -> Result<(), TestCaseError> {
    for service in &desired.services {
        let key = ServiceKey::new(service.vip.into(), Port::new(service.port));
        let number = actual.service_ports[&key];
        let live = |backend: &&DesiredBackend| backend.usable && !backend.drained && backend.weight > 0;
        let live: BTreeSet<u16> =
            service.backends.iter().filter(live).map(|b| actual.returns[&return_key_of(b)]).collect();
        let owners = owners(&actual.maglev[&number]);
        let members = actual.maglev[&number].live().iter().map(|member| member.number);
        prop_assert_eq!(&members.collect::<BTreeSet<_>>(), &live, "the live backends stand beside the slots");
        if live.is_empty() {
            prop_assert_eq!(owners, BTreeSet::from([NO_BACKEND]));
        } else {
            prop_assert_eq!(owners, live);
        }
        let place = maps::filter_place_of_service(&key.vip, key.port);
        prop_assert!([number + 1, Filter::SEVERAL].contains(&actual.filter.services[&place]));
    }
    for (key, number) in &actual.returns {
        let place = maps::filter_place_of_return(&key.source, &key.backend, key.port);
        prop_assert!([number + 1, Filter::SEVERAL].contains(&actual.filter.returns[&place]));
    }
    Ok(())
}

/// Nobody's number changed, and no number changed hands at once.
fn check_numbers(before: &Actual, after: &Actual) -> Result<(), TestCaseError> {
    for (number, backend) in before.used_backends() {
        let key = return_key(backend);
        let now = after.backend_number(&key);
        prop_assert!(now.is_none_or(|now| now == number), "a backend changed its number");
        let owner = after.used_backends().find(|&(n, _)| n == number);
        prop_assert!(owner.is_none_or(|(_, owner)| return_key(owner) == key), "a number changed hands");
    }
    for (number, service) in &before.services {
        let now = after.services.get(number);
        prop_assert!(now.is_none_or(|now| now.vip == service.vip && now.port == service.port));
    }
    Ok(())
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let ports = subsequence(vec![(VIP, 2379u16), (VIP, 6443), (OTHER_VIP, 2379)], 0..=3);
    let backends = vec((subsequence(vec![1u8, 2, 3, 4], 0..=4), any::<u64>(), any::<bool>()), 3);
    (ports, backends).prop_map(|(ports, backends)| {
        let other_is_gone = !ports.contains(&(VIP, 2379));
        let services = ports.into_iter().zip(backends).map(|((vip, port), (hosts, bits, allow))| {
            let mut service = service(vip, port, hosts);
            // Two services of one VIP have different backends, but one may take over what was the other's.
            let takes_over = port == 6443 && other_is_gone && bits & 1 == 0;
            for (n, backend) in service.backends.iter_mut().enumerate() {
                backend.address.set_port(if takes_over { 2379 } else { port });
                backend.usable = bits >> (n + 1) & 1 == 0;
                backend.drained = bits >> (n + 9) & 7 == 0;
                backend.weight = (bits >> (n * 2 + 20) & 3) as u32;
            }
            if allow {
                service.allow =
                    vec![Prefix { address: IpAddr::from([10, 0, 0, 0]), length: (bits % 33) as u8 }];
            }
            service
        });
        desired(services)
    })
}

fn leaving(actual: &Actual) -> BTreeSet<u16> {
    actual.used_backends().filter(|(_, b)| b.flags & BACKEND_LEAVING != 0).map(|(number, _)| number).collect()
}

fn desired(services: impl IntoIterator<Item = DesiredService>) -> Desired {
    let address = |address| DesiredAddress { address, answered_on: vec![Lan::untagged(3)] };
    Desired {
        services: services.into_iter().collect(),
        addresses: vec![address(VIP), address(OTHER_VIP)],
        interfaces: vec![Interface { ifindex: 3, mtu: 1500, mac: Mac::new([2, 0, 0, 0, 0, 9]), flags: 0 }],
        client_routes: BTreeMap::new(),
        lease: Some(Lease::STANDALONE),
        elections: [Election::NONE; 2],
    }
}

fn service(vip: IpAddr, port: u16, hosts: impl IntoIterator<Item = u8>) -> DesiredService {
    DesiredService {
        vip,
        port,
        seed: Seed { key: [1, 2] },
        dsr: false,
        algorithm: Algorithm::Bounded,
        affinity: Affinity::None,
        max_flows_per_client: 0,
        nat: nat::Range::ALL,
        allow: Vec::new(),
        near: None,
        no_backend: NoBackend::Reset,
        drain_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(7440),
        backends: hosts.into_iter().map(|host| backend(vip, host)).collect(),
    }
}

fn backend(source: IpAddr, host: u8) -> DesiredBackend {
    DesiredBackend {
        address: SocketAddr::from(([10, 0, 2, host], 2379)),
        source,
        weight: 1,
        max_connections: 0,
        usable: true,
        healthy: true,
        drained: false,
        hop: None,
    }
}

fn return_key_of(backend: &DesiredBackend) -> ReturnKey {
    ReturnKey::new(backend.source.into(), backend.address.ip().into(), Port::new(backend.address.port()))
}

fn number_of(actual: &Actual, vip: IpAddr, host: u8) -> u16 {
    actual.backend_number(&return_key_of(&backend(vip, host))).unwrap()
}

fn plan(desired: &Desired, actual: &Actual) -> Vec<Change> {
    Planner::default().plan(desired, actual).unwrap()
}

fn converge(desired: &Desired, mut actual: Actual) -> Actual {
    for change in plan(desired, &actual) {
        actual.apply(&change);
    }
    actual
}
