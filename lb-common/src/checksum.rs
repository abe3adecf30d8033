//! Incremental Internet checksums (RFC 1071, RFC 1624).
//!
//! A rewrite never reads the payload: the difference of each changed word is collected in a [`Delta`] and applied to the
//! checksum field once. A packet that came with a bad checksum leaves with one that is bad by the same amount, so a
//! corrupted packet is never made to look whole.

/// The one's complement sum of changes: for each changed 16-bit word, `~old + new` (RFC 1624 equation 3).
///
/// Words are taken as they stand in memory; the sum is the same in either byte order as long as the field it is applied
/// to is taken the same way (RFC 1071 section 2 (B)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// A 16-bit word changed.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// An aligned pair of words changed, such as an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn dword(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// An IPv6 address changed, as its words.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, old: [u32; 4], new: [u32; 4]) -> Self {
        self.dword(old[0], new[0]).dword(old[1], new[1]).dword(old[2], new[2]).dword(old[3], new[3])
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The new value of a checksum field that held `check`.
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        !fold(self.0 + (!check) as u64)
    }
}

/// Folds a sum of words into 16 bits, the carries added back in (RFC 1071 section 4.1).
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word: the independent implementation.
    fn checksum(words: &[u16]) -> u16 {
        let mut sum = 0u32;
        for &word in words {
            sum += u32::from(word);
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn an_update_equals_recomputation(
            words in proptest::collection::vec(any::<u16>(), 2..40), at in any::<prop::sample::Index>(), new in any::<u16>(),
        ) {
            let at = at.index(words.len());
            let before = checksum(&words);
            let mut after = words.clone();
            after[at] = new;
            let got = Delta::new().word(words[at], new).apply(before);
            let want = checksum(&after);
            // 0x0000 and 0xffff are the same sum; a header that is not all zero never recomputes to 0xffff (RFC 1624 section 3).
            prop_assert!(got == want || (got ^ want == 0xffff && (got == 0 || want == 0)), "{got:04x} {want:04x}");
            if after.iter().any(|&word| word != 0) && words.iter().any(|&word| word != 0) {
                prop_assert_eq!(got, want);
            }
        }

        #[test]
        fn a_dword_is_two_words(old in any::<u32>(), new in any::<u32>(), check in any::<u16>()) {
            let halves = |v: u32| ((v >> 16) as u16, v as u16);
            let ((a, b), (c, d)) = (halves(old), halves(new));
            let by_words = Delta::new().word(a, c).word(b, d).apply(check);
            prop_assert_eq!(Delta::new().dword(old, new).apply(check), by_words);
        }

        #[test]
        fn the_order_of_bytes_does_not_matter(old in any::<u16>(), new in any::<u16>(), check in any::<u16>()) {
            let swapped = Delta::new().word(old.swap_bytes(), new.swap_bytes()).apply(check.swap_bytes());
            prop_assert_eq!(Delta::new().word(old, new).apply(check), swapped.swap_bytes());
        }
    }
}
