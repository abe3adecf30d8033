//! The ways to clients, from the kernel's routes: by a router whose MAC is known, or the way that their own packets come by.
//!
//! Every prefix of the routing table is kept once any of them is by a router, since a longer one takes its clients out of a
//! shorter one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use lb_common::{
    addr::{Addr, Mac},
    maps::{ClientRoute, MAX_CLIENT_ROUTES},
};

use crate::reconcile::{Prefix, RouteKey};

/// A route of the kernel's main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub prefix: Prefix,
    /// Among several to one prefix the kernel takes the least.
    pub metric: u32,
    /// The next hop.
    pub by: By,
}

/// A route's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// One router, on an interface.
    Router(u32, IpAddr),
    /// None, because hosts are reached directly or not at all; or several, of which any may carry a connection.
    Otherwise,
}

/// The routes that are used, by prefix.
pub type Ways = BTreeMap<Prefix, By>;

/// More routes than `client_routes` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_CLIENT_ROUTES} routes")]
pub struct TooMany;

/// The routes that are used, of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected(BTreeMap<Prefix, (u32, By)>);

impl Collected {
    /// Takes in a route.
    ///
    /// # Errors
    /// There are more than the map holds; what was taken in is not to be used.
    pub fn add(&mut self, route: Route) -> Result<(), TooMany> {
        let entry = self.0.entry(route.prefix).or_insert((route.metric, route.by));
        if route.metric < entry.0 {
            *entry = (route.metric, route.by);
        } else if route.metric == entry.0 && route.by != entry.1 {
            // As two routers that advertise themselves: the kernel takes whichever it reaches.
            entry.1 = By::Otherwise;
        }
        // One more may be needed: see `client_routes`.
        if self.0.len() < MAX_CLIENT_ROUTES { Ok(()) } else { Err(TooMany) }
    }

    /// What is used.
    pub fn ways(self) -> Ways {
        self.0.into_iter().map(|(prefix, (_, by))| (prefix, by)).collect()
    }
}

/// Every router, with its interface.
pub fn routers(ways: &Ways) -> BTreeSet<(u32, IpAddr)> {
    let routers = ways.values().filter_map(|by| match *by {
        By::Router(ifindex, address) => Some((ifindex, address)),
        By::Otherwise => None,
    });
    routers.collect()
}

/// What `client_routes` should hold; `mac`: a router's MAC, where it is known and its interface is one of ours.
pub fn client_routes(ways: &Ways, mac: impl Fn(u32, IpAddr) -> Option<Mac>) -> BTreeMap<Prefix, ClientRoute> {
    let route = |by: By| match by {
        By::Router(ifindex, address) => mac(ifindex, address).map(|mac| ClientRoute::by(ifindex, mac)),
        By::Otherwise => None,
    };
    let mut routes: BTreeMap<_, _> = ways
        .iter()
        .map(|(&prefix, &by)| (prefix, route(by).unwrap_or(ClientRoute::THE_WAY_THEY_COME)))
        .collect();
    if !routes.values().any(ClientRoute::is_by_router) {
        return BTreeMap::new();
    }
    // IPv4 lies inside IPv6 there: `::/0` is not its default route.
    let all_v4 = Prefix { address: Ipv4Addr::UNSPECIFIED.into(), length: 0 };
    routes.entry(all_v4).or_insert(ClientRoute::THE_WAY_THEY_COME);
    routes
}

/// `client_routes`, as the data plane looks clients up in it.
#[derive(Debug)]
pub struct Lookup<'a> {
    routes: &'a BTreeMap<RouteKey, ClientRoute>,
    /// The lengths of prefixes that there are, longest first.
    lengths: Vec<u32>,
}

impl<'a> Lookup<'a> {
    /// Of what the map holds.
    pub fn new(routes: &'a BTreeMap<RouteKey, ClientRoute>) -> Self {
        let mut lengths: Vec<u32> = routes.keys().map(|(length, _)| *length).collect();
        lengths.dedup();
        lengths.reverse();
        Self { routes, lengths }
    }

    /// The router toward a client, if there is one.
    pub fn router(&self, client: Addr) -> Option<&'a ClientRoute> {
        let found = self.lengths.iter().find_map(|&length| self.routes.get(&(length, cut(client, length))));
        found.filter(|route| route.is_by_router())
    }
}

/// An address without the bits beyond a length.
pub fn cut(address: Addr, length: u32) -> Addr {
    let mask = 128_u32.checked_sub(length).map_or(u128::MAX, |rest| u128::MAX.checked_shl(rest).unwrap_or(0));
    Addr::new((u128::from_be_bytes(*address.octets()) & mask).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::route_key;

    const ROUTER: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    fn ways(routes: &[(&str, u32, By)]) -> Ways {
        let mut collected = Collected::default();
        for &(to, metric, by) in routes {
            collected.add(Route { prefix: prefix(to), metric, by }).unwrap();
        }
        collected.ways()
    }

    fn by(router: &str) -> By {
        By::Router(2, router.parse().unwrap())
    }

    /// The router of each client, by the last octet of its MAC.
    fn look_up(ways: &Ways, clients: &[&str]) -> Vec<Option<u8>> {
        let mac = |_, router: IpAddr| match router {
            IpAddr::V4(v4) => Some(Mac::new([2, 0, 0, 0, 0, v4.octets()[3]])),
            IpAddr::V6(v6) => Some(Mac::new([2, 0, 0, 0, 0, v6.octets()[15]])),
        };
        let routes: BTreeMap<_, _> =
            client_routes(ways, mac).iter().map(|(prefix, route)| (route_key(prefix), *route)).collect();
        let lookup = Lookup::new(&routes);
        let router = |client: &&str| lookup.router(client.parse::<IpAddr>().unwrap().into());
        clients.iter().map(|client| router(client).map(|route| route.mac.octets()[5])).collect()
    }

    #[test]
    fn the_longest_prefix_decides_and_what_is_reached_directly_has_no_router() {
        let ways = ways(&[
            ("0.0.0.0/0", 0, by("10.0.1.1")),
            ("10.0.1.0/24", 0, By::Otherwise),
            ("10.9.0.0/16", 0, by("10.0.1.9")),
            ("10.9.8.0/24", 0, By::Otherwise),
            ("fd00:1::/64", 256, By::Otherwise),
        ]);
        let found =
            look_up(&ways, &["192.0.2.1", "10.0.1.77", "10.9.1.1", "10.9.8.7", "fd00:1::7", "2001:db8::1"]);
        assert_eq!(found, [Some(1), None, Some(9), None, None, None]);
        assert_eq!(routers(&ways).len(), 2);
    }

    #[test]
    fn a_default_route_of_ipv6_is_none_of_ipv4() {
        let ways = ways(&[("::/0", 1024, by("fd00:1::1")), ("fd00:1::/64", 256, By::Otherwise)]);
        assert_eq!(look_up(&ways, &["2001:db8::1", "fd00:1::2", "192.0.2.1"]), [Some(1), None, None]);
    }

    #[test]
    fn the_least_metric_is_used() {
        let two = [("0.0.0.0/0", 100, by("10.0.1.1")), ("0.0.0.0/0", 50, by("10.0.1.2"))];
        assert_eq!(look_up(&ways(&two), &["192.0.2.1"]), [Some(2)]);
        assert_eq!(look_up(&ways(&[two[1], two[0]]), &["192.0.2.1"]), [Some(2)]);
        let equal = [two[0], two[1], ("0.0.0.0/0", 50, by("10.0.1.3"))];
        assert_eq!(look_up(&ways(&equal), &["192.0.2.1"]), [None]);
    }

    #[test]
    fn without_a_router_whose_mac_is_known_there_are_none() {
        let ways = ways(&[("0.0.0.0/0", 0, by("10.0.1.1")), ("10.0.1.0/24", 0, By::Otherwise)]);
        assert!(client_routes(&ways, |_, _| None).is_empty());
        let known = client_routes(&ways, |ifindex, _| (ifindex == 2).then_some(ROUTER));
        assert_eq!(known.len(), 2);
        assert_eq!(known[&prefix("0.0.0.0/0")], ClientRoute::by(2, ROUTER));
    }

    #[test]
    fn more_than_the_map_holds_are_refused() {
        let mut collected = Collected::default();
        let route = |n: u32| Route {
            prefix: Prefix { address: Ipv4Addr::from(n << 8).into(), length: 24 },
            metric: 0,
            by: By::Otherwise,
        };
        let refused = (0..MAX_CLIENT_ROUTES as u32).find(|n| collected.add(route(*n)).is_err());
        assert_eq!(refused, Some(MAX_CLIENT_ROUTES as u32 - 1), "one is kept for IPv4's own default");
    }
}
