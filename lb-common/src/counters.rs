//! Every counter of the data plane, with its name. The same name is the field that `bpftool map dump` prints, the
//! `reason` label of the metric, and the row in the docs; a drop or a reset without one cannot be written.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet for a VIP that went nowhere: `etcd_lb_dropped_packets_total{reason}`.
    Drop,
    /// A packet for a VIP that was answered with a RST: `etcd_lb_reset_packets_total{reason}`.
    Reset,
    /// Anything else: `etcd_lb_data_plane_events_total{event}`.
    Event,
}

macro_rules! counters {
    ($($kind:ident { $($(#[$doc:meta])+ $name:ident => $variant:ident,)+ })+) => {
        /// The counters of one CPU; the value of the map `counters`.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct Counters { $($($(#[$doc])+ pub $name: u64,)+)+ }

        /// A counter; its number is its place in [`Counters`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($($(#[$doc])+ $variant,)+)+ }

        impl Counter {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)+)+];

            /// The name: field, label, and docs row.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$variant => stringify!($name),)+)+ }
            }

            /// What it counts.
            pub const fn kind(self) -> Kind {
                match self { $($(Self::$variant => Kind::$kind,)+)+ }
            }

            /// Its value in `counters`.
            pub const fn of(self, counters: &Counters) -> u64 {
                match self { $($(Self::$variant => counters.$name,)+)+ }
            }
        }

        impl Counters {
            /// Adds another CPU's counters.
            pub fn add(&mut self, other: &Self) {
                $($(self.$name = self.$name.wrapping_add(other.$name);)+)+
            }
        }
    };
}

counters! {
    Drop {
        /// A fragment of an IP packet: ports cannot be read from all of them.
        fragment => Fragment,
        /// A header that contradicts itself or the frame's length.
        malformed => Malformed,
        /// TTL or hop limit used up.
        ttl_expired => TtlExpired,
        /// An address that `allow` does not name.
        not_allowed => NotAllowed,
        /// A new connection while there is no backend, and `no_backend = "drop"`.
        no_backend_drop => NoBackendDrop,
        /// New traffic for the VIP while this node does not own it.
        fenced => Fenced,
        /// A packet of a connection that is not known, soon after a takeover.
        takeover_grace => TakeoverGrace,
        /// A backend's answer that it does not know a connection, soon after a takeover: the next backend is asked.
        adoption_refused => AdoptionRefused,
        /// A VIP in an ARP request on an interface whose prefix does not hold it.
        arp_elsewhere => ArpElsewhere,
        /// An ARP packet for a VIP that is no request.
        arp_other => ArpOther,
        /// A VIP in a neighbour solicitation on an interface whose prefix does not hold it.
        nd_elsewhere => NdElsewhere,
        /// A neighbour discovery message for or about a VIP that is no solicitation.
        nd_other => NdOther,
        /// IPv6 extension headers that are too many or too long, or a route that does not end here.
        extension_headers => ExtensionHeaders,
        /// A VIP in a frame that was sent to a group MAC.
        group_mac => GroupMac,
        /// ICMP to the VIP that is no echo request and no error about a flow.
        icmp => Icmp,
        /// A protocol that is neither TCP nor ICMP.
        protocol => Protocol,
        /// The next hop toward the backend or client is not known yet.
        no_next_hop => NoNextHop,
        /// A RST for a connection that is not known.
        unknown_rst => UnknownRst,
        /// A frame that the kernel would not let us lengthen or shorten.
        adjust_failed => AdjustFailed,
        /// A tail call into a program that is not loaded.
        tail_call => TailCall,
    }
    Reset {
        /// A port of the VIP without a service.
        closed_port => ClosedPort,
        /// A new connection while there is no backend, and `no_backend = "reset"`.
        no_backend_reset => NoBackendReset,
        /// A packet from a client in the middle of a connection that is not known.
        unknown_flow => UnknownFlow,
        /// A packet from a backend for a connection that is not known.
        unknown_return => UnknownReturn,
        /// A SYN-ACK of a connection attempt that is no longer known.
        stale_handshake => StaleHandshake,
        /// A new connection while `max_flows` are established.
        table_full => TableFull,
        /// A new connection while every live backend has `max_connections`.
        backends_full => BackendsFull,
        /// A connection of a client that has `max_flows_per_client` already.
        client_limit => ClientLimit,
        /// A new connection for which no NAT port was free.
        nat_ports_exhausted => NatPortsExhausted,
        /// A packet of a flow whose backend's flows were reset.
        flow_reset => FlowReset,
    }
    Event {
        /// Packets that do not fit into the MTU toward their destination: answered with what does.
        too_big => TooBig,
        /// ICMP errors about a flow, sent on to its other end.
        icmp_translated => IcmpTranslated,
        /// Packets of clients and members on this node sent on to the node that owns the VIP.
        relayed => Relayed,
        /// ARP requests for the VIP answered.
        arp_reply => ArpReply,
        /// Neighbour solicitations for the VIP answered.
        nd_reply => NdReply,
        /// Echo requests to the VIP answered.
        echo_reply => EchoReply,
        /// Stronger VRRP advertisements that ended the lease.
        lease_revoked => LeaseRevoked,
        /// Another host claimed the VIP while this node owned it.
        vip_conflict => VipConflict,
        /// Connections begun: a SYN was sent to a backend.
        flow_new => FlowNew,
        /// Connections that another node had, asked for at a backend: soon after a takeover.
        adoption_asked => AdoptionAsked,
        /// Of those, ones that a backend knows: they go on.
        flow_adopted => FlowAdopted,
        /// Handshakes completed, and connections adopted.
        flow_established => FlowEstablished,
        /// Established flows closed by their ends.
        flow_closed => FlowClosed,
        /// Half-open flows whose NAT port a newer one took.
        half_open_taken => HalfOpenTaken,
        /// RSTs whose SEQ was not the receiver's last ACK: forwarded, and nothing changed (RFC 5961 section 3).
        rst_not_exact => RstNotExact,
        /// A completed handshake that found the flow table full and stays half-open.
        promotion_failed => PromotionFailed,
        /// Events that found the ring buffer `events` full.
        events_lost => EventsLost,
        /// New flows that another backend got than the one chosen first, a suspect.
        suspect_passed_over => SuspectPassedOver,
    }
}

/// Traffic of one backend; the value of the map `backend_counters`, one a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BackendCounters {
    /// Packets toward the backend.
    pub packets_in: u64,
    /// Octets toward the backend, IP packets.
    pub bytes_in: u64,
    /// Packets toward clients.
    pub packets_out: u64,
    /// Octets toward clients, IP packets.
    pub bytes_out: u64,
    /// Connections begun.
    pub connections: u64,
    /// Connections the backend refused: a RST in answer to a SYN.
    pub refused: u64,
    /// Established flows that the backend ended by a RST.
    pub reset_by_backend: u64,
    /// Established flows that the client ended by a RST.
    pub reset_by_client: u64,
}

impl BackendCounters {
    /// Adds another CPU's counters.
    pub fn add(&mut self, other: &Self) {
        self.packets_in = self.packets_in.wrapping_add(other.packets_in);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.packets_out = self.packets_out.wrapping_add(other.packets_out);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
        self.connections = self.connections.wrapping_add(other.connections);
        self.refused = self.refused.wrapping_add(other.refused);
        self.reset_by_backend = self.reset_by_backend.wrapping_add(other.reset_by_backend);
        self.reset_by_client = self.reset_by_client.wrapping_add(other.reset_by_client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_number_is_its_place() {
        for (number, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, number);
            let mut bytes = [0u8; size_of::<Counters>()];
            bytes[number * 8] = 1;
            let counters = Counters::read_from_bytes(&bytes).unwrap();
            assert_eq!(counter.of(&counters), 1, "{}", counter.name());
        }
        assert_eq!(size_of::<Counters>(), 8 * Counter::ALL.len());
    }
}
