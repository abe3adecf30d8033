//! Shortcuts: guesses of which backend has a client's flow.
//!
//! The forward entry in `flows` says for certain which slot a flow has, at the price of a hash table: several cache lines that
//! lie wherever the kernel put them. But nearly every flow has its client's own port as NAT port, so its backend's number is all
//! that is missing, and that is guessed from two octets: so few that those of 30 flows share a cache line. The guess is verified
//! by the slot itself, whose forward half names its client. A shortcut may be missing, out of date, or another flow's, and
//! nothing but time is lost: `flows` is asked then, off the established path where there was a guess.

use crate::{
    hash::SPREAD,
    maps::{FlowKey, MAX_BACKENDS},
};

/// Value of `shortcuts`: a bucket of four entries, from the lowest bit on. An entry is six bits of the flow's hash, never 0, and
/// ten of its backend's number; 0: none.
pub type Bucket = u64;

/// Entries of a bucket.
pub const ENTRIES: u32 = 4;
/// Bits of an entry.
const ENTRY_BITS: u32 = 16;
/// Bits of a backend's number.
const NUMBER_BITS: u32 = 10;
const ENTRY: u64 = (1 << ENTRY_BITS) - 1;
const NUMBER: u64 = (1 << NUMBER_BITS) - 1;

const _: () = assert!(MAX_BACKENDS <= 1 << NUMBER_BITS && ENTRIES * ENTRY_BITS == Bucket::BITS);

/// A flow's hash, for `shortcuts` only. Not keyed: who makes collisions slows the packets of some flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(u64);

impl Hash {
    /// The hash of a flow: each half of the address and the port multiplied, the upper bits of the product folded back, since
    /// they depend on all others.
    #[inline(always)]
    pub fn of(key: &FlowKey) -> Self {
        let [a, b, c, d] = key.client.words();
        let high = (a as u64) << 32 | b as u64;
        let low = (c as u64) << 32 | d as u64;
        let end = key.port.word() as u64 | (key.service as u64) << 16;
        let mixed = (high ^ end << 24).wrapping_mul(SPREAD);
        let mixed = (mixed ^ mixed >> 32 ^ low ^ end << 40).wrapping_mul(SPREAD);
        Self(mixed ^ mixed >> 32)
    }

    /// The flow's bucket of so many: the upper half scaled (Lemire, "Fast random integer generation in an interval", 2019).
    #[inline(always)]
    pub const fn bucket(self, buckets: u32) -> u32 {
        (((self.0 >> 32) * buckets as u64) >> 32) as u32
    }

    /// The backend that has the flow, as its bucket has it.
    #[inline(always)]
    pub const fn find(self, bucket: Bucket) -> Option<u16> {
        let mut entries = bucket;
        let mut left = ENTRIES;
        while left > 0 {
            if (entries & ENTRY) >> NUMBER_BITS == self.tag() {
                return Some((entries & NUMBER) as u16);
            }
            entries >>= ENTRY_BITS;
            left -= 1;
        }
        None
    }

    /// The bucket with the flow's entry: in the place of one of the same tag, which would be found before it, else as
    /// [`Self::add`] has it.
    #[inline(always)]
    pub const fn put(self, bucket: Bucket, backend: u16) -> Bucket {
        let mut at = 0;
        while at < Bucket::BITS {
            if (bucket >> at & ENTRY) >> NUMBER_BITS == self.tag() {
                return bucket & !(ENTRY << at) | self.entry(backend) << at;
            }
            at += ENTRY_BITS;
        }
        self.add(bucket, backend)
    }

    /// The bucket with the flow's entry, which it has not: in the first free place, else in another flow's. Nearly without
    /// branches, for the verifier.
    #[inline(always)]
    pub const fn add(self, bucket: Bucket, backend: u16) -> Bucket {
        /// 1 in each place.
        const ONES: u64 = 0x0001_0001_0001_0001;
        const TOP: u64 = ONES << (ENTRY_BITS - 1);
        // The top bit of each place that is 0, and perhaps of some above the first (Warren, "Hacker's Delight", section 6-1).
        let free = bucket.wrapping_sub(ONES) & !bucket & TOP;
        let first = free & free.wrapping_neg();
        let others = 1 << ((self.0 >> 8 & 3) * ENTRY_BITS as u64);
        let one = if first == 0 { others } else { first >> (ENTRY_BITS - 1) };
        bucket & !one.wrapping_mul(ENTRY) | one.wrapping_mul(self.entry(backend))
    }

    /// The bucket without the flow's entry.
    #[inline(always)]
    pub const fn remove(self, bucket: Bucket, backend: u16) -> Bucket {
        let mut left = bucket;
        let mut at = 0;
        while at < Bucket::BITS {
            if bucket >> at & ENTRY == self.entry(backend) {
                left &= !(ENTRY << at);
            }
            at += ENTRY_BITS;
        }
        left
    }

    #[inline(always)]
    const fn entry(self, backend: u16) -> u64 {
        self.tag() << NUMBER_BITS | backend as u64 & NUMBER
    }

    /// Never 0, which a free place has.
    #[inline(always)]
    const fn tag(self) -> u64 {
        (self.0 & 0xff) * 63 / 256 + 1
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{addr::Port, maps::shortcuts_capacity};

    fn key(client: IpAddr, port: u16) -> FlowKey {
        FlowKey { client: client.into(), port: Port::new(port), service: 0 }
    }

    /// 65,536 flows of few clients, as of many hosts whose ports are in sequence.
    fn flows(v6: bool) -> impl Iterator<Item = FlowKey> {
        (0..65_536u32).map(move |flow| {
            let (host, port) = (flow / 4096, 32_768 + flow % 4096);
            let v4 = Ipv4Addr::from(0x0a00_0200 + host);
            let address =
                if v6 { Ipv6Addr::from(0xfd00 << 112 | u128::from(host)).into() } else { v4.into() };
            key(address, port as u16)
        })
    }

    proptest! {
        #[test]
        fn what_is_put_is_found_and_can_be_removed(
            bucket in any::<u64>(), client in any::<[u8; 16]>(), port in any::<u16>(), backend in 0u16..1024,
        ) {
            let hash = Hash::of(&key(IpAddr::from(client), port));
            let with = hash.put(bucket, backend);
            prop_assert_eq!(hash.find(with), Some(backend));
            if hash.find(bucket).is_none() {
                prop_assert_eq!(hash.add(bucket, backend), with);
            }
            let places = |bucket: u64| (0..4).map(move |at| bucket >> (16 * at) & 0xffff);
            let changed = places(bucket).zip(places(with)).filter(|(before, after)| before != after).count();
            prop_assert!(changed <= 1, "one other flow's at most");
            prop_assert!(places(hash.remove(with, backend)).all(|entry| entry != hash.entry(backend)));
            prop_assert_eq!(hash.find(0), None);
        }
    }

    #[test]
    fn a_flow_has_one_entry_and_takes_a_free_place_before_anothers() {
        let hashes: Vec<Hash> =
            (1..=60).map(|port| Hash::of(&key(IpAddr::from([10, 0, 2, 7]), port))).collect();
        let mut distinct = Vec::new();
        for hash in hashes {
            if distinct.iter().all(|other: &Hash| other.tag() != hash.tag()) {
                distinct.push(hash);
            }
        }
        let four =
            distinct.iter().take(4).enumerate().fold(0, |bucket, (n, hash)| hash.put(bucket, n as u16));
        for (number, hash) in distinct.iter().take(4).enumerate() {
            assert_eq!(hash.find(four), Some(number as u16));
            assert_eq!(hash.find(hash.put(four, 9)), Some(9), "its own place again");
            assert_eq!(hash.find(hash.remove(four, number as u16)), None);
        }
        let fifth = distinct[4].put(four, 4);
        assert_eq!(distinct[4].find(fifth), Some(4));
        let left = distinct.iter().take(4).filter(|hash| hash.find(fifth).is_some()).count();
        assert_eq!(left, 3);
    }

    #[test]
    fn flows_spread_over_buckets_and_tags() {
        for v6 in [false, true] {
            let buckets = shortcuts_capacity(131_072);
            let mut table = vec![0; buckets as usize];
            let mut hashes = HashSet::new();
            let number = |key: &FlowKey| key.port.get() % 3;
            for key in flows(v6) {
                let hash = Hash::of(&key);
                assert!(hashes.insert(hash.0), "each flow has its own");
                let bucket = &mut table[hash.bucket(buckets) as usize];
                *bucket = hash.put(*bucket, number(&key));
            }
            let wrong = flows(v6).filter(|key| {
                let hash = Hash::of(key);
                hash.find(table[hash.bucket(buckets) as usize]) != Some(number(key))
            });
            // One a bucket: by Poisson 0.4 % find no place, and about as many share bucket and tag with another.
            let wrong = wrong.count();
            assert!(wrong < 65_536 / 50, "{wrong} flows without a shortcut");
        }
    }

    #[test]
    fn every_part_of_a_flow_counts() {
        let plain = Hash::of(&key(IpAddr::from([10, 0, 2, 7]), 40_000));
        let mut service = key(IpAddr::from([10, 0, 2, 7]), 40_000);
        service.service = 1;
        let others =
            [key(IpAddr::from([11, 0, 2, 7]), 40_000), key(IpAddr::from([10, 0, 2, 7]), 40_001), service];
        for other in others {
            assert_ne!(Hash::of(&other), plain);
        }
        let first = Ipv6Addr::from(1u128 << 127);
        for bit in 0..127 {
            let other = Ipv6Addr::from(1u128 << 127 ^ 1u128 << bit);
            assert_ne!(Hash::of(&key(other.into(), 1)), Hash::of(&key(first.into(), 1)));
        }
    }
}
