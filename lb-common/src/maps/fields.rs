//! Where the layouts keep their fields. It is pinned with the maps, so that a version with other layouts finds what it knows:
//! see `lb_core::layout`.

use core::mem::offset_of;

use super::{Backend, ClientKey, ClientLoad, Flow, FlowKey, Forward, Lease, Load, Record, Service};

/// A field of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Octets before it.
    pub offset: usize,
    /// Its octets.
    pub size: usize,
}

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// Its octets.
    pub size: usize,
    /// All of its fields.
    pub fields: &'static [Field],
}

/// Octets that [`super::name::FIELDS`] has room for.
pub const FIELDS_LEN: usize = 4096;

const fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! shapes {
    ($($layout:ident { $($field:ident),+ $(,)? })+) => {
        /// The layouts of what outlives a change of layouts: services and backends, by their numbers, flows, and the lease.
        pub const SHAPES: &[Shape] = &[$(Shape {
            name: stringify!($layout),
            size: size_of::<$layout>(),
            fields: &[$(Field {
                name: stringify!($field),
                offset: offset_of!($layout, $field),
                size: size_of_field(|layout: &$layout| &layout.$field),
            }),+],
        }),+];
        // Does not compile if a field is missing above.
        $(const _: fn($layout) = |layout| { let $layout { $($field: _),+ } = layout; };)+
    };
}

shapes! {
    Service { seed, vip, port, flags, max_flows_per_client, nat, near }
    Backend { address, source, port, service, epoch, hop, flags }
    FlowKey { client, port, service }
    Flow { generation, backend, nat_port, asked, reserved }
    Forward {
        gate, last_seen, client, client_port, service, epoch, last_ack, edge, since, client_mac, flags, reserved,
    }
    Record {
        claim, last_seen, client, client_port, inner_tag, ifindex, client_mac, outer_tag, last_ack, epoch, edge, client_edge,
    }
    Load { established, pending, turn, table }
    ClientKey { client, service }
    ClientLoad { established }
    Lease { granted_at, deadline, revoked_at, grace_until, other_ifindex, other_mac, reserved }
}
