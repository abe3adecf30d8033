//! IPv6, ICMPv6 and neighbour discovery.

use super::protocol;
use crate::{addr::Mac, checksum::fold};

/// IPv6 header (RFC 8200 section 3).
#[repr(C)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_flow: u32,
    /// Octets after this header.
    pub payload_length: u16,
    /// Next header in the first octet, hop limit in the second.
    pub next_hop: u16,
    /// Source address, as words.
    pub source: [u32; 4],
    /// Destination address, as words.
    pub destination: [u32; 4],
}

/// Length of an IPv6 header, octets.
pub const IPV6_LEN: u32 = 40;

impl Ipv6 {
    /// All nodes of the link, ff02::1.
    pub const ALL_NODES: [u32; 4] = [0xff02_0000u32.to_be(), 0, 0, 1u32.to_be()];

    /// Whether the version is 6.
    #[inline(always)]
    pub const fn is_sound(&self) -> bool {
        u32::from_be(self.version_class_flow) >> 28 == 6
    }

    /// What follows: see [`protocol`] and [`extension`].
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_hop.to_ne_bytes()[0]
    }

    /// Hop limit.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        self.next_hop.to_ne_bytes()[1]
    }

    /// The `next_hop` word with one hop less; the hop limit must not be 0.
    #[inline(always)]
    pub const fn one_hop_less(&self) -> u16 {
        u16::from_be(self.next_hop).wrapping_sub(1).to_be()
    }

    /// Whether the destination is a group (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn is_to_group(&self) -> bool {
        u32::from_be(self.destination[0]) >> 24 == 0xff
    }

    /// The same of the source.
    #[inline(always)]
    pub const fn is_from_group(&self) -> bool {
        u32::from_be(self.source[0]) >> 24 == 0xff
    }

    /// A header for a packet of `payload` octets, hop limit 64.
    #[inline(always)]
    pub const fn reply(next: u8, payload: u16, source: [u32; 4], destination: [u32; 4]) -> Self {
        Self {
            version_class_flow: 0x6000_0000u32.to_be(),
            payload_length: payload.to_be(),
            next_hop: u16::from_ne_bytes([next, 64]),
            source,
            destination,
        }
    }

    /// The sum of the addresses' words, for a checksum's pseudo-header.
    #[inline(always)]
    pub const fn sum_of_addresses(&self) -> u64 {
        sum(self.source) + sum(self.destination)
    }
}

#[inline(always)]
const fn sum(words: [u32; 4]) -> u64 {
    words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64
}

/// Extension headers (RFC 8200 section 4), as next header numbers.
pub mod extension {
    /// Options for every router on the way.
    pub const HOP_BY_HOP: u8 = 0;
    /// A route.
    pub const ROUTING: u8 = 43;
    /// A fragment.
    pub const FRAGMENT: u8 = 44;
    /// Options for the destination.
    pub const DESTINATION: u8 = 60;
}

/// What hop-by-hop options, a route, and destination options start with.
#[repr(C)]
pub struct Extension {
    /// Next header in the first octet, length in units of 8 octets without the first unit in the second.
    pub next_length: u16,
    /// Of a route: its type, and the stops that are left.
    pub type_left: u16,
}

impl Extension {
    /// What follows.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_length.to_ne_bytes()[0]
    }

    /// Octets of the whole header: 8 to 2,048.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        (self.next_length.to_ne_bytes()[1] as u32 + 1) * 8
    }

    /// Of a route: stops that are left; 0: the destination is the last one.
    #[inline(always)]
    pub const fn stops_left(&self) -> u8 {
        self.type_left.to_ne_bytes()[1]
    }
}

/// Neighbour solicitation or advertisement (RFC 4861 sections 4.3 and 4.4), with one option.
#[repr(C)]
pub struct Neighbour {
    /// Type in the first octet, code in the second.
    pub type_code: u16,
    /// Checksum.
    pub check: u16,
    /// Flags of an advertisement.
    pub flags: u32,
    /// Whom it is about, as words.
    pub target: [u32; 4],
    /// Type and length of the option.
    pub option: u16,
    /// The link-layer address in it.
    pub mac: Mac,
}

/// Octets of an advertisement with the one option.
pub const NEIGHBOUR_LEN: u32 = 32;
/// Octets of a solicitation or advertisement without options.
pub const NEIGHBOUR_MIN_LEN: u32 = 24;

impl Neighbour {
    /// Solicitation, code 0.
    pub const SOLICITATION: u16 = u16::from_ne_bytes([135, 0]);
    /// Advertisement, code 0.
    pub const ADVERTISEMENT: u16 = u16::from_ne_bytes([136, 0]);
    /// The hop limit that all of them have, which no router could have passed on (RFC 4861 section 3.1).
    pub const HOP_LIMIT: u8 = 255;

    /// An advertisement that `target` is at `mac`, for the header that it is sent under, checksum included: override,
    /// and solicited unless it goes to all nodes.
    #[inline(always)]
    pub fn advertisement(under: &Ipv6, target: [u32; 4], mac: Mac) -> Self {
        const OVERRIDE: u32 = 0x2000_0000u32.to_be();
        const SOLICITED: u32 = 0x4000_0000u32.to_be();
        // Target link-layer address, one unit of 8 octets.
        const OPTION: u16 = u16::from_ne_bytes([2, 1]);
        let flags = if under.is_to_group() { OVERRIDE } else { OVERRIDE | SOLICITED };
        let words: [u16; 3] = zerocopy::transmute!(mac);
        let total = under.sum_of_addresses()
            + u16::from_ne_bytes([0, protocol::ICMPV6]) as u64
            + (NEIGHBOUR_LEN as u16).to_be() as u64
            + Self::ADVERTISEMENT as u64
            + flags as u64
            + sum(target)
            + OPTION as u64
            + words[0] as u64
            + words[1] as u64
            + words[2] as u64;
        Self { type_code: Self::ADVERTISEMENT, check: !fold(total), flags, target, option: OPTION, mac }
    }
}

/// ICMPv6 echo request, code 0 (RFC 4443 section 4), in the form of [`super::Icmp::type_code`].
pub const ECHO_REQUEST_V6: u16 = u16::from_ne_bytes([128, 0]);
/// ICMPv6 echo reply, code 0.
pub const ECHO_REPLY_V6: u16 = u16::from_ne_bytes([129, 0]);

const _: () = {
    assert!(size_of::<Ipv6>() == IPV6_LEN as usize && size_of::<Extension>() == 4);
    assert!(size_of::<Neighbour>() == NEIGHBOUR_LEN as usize);
};
