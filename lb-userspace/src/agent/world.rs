//! The agent's knowledge, as desired state asks for it.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{election::Election, hash::Seed, maps, nat};
use lb_core::{
    config::Service,
    desired::{BackendKey, Standing, World},
    health::State,
    reconcile::{Lan, Prefix},
    seed, ways,
};

use super::{attach, pair::Pair, state::Agent, sync::FlowSync};
use crate::probe::Check;

/// The agent, seen as the world besides the config.
pub(super) struct View<'a>(pub(super) &'a Agent);

impl World for View<'_> {
    fn standing(&self, backend: &BackendKey) -> Standing {
        let check = self.0.checks.get(backend);
        // A learner passes checks that know nothing of etcd.
        let is_learner = self.0.finds.learner(backend) == Some(true);
        Standing {
            state: match check.map_or(State::Starting, |check| check.health().state()) {
                State::Healthy if is_learner => State::Down,
                state => state,
            },
            accepts: check.is_some_and(Check::accepts),
            fails_alone: check.is_some_and(|check| check.health().fails_alone()),
            drained: self.0.drains.contains_key(backend),
        }
    }

    fn hop(&self, destination: IpAddr) -> Option<maps::NextHop> {
        self.0.node_hop(destination).or_else(|| self.0.hops.hop(self.0.network.mirror(), destination))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.0.network.mirror().holder(address).is_some()
    }

    fn direct_hop(&self, destination: IpAddr) -> Option<maps::NextHop> {
        let hop = self.0.hops.hop(self.0.network.mirror(), destination);
        hop.filter(|_| self.0.hops.is_direct(destination))
    }

    fn interfaces(&self) -> Vec<maps::Interface> {
        attach::named(&self.0.config, self.0.network.mirror())
    }

    fn answered_on(&self, address: IpAddr) -> Vec<Lan> {
        let mirror = self.0.network.mirror();
        let named = self.interfaces().into_iter();
        named
            .flat_map(|interface| mirror.reaches_by(interface.ifindex, address).map(|(_, lan)| lan))
            .collect()
    }

    fn client_routes(&self) -> BTreeMap<Prefix, maps::ClientRoute> {
        let hops = &self.0.hops;
        let mut routes =
            ways::client_routes(&self.0.clients.ways, |ifindex, router| hops.router_mac(ifindex, router));
        for (own, route) in self.0.ways_to_own() {
            if routes.len() < maps::MAX_CLIENT_ROUTES {
                routes.insert(own, route);
            }
        }
        routes
    }

    fn elections(&self) -> [Election; 2] {
        self.0.pair.as_ref().map_or([Election::NONE; 2], Pair::elections)
    }

    fn nat_ports(&self) -> nat::Range {
        self.0.sync.as_ref().map_or(nat::Range::ALL, FlowSync::nat_ports)
    }

    fn seed(&self, service: &Service) -> Seed {
        seed::of_service(self.0.hash_secret.as_deref(), service.vip, service.port)
    }
}
