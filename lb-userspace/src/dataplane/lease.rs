//! The lease, in the memory that it shares with the data plane: granted and dropped by the thread that advertises, revoked
//! by the data plane.

use std::{mem::offset_of, sync::atomic::Ordering, time::Duration};

use aya::maps::MapData;
use lb_common::maps::{Lease, name};

use super::{DataPlane, error::Error, maps, shared::Shared};

/// The lease. Times are of `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct LeaseMap(Shared<Lease>);

impl DataPlane {
    /// The lease, for the one that keeps it.
    ///
    /// # Errors
    /// The map cannot be opened or mapped.
    pub fn lease(&self) -> Result<LeaseMap, Error> {
        let map = MapData::from_pin(self.pins.path(name::LEASE)).map_err(Error::map(name::LEASE))?;
        Ok(LeaseMap(maps::shared(&map, name::LEASE, 1)?))
    }
}

impl LeaseMap {
    /// The VIPs are claimed until `deadline`, unless the data plane saw a stronger node since `granted_at`.
    pub fn grant(&self, granted_at: Duration, deadline: Duration) {
        // In this order: until both are written, no more is granted than before.
        self.0.u64(0, offset_of!(Lease, granted_at)).store(ns(granted_at), Ordering::Release);
        self.0.u64(0, offset_of!(Lease, deadline)).store(ns(deadline), Ordering::Release);
    }

    /// Until then this node says nothing about connections that it does not know.
    pub fn be_lenient(&self, until: Duration) {
        self.0.u64(0, offset_of!(Lease, grace_until)).store(ns(until), Ordering::Release);
    }

    /// The VIPs are claimed no longer.
    pub fn drop_now(&self) {
        self.0.u64(0, offset_of!(Lease, deadline)).store(0, Ordering::Release);
    }

    /// The data plane saw a stronger node since the last grant.
    pub fn is_revoked(&self) -> bool {
        let lease = self.0.read(0);
        lease.revoked_at >= lease.granted_at
    }

    /// When the lease ends, if the VIPs are claimed now by one that ends.
    pub fn held(&self, now: Duration) -> Option<Duration> {
        let lease = self.0.read(0);
        (lease.holds(ns(now)) && lease.deadline != Lease::STANDALONE.deadline)
            .then(|| Duration::from_nanos(lease.deadline))
    }

    /// Whether the VIPs are claimed now.
    pub fn holds(&self, now: Duration) -> bool {
        self.0.read(0).holds(ns(now))
    }
}

/// Half a thousand years fit.
fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
