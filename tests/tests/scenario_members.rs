//! A member of a real cluster is killed, freezes, or vanishes with its host; once a follower, once the leader; with idle and
//! busy clients, over IPv4 and IPv6. Exactly its own connections break, also while the election runs, and each client
//! knows in time.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Host, Lab, Member, Topology, VIP, VIP6, etcd::Status,
    eventually, fleet::Options, held::HeldClients, https::Connection,
};

const LIMIT: Duration = Duration::from_secs(20);
/// interval + fall × timeout + 100 ms for 1,000 flows, with the config below.
const PROMISE: Duration = Duration::from_millis(500 + 2 * 500 + 100);
/// A killed member's kernel ends its connections by itself.
const KILLED: Duration = Duration::from_millis(100);
/// What a loaded machine may add.
const NOISE: Duration = Duration::from_secs(2);
/// Once everybody concerned knows, nobody else learns of anything for so long: longer than an election.
const AFTERWARDS: Duration = Duration::from_millis(1500);

/// How a member goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Killed,
    Frozen,
    Vanished,
}

/// The leader, or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Follower,
    Leader,
}

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    balancer: Balancer,
    cluster: Cluster,
    client: Host,
    lab: Lab,
}

/// The clients of one family.
struct Clients {
    vip: IpAddr,
    busy: Fleet,
    idle: Idle,
}

/// TLS connections that made one request and then said nothing.
struct Idle {
    watched: HeldClients,
    /// The client's port and the member of each.
    members: Vec<(u16, u64)>,
    _connections: Vec<Connection>,
}

fn scene(name: &str) -> Scene {
    let lab = Lab::start(name, &Topology::standard().without("lb2").without("client-2")).unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    let host = lab.host("lb1");
    let config =
        Config::etcd(host, &cluster).text() + &Config::etcd_v6(host, &cluster).name("etcd-v6").service_text();
    let balancer = Balancer::start(host, &config).unwrap();
    let scene = Scene { client: lab.host("client-1").clone(), balancer, cluster, lab };
    scene.wait_all_healthy();
    scene
}

impl Scene {
    fn wait_all_healthy(&self) {
        eventually(LIMIT, "every backend healthy", || {
            let status = self.balancer.status()?;
            let services = status["services"].as_array().into_iter().flatten();
            let backends = services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
            let down = backends.filter(|backend| backend["state"] != "healthy").count();
            ensure!(down == 0, "{down} are not");
            Ok(())
        })
        .unwrap();
    }

    /// Clients of which several are on this member, and several are not.
    fn clients(&self, vip: IpAddr, member: u64) -> Clients {
        let target = SocketAddr::new(vip, CLIENT_PORT);
        let options = Options { interval: Duration::from_millis(20), ..Options::default() };
        let busy = eventually(LIMIT, "busy clients on the member", || {
            let fleet = Fleet::start(&self.client, target, &self.cluster.pki, options)?;
            ensure!((1..options.clients).contains(&fleet.alive_on(member)), "all or none");
            Ok(fleet)
        })
        .unwrap();
        let mut connections = Vec::new();
        let mut members: Vec<(u16, u64)> = Vec::new();
        let on_it = |members: &[(u16, u64)]| members.iter().filter(|(_, of)| *of == member).count();
        while members.len() < 12 || on_it(&members) < 3 {
            let mut connection = Connection::open(&self.client, target, &self.cluster.pki, LIMIT).unwrap();
            let of = Status::over(&mut connection).unwrap().member_id;
            members.push((connection.local().port(), of));
            connections.push(connection);
        }
        let sockets = connections.iter().map(|connection| connection.socket().try_clone().unwrap()).collect();
        let idle = Idle { watched: HeldClients::watch(sockets).unwrap(), members, _connections: connections };
        busy.wait_progress(3, LIMIT).unwrap();
        Clients { vip, busy, idle }
    }

    fn choose(&self, who: Who) -> String {
        let leader = self.cluster.leader().unwrap();
        let mut names = self.cluster.members().iter().map(Member::name);
        names.find(|name| (*name == leader) == (who == Who::Leader)).unwrap().to_owned()
    }

    fn lose(&mut self, way: Way, name: &str) {
        match way {
            Way::Killed => self.cluster.member_mut(name).kill().unwrap(),
            Way::Frozen => self.cluster.member(name).freeze().unwrap(),
            Way::Vanished => self.lab.plug(name, false).unwrap(),
        }
    }

    fn restore(&mut self, way: Way, name: &str) {
        match way {
            Way::Killed => self.cluster.member_mut(name).start().unwrap(),
            Way::Frozen => self.cluster.member(name).thaw().unwrap(),
            Way::Vanished => self.lab.plug(name, true).unwrap(),
        }
        self.cluster.member_mut(name).wait_healthy().unwrap();
        self.wait_all_healthy();
    }

    /// A member goes under its clients, and returns.
    fn lose_and_restore(&mut self, way: Way, who: Who) {
        let name = self.choose(who);
        let member = self.cluster.member(&name).id();
        let clients = [IpAddr::from(VIP), IpAddr::from(VIP6)].map(|vip| self.clients(vip, member));
        let begun = Instant::now();
        self.lose(way, &name);
        for clients in &clients {
            clients.wait_broken(member);
        }
        let promise = if let Way::Killed = way { KILLED } else { PROMISE };
        let left = (begun + promise + AFTERWARDS).saturating_duration_since(Instant::now());
        thread::sleep(left.max(AFTERWARDS));
        for clients in &clients {
            let (busy, idle) = clients.only_broken_on(member, begun);
            println!(
                "{way:?} {who:?} {name}, VIP {}: the last of {} busy clients knew after {:?}, of {} idle ones after {:?} \
                 (promise {promise:?}); {} busy and {} idle ones elsewhere noticed nothing",
                clients.vip,
                busy.0,
                busy.1,
                idle.0,
                idle.1,
                clients.busy.alive().len(),
                clients.idle.members.len() - idle.0,
            );
            assert!(busy.1.max(idle.1) <= promise + NOISE, "{way:?} {who:?}");
        }
        for clients in &clients {
            clients.busy.wait_progress(5, LIMIT).unwrap();
        }
        self.restore(way, &name);
    }
}

impl Clients {
    fn wait_broken(&self, member: u64) {
        eventually(LIMIT, "every client of the member knows", || {
            let idle = self.idle.broken();
            let left =
                self.idle.members.iter().filter(|(port, of)| *of == member && !idle.contains_key(port));
            let left = left.count() + self.busy.alive_on(member);
            ensure!(left == 0, "{left} do not, VIP {}", self.vip);
            Ok(())
        })
        .unwrap();
    }

    /// How many busy and idle clients broke, and how long after `begun` the last of each knew; all are on the member.
    fn only_broken_on(&self, member: u64, begun: Instant) -> ((usize, Duration), (usize, Duration)) {
        let busy = self.busy.broken();
        let strangers: Vec<_> = busy.iter().filter(|session| session.member != member).collect();
        assert!(strangers.is_empty(), "busy clients of survivors: {strangers:?}");
        let idle = self.idle.broken();
        let on_it = self.idle.members.iter().filter(|(_, of)| *of == member).map(|(port, _)| *port);
        assert_eq!(idle.keys().copied().collect::<BTreeSet<_>>(), on_it.collect(), "idle clients");
        let last_busy = busy.iter().map(|session| session.broken.as_ref().unwrap().at - begun).max();
        let last_idle = idle.values().map(|at| *at - begun).max();
        ((busy.len(), last_busy.unwrap()), (idle.len(), last_idle.unwrap()))
    }
}

impl Idle {
    /// Those that ended, and when.
    fn broken(&self) -> std::collections::BTreeMap<u16, Instant> {
        self.watched.ends().into_iter().filter_map(|(port, end)| Some((port, end?.at))).collect()
    }
}

fn each_way(name: &str, who: Who) {
    let mut scene = scene(name);
    for way in [Way::Killed, Way::Frozen, Way::Vanished] {
        scene.lose_and_restore(way, who);
    }
}

#[test]
fn a_follower_takes_only_its_own_connections_with_it() {
    each_way("follower", Who::Follower);
}

#[test]
fn a_leader_takes_only_its_own_connections_with_it() {
    each_way("leader", Who::Leader);
}
