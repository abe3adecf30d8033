//! Next hops toward the backends and toward clients behind routers, and how they stay fresh.
//!
//! XDP sends past the kernel's stack, so no traffic of ours confirms a neighbour: the kernel is asked to (`NTF_USE`, what
//! sending a packet would do) whenever an entry is missing or no longer confirmed. A MAC that the kernel learns anew,
//! by an answer or a gratuitous ARP, comes as a message and is followed at once.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::{addr::Mac, maps::NextHop};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::Handle;
use tracing::{info, warn};

use super::{
    mirror::Mirror,
    routes::{self, Route, RouteError},
};

/// The next hops of a set of destinations.
#[derive(Debug, Default)]
pub struct Hops {
    routes: HashMap<IpAddr, Result<Route, RouteError>>,
    /// Routers toward clients, with their interfaces.
    routers: BTreeSet<(u32, IpAddr)>,
    /// The last MAC of each neighbour: better than none while the kernel asks anew.
    known: HashMap<(u32, IpAddr), Mac>,
}

impl Hops {
    /// Asks the kernel for the route to each of `destinations`, and forgets all others. What changed is logged once.
    pub async fn look_up(&mut self, handle: &Handle, destinations: &BTreeSet<IpAddr>) {
        self.routes.retain(|destination, _| destinations.contains(destination));
        for &destination in destinations {
            let route = routes::look_up(handle, destination).await;
            let before = self.routes.insert(destination, route.clone());
            if before.as_ref() == Some(&route) {
                continue;
            }
            match (before, route) {
                (_, Err(error)) => warn!(backend = %destination, %error, "no next hop"),
                (Some(_), Ok(route)) => {
                    info!(backend = %destination, ifindex = route.ifindex, via = %route.neighbour, "route changed");
                }
                (None, Ok(_)) => {}
            }
        }
    }

    /// Keeps the MACs of exactly these routers fresh beside those toward the backends.
    pub fn follow_routers(&mut self, routers: BTreeSet<(u32, IpAddr)>) {
        self.routers = routers;
    }

    /// A router's MAC, where it is one that is followed and its MAC is known.
    pub fn router_mac(&self, ifindex: u32, router: IpAddr) -> Option<Mac> {
        let key = (ifindex, router);
        self.routers.contains(&key).then(|| self.known.get(&key).copied()).flatten()
    }

    /// Takes in the neighbours' MACs; whether one is new.
    pub fn learn(&mut self, mirror: &Mirror) -> bool {
        let mut news = false;
        for key in self.neighbours() {
            let Some(mac) = mirror.neighbour(key.0, key.1).and_then(|neighbour| neighbour.mac) else {
                continue;
            };
            let before = self.known.insert(key, mac);
            news |= before != Some(mac);
            match before {
                Some(before) if before != mac => {
                    info!(neighbour = %key.1, ifindex = key.0, from = %before, to = %mac, "MAC changed");
                }
                _ => {}
            }
        }
        self.known.retain(|(ifindex, _), _| mirror.link(*ifindex).is_some());
        news
    }

    /// The next hop toward `destination`; `None` while the route or the neighbour's MAC is not known.
    pub fn hop(&self, mirror: &Mirror, destination: IpAddr) -> Option<NextHop> {
        let route = self.routes.get(&destination)?.as_ref().ok()?;
        let mac = *self.known.get(&(route.ifindex, route.neighbour))?;
        let lan = mirror.lan(route.ifindex)?;
        let source_mac = mirror.link(lan.ifindex)?.mac?;
        Some(NextHop { ifindex: lan.ifindex, mac, source_mac, tags: lan.vlan })
    }

    /// Whether no router lies between: frames go to the destination itself.
    pub fn is_direct(&self, destination: IpAddr) -> bool {
        matches!(self.routes.get(&destination), Some(Ok(route)) if route.neighbour == destination)
    }

    /// The interface toward `destination`, whether or not its neighbour is known.
    pub fn interface(&self, destination: IpAddr) -> Option<u32> {
        Some(self.routes.get(&destination)?.as_ref().ok()?.ifindex)
    }

    /// Whether a MAC is known for each router toward clients.
    pub fn routers_are_known(&self) -> bool {
        self.routers.iter().all(|key| self.known.contains_key(key))
    }

    /// Whether a MAC is known for each router, and for each destination that has a route.
    pub fn complete(&self) -> bool {
        self.neighbours().iter().all(|key| self.known.contains_key(key))
    }

    /// Makes the kernel resolve, or confirm, each neighbour that is not fresh.
    pub async fn provoke(&self, handle: &Handle, mirror: &Mirror) {
        for (ifindex, address) in self.neighbours() {
            if mirror.neighbour(ifindex, address).is_some_and(|neighbour| neighbour.fresh) {
                continue;
            }
            ask(handle, [(ifindex, address)].into_iter()).await;
        }
    }

    /// Whose MACs are needed.
    fn neighbours(&self) -> BTreeSet<(u32, IpAddr)> {
        let next = self.routes.values().flatten().map(|route| (route.ifindex, route.neighbour));
        next.chain(self.routers.iter().copied()).collect()
    }
}

/// Makes the kernel resolve neighbours, whether or not they are anybody's next hop.
pub async fn ask(handle: &Handle, neighbours: impl Iterator<Item = (u32, IpAddr)>) {
    for (ifindex, address) in neighbours {
        let request = handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        // It fails when the interface went away just now; the message about that is on its way.
        let _ = request.execute().await;
    }
}
