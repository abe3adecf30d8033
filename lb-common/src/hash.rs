//! The seeded flow hash: SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) over the client's
//! address and port. A keyed hash, so that a client cannot choose ports that all land on one backend; the same on both
//! nodes, so that either finds the same backend for a packet that no table knows.

use crate::addr::{Addr, Port};

/// Odd, its bits evenly spread: the golden ratio's (Knuth, "The Art of Computer Programming" volume 3, section 6.4). The upper
/// bits of a product with it depend on all others.
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The 128-bit key, the same on both nodes of a pair.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Seed {
    /// The key's low and high half.
    pub key: [u64; 2],
}

/// Hash of a client; `port` is `None` where only the address counts (`affinity = "client-ip"`).
#[inline(always)]
pub fn client(seed: &Seed, address: &Addr, port: Option<Port>) -> u64 {
    match port {
        Some(port) => client_of(seed, address, port, false),
        None => client_of(seed, address, Port::new(0), true),
    }
}

/// The same; `by_address`: the port does not count. Without a branch, for the verifier.
#[inline(always)]
pub fn client_of(seed: &Seed, address: &Addr, port: Port, by_address: bool) -> u64 {
    let o = address.octets();
    let low = u64::from_le_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]);
    let high = u64::from_le_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]);
    // The tail block: the input's length in its top octet, as SipHash has it, the port in its low ones.
    let with_port = (by_address as u64).wrapping_sub(1);
    let tail = port.get().swap_bytes() as u64 & with_port;
    let length = 16 + (2 & with_port);
    let mut state = Sip::new(seed);
    state.block(low);
    state.block(high);
    state.block(length << 56 | tail);
    state.finish()
}

/// The Maglev slot of a hash: its upper half scaled to the table (Lemire, "Fast random integer generation in an
/// interval", 2019), without a division, which the verifier could not bound.
#[inline(always)]
pub const fn slot(hash: u64, table_size: u32) -> u32 {
    (((hash >> 32) * table_size as u64) >> 32) as u32
}

struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl Sip {
    #[inline(always)]
    const fn new(seed: &Seed) -> Self {
        let [k0, k1] = seed.key;
        Self {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    const fn block(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    const fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use super::*;

    /// The standard library's SipHash-1-3 has a fixed key of zero here: the independent implementation.
    fn std_sip13(bytes: &[u8]) -> u64 {
        #[allow(deprecated)]
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        hasher.write(bytes);
        hasher.finish()
    }

    #[test]
    fn it_is_siphash_1_3() {
        let seed = Seed { key: [0, 0] };
        for (address, port) in [("10.0.2.7", 40_000u16), ("2001:db8::9", 1), ("0.0.0.0", 65_535)] {
            let address = Addr::from(address.parse::<core::net::IpAddr>().unwrap());
            let mut bytes = address.octets().to_vec();
            assert_eq!(client(&seed, &address, None), std_sip13(&bytes));
            bytes.extend(port.to_be_bytes());
            assert_eq!(client(&seed, &address, Some(Port::new(port))), std_sip13(&bytes));
        }
    }

    #[test]
    fn slots_cover_the_table() {
        assert_eq!(slot(0, 65_537), 0);
        assert_eq!(slot(u64::MAX, 65_537), 65_536);
    }
}
