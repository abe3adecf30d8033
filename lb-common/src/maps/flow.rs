//! What the data plane knows of flows: forward entries, records, loads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_BACKENDS, MAX_SERVICES};
use crate::{
    addr::{Addr, Mac, Port},
    choose::Flows,
    claim::Claim,
    pending::{Pending, Window},
};

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

/// A forward entry: which slot a client's flow has.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// Generation of the slot that this entry was made for.
    pub generation: u32,
    /// Number of the backend.
    pub backend: u16,
    /// Source port toward the backend: the slot in its port table.
    pub nat_port: Port,
    /// Of a flow that is to be adopted: [`flow_asked`] of the backends that were asked.
    pub asked: u16,
    /// 0.
    pub reserved: u16,
}

/// The same with its fields elsewhere, as a version with other layouts would have it: for the test of a change of layouts.
#[cfg(feature = "other-layout")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// Number of the backend.
    pub backend: u16,
    /// 0.
    pub reserved: u16,
    /// Of a flow that is to be adopted: [`flow_asked`] of the backends that were asked.
    pub asked: u16,
    /// Source port toward the backend: the slot in its port table.
    pub nat_port: Port,
    /// Generation of the slot that this entry was made for.
    pub generation: u32,
}

impl Flow {
    /// The forward entry of a slot's owner.
    #[inline(always)]
    pub const fn new(backend: u16, nat_port: Port, generation: u32, asked: u16) -> Self {
        Self { generation, backend, nat_port, asked, reserved: 0 }
    }

    /// Whether this is the forward entry of a slot's owner. All three tell: generations count owners of one slot, so those
    /// of two slots agree often, and a client's next flow may have the next slot.
    #[inline(always)]
    pub const fn is_of(&self, backend: u16, nat_port: Port, generation: u32) -> bool {
        self.backend == backend && self.nat_port.get() == nat_port.get() && self.generation == generation
    }

    /// Whether both are of the same flow.
    #[inline(always)]
    pub const fn is_same(&self, other: &Self) -> bool {
        self.is_of(other.backend, other.nat_port, other.generation)
    }
}

/// The forward half of a slot: all that a packet from the client needs. One cache line, of which packets from the backend
/// touch nothing.
///
/// `gate` changes as [`Gate`] says. Identity (client, service, epoch, `since`) is written by the owner of the slot's claim, anew
/// when the flow is established (`since`); `last_seen`, `last_ack`, `edge`, `client_mac` by packets from the client only.
#[cfg(not(feature = "other-layout"))]
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Forward {
    /// Whose this half is, and whether its packets may take the established path: [`Gate`].
    pub gate: u64,
    /// When the client's last packet came, ns.
    pub last_seen: u64,
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: Port,
    /// Number of the service.
    pub service: u16,
    /// The backend's epoch when the flow was made.
    pub epoch: u32,
    /// The client's last ACK, host order: the backend's next sequence number as the client has it.
    pub last_ack: u32,
    /// End of the client's last segment, host order: its own next sequence number.
    pub edge: u32,
    /// When the flow came into its state, half-open or established, see [`super::age_stamp`].
    pub since: u32,
    /// MAC that the client's packets come by; the record has the one that they are sent to.
    pub client_mac: Mac,
    /// `FLOW_*` bits.
    pub flags: u16,
    /// 0.
    pub reserved: u32,
}

/// The same with its fields elsewhere, as a version with other layouts would have it: for the test of a change of layouts.
#[cfg(feature = "other-layout")]
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Forward {
    /// Whose this half is, and whether its packets may take the established path: [`Gate`].
    pub gate: u64,
    /// End of the client's last segment, host order: its own next sequence number.
    pub edge: u32,
    /// The client's last ACK, host order: the backend's next sequence number as the client has it.
    pub last_ack: u32,
    /// When the client's last packet came, ns.
    pub last_seen: u64,
    /// When the flow came into its state, half-open or established, see [`super::age_stamp`].
    pub since: u32,
    /// The backend's epoch when the flow was made.
    pub epoch: u32,
    /// The client's address.
    pub client: Addr,
    /// Number of the service.
    pub service: u16,
    /// The client's port.
    pub client_port: Port,
    /// `FLOW_*` bits.
    pub flags: u16,
    /// MAC that the client's packets come by; the record has the one that they are sent to.
    pub client_mac: Mac,
    /// 0.
    pub reserved: u32,
}

/// The word of [`Forward::gate`]: the generation of the slot's owner, and whether the flow is plainly established, so that its
/// packets may take the established path. It is opened and closed by one compare-and-swap each, from and to what it is for
/// one generation, so that whoever is late changes nothing of a later owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate(pub u64);

impl Gate {
    const OPEN: u64 = 1 << 32;

    /// Packets of this generation's flow leave the established path.
    #[inline(always)]
    pub const fn closed(generation: u32) -> Self {
        Self(generation as u64)
    }

    /// Packets of this generation's flow may take the established path.
    #[inline(always)]
    pub const fn open(generation: u32) -> Self {
        Self(generation as u64 | Self::OPEN)
    }

    /// Whether packets may take the established path.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// Generation of the slot's owner.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl Forward {
    /// The gate, as read.
    #[inline(always)]
    pub const fn gate(&self) -> Gate {
        Gate(self.gate)
    }
}

/// Of a service with `mode = "dsr"`: only the MAC is rewritten, and the backend's packets do not come by us.
pub const FLOW_DSR: u16 = 1 << 0;
/// Of another node's table: where its sequence numbers are now is not known until a packet of the client has come.
pub const FLOW_COPIED: u16 = 1 << 1;

/// Bits of [`Flow::asked`]: one for each backend number modulo as many, so that a service's backends have one each where they are
/// no more than that.
pub const FLOW_ASKED_BITS: u16 = 16;

/// The bit that tells that a backend was asked.
#[inline(always)]
pub const fn flow_asked(backend: u16) -> u16 {
    1 << (backend % FLOW_ASKED_BITS)
}

/// The return half of a slot: all that a packet from the backend needs. One cache line.
///
/// `claim` changes only by compare-and-swap (see [`crate::claim`]). Identity (client, tags) is written by the claim's owner
/// before the claim leaves `Claiming`; so are interface and MAC, which change when the way to the client does: by a packet of
/// a client that no router is known for, or by the agent when its route does; `last_seen`, `last_ack`, `edge` by packets from the backend only,
/// `client_edge` by packets from the client only.
#[cfg(not(feature = "other-layout"))]
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

/// The same with its fields elsewhere, as a version with other layouts would have it: for the test of a change of layouts.
#[cfg(feature = "other-layout")]
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Record {
    /// The claim word.
    pub claim: u64,
    /// The backend's last ACK, host order: the client's next sequence number as the backend has it.
    pub last_ack: u32,
    /// The backend's epoch when the flow was made.
    pub epoch: u32,
    /// When the backend's last packet came, ns; before the first, when the slot was claimed.
    pub last_seen: u64,
    /// The client's address.
    pub client: Addr,
    /// Interface toward the client.
    pub ifindex: u32,
    /// End of the backend's last segment, host order: its own next sequence number. After the SYN-ACK, what the client's
    /// ACK of the handshake must equal; after the FIN, what acknowledges it.
    pub edge: u32,
    /// End of the client's SYN, later of its FIN, host order: what the backend's ACK of it must reach.
    pub client_edge: u32,
    /// The client's port.
    pub client_port: Port,
    /// Tag control information of the second VLAN tag toward the client, network order; 0: none.
    pub inner_tag: u16,
    /// MAC toward the client.
    pub client_mac: Mac,
    /// Tag control information of the first VLAN tag toward the client, network order; 0: none.
    pub outer_tag: u16,
}

impl Record {
    /// The claim word, as read.
    #[inline(always)]
    pub const fn claim(&self) -> Claim {
        Claim(self.claim)
    }
}

/// Flows of a backend, a service, or all, counted by atomic operations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Load {
    /// Established flows; negative for moments, while a flow ends on another CPU than it began on.
    pub established: i64,
    /// Handshakes begun in the last instant: [`crate::pending::Pending`].
    pub pending: u64,
    /// Of a service: whose turn it is, for `round-robin` and among equals of `least-conn`.
    pub turn: i64,
    /// Of a service: which of the two elements of its map in `maglev` choices are made by, 0 or 1. The agent's.
    pub table: u64,
}

impl Load {
    /// What a choice counts at `now`.
    #[inline(always)]
    pub const fn flows(&self, now: Window) -> Flows {
        let established = if self.established < 0 { 0 } else { self.established as u64 };
        Flows { established, pending: Pending(self.pending).count(now) }
    }
}

/// Key of `clients`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ClientKey {
    /// The client's address.
    pub client: Addr,
    /// Number of the service.
    pub service: u32,
}

/// Value of `clients`: what one client has of a service with `max_flows_per_client`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClientLoad {
    /// Established flows.
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
