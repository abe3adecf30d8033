//! Names, sizes and layouts of the BPF maps. Both sides, and `bpftool`, read them by these definitions.
//!
//! Numbers are native-endian; what stands in packets ([`Addr`], [`Port`], [`Mac`]) is in network order. No layout has
//! implicit padding: zerocopy's derive does not compile otherwise. Times are nanoseconds of `CLOCK_MONOTONIC`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Addr, Mac, Port},
    claim::Claim,
    counters::{BackendCounters, Counters},
    hash::Seed,
};

/// Names of the pinned maps and programs, under `pin_dir`.
pub mod name {
    /// Array of one [`super::Layout`]: which version of these layouts the pinned maps have.
    pub const LAYOUT: &str = "layout";
    /// Array of one [`super::Filter`].
    pub const FILTER: &str = "filter";
    /// Array of [`super::Interface`], indexed by ifindex modulo [`super::MAX_INTERFACES`].
    pub const INTERFACES: &str = "interfaces";
    /// Hash [`super::VipOnInterface`] → [`super::VipClaim`]: where a VIP is answered for.
    pub const VIPS: &str = "vips";
    /// Hash [`super::ServiceKey`] → service number.
    pub const SERVICE_PORTS: &str = "service_ports";
    /// Array of [`super::Service`], indexed by service number.
    pub const SERVICES: &str = "services";
    /// LPM trie [`super::AllowData`] with its prefix length → 1.
    pub const ALLOW: &str = "allow";
    /// Array of [`super::Backend`], indexed by backend number.
    pub const BACKENDS: &str = "backends";
    /// Hash [`super::ReturnKey`] → backend number.
    pub const RETURNS: &str = "returns";
    /// Array of maps: service number → array of one [`super::Maglev`].
    pub const MAGLEV: &str = "maglev";
    /// Hash [`super::FlowKey`] → [`super::Flow`]: forward entries of established flows.
    pub const FLOWS: &str = "flows";
    /// LRU hash [`super::FlowKey`] → [`super::Flow`]: forward entries of half-open and closed flows.
    pub const HALF_OPEN: &str = "half_open";
    /// Array of maps: backend number → array of [`super::PORT_TABLE_SLOTS`] [`super::Record`], memory-mapped by the agent.
    pub const PORTS: &str = "ports";
    /// Array of [`super::Load`]; see [`super::load_of_backend`] and [`super::LOAD_TOTAL`].
    pub const LOADS: &str = "loads";
    /// Array of one [`super::Lease`].
    pub const LEASE: &str = "lease";
    /// Per-CPU array of one [`crate::counters::Counters`].
    pub const COUNTERS: &str = "counters";
    /// Per-CPU array of [`crate::counters::BackendCounters`], indexed by backend number.
    pub const BACKEND_COUNTERS: &str = "backend_counters";
    /// The tail-called programs of the version that is attached.
    pub const PROGRAMS: &str = "programs";
    /// The program that is attached.
    pub const XDP: &str = "xdp";

    /// Maps that keep their contents across a restart and an upgrade of the agent.
    pub const KEPT: &[&str] = &[
        LAYOUT,
        FILTER,
        INTERFACES,
        VIPS,
        SERVICE_PORTS,
        SERVICES,
        ALLOW,
        BACKENDS,
        RETURNS,
        MAGLEV,
        FLOWS,
        HALF_OPEN,
        PORTS,
        LOADS,
        LEASE,
        COUNTERS,
        BACKEND_COUNTERS,
    ];
}

/// Names of the programs in the object.
pub mod program {
    /// The entry: the established path, and the way into the others.
    pub const ENTRY: &str = "xdp";
    /// Packets of clients that are not on the established path: the handshake's last ACK, FIN, RST, unknown flows.
    pub const CLIENT: &str = "from_client";
    /// Packets of backends that are not on the established path: SYN-ACK, FIN, RST, unknown flows.
    pub const BACKEND: &str = "from_backend";
    /// New flows.
    pub const NEW: &str = "new_flow";
    /// Turns a packet into the RST that answers it.
    pub const RESET: &str = "reset";
    /// What is no TCP of a service: ARP, ICMP, other ports, fragments.
    pub const OTHER: &str = "other";
    /// Passes every packet: for the far end of a veth, which must have a program for XDP_TX to reach it.
    pub const PASS: &str = "pass";

    /// Index of [`CLIENT`] in the map `programs`.
    pub const CLIENT_INDEX: u32 = 0;
    /// Index of [`BACKEND`] in the map `programs`.
    pub const BACKEND_INDEX: u32 = 1;
    /// Index of [`NEW`] in the map `programs`.
    pub const NEW_INDEX: u32 = 2;
    /// Index of [`RESET`] in the map `programs`.
    pub const RESET_INDEX: u32 = 3;
    /// Index of [`OTHER`] in the map `programs`.
    pub const OTHER_INDEX: u32 = 4;
    /// The tail-called programs by index.
    pub const TAIL_CALLED: [(&str, u32); 5] = [
        (CLIENT, CLIENT_INDEX),
        (BACKEND, BACKEND_INDEX),
        (NEW, NEW_INDEX),
        (RESET, RESET_INDEX),
        (OTHER, OTHER_INDEX),
    ];
}

/// Version of the layouts, raised when their meaning changes without their size.
pub const LAYOUT_VERSION: u32 = 1;

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
/// Default of `max_flows`.
pub const DEFAULT_MAX_FLOWS: u32 = 131_072;
/// Slots of a Maglev table: a prime well over a hundred times the backends of a large service (Eisenbud et al.,
/// "Maglev", NSDI 2016, section 3.4).
pub const MAGLEV_SLOTS: u32 = 65_537;
/// Slots of a port table: every TCP port.
pub const PORT_TABLE_SLOTS: u32 = 65_536;
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

/// A quick answer to "is this for a VIP": a bit for the low 16 bits of each VIP and source address, and one for each
/// service's port. A set bit means "look closer", an unset one "certainly not".
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Filter {
    /// Indexed by [`filter_bit_of_address`].
    pub addresses: [u64; 1024],
    /// Indexed by the port in host order.
    pub ports: [u64; 1024],
}

impl Filter {
    /// Nothing is for us.
    pub const EMPTY: Self = Self { addresses: [0; 1024], ports: [0; 1024] };

    /// Sets the bit of an address.
    pub const fn add_address(&mut self, address: &Addr) {
        let bit = filter_bit_of_address(address);
        self.addresses[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// Sets the bit of a service's port.
    pub const fn add_port(&mut self, port: Port) {
        let bit = port.get();
        self.ports[(bit / 64) as usize] |= 1 << (bit % 64);
    }
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
}

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
}

/// Value of `vips`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VipClaim {
    /// 1 where ARP is answered: on an interface whose prefix holds the address.
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
    /// `SERVICE_*` bits.
    pub flags: u16,
    /// 0.
    pub reserved: u32,
}

/// The number is in use.
pub const SERVICE_USED: u16 = 1 << 0;
/// Only the client's address is hashed (`affinity = "client-ip"`).
pub const SERVICE_AFFINITY: u16 = 1 << 1;
/// Only the clients in `allow` may connect.
pub const SERVICE_ALLOW: u16 = 1 << 2;
/// A new connection without a backend is dropped instead of reset (`no_backend = "drop"`).
pub const SERVICE_DROP: u16 = 1 << 3;

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
    /// Tag control information of up to two VLAN tags, outermost first, network order; 0: no tag.
    pub tags: [u16; 2],
}

impl NextHop {
    /// Not known.
    pub const UNKNOWN: Self = Self { ifindex: 0, mac: Mac::UNKNOWN, source_mac: Mac::UNKNOWN, tags: [0; 2] };
}

/// A backend of a service; all zero where the number is unused. Its number is also that of its port table.
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

/// The Maglev table of a service: slot → backend number, [`NO_BACKEND`] where there is none. One slot longer than
/// [`MAGLEV_SLOTS`], so that the verifier's bound for a scaled hash lies inside.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Maglev {
    /// Backend numbers by slot.
    pub slots: [u16; MAGLEV_SLOTS as usize + 1],
}

/// Key of `flows` and `half_open`: the client's side of a connection.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub port: Port,
    /// Number of the service.
    pub service: u16,
}

/// A forward entry: all that a packet from the client needs. Identity is written once; `last_seen`,
/// `last_ack`, `edge` by packets from the client only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// When the client's last packet came, ns.
    pub last_seen: u64,
    /// Generation of the port table slot that this entry was made for.
    pub generation: u32,
    /// The backend's epoch when the flow was made.
    pub epoch: u32,
    /// The client's last ACK, host order: the backend's next sequence number as the client has it.
    pub last_ack: u32,
    /// End of the client's last segment, host order: its own next sequence number.
    pub edge: u32,
    /// 0.
    pub reserved: u32,
    /// Number of the backend.
    pub backend: u16,
    /// Source port toward the backend: the slot in its port table.
    pub nat_port: Port,
    /// MAC that the client's packets come by.
    pub client_mac: Mac,
    /// `FLOW_*` bits.
    pub flags: u16,
}

/// A FIN was seen: packets of this flow leave the established path.
pub const FLOW_CLOSING: u16 = 1 << 0;

/// A slot of a port table: all that a packet from the backend needs. One cache line.
///
/// `claim` changes only by compare-and-swap (see [`crate::claim`]). Identity (client, MAC, interface, tags) is written by
/// the claim's owner before the claim leaves `Claiming`; `last_seen`, `last_ack`, `edge` by packets from the backend only,
/// `client_edge` by packets from the client only.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Record {
    /// The claim word.
    pub claim: u64,
    /// When the backend's last packet came, ns; before the first, when the slot was claimed.
    pub last_seen: u64,
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: Port,
    /// Tag control information of the second VLAN tag toward the client, network order; 0: none.
    pub inner_tag: u16,
    /// Interface toward the client.
    pub ifindex: u32,
    /// MAC toward the client.
    pub client_mac: Mac,
    /// Tag control information of the first VLAN tag toward the client, network order; 0: none.
    pub outer_tag: u16,
    /// The backend's last ACK, host order: the client's next sequence number as the backend has it.
    pub last_ack: u32,
    /// The backend's epoch when the flow was made.
    pub epoch: u32,
    /// End of the backend's last segment, host order: its own next sequence number. After the SYN-ACK, what the client's
    /// ACK of the handshake must equal; after the FIN, what acknowledges it.
    pub edge: u32,
    /// End of the client's SYN, later of its FIN, host order: what the backend's ACK of it must reach.
    pub client_edge: u32,
}

impl Record {
    /// The claim word, as read.
    #[inline(always)]
    pub const fn claim(&self) -> Claim {
        Claim(self.claim)
    }
}

/// Established flows, counted by atomic adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Load {
    /// Established flows; negative for moments, while a flow ends on another CPU than it began on.
    pub established: i64,
}

/// Slots of `loads`: a backend's number is its slot; then the services; then all flows.
pub const LOAD_SLOTS: usize = MAX_BACKENDS + MAX_SERVICES + 1;
/// Slot of all flows in `loads`.
pub const LOAD_TOTAL: u32 = (MAX_BACKENDS + MAX_SERVICES) as u32;

/// Slot of a backend in `loads`.
#[inline(always)]
pub const fn load_of_backend(backend: u16) -> u32 {
    backend as u32
}

/// Slot of a service in `loads`.
#[inline(always)]
pub const fn load_of_service(service: u16) -> u32 {
    MAX_BACKENDS as u32 + service as u32
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
}

impl Lease {
    /// Never ends: a node without a peer.
    pub const STANDALONE: Self = Self { granted_at: 1, deadline: u64::MAX, revoked_at: 0 };

    /// Whether the VIP is claimed at `now`, ns.
    #[inline(always)]
    pub const fn holds(&self, now: u64) -> bool {
        now < self.deadline && self.revoked_at < self.granted_at
    }
}

/// A hash over the sizes and alignments of all layouts, to be compared before pinned maps are used.
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
        size_of::<Backend>(),
        size_of::<ReturnKey>(),
        size_of::<Maglev>(),
        size_of::<FlowKey>(),
        size_of::<Flow>(),
        size_of::<Record>(),
        size_of::<Load>(),
        size_of::<Lease>(),
        size_of::<Counters>(),
        size_of::<BackendCounters>(),
        MAX_SERVICES,
        MAX_BACKENDS,
        MAX_INTERFACES,
        LAYOUT_VERSION as usize,
    ];
    // FNV-1a (Fowler, Noll, Vo; RFC 9923).
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < sizes.len() {
        hash = (hash ^ sizes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

// What the design promises of the layouts.
const _: () = {
    assert!(size_of::<Record>() == 64, "a record is one cache line");
    assert!(size_of::<Flow>() == 40 && size_of::<FlowKey>() == 20);
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
        Backend,
        ReturnKey,
        Maglev,
        FlowKey,
        Flow,
        Record,
        Load,
        Lease,
        Counters,
        BackendCounters,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_until_its_deadline_or_revocation() {
        let lease = Lease { granted_at: 10, deadline: 20, revoked_at: 0 };
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
        filter.add_port(Port::new(2379));
        let bit = filter_bit_of_address(&vip);
        assert_eq!(bit, 0x0164);
        assert_eq!(filter.addresses[usize::from(bit / 64)], 1 << (bit % 64));
        assert_eq!(filter.ports[2379 / 64], 1 << (2379 % 64));
    }
}
