//! Names of the programs in the object, and their places in the map `programs`.

/// The entry: the established path, and the way into the others.
pub const ENTRY: &str = "xdp";
/// Packets of clients that are not on the established path: the handshake's last ACK, FIN, RST, unknown flows.
pub const CLIENT: &str = "from_client";
/// Packets of backends that are not on the established path: SYN-ACK, FIN, RST, unknown flows.
pub const BACKEND: &str = "from_backend";
/// New flows: may they begin, and which backend.
pub const CHOOSE: &str = "choose";
/// New flows whose backend is chosen.
pub const NEW: &str = "new_flow";
/// Turns a packet into the RST that answers it.
pub const RESET: &str = "reset";
/// What is no TCP of a service: ARP, ICMP, other ports, fragments.
pub const OTHER: &str = "other";
/// IPv6: the established path of that family.
pub const IPV6: &str = "ipv6";
/// What is IPv6 and no TCP of a service: neighbour discovery, ICMPv6, other ports, extension headers, fragments.
pub const OTHER_V6: &str = "other_v6";
/// A packet that changes its flow: promotion and demotion.
pub const LIFE: &str = "life";
/// Sends a packet that is not on the established path.
pub const ONWARD: &str = "onward";
/// Answers a packet that does not fit where it would be sent.
pub const TOO_BIG: &str = "too_big";
/// ICMP errors about a flow, translated in both directions.
pub const ICMP: &str = "icmp";
/// VRRP advertisements: does a stronger one end the lease?
pub const VRRP: &str = "vrrp";
/// Connections that another node had before a takeover: which backend may know them?
pub const ADOPT: &str = "adopt";
/// What this node says nothing to while another node has the VIP: from clients and members on this node it goes there.
pub const RELAY: &str = "relay";
/// Sets the clock of the programs that were loaded with it, by [`super::Ticks`]: run once before they are attached.
pub const SET_CLOCK: &str = "set_clock";
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
/// Index of [`IPV6`] in the map `programs`.
pub const IPV6_INDEX: u32 = 5;
/// Index of [`OTHER_V6`] in the map `programs`.
pub const OTHER_V6_INDEX: u32 = 6;
/// Index of [`LIFE`] in the map `programs`.
pub const LIFE_INDEX: u32 = 7;
/// Index of [`ONWARD`] in the map `programs`.
pub const ONWARD_INDEX: u32 = 8;
/// Index of [`TOO_BIG`] in the map `programs`.
pub const TOO_BIG_INDEX: u32 = 9;
/// Index of [`ICMP`] in the map `programs`.
pub const ICMP_INDEX: u32 = 10;
/// Index of [`CHOOSE`] in the map `programs`.
pub const CHOOSE_INDEX: u32 = 11;
/// Index of [`VRRP`] in the map `programs`.
pub const VRRP_INDEX: u32 = 12;
/// Index of [`ADOPT`] in the map `programs`.
pub const ADOPT_INDEX: u32 = 13;
/// Index of [`RELAY`] in the map `programs`.
pub const RELAY_INDEX: u32 = 14;
/// The tail-called programs by index.
pub const TAIL_CALLED: [(&str, u32); 15] = [
    (CLIENT, CLIENT_INDEX),
    (BACKEND, BACKEND_INDEX),
    (NEW, NEW_INDEX),
    (RESET, RESET_INDEX),
    (OTHER, OTHER_INDEX),
    (IPV6, IPV6_INDEX),
    (OTHER_V6, OTHER_V6_INDEX),
    (LIFE, LIFE_INDEX),
    (ONWARD, ONWARD_INDEX),
    (TOO_BIG, TOO_BIG_INDEX),
    (ICMP, ICMP_INDEX),
    (CHOOSE, CHOOSE_INDEX),
    (VRRP, VRRP_INDEX),
    (ADOPT, ADOPT_INDEX),
    (RELAY, RELAY_INDEX),
];
