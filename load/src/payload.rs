//! Keys and values of a run. A value says which put of which key in which run wrote it, and carries a checksum, so that
//! whatever is read can be told from what was written.
//!
//! ```text
//! key    load/RUN/k/NUMBER   a key that puts and gets use      (RUN: 8 hex digits, NUMBER: 10 digits or more)
//!        load/RUN/w/NUMBER   the key that a connection watches
//! value  run | key | put | checksum | filler                   (8 octets each, big endian; filler to the value's size)
//! ```

use crate::random::Random;

/// Length of the shortest key.
pub const MIN_KEY_SIZE: usize = "load/00000000/k/0000000000".len();
/// Length of the shortest value.
pub const MIN_VALUE_SIZE: usize = 32;

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// One that puts and gets use.
    Shared(usize),
    /// The one that this connection watches.
    Watched(usize),
}

impl Key {
    /// As values carry it.
    fn tag(self) -> u64 {
        match self {
            Self::Shared(number) => number as u64,
            Self::Watched(number) => number as u64 | 1 << 63,
        }
    }
}

/// How keys and values of a run are written and read.
#[derive(Debug, Clone, Copy)]
pub struct Payload {
    run: u32,
    key_size: usize,
    value_size: usize,
}

impl Payload {
    /// Of the run with this number, which differs from that of any other run that the cluster may hold keys of. Sizes in
    /// octets; smaller ones than [`MIN_KEY_SIZE`] and [`MIN_VALUE_SIZE`] count as these.
    pub fn new(run: u32, key_size: usize, value_size: usize) -> Self {
        Self { run, key_size: key_size.max(MIN_KEY_SIZE), value_size: value_size.max(MIN_VALUE_SIZE) }
    }

    /// What all keys of the run begin with.
    pub fn prefix(&self) -> Vec<u8> {
        format!("load/{:08x}/", self.run).into_bytes()
    }

    /// The first key behind all that begin so: the end of a range of them.
    pub fn prefix_end(&self) -> Vec<u8> {
        // `0` is the octet after `/`.
        format!("load/{:08x}0", self.run).into_bytes()
    }

    /// A key as etcd sees it.
    pub fn key(&self, key: Key) -> Vec<u8> {
        let (kind, number) = match key {
            Key::Shared(number) => ('k', number),
            Key::Watched(number) => ('w', number),
        };
        let digits = self.key_size - "load/00000000/k/".len();
        format!("load/{:08x}/{kind}/{number:0digits$}", self.run).into_bytes()
    }

    /// The value that the put of this number writes.
    pub fn value(&self, key: Key, put: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.value_size);
        for word in [u64::from(self.run), key.tag(), put, 0] {
            value.extend(word.to_be_bytes());
        }
        let mut filler = Random::new(put);
        while value.len() < self.value_size {
            let left = self.value_size - value.len();
            value.extend_from_slice(&filler.bits().to_be_bytes()[..left.min(8)]);
        }
        let sum = checksum(&value);
        value[24..32].copy_from_slice(&sum.to_be_bytes());
        value
    }

    /// The number of the put that wrote this value.
    ///
    /// # Errors
    ///
    /// In words, if no put of this key in this run wrote it.
    pub fn read(&self, key: Key, value: &[u8]) -> Result<u64, String> {
        if value.len() != self.value_size {
            return Err(format!("a value of {} octets instead of {}", value.len(), self.value_size));
        }
        let word = |place: usize| {
            value[place * 8..].first_chunk().copied().map(u64::from_be_bytes).unwrap_or_default()
        };
        let mut unsummed = value.to_vec();
        unsummed[24..32].fill(0);
        if word(3) != checksum(&unsummed) {
            return Err("a value whose checksum is wrong".into());
        }
        if word(0) != u64::from(self.run) {
            return Err(format!("a value of another run, {:08x}", word(0)));
        }
        if word(1) != key.tag() {
            return Err(format!("the value of another key, {:#x} instead of {:#x}", word(1), key.tag()));
        }
        Ok(word(2))
    }
}

/// FNV-1a with words of 64 bits for octets, and its high bits folded in, since a product's low bits know
/// nothing of the high ones: for accidents, not for adversaries.
fn checksum(octets: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in octets.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_be_bytes(word)).wrapping_mul(0x0100_0000_01b3);
        sum ^= sum >> 32;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_have_their_size_and_lie_within_the_prefix() {
        let payload = Payload::new(0xa1, 32, 64);
        let keys = [Key::Shared(0), Key::Shared(usize::MAX), Key::Watched(7)].map(|key| payload.key(key));
        assert_eq!(keys[0], b"load/000000a1/k/0000000000000000");
        assert_eq!(keys[2], b"load/000000a1/w/0000000000000007");
        for key in keys {
            assert!(key.starts_with(&payload.prefix()) && key < payload.prefix_end());
        }
        assert!(Payload::new(0xa2, 32, 64).key(Key::Shared(0)) > payload.prefix_end());
        assert_eq!(Payload::new(0, 0, 0).key(Key::Shared(1)).len(), MIN_KEY_SIZE);
    }

    #[test]
    fn what_was_not_written_is_told() {
        let payload = Payload::new(1, 32, 100);
        let value = payload.value(Key::Shared(3), 9);
        let said = |payload: &Payload, key, value: &[u8]| payload.read(key, value).unwrap_err();
        assert!(said(&payload, Key::Shared(4), &value).starts_with("the value of another key"));
        assert!(said(&payload, Key::Watched(3), &value).starts_with("the value of another key"));
        assert!(
            said(&Payload::new(2, 32, 100), Key::Shared(3), &value).starts_with("a value of another run")
        );
        assert_eq!(said(&payload, Key::Shared(3), &value[1..]), "a value of 99 octets instead of 100");
        assert_eq!(said(&payload, Key::Shared(3), b""), "a value of 0 octets instead of 100");
    }

    proptest! {
        #[test]
        fn values_are_read_as_they_were_written(run: u32, number: u32, put: u64, size in 0usize..400) {
            let payload = Payload::new(run, 0, size);
            let value = payload.value(Key::Shared(number as usize), put);
            prop_assert_eq!(value.len(), size.max(MIN_VALUE_SIZE));
            prop_assert_eq!(payload.read(Key::Shared(number as usize), &value), Ok(put));
        }

        #[test]
        fn a_flipped_bit_is_found(size in 32usize..200, place: prop::sample::Index, bit in 0u8..8) {
            let payload = Payload::new(5, 0, size);
            let mut value = payload.value(Key::Watched(1), 77);
            value[place.index(size)] ^= 1 << bit;
            prop_assert!(payload.read(Key::Watched(1), &value).is_err());
        }
    }
}
