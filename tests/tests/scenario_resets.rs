//! Whose flows end when, and how both ends learn of it: against Linux's own TCP, with idle and busy connections, with
//! the sequence numbers that the balancer saw last and with stale ones.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData};
use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP, VIP6,
    echo::BusyClients,
    eventually,
    held::{Ended, HeldClients, HeldServer},
};
use lb_common::maps::{Flow, FlowKey, Forward, PORT_TABLE_SLOTS, Record};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(15);
const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
/// interval + fall × timeout + 100 ms for 1,000 flows, with the config below.
const PROMISE: Duration = Duration::from_millis(200 + 2 * 200 + 100);
/// What a loaded machine may add.
const NOISE: Duration = Duration::from_secs(2);

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    vip: SocketAddr,
    balancer: Balancer,
    servers: Vec<HeldServer>,
    client: Host,
    lab: Lab,
}

fn scene(name: &str, more: &str) -> Scene {
    scene_on(VIP.into(), name, more)
}

fn scene_on(vip: IpAddr, name: &str, more: &str) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2")).unwrap();
    let servers: Vec<_> =
        MEMBERS.iter().map(|name| HeldServer::start(lab.host(name), 2379, 2381).unwrap()).collect();
    let config = Config::tcp(lab.host("lb1")).vip(vip).service(more).health(
        "kind = \"http\"\npath = \"/\"\nport = 2381\ninterval = \"200ms\"\nfast_interval = \"100ms\"\n\
         timeout = \"200ms\"\nfall = 2",
    );
    let config = servers.iter().map(HeldServer::host).fold(config, |config, host| {
        let address = if vip.is_ipv4() { host.address().into() } else { host.address_v6().into() };
        config.backend(host.name(), SocketAddr::new(address, 2379))
    });
    let balancer = Balancer::start(lab.host("lb1"), &config.text()).unwrap();
    for name in MEMBERS {
        balancer.wait_backend(name, "healthy", LIMIT).unwrap();
    }
    Scene { vip: SocketAddr::new(vip, 2379), client: lab.host("client-1").clone(), balancer, servers, lab }
}

impl Scene {
    fn hold(&self, count: usize) -> HeldClients {
        HeldClients::open(&self.client, self.vip, count).unwrap()
    }

    fn server(&self, name: &str) -> &HeldServer {
        self.servers.iter().find(|server| server.host().name() == name).unwrap()
    }

    /// Client ports of the connections on a backend, as `flows` lists them.
    fn ports_on(&self, backend: &str) -> BTreeSet<u16> {
        let list: Value =
            serde_json::from_str(&self.balancer.cli(&["flows", "--backend", backend, "--json"]).unwrap())
                .unwrap();
        let flows = list["flows"].as_array().unwrap().iter().filter(|flow| flow["state"] == "established");
        let port = |flow: &Value| flow["client"].as_str()?.rsplit_once(':')?.1.parse().ok();
        flows.map(|flow| port(flow).unwrap()).collect()
    }

    /// Every second flow's last ACKs, as if what came after them had gone by unseen.
    fn make_stale(&self, backend: &str) {
        let pin = |name: &str| {
            Map::from_map_data(MapData::from_pin(self.balancer.pin_dir().join(name)).unwrap()).unwrap()
        };
        let flows: HashMap<MapData, FlowKey, Flow> = pin("flows").try_into().unwrap();
        let ports: ArrayOfMaps<MapData, Array<MapData, Record>> = pin("ports").try_into().unwrap();
        let halves: ArrayOfMaps<MapData, Array<MapData, Forward>> = pin("ports").try_into().unwrap();
        let on_backend = self.ports_on(backend);
        let keys: Vec<FlowKey> = flows.keys().map(Result::unwrap).collect();
        for key in
            keys.into_iter().filter(|key| on_backend.contains(&key.port.get()) && key.port.get() % 4 < 2)
        {
            let flow = flows.get(&key, 0).unwrap();
            let mut table = halves.get(&flow.backend.into(), 0).unwrap();
            let slot = flow.nat_port.get().into();
            let forward = table.get(&(PORT_TABLE_SLOTS + slot), 0).unwrap();
            let stale = Forward { last_ack: forward.last_ack.wrapping_sub(4000), ..forward };
            table.set(PORT_TABLE_SLOTS + slot, stale, 0).unwrap();
            let mut table = ports.get(&flow.backend.into(), 0).unwrap();
            let record = table.get(&slot, 0).unwrap();
            table.set(slot, Record { last_ack: record.last_ack.wrapping_sub(4000), ..record }, 0).unwrap();
        }
    }
}

/// Waits until exactly these ports of `ends` have ended, each by a RST, and returns when the last one did.
fn ended(what: &str, expected: &BTreeSet<u16>, ends: impl Fn() -> BTreeMap<u16, Option<Ended>>) -> Instant {
    assert!(!expected.is_empty(), "{what}: nobody is concerned");
    eventually(LIMIT, what, || {
        let over = ends().iter().filter(|(port, end)| expected.contains(port) && end.is_some()).count();
        ensure!(over == expected.len(), "{over} of {} know", expected.len());
        Ok(())
    })
    .unwrap();
    let over: BTreeMap<u16, Ended> =
        ends().into_iter().filter_map(|(port, end)| Some((port, end?))).collect();
    assert_eq!(&over.keys().copied().collect::<BTreeSet<_>>(), expected, "{what}: exactly those");
    assert!(over.values().all(|end| end.reset), "{what}: by a RST: {over:?}");
    over.values().map(|end| end.at).max().unwrap()
}

fn took(what: &str, begun: Instant, last: Instant, promise: Duration) {
    let took = last.saturating_duration_since(begun);
    println!("{what}: the last one knew after {took:?} (promise {promise:?})");
    assert!(took <= promise + NOISE, "{what}: {took:?}");
}

#[test]
fn a_frozen_member_loses_its_flows_at_both_ends_and_nobody_else_one() {
    a_member_freezes(&scene("rstfrozen", ""));
}

#[test]
fn a_frozen_member_over_ipv6() {
    a_member_freezes(&scene_on(VIP6.into(), "rstfrozen6", ""));
}

/// 1,000 idle flows and more are the frozen member's.
fn a_member_freezes(scene: &Scene) {
    let others = ["etcd-1", "etcd-3"];
    for name in others {
        scene.balancer.cli(&["drain", name]).unwrap();
    }
    let most = scene.hold(1000);
    for name in others {
        scene.balancer.cli(&["undrain", name]).unwrap();
    }
    let rest = scene.hold(150);
    let ends = || most.ends().into_iter().chain(rest.ends()).collect::<BTreeMap<_, _>>();
    let busy = BusyClients::start(&scene.client, scene.vip, 12, Duration::from_millis(5)).unwrap();
    busy.wait_progress(5, LIMIT).unwrap();
    let all = scene.ports_on("etcd-2");
    let busy_ports: BTreeSet<u16> = busy.outcomes().iter().map(|outcome| outcome.local.port()).collect();
    let idle_ports: BTreeSet<u16> = all.difference(&busy_ports).copied().collect();
    scene.make_stale("etcd-2");

    let frozen = scene.server("etcd-2");
    frozen.freeze(true);
    let begun = Instant::now();
    scene.balancer.wait_backend("etcd-2", "down", LIMIT).unwrap();
    println!("frozen, {} idle flows: the verdict after {:?}", idle_ports.len(), begun.elapsed());
    let last = ended("idle clients of a frozen member", &idle_ports, ends);
    took("frozen, idle clients", begun, last, PROMISE);
    let last = ended("a frozen member", &all, || frozen.ends());
    took("frozen, the member's own end", begun, last, PROMISE);
    busy.wait_progress(20, LIMIT).unwrap();
    let broken: BTreeMap<u16, Instant> = busy
        .outcomes()
        .iter()
        .filter_map(|outcome| Some((outcome.local.port(), outcome.broken.as_ref()?.0)))
        .collect();
    let concerned: BTreeSet<u16> = all.intersection(&busy_ports).copied().collect();
    assert_eq!(broken.keys().copied().collect::<BTreeSet<_>>(), concerned);
    if let Some(last) = broken.values().max() {
        took("frozen, busy clients", begun, *last, PROMISE);
    }
    for name in ["etcd-1", "etcd-3"] {
        assert!(scene.server(name).ends().values().all(Option::is_none), "{name} lost a connection");
    }
    assert!(scene.ports_on("etcd-2").is_empty(), "what was reset does not count any more");
    // It comes back, and takes new connections, and nobody is reset for it.
    frozen.freeze(false);
    scene.balancer.wait_backend("etcd-2", "healthy", LIMIT).unwrap();
    let again = scene.hold(30);
    assert!(!scene.ports_on("etcd-2").is_empty());
    thread::sleep(Duration::from_millis(1300));
    assert!(again.ends().values().all(Option::is_none));
}

#[test]
fn a_vanished_host_loses_its_flows_and_keep_leaves_them() {
    for (policy, name) in [("reset", "rstgone"), ("keep", "rstkeep")] {
        let scene = scene(name, &format!("on_backend_down = \"{policy}\""));
        let idle = scene.hold(150);
        let concerned = scene.ports_on("etcd-3");
        scene.make_stale("etcd-3");
        scene.lab.plug("etcd-3", false).unwrap();
        let begun = Instant::now();
        if policy == "keep" {
            scene.balancer.wait_backend("etcd-3", "down", LIMIT).unwrap();
            thread::sleep(Duration::from_millis(1500));
            assert!(idle.ends().values().all(Option::is_none), "`keep` leaves them");
            assert_eq!(scene.ports_on("etcd-3"), concerned);
            continue;
        }
        let last = ended("clients of a vanished host", &concerned, || idle.ends());
        took("host vanished, idle clients", begun, last, PROMISE);
        for name in ["etcd-1", "etcd-2"] {
            assert!(scene.server(name).ends().values().all(Option::is_none), "{name} lost a connection");
        }
    }
}

#[test]
fn nobody_is_reset_while_no_member_is_healthy_and_all_are_once_one_is() {
    let scene = scene("rstopen", "");
    let idle = scene.hold(30);
    let first = scene.ports_on("etcd-1");
    let others: BTreeSet<u16> = scene.ports_on("etcd-2").union(&scene.ports_on("etcd-3")).copied().collect();
    // All at once would race: the last one standing is healthy until its own verdict, so cables are pulled together.
    for server in &scene.servers {
        scene.lab.plug(server.host().name(), false).unwrap();
    }
    for name in MEMBERS {
        scene.balancer.wait_backend(name, "down", LIMIT).unwrap();
    }
    // Which of the three was taken down last decides whose flows were reset before: those of all but the last.
    thread::sleep(Duration::from_millis(1200));
    let survivors: BTreeSet<u16> =
        idle.ends().iter().filter(|(_, end)| end.is_none()).map(|(port, _)| *port).collect();
    assert!(!survivors.is_empty(), "nobody is reset while no member is healthy");
    scene.lab.plug("etcd-1", true).unwrap();
    scene.balancer.wait_backend("etcd-1", "healthy", LIMIT).unwrap();
    eventually(LIMIT, "flows of members that are still down", || {
        let ends = idle.ends();
        let left = others.iter().filter(|port| ends[port].is_none()).count();
        ensure!(left == 0, "{left} do not know");
        Ok(())
    })
    .unwrap();
    let ends = idle.ends();
    for port in first.intersection(&survivors) {
        assert!(ends[port].is_none(), "a flow of the member that is back was reset");
    }
}

#[test]
fn drain_timeout_and_reset_commands_end_flows_at_both_ends() {
    let scene = scene("rstdrain", "drain_timeout = \"1s\"");
    let idle = scene.hold(60);
    let drained = scene.ports_on("etcd-1");
    let begun = Instant::now();
    scene.balancer.cli(&["drain", "etcd-1"]).unwrap();
    let last = ended("clients of a drained member", &drained, || idle.ends());
    assert!(last - begun >= Duration::from_secs(1), "not before `drain_timeout`");
    took("drained, clients", begun, last, Duration::from_millis(1100));
    ended("the drained member", &drained, || scene.server("etcd-1").ends());

    let of_second = scene.ports_on("etcd-2");
    let answer: Value =
        serde_json::from_str(&scene.balancer.cli(&["reset", "--backend", "etcd-2", "--json"]).unwrap())
            .unwrap();
    assert_eq!(answer["flows"], of_second.len());
    ended("the member that was reset", &of_second, || scene.server("etcd-2").ends());
    let so_far: BTreeSet<u16> = drained.union(&of_second).copied().collect();
    ended("clients of two members", &so_far, || idle.ends());

    // The second client's flows end, the first one's stay.
    let other = HeldClients::open(scene.lab.host("client-2"), (VIP, 2379).into(), 20).unwrap();
    let address = scene.lab.host("client-2").address().to_string();
    scene.balancer.cli(&["reset", "--client", &address]).unwrap();
    let all_of_it: BTreeSet<u16> = other.ends().keys().copied().collect();
    ended("the connections of one client", &all_of_it, || other.ends());
    assert_eq!(idle.ends().values().filter(|end| end.is_some()).count(), so_far.len());
    assert_eq!(scene.balancer.cli_output(&["reset"]).unwrap().status.code(), Some(2));
    assert_eq!(scene.balancer.cli_output(&["reset", "--backend", "nobody"]).unwrap().status.code(), Some(1));
}

#[test]
fn an_idle_flow_is_reset_at_both_ends() {
    let scene = scene("rstidle", "idle_timeout = \"2s\"");
    let idle = scene.hold(6);
    let busy = BusyClients::start(&scene.client, (VIP, 2379).into(), 6, Duration::from_millis(50)).unwrap();
    let quiet: BTreeSet<u16> = idle.ends().keys().copied().collect();
    let begun = Instant::now();
    let last = ended("idle clients", &quiet, || idle.ends());
    assert!(last - begun >= Duration::from_millis(1500), "not before `idle_timeout`");
    let at_members = || scene.servers.iter().flat_map(HeldServer::ends).collect::<BTreeMap<_, _>>();
    ended("members of idle clients", &quiet, at_members);
    assert_eq!(busy.broken(), 0, "who speaks is not idle");
}

#[test]
fn rebalance_resets_just_enough() {
    let scene = scene("rstspread", "");
    scene.balancer.cli(&["drain", "etcd-3"]).unwrap();
    let idle = scene.hold(60);
    scene.balancer.cli(&["undrain", "etcd-3"]).unwrap();
    let rebalance = |args: &[&str]| -> (Vec<u64>, Vec<u64>, Vec<u64>) {
        let args = [&["rebalance", "--json"], args].concat();
        let answer: Value = serde_json::from_str(&scene.balancer.cli(&args).unwrap()).unwrap();
        let backends = answer["backends"].as_array().unwrap();
        let column = |name: &str| backends.iter().map(|backend| backend[name].as_u64().unwrap()).collect();
        (column("flows"), column("bound"), column("reset"))
    };
    let (flows, bound, would) = rebalance(&["--dry-run"]);
    println!("before: {flows:?}, at most {bound:?}, would reset {would:?}");
    assert_eq!((flows.iter().sum::<u64>(), flows[2], &bound[..]), (60, 0, &[25, 25, 25][..]));
    let expected: Vec<u64> = flows.iter().map(|flows| flows.saturating_sub(25)).collect();
    assert_eq!(would, expected);
    assert!(idle.ends().values().all(Option::is_none), "a dry run resets nothing");
    assert_eq!(rebalance(&[]).2, expected);
    let total: u64 = expected.iter().sum();
    eventually(LIMIT, "just enough reset", || {
        let over = idle.ends().values().filter(|end| end.is_some()).count() as u64;
        ensure!(over == total, "{over} of {total}");
        Ok(())
    })
    .unwrap();
    let (after, ..) = rebalance(&["--dry-run"]);
    println!("after: {after:?}");
    assert!(after.iter().all(|flows| *flows <= 25));
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(idle.ends().values().filter(|end| end.is_some()).count() as u64, total);
}
