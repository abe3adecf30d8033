//! What `cargo xtask bench` tells the programs that it measures by. No other build has these maps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Addr, Mac},
    maps::Interface,
};

/// Value of `bench_template`: the frame that a wrapper writes before each run, of another flow each time.
///
/// From one flow to the next: times `factor`, plus `stride`. Where the factor is one more than a multiple of four and the stride
/// is odd, all are visited (Hull and Dobell, "Random Number Generators", 1962); with a factor other than 1 in an order that no
/// prefetcher foresees.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Template {
    /// The frame's first 64 octets.
    pub frame: [u32; 16],
    /// Flows, a power of two, less one.
    pub mask: u32,
    /// What the flow's number is multiplied by.
    pub factor: u32,
    /// What is added.
    pub stride: u32,
    /// The flow of the last packet.
    pub flow: u32,
    /// Offset of the address whose last two octets name the flow's high bits; 0: every packet is the same.
    pub address: u32,
    /// Offset of the port that names the flow's low 15 bits.
    pub port: u32,
}

/// Value of `bench_static_nat`: all that the static NAT knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StaticNat {
    /// What the client connects to, and the member is spoken to by.
    pub vip: Addr,
    /// The client's address.
    pub client: Addr,
    /// The member's address.
    pub member: Addr,
    /// The interface that the program is attached to.
    pub interface: Interface,
    /// The client's MAC.
    pub client_mac: Mac,
    /// The member's MAC.
    pub member_mac: Mac,
}

#[cfg(feature = "user")]
mod user {
    use super::{StaticNat, Template};

    // SAFETY: zerocopy's derives prove that it has no padding and that every bit pattern is a value; it is `Copy` and `'static`.
    unsafe impl aya::Pod for Template {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StaticNat {}
}
