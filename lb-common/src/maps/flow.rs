//! What the data plane knows of flows: forward entries, records, loads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_BACKENDS, MAX_SERVICES};
use crate::{
    addr::{Addr, Mac, Port},
    claim::Claim,
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
    /// When the handshake was complete, see [`super::age_stamp`]; 0 before.
    pub established: u32,
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
/// Of a service with `mode = "dsr"`: only the MAC is rewritten, and the backend's packets do not come by us.
pub const FLOW_DSR: u16 = 1 << 1;

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
