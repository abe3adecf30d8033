//! Which VRRP advertisement ends this node's lease: one of the same pair that is stronger than ours. The data plane decides
//! it by itself, so that the VIP is given up before the agent has been scheduled.
//!
//! An advertisement of the pair says the same as ours in all but priority, interval and sender. So the addresses that it
//! lists are not read: the checksum is recomputed over the list that it should have, and fits no other (but one of 65,536).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, checksum::fold};

/// IP protocol number of VRRP (RFC 9568 section 5.1.1.4).
pub const PROTOCOL: u8 = 112;
/// TTL or hop limit of an advertisement to the group: none came over a router (RFC 9568 section 5.1.1.3).
pub const HOP_LIMIT: u8 = 255;
/// The group of IPv4, 224.0.0.18 (RFC 9568 section 5.1.1.2).
pub const GROUP_V4: Addr = Addr::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 224, 0, 0, 18]);
/// The group of IPv6, ff02::12 (RFC 9568 section 5.1.2.2).
pub const GROUP_V6: Addr = Addr::new([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12]);
/// Unicast peers of a node at most.
pub const MAX_PEERS: usize = 8;

/// The header of an advertisement (RFC 9568 section 5.1; RFC 3768 section 5.1), network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Version and type in the first octet, VRID in the second.
    pub head: u16,
    /// Priority in the first octet, number of addresses in the second.
    pub priority_count: u16,
    /// Version 3: the interval in its lower 12 bits, in 10 ms. Version 2: authentication type, and the interval in s.
    pub timing: u16,
    /// Checksum.
    pub check: u16,
}

/// What this node advertises for one family; the value of the map `elections`. All zero: nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Election {
    /// The address that we advertise from: of two equal priorities the higher address wins.
    pub source: Addr,
    /// Where the others' advertisements go: the group, or our own address.
    pub destination: Addr,
    /// From whom they are accepted; all zero: from everybody.
    pub peers: [Addr; MAX_PEERS],
    /// The interface that they come by.
    pub ifindex: u32,
    /// One's complement sum of the addresses, and in version 2 of the authentication data, words as in the packet.
    pub list_sum: u16,
    /// As in [`Advertisement::head`].
    pub head: u16,
    /// Version 2: as in [`Advertisement::timing`]. Version 3: 0.
    pub timing: u16,
    /// Octets of an advertisement.
    pub length: u16,
    /// Our priority now; 0: we are in no election.
    pub priority: u8,
    /// Number of addresses.
    pub count: u8,
    /// 0.
    pub reserved: u16,
}

/// What the IP header says of an advertisement.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// From whom.
    pub source: Addr,
    /// To whom.
    pub destination: Addr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Octets after the IP header.
    pub length: u32,
}

impl Election {
    /// No election.
    pub const NONE: Self = Self {
        source: Addr::UNSPECIFIED,
        destination: Addr::UNSPECIFIED,
        peers: [Addr::UNSPECIFIED; MAX_PEERS],
        ifindex: 0,
        list_sum: 0,
        head: 0,
        timing: 0,
        length: 0,
        priority: 0,
        count: 0,
        reserved: 0,
    };

    /// Whether an advertisement is stronger than ours (RFC 9568 section 6.4.3 (750)).
    #[inline(always)]
    pub fn is_weaker_than(&self, envelope: &Envelope, advertisement: &Advertisement) -> bool {
        let [priority, _] = advertisement.priority_count.to_ne_bytes();
        priority > self.priority || (priority == self.priority && is_higher(envelope.source, self.source))
    }

    /// Whether an advertisement that came by an interface is sound, and of another node of our pair that has the VIPs, or
    /// wants them: one that gives them up has priority 0 (RFC 9568 section 5.2.4).
    #[inline(always)]
    pub fn has(&self, ifindex: u32, envelope: &Envelope, advertisement: &Advertisement) -> bool {
        let [priority, count] = advertisement.priority_count.to_ne_bytes();
        if self.priority == 0 || ifindex != self.ifindex || priority == 0 || envelope.source == self.source {
            return false;
        }
        let same = advertisement.head == self.head
            && count == self.count
            && envelope.length == self.length as u32
            && envelope.destination == self.destination;
        same && self.accepts(envelope)
            && self.is_in_time(advertisement.timing)
            && self.fits(envelope, advertisement)
    }

    #[inline(always)]
    fn accepts(&self, envelope: &Envelope) -> bool {
        if self.peers[0] == Addr::UNSPECIFIED {
            return envelope.hop_limit == HOP_LIMIT;
        }
        // Without branches: the verifier would walk each peer's.
        let mut known = 0;
        for peer in &self.peers {
            known |= one_if_equal(*peer, envelope.source);
        }
        known != 0
    }

    /// An interval of 0 would never be kept (RFC 9568 erratum 8301); version 2 takes its own alone.
    #[inline(always)]
    fn is_in_time(&self, timing: u16) -> bool {
        if self.timing == 0 { timing & 0x0fffu16.to_be() != 0 } else { timing == self.timing }
    }

    /// Whether the checksum is that of our list, with a pseudo-header or, over IPv4, without: implementations differ.
    #[inline(always)]
    fn fits(&self, envelope: &Envelope, advertisement: &Advertisement) -> bool {
        let message = advertisement.head as u64
            + advertisement.priority_count as u64
            + advertisement.timing as u64
            + advertisement.check as u64
            + self.list_sum as u64;
        let pseudo = message
            + sum(envelope.source)
            + sum(envelope.destination)
            + u16::from_ne_bytes([0, PROTOCOL]) as u64
            + self.length.to_be() as u64;
        let is_v4 = envelope.source.is_v4();
        let with = fold(pseudo) == 0xffff && self.timing == 0;
        with || (is_v4 && fold(message) == 0xffff)
    }
}

/// The sum of an address's words in a pseudo-header.
#[inline(always)]
fn sum(address: Addr) -> u64 {
    let [a, b, c, d] = address.words();
    if address.is_v4() { d as u64 } else { a as u64 + b as u64 + c as u64 + d as u64 }
}

#[inline(always)]
fn one_if_equal(a: Addr, b: Addr) -> u64 {
    let (a, b) = (a.words(), b.words());
    let differ = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
    (differ as u64).wrapping_sub(1) >> 63
}

/// Whether an address is higher than another of its family, as a number in network order.
#[inline(always)]
fn is_higher(a: Addr, b: Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    let high = |words: [u32; 4]| ((u32::from_be(words[0]) as u64) << 32) | u32::from_be(words[1]) as u64;
    let low = |words: [u32; 4]| ((u32::from_be(words[2]) as u64) << 32) | u32::from_be(words[3]) as u64;
    high(a) > high(b) || (high(a) == high(b) && low(a) > low(b))
}

const _: () = assert!(size_of::<Advertisement>() == 8);

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Sums of the words of octets.
    fn words(octets: &[u8]) -> u16 {
        fold(octets.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum())
    }

    impl Election {
        fn is_lost_to(&self, ifindex: u32, envelope: &Envelope, said: &Advertisement) -> bool {
            self.has(ifindex, envelope, said) && self.is_weaker_than(envelope, said)
        }
    }

    fn read(octets: &[u8]) -> Advertisement {
        let word = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        Advertisement { head: word(0), priority_count: word(2), timing: word(4), check: word(6) }
    }

    /// The octets of an advertisement that keepalived 2.2.7 sent, and the node that it is for.
    fn golden(hex: &str, source: &str) -> (Vec<u8>, Envelope, Election) {
        let octets: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let source: IpAddr = source.parse().unwrap();
        let (destination, ours): (Addr, IpAddr) = match source {
            IpAddr::V4(_) => (GROUP_V4, Ipv4Addr::new(192, 0, 2, 2).into()),
            IpAddr::V6(_) => (GROUP_V6, "fe80::2".parse::<Ipv6Addr>().unwrap().into()),
        };
        let advertisement = read(&octets);
        let is_v2 = octets[0] >> 4 == 2;
        let envelope =
            Envelope { source: source.into(), destination, hop_limit: 255, length: octets.len() as u32 };
        let election = Election {
            source: ours.into(),
            destination,
            ifindex: 3,
            list_sum: words(&octets[8..]),
            head: advertisement.head,
            timing: if is_v2 { advertisement.timing } else { 0 },
            length: octets.len() as u16,
            priority: 100,
            count: octets[3],
            ..Election::NONE
        };
        (octets, envelope, election)
    }

    /// Version 3 with a pseudo-header and without, version 2, version 2 with a password, IPv6.
    fn all() -> impl Iterator<Item = (Vec<u8>, Envelope, Election)> {
        [
            ("3133c801000aa225c000020a", "192.0.2.1"),
            ("3133c801000a44b6c000020a", "192.0.2.1"),
            ("3133c8020064dfbac000020ac000020b", "192.0.2.1"),
            ("2133c801000154bfc000020a0000000000000000", "192.0.2.1"),
            ("2133c8010101e640c000020a7365637265743132", "192.0.2.1"),
            (
                "3133c802000add35fe80000000000000000000000000001020010db8000000010000000000000010",
                "fe80::ff:fe00:1",
            ),
        ]
        .into_iter()
        .map(|(hex, source)| golden(hex, source))
    }

    #[test]
    fn a_stronger_advertisement_of_the_pair_wins() {
        for (octets, envelope, election) in all() {
            assert!(election.is_lost_to(3, &envelope, &read(&octets)), "{octets:02x?}");
            let equal = Election { priority: 200, ..election };
            let higher = is_higher(envelope.source, election.source);
            assert_eq!(equal.is_lost_to(3, &envelope, &read(&octets)), higher, "{octets:02x?}");
            let lower = Election { priority: 200, source: Addr::new([0; 16]), ..election };
            assert!(lower.is_lost_to(3, &envelope, &read(&octets)), "the higher address wins");
        }
    }

    #[test]
    fn nothing_else_does() {
        for (octets, envelope, election) in all() {
            let said = read(&octets);
            let lost = |election: &Election, envelope: &Envelope, said: &Advertisement| {
                election.is_lost_to(3, envelope, said)
            };
            assert!(!election.is_lost_to(4, &envelope, &said), "another interface");
            assert!(!lost(&Election::NONE, &envelope, &said));
            assert!(!lost(&Election { priority: 201, ..election }, &envelope, &said), "weaker");
            assert!(!lost(&election, &Envelope { hop_limit: 254, ..envelope }, &said), "over a router");
            assert!(!lost(&election, &Envelope { length: envelope.length + 4, ..envelope }, &said));
            assert!(
                !lost(&Election { list_sum: election.list_sum ^ 1, ..election }, &envelope, &said),
                "list"
            );
            assert!(!lost(&Election { destination: election.source, ..election }, &envelope, &said));
            // Any bit of the header that is another is another pair, a weaker node or a wrong checksum.
            for bit in 0..64 {
                let mut octets = octets.clone();
                octets[bit / 8] ^= 1 << (bit % 8);
                assert!(!lost(&election, &envelope, &read(&octets)), "bit {bit} of {octets:02x?}");
            }
        }
    }

    #[test]
    fn an_interval_of_nothing_is_refused() {
        let (mut octets, envelope, election) = golden("3133c801000aa225c000020a", "192.0.2.1");
        octets[5] = 0;
        // The checksum that goes with it.
        let check = u16::from_be_bytes([octets[6], octets[7]]) + 0x000a;
        octets[6..8].copy_from_slice(&check.to_be_bytes());
        assert!(!election.is_lost_to(3, &envelope, &read(&octets)));
        octets[4..8].copy_from_slice(&[0xf0, 0x0a, 0xb2, 0x24]);
        assert!(election.is_lost_to(3, &envelope, &read(&octets)), "the reserved bits mean nothing");
    }

    #[test]
    fn unicast_is_taken_from_peers_alone() {
        let (octets, envelope, election) = golden("3133c801000ac035c000020a", "192.0.2.1");
        let envelope = Envelope { destination: election.source, hop_limit: 64, ..envelope };
        let mut election = Election { destination: election.source, ..election };
        election.peers[0] = Ipv4Addr::new(192, 0, 2, 9).into();
        assert!(!election.is_lost_to(3, &envelope, &read(&octets)));
        election.peers[1] = envelope.source;
        assert!(election.is_lost_to(3, &envelope, &read(&octets)));
    }
}
