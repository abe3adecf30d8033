//! What the agent tells the data plane: interfaces, VIPs, services, backends. Only the agent's reconciler writes these.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAGLEV_SLOTS, MAX_BACKENDS, MAX_INTERFACES};
use crate::{
    addr::{Addr, Mac, Port},
    hash::{SPREAD, Seed},
    nat,
};

/// A quick answer to "is this for a VIP", and "for which service" or "from which backend". An unset bit of an address means
/// "certainly not", a set one "look closer". A number is a guess, which the service or backend of that number verifies; where
/// none is right, or several would stand in one place ([`Filter::SEVERAL`]), `service_ports` or `returns` is asked.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Filter {
    /// A bit for each VIP and source address, indexed by [`filter_bit_of_address`].
    pub addresses: [u64; 1024],
    /// The number of a service plus one, indexed by [`filter_place_of_service`]; 0: certainly none.
    pub services: [u16; FILTER_PLACES],
    /// The number of a backend plus one, indexed by [`filter_place_of_return`]; 0: not known.
    pub returns: [u16; FILTER_PLACES],
}

/// Places for services, and for backends: four for each of the most backends, so that few of many share one.
pub const FILTER_PLACES: usize = 4096;

impl Filter {
    /// Nothing is for us.
    pub const EMPTY: Self =
        Self { addresses: [0; 1024], services: [0; FILTER_PLACES], returns: [0; FILTER_PLACES] };
    /// In a place that several services or backends have.
    pub const SEVERAL: u16 = u16::MAX;

    /// Sets the bit of an address.
    pub const fn add_address(&mut self, address: &Addr) {
        let bit = filter_bit_of_address(address);
        self.addresses[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// Puts a service into its place.
    pub fn add_service(&mut self, key: &ServiceKey, number: u16) {
        add(&mut self.services[filter_place_of_service(&key.vip, key.port)], number);
    }

    /// Puts a backend into its place.
    pub fn add_return(&mut self, key: &ReturnKey, number: u16) {
        add(&mut self.returns[filter_place_of_return(&key.source, &key.backend, key.port)], number);
    }
}

const fn add(place: &mut u16, number: u16) {
    *place = if *place == 0 || *place == number + 1 { number + 1 } else { Filter::SEVERAL };
}

/// The place of a service in [`Filter::services`].
#[inline(always)]
pub fn filter_place_of_service(vip: &Addr, port: Port) -> usize {
    place(vip.words()[3] ^ (port.word() as u32) << 8)
}

/// The place of a backend in [`Filter::returns`].
#[inline(always)]
pub fn filter_place_of_return(source: &Addr, backend: &Addr, port: Port) -> usize {
    place(source.words()[3].rotate_left(7) ^ backend.words()[3] ^ (port.word() as u32) << 8)
}

/// Words that differ in any octet spread over the places: the upper bits of a product depend on all of them.
#[inline(always)]
const fn place(word: u32) -> usize {
    ((word as u64).wrapping_mul(SPREAD) >> (u64::BITS - FILTER_PLACES.trailing_zeros())) as usize
}

/// The bit of an address in [`Filter::addresses`]: its last two octets.
#[inline(always)]
pub const fn filter_bit_of_address(address: &Addr) -> u16 {
    let o = address.octets();
    u16::from_be_bytes([o[14], o[15]])
}

/// An interface that the program is attached to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Interface {
    /// Interface number; 0 in an unused slot.
    pub ifindex: u32,
    /// MTU, octets of an IP packet.
    pub mtu: u16,
    /// The interface's own MAC.
    pub mac: Mac,
    /// `INTERFACE_*` bits.
    pub flags: u32,
}

/// The far end of the node's own veth pair: what comes in by it is from clients and members on this node.
pub const INTERFACE_NODE: u32 = 1 << 0;

/// The slot of an interface in `interfaces`.
#[inline(always)]
pub const fn interface_slot(ifindex: u32) -> u32 {
    ifindex % MAX_INTERFACES as u32
}

/// Key of `vips`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VipOnInterface {
    /// A VIP, or the source address toward backends.
    pub address: Addr,
    /// The interface; 0: the entry that says that the address is ours at all.
    pub ifindex: u32,
    /// The VLAN there, as [`crate::frame::Link::vlan`] has it; 0: untagged.
    pub vlan: [u16; 2],
}

impl VipOnInterface {
    /// The entry that says that an address is ours at all.
    #[inline(always)]
    pub const fn anywhere(address: Addr) -> Self {
        Self { address, ifindex: 0, vlan: [0; 2] }
    }
}

/// Value of `vips`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VipClaim {
    /// 1 where ARP and ND are answered: on an interface, or a VLAN of it, whose prefix holds the address.
    pub answered: u32,
}

/// Key of `service_ports`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ServiceKey {
    /// The VIP.
    pub vip: Addr,
    /// The port.
    pub port: Port,
    /// 0.
    pub reserved: u16,
}

impl ServiceKey {
    /// The key of a VIP and port.
    #[inline(always)]
    pub const fn new(vip: Addr, port: Port) -> Self {
        Self { vip, port, reserved: 0 }
    }
}

/// A service; all zero where the number is unused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Service {
    /// Key of the flow hash, the same on both nodes.
    pub seed: Seed,
    /// The VIP.
    pub vip: Addr,
    /// The port.
    pub port: Port,
    /// `SERVICE_*` bits, and [`crate::choose::Algorithm::flags`] in the upper octet.
    pub flags: u16,
    /// Established flows that one client's address may have; 0: no limit.
    pub max_flows_per_client: u32,
    /// NAT ports for flows that cannot have their client's own.
    pub nat: nat::Range,
    /// Number of the backend that clients on this node are sent to, plus one (`prefer_local`); 0: to whichever.
    pub near: u32,
}

/// The number is in use.
pub const SERVICE_USED: u16 = 1 << 0;
/// Only the client's address is hashed (`affinity = "client-ip"`).
pub const SERVICE_AFFINITY: u16 = 1 << 1;
/// Only the clients in `allow` may connect.
pub const SERVICE_ALLOW: u16 = 1 << 2;
/// A new connection without a backend is dropped instead of reset (`no_backend = "drop"`).
pub const SERVICE_DROP: u16 = 1 << 3;
/// Backends hold the VIP and answer clients past us (`mode = "dsr"`).
pub const SERVICE_DSR: u16 = 1 << 4;

/// Key of `allow`, an LPM trie: the prefix length counts the 32 bits of the service number too.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct AllowData {
    /// Service number, big-endian, so that its bits come first.
    pub service: [u8; 4],
    /// The client's address; an IPv4 prefix of length n has 96 + n bits here.
    pub address: Addr,
}

/// Bits of the service number in the `allow` trie's prefix length.
pub const ALLOW_SERVICE_BITS: u32 = 32;

/// Value of `client_routes`, an LPM trie of clients' addresses (an IPv4 prefix of length n has 96 + n bits): the router that
/// packets toward these clients are sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClientRoute {
    /// The interface toward the router; 0: there is none, packets go back the way that the clients' own come by.
    pub ifindex: u32,
    /// The router's MAC.
    pub mac: Mac,
    /// 0.
    pub reserved: u16,
}

impl ClientRoute {
    /// Packets go back the way that the clients' own come by.
    pub const THE_WAY_THEY_COME: Self = Self { ifindex: 0, mac: Mac::UNKNOWN, reserved: 0 };

    /// By a router.
    pub const fn by(ifindex: u32, mac: Mac) -> Self {
        Self { ifindex, mac, reserved: 0 }
    }

    /// Whether there is a router.
    #[inline(always)]
    pub const fn is_by_router(&self) -> bool {
        self.ifindex != 0
    }
}

/// Where a frame is sent: interface, VLAN tags, MACs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NextHop {
    /// Interface to transmit on.
    pub ifindex: u32,
    /// The neighbour's MAC; [`Mac::UNKNOWN`] while it is not resolved.
    pub mac: Mac,
    /// The interface's MAC.
    pub source_mac: Mac,
    /// Tag control information of up to two VLAN tags, outermost first, network order; 0: no tag. The agent sets the
    /// VLAN identifiers alone: priority 0.
    pub tags: [u16; 2],
}

impl NextHop {
    /// Not known.
    pub const UNKNOWN: Self = Self { ifindex: 0, mac: Mac::UNKNOWN, source_mac: Mac::UNKNOWN, tags: [0; 2] };
}

/// A backend of a service; all zero where the number is unused. Its number is also that of its port table.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Backend {
    /// The backend's address.
    pub address: Addr,
    /// The source address toward it: the VIP, or `source_address`.
    pub source: Addr,
    /// The backend's port.
    pub port: Port,
    /// Number of its service.
    pub service: u16,
    /// Raised to reset every flow made before.
    pub epoch: u32,
    /// Where its packets are sent.
    pub hop: NextHop,
    /// `BACKEND_*` bits.
    pub flags: u32,
}

/// The same with its fields elsewhere, as a version with other layouts would have it: for the test of a change of layouts.
#[cfg(feature = "other-layout")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Backend {
    /// `BACKEND_*` bits.
    pub flags: u32,
    /// Raised to reset every flow made before.
    pub epoch: u32,
    /// Where its packets are sent.
    pub hop: NextHop,
    /// Number of its service.
    pub service: u16,
    /// The backend's port.
    pub port: Port,
    /// The source address toward it: the VIP, or `source_address`.
    pub source: Addr,
    /// The backend's address.
    pub address: Addr,
}

/// The number is in use.
pub const BACKEND_USED: u32 = 1 << 0;
/// The backend left the config: its flows go on, and the number is given up when they have ended.
pub const BACKEND_LEAVING: u32 = 1 << 1;
/// The operator drains the backend: no new flows.
pub const BACKEND_DRAINED: u32 = 1 << 2;
/// The last verdict of the health check was "healthy"; what a restarted agent starts from.
pub const BACKEND_HEALTHY: u32 = 1 << 3;

/// Key of `returns`: where traffic from a backend comes from and goes to.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ReturnKey {
    /// The source address that the flow uses toward the backend.
    pub source: Addr,
    /// The backend's address.
    pub backend: Addr,
    /// The backend's port.
    pub port: Port,
    /// 0.
    pub reserved: u16,
}

impl ReturnKey {
    /// The key of a backend behind a source address.
    #[inline(always)]
    pub const fn new(source: Addr, backend: Addr, port: Port) -> Self {
        Self { source, backend, port, reserved: 0 }
    }
}

/// All that a choice among a service's backends needs, in one value that is switched to as one: the Maglev table (slot →
/// backend number, [`super::NO_BACKEND`] where there is none), and the live backends. The table is one slot longer than
/// [`MAGLEV_SLOTS`], so that the verifier's bound for a scaled hash lies inside.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Maglev {
    /// Backend numbers by slot.
    pub slots: [u16; MAGLEV_SLOTS as usize + 1],
    /// By backend number; weight 0: not a live backend of this service.
    pub shares: [Share; MAX_BACKENDS],
    /// Numbers of the live backends.
    pub live: [u16; MAX_BACKENDS],
    /// For `round-robin`: backend numbers in the order of their turns.
    pub turns: [u16; MAX_TURNS],
    /// Entries of `live` in use.
    pub live_count: u32,
    /// The weight of all live backends together.
    pub live_weight: u32,
    /// Entries of `turns` in use.
    pub turn_count: u32,
}

/// Entries of [`Maglev::turns`]: four for each of the most backends.
pub const MAX_TURNS: usize = 4 * MAX_BACKENDS;

/// A live backend's part in a choice.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Share {
    /// Its share of new flows relative to the other live ones'; 0: it takes none.
    pub weight: u32,
    /// Established flows past which it is passed over; 0: no limit.
    pub max_connections: u32,
}
