use std::collections::{BTreeMap, HashMap};

use lb_common::addr::Mac;

use super::*;

struct TestWorld {
    standings: HashMap<SocketAddr, Standing>,
}

const HOP: maps::NextHop = maps::NextHop {
    ifindex: 3,
    mac: Mac::new([2, 0, 0, 0, 0, 1]),
    source_mac: Mac::new([2, 0, 0, 0, 0, 2]),
    tags: [0; 2],
};

impl World for TestWorld {
    fn standing(&self, backend: &BackendKey) -> Standing {
        self.standings[&backend.address]
    }

    fn hop(&self, destination: IpAddr) -> Option<maps::NextHop> {
        destination.to_string().ends_with(".10").then_some(HOP)
    }

    fn direct_hop(&self, destination: IpAddr) -> Option<maps::NextHop> {
        self.hop(destination).filter(|_| destination.is_ipv4())
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.to_string().ends_with(".12")
    }

    fn interfaces(&self) -> Vec<maps::Interface> {
        vec![maps::Interface { ifindex: 3, mtu: 1500, mac: HOP.source_mac, flags: 0 }]
    }

    fn answered_on(&self, address: IpAddr) -> Vec<Lan> {
        if address.to_string().starts_with("10.0.1.") { vec![Lan::untagged(3)] } else { vec![] }
    }

    fn client_routes(&self) -> BTreeMap<Prefix, maps::ClientRoute> {
        BTreeMap::new()
    }

    fn elections(&self) -> [Election; 2] {
        [Election::NONE; 2]
    }

    fn nat_ports(&self) -> nat::Range {
        nat::Range::part(1, 2)
    }

    fn seed(&self, service: &Service) -> Seed {
        crate::seed::of_service(None, service.vip, service.port)
    }
}

fn config() -> Config {
    let text = r#"
        interface = "eth0"
        [[service]]
        name = "etcd"
        vip = "10.0.1.100"
        port = 2379
        algorithm = "maglev"
        on_backend_down = "keep"
        source_address = "10.0.2.100"
        allow = ["10.0.2.0/24"]
        health = { kind = "tcp" }
        backend = [{ address = "10.0.1.10:2379", weight = 2 }, { address = "10.0.1.11:2379" }]
        [[service]]
        name = "api"
        vip = "10.0.1.100"
        port = 6443
        algorithm = "maglev"
        affinity = "client-ip"
        on_backend_down = "keep"
        no_backend = "drop"
        fail_open = false
        health = { kind = "tcp" }
        backend = [{ address = "10.0.1.11:6443" }]
    "#;
    config::parse(text, "config.toml").unwrap().0
}

#[test]
fn config_and_world_become_desired_state() {
    let standing = |state, accepts, drained| Standing { state, accepts, fails_alone: false, drained };
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let world = TestWorld {
        standings: HashMap::from([
            (address("10.0.1.10:2379"), standing(State::Healthy, true, true)),
            (address("10.0.1.11:2379"), standing(State::Down, false, false)),
            (address("10.0.1.11:6443"), standing(State::Down, true, false)),
        ]),
    };
    let Decision { desired, failing_open } = desired(&config(), &world);

    assert_eq!(failing_open, [true, false]);
    let [etcd, api] = &desired.services[..] else { panic!("two services") };
    assert_eq!((etcd.affinity, etcd.no_backend), (Affinity::None, NoBackend::Reset));
    assert_eq!((api.affinity, api.no_backend), (Affinity::ClientIp, NoBackend::Drop));
    assert_eq!(etcd.allow, [Prefix { address: "10.0.2.0".parse().unwrap(), length: 24 }]);
    assert!(api.allow.is_empty());

    let [first, second] = &etcd.backends[..] else { panic!("two backends") };
    assert_eq!((first.weight, first.usable, first.healthy, first.drained), (2, false, true, true));
    assert_eq!((second.weight, second.usable, second.healthy, second.drained), (1, true, false, false));
    assert_eq!((first.hop, second.hop), (Some(HOP), None));
    assert_eq!(first.source, "10.0.2.100".parse::<IpAddr>().unwrap());
    assert!(!api.backends[0].usable, "fail_open = false");

    let held = |text: &str, answered_on| DesiredAddress { address: text.parse().unwrap(), answered_on };
    assert_eq!(desired.addresses, [held("10.0.1.100", vec![Lan::untagged(3)]), held("10.0.2.100", vec![])]);
    assert_eq!(desired.lease, Some(maps::Lease::STANDALONE));
}
