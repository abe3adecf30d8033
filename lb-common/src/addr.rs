//! Addresses, ports and MACs as they stand in packets and map keys: network byte order, no padding.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The third word of an IPv4-mapped address.
const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// An IPv4 or IPv6 address, 16 bytes in network order; IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), so that
/// both families share keys and code.
///
/// Aligned to 4 so that the BPF back end copies words instead of bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(clippy::derived_hash_with_manual_eq, reason = "equal words are equal octets")]
pub struct Addr {
    octets: [u8; 16],
}

impl Addr {
    /// All zero: no address.
    pub const UNSPECIFIED: Self = Self { octets: [0; 16] };

    /// From 16 octets in network order.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// From the four octets of an IPv4 header's address field, as the word read from the packet (network order in
    /// memory).
    #[inline(always)]
    pub fn from_v4_word(word: u32) -> Self {
        zerocopy::transmute!([0, 0, V4_MAPPED, word])
    }

    /// From the four words of an IPv6 header's address field, as read from the packet.
    #[inline(always)]
    pub fn from_words(words: [u32; 4]) -> Self {
        zerocopy::transmute!(words)
    }

    /// The address as four words in network order; the last one is an IPv4 address.
    #[inline(always)]
    pub fn words(self) -> [u32; 4] {
        zerocopy::transmute!(self)
    }

    /// The IPv4 address as a word to be stored in a packet; meaningless for an IPv6 address.
    #[inline(always)]
    pub fn v4_word(self) -> u32 {
        self.words()[3]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        let words = self.words();
        words[0] | words[1] == 0 && words[2] == V4_MAPPED
    }

    /// The octets in network order.
    #[inline(always)]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.octets
    }

    /// The address as the standard library has it; an IPv4-mapped one as IPv4.
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets).to_canonical()
    }
}

/// By words: a comparison of octets would be a call to `memcmp`, which a BPF program has not.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self { octets: v6.octets() },
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(v4: Ipv4Addr) -> Self {
        Self { octets: v4.to_ipv6_mapped().octets() }
    }
}

/// A TCP port in network byte order.
#[repr(C, align(2))]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Port {
    octets: [u8; 2],
}

impl Port {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { octets: port.to_be_bytes() }
    }

    /// From the word read from a packet (network order in memory).
    #[inline(always)]
    pub const fn from_word(word: u16) -> Self {
        Self { octets: word.to_ne_bytes() }
    }

    /// The word to be stored in a packet (network order in memory).
    #[inline(always)]
    pub const fn word(self) -> u16 {
        u16::from_ne_bytes(self.octets)
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.octets)
    }
}

/// A MAC address.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(clippy::derived_hash_with_manual_eq, reason = "equal words are equal octets")]
pub struct Mac {
    octets: [u8; 6],
}

impl Mac {
    /// All zero: not known.
    pub const UNKNOWN: Self = Self { octets: [0; 6] };

    /// From six octets.
    #[inline(always)]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets }
    }

    /// The six octets.
    #[inline(always)]
    pub const fn octets(&self) -> &[u8; 6] {
        &self.octets
    }

    /// Whether the address is not known (all zero).
    #[inline(always)]
    pub fn is_unknown(self) -> bool {
        self == Self::UNKNOWN
    }

    /// Broadcast or multicast: the group bit (IEEE 802.3 section 3.2.3).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.octets[0] & 1 != 0
    }
}

/// By words, as for [`Addr`].
impl PartialEq for Mac {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b): ([u16; 3], [u16; 3]) = (zerocopy::transmute!(*self), zerocopy::transmute!(*other));
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.octets;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_mapped_and_comes_back() {
        let ip = Ipv4Addr::new(10, 0, 1, 100);
        let addr = Addr::from(ip);
        assert!(addr.is_v4());
        assert_eq!(addr.to_ip(), IpAddr::V4(ip));
        assert_eq!(Addr::from_v4_word(addr.v4_word()), addr);
        assert!(!Addr::from(IpAddr::V6("fe80::1".parse().unwrap())).is_v4());
        assert!(!Addr::UNSPECIFIED.is_v4());
    }

    #[test]
    fn ports_are_in_network_order() {
        assert_eq!(Port::new(2379).octets, [0x09, 0x4b]);
        assert_eq!(Port::from_word(Port::new(2379).word()).get(), 2379);
    }
}
