//! What the checks of one service's backends mean for each other.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use lb_core::{
    desired::BackendKey,
    etcd,
    health::{self, Health, State},
};

use super::{Checks, Ended};

/// What identifies a service: backends of one have these in common.
pub(super) type Pool = (IpAddr, u16);

pub(super) fn pool_of(backend: &BackendKey) -> Pool {
    (backend.vip, backend.port)
}

impl Checks {
    /// Remembers which cluster a member belongs to, and says which one is its pool's.
    pub(super) fn learn(&mut self, ended: &Ended) -> Option<u64> {
        let check = self.checks.get_mut(&ended.backend)?;
        if let Some(member) = &ended.report.found.member {
            check.member = Some(member.clone());
        }
        self.cluster_of(&ended.backend)
    }

    /// The cluster that a backend's service belongs to.
    pub(super) fn cluster_of(&self, backend: &BackendKey) -> Option<u64> {
        self.cluster_of_service(pool_of(backend))
    }

    /// The cluster that a service's backends belong to, as far as they have said.
    pub fn cluster_of_service(&self, service: Pool) -> Option<u64> {
        let pool = self.checks.iter().filter(|(key, _)| pool_of(key) == service);
        etcd::pool_cluster(pool.map(|(_, check)| check.member.as_ref().map(|member| member.cluster_id)))
    }

    /// A result may show that another backend, healthy so far, is the foreign one: it is asked again at once.
    pub(super) fn ask_strangers(&mut self, backend: &BackendKey, now: Instant) {
        let cluster = self.cluster_of(backend);
        let others =
            self.checks.iter_mut().filter(|(key, _)| *key != backend && pool_of(key) == pool_of(backend));
        for (_, check) in others {
            let foreign = check.member.as_ref().is_some_and(|member| member.judge_cluster(cluster).is_err());
            if foreign && check.health.state() == State::Healthy && !check.foreign {
                check.health.hurry(now);
            }
        }
    }

    /// For each pool the highest raft entry that a member of its cluster knew to be committed.
    pub(super) fn committed(&self) -> BTreeMap<Pool, u64> {
        let mut committed = BTreeMap::new();
        for (key, check) in
            self.checks.iter().filter(|(_, check)| check.max_raft_lag.is_some() && !check.foreign)
        {
            let index = check.member.as_ref().map_or(0, |member| member.raft_index);
            let highest = committed.entry(pool_of(key)).or_insert(0);
            *highest = index.max(*highest);
        }
        committed
    }

    /// What follows for the whole service.
    pub(super) fn settle(&mut self, backend: &BackendKey, now: Instant) {
        let keys: Vec<_> =
            self.checks.keys().filter(|key| pool_of(key) == pool_of(backend)).copied().collect();
        let (mut pool, place) = self.pool(backend);
        health::ask_others(&mut pool, place, now);
        for (place, flip) in health::settle(&mut pool, now) {
            self.flipped(&keys[place], flip, false);
        }
    }

    /// The machines of a backend's service, in the order of their keys, and the backend's place among them.
    pub(super) fn pool(&mut self, backend: &BackendKey) -> (Vec<&mut Health>, usize) {
        let of_pool = self.checks.iter_mut().filter(|(key, _)| pool_of(key) == pool_of(backend));
        let (mut pool, mut place) = (Vec::new(), 0);
        for (key, check) in of_pool {
            if key == backend {
                place = pool.len();
            }
            pool.push(&mut check.health);
        }
        (pool, place)
    }
}
