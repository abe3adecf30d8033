//! Names, sizes and layouts of the BPF maps. Both sides, and `bpftool`, read them by these definitions.
//!
//! Numbers are native-endian; what stands in packets ([`Addr`], [`Port`], [`Mac`]) is in network order. No layout has
//! implicit padding: zerocopy's derive does not compile otherwise. Times are nanoseconds of `CLOCK_MONOTONIC`.

pub mod fields;
mod flow;
pub mod name;
mod policy;
pub mod program;
mod signal;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::{flow::*, policy::*, signal::*};
#[cfg(feature = "user")]
use crate::addr::Addr;
use crate::addr::Mac;
use crate::counters::{BackendCounters, Counters};
use crate::election::Election;
use crate::shortcut::Bucket;

/// Version of the layouts, raised when their meaning changes without their size.
pub const LAYOUT_VERSION: u32 = 2;

/// Services at most; a service number is below.
pub const MAX_SERVICES: usize = 64;
/// Backends of all services at most, those that still drain included; a backend number is below.
pub const MAX_BACKENDS: usize = 1024;
/// Slots of `interfaces`.
pub const MAX_INTERFACES: usize = 1024;
/// VIPs times interfaces at most.
pub const MAX_VIPS: usize = 1024;
/// `allow` prefixes of all services at most.
pub const MAX_ALLOW: usize = 16_384;
/// Routes in `client_routes` at most. Where the kernel has more, none is there.
pub const MAX_CLIENT_ROUTES: usize = 4096;
/// Default of `max_flows`.
pub const DEFAULT_MAX_FLOWS: u32 = 131_072;
/// Slots of a Maglev table: a prime well over a hundred times the backends of a large service (Eisenbud et al.,
/// "Maglev", NSDI 2016, section 3.4).
pub const MAGLEV_SLOTS: u32 = 65_537;
/// Slots of a port table: every TCP port.
pub const PORT_TABLE_SLOTS: u32 = 65_536;
/// Elements of a port table: the return halves of all slots ([`Record`]), then their forward halves ([`Forward`]). Apart, since
/// the two are used by different packets, on different CPUs as a rule.
pub const PORT_TABLE_LEN: u32 = 2 * PORT_TABLE_SLOTS;
/// Elements of a service's map in `maglev`: the one that counts, and the one that is written next.
pub const MAGLEV_TABLES: usize = 2;
/// No backend, in a Maglev slot.
pub const NO_BACKEND: u16 = u16::MAX;

/// Capacity of `half_open` for a `max_flows`.
pub const fn half_open_capacity(max_flows: u32) -> u32 {
    let quarter = max_flows / 4;
    if quarter < 4096 { 4096 } else { quarter }
}

/// Capacity of `flows` for a `max_flows`: room for every half-open flow on top, so that a promotion cannot fail after
/// SYNs are refused at `max_flows`.
pub const fn flows_capacity(max_flows: u32) -> u32 {
    max_flows + half_open_capacity(max_flows)
}

/// Capacity of `shortcuts` for a `max_flows`: buckets of four entries for two flows each, so that one flow of 50 finds its bucket
/// full when there are half of `max_flows`, and hardly any where there are few.
pub const fn shortcuts_capacity(max_flows: u32) -> u32 {
    max_flows / 2 + 1
}

/// How the kernel's ticks (jiffies) become ns of `CLOCK_MONOTONIC`: times `ns`, plus `offset`, modulo 2^64.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ticks {
    /// A tick, ns: the resolution of `CLOCK_MONOTONIC_COARSE`.
    pub ns: u64,
    /// The program's own: see [`program::SET_CLOCK`].
    pub offset: u64,
}

/// What the pinned maps hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Layout {
    /// [`LAYOUT_VERSION`] of the agent that made the maps.
    pub version: u32,
    /// Established flows at most (`max_flows`), for which the maps were made.
    pub max_flows: u32,
    /// [`layout_hash`] of the agent that made the maps.
    pub hash: u64,
}

/// The lease: the VIP is claimed while now < `deadline` and `revoked_at` < `granted_at`, so that a renewal under way
/// cannot undo a revocation. Standalone: granted at 1, never ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lease {
    /// When it was granted, ns.
    pub granted_at: u64,
    /// When it ends, ns.
    pub deadline: u64,
    /// When the data plane gave it up, ns; 0: never.
    pub revoked_at: u64,
    /// Until then packets of connections that nobody knows are left unanswered, ns: another node may be about to tell of
    /// them.
    pub grace_until: u64,
    /// The interface by which the last advertisement of another node of the pair came; 0: none did yet.
    pub other_ifindex: u32,
    /// The MAC that it came from: that of the node which has the VIPs while this one has not.
    pub other_mac: Mac,
    /// 0.
    pub reserved: [u16; 3],
}

impl Lease {
    /// Never ends: a node without a peer.
    pub const STANDALONE: Self = Self { granted_at: 1, deadline: u64::MAX, ..Self::NONE };
    /// Nothing was ever granted.
    pub const NONE: Self = Self {
        granted_at: 0,
        deadline: 0,
        revoked_at: 0,
        grace_until: 0,
        other_ifindex: 0,
        other_mac: Mac::UNKNOWN,
        reserved: [0; 3],
    };

    /// Whether the VIP is claimed at `now`, ns.
    #[inline(always)]
    pub const fn holds(&self, now: u64) -> bool {
        now < self.deadline && self.revoked_at < self.granted_at
    }

    /// Whether the VIPs were taken over just now.
    #[inline(always)]
    pub const fn is_in_grace(&self, now: u64) -> bool {
        now < self.grace_until
    }
}

/// A hash over the sizes of all layouts, and where those that are carried over keep their fields, to be compared before pinned
/// maps are used.
pub const fn layout_hash() -> u64 {
    let sizes = [
        size_of::<Layout>(),
        size_of::<Filter>(),
        size_of::<Interface>(),
        size_of::<VipOnInterface>(),
        size_of::<VipClaim>(),
        size_of::<ServiceKey>(),
        size_of::<Service>(),
        size_of::<AllowData>(),
        size_of::<ClientRoute>(),
        size_of::<Backend>(),
        size_of::<ReturnKey>(),
        size_of::<Maglev>(),
        size_of::<FlowKey>(),
        size_of::<Flow>(),
        size_of::<Record>(),
        size_of::<Forward>(),
        size_of::<Bucket>(),
        size_of::<Load>(),
        size_of::<ClientKey>(),
        size_of::<ClientLoad>(),
        size_of::<Lease>(),
        size_of::<Election>(),
        size_of::<Counters>(),
        size_of::<BackendCounters>(),
        size_of::<Signal>(),
        size_of::<FlowEvent>(),
        size_of::<Suspect>(),
        size_of::<Handshakes>(),
        MAX_SERVICES,
        MAX_BACKENDS,
        MAX_INTERFACES,
        LAYOUT_VERSION as usize,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < sizes.len() {
        hash = step(hash, sizes[at]);
        at += 1;
    }
    let mut shape = 0;
    while shape < fields::SHAPES.len() {
        let mut field = 0;
        while field < fields::SHAPES[shape].fields.len() {
            let fields::Field { offset, size, .. } = fields::SHAPES[shape].fields[field];
            hash = step(step(hash, offset), size);
            field += 1;
        }
        shape += 1;
    }
    hash
}

/// FNV-1a (Fowler, Noll, Vo; RFC 9923), a number at a time.
const fn step(hash: u64, number: usize) -> u64 {
    (hash ^ number as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

// What the design promises of the layouts.
const _: () = {
    assert!(size_of::<Record>() == 64 && size_of::<Forward>() == 64, "half a slot is one cache line");
    assert!(size_of::<Flow>() == 12 && size_of::<FlowKey>() == 20);
    assert!(MAX_BACKENDS < NO_BACKEND as usize);
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($layout:ty),+ $(,)?) => { $(
            // SAFETY: the layout derives zerocopy's `IntoBytes` and `FromBytes`, which prove that it has no padding and
            // that every bit pattern is a value; it is `Copy` and `'static`.
            unsafe impl aya::Pod for $layout {}
        )+ };
    }

    pod!(
        Layout,
        Filter,
        Interface,
        VipOnInterface,
        VipClaim,
        ServiceKey,
        Service,
        AllowData,
        Addr,
        ClientRoute,
        Backend,
        ReturnKey,
        Maglev,
        Share,
        FlowKey,
        Flow,
        Record,
        Forward,
        Load,
        ClientKey,
        ClientLoad,
        Lease,
        Election,
        Counters,
        BackendCounters,
        Suspect,
        Ticks,
        Handshakes,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;

    #[test]
    fn a_lease_holds_until_its_deadline_or_revocation() {
        let lease = Lease { granted_at: 10, deadline: 20, revoked_at: 0, grace_until: 15, ..Lease::NONE };
        assert!(lease.is_in_grace(14) && !lease.is_in_grace(15));
        assert!(lease.holds(19));
        assert!(!lease.holds(20));
        assert!(!Lease { revoked_at: 10, ..lease }.holds(15));
        assert!(Lease { revoked_at: 9, ..lease }.holds(15));
        assert!(Lease::STANDALONE.holds(u64::MAX - 1));
    }

    #[test]
    fn promotion_has_room() {
        assert_eq!(flows_capacity(DEFAULT_MAX_FLOWS), 131_072 + 32_768);
        assert_eq!(half_open_capacity(1024), 4096);
    }

    #[test]
    fn the_filter_finds_what_was_added() {
        let mut filter = Filter::EMPTY;
        let vip = Addr::from(core::net::Ipv4Addr::new(10, 0, 1, 100));
        filter.add_address(&vip);
        let bit = filter_bit_of_address(&vip);
        assert_eq!(bit, 0x0164);
        assert_eq!(filter.addresses[usize::from(bit / 64)], 1 << (bit % 64));
    }
}
