//! `etcd-lb capture`: what its program, the agent and the command share. The program takes the place of the XDP program's
//! entry while packets are captured, and calls that: while none are, nothing of it is there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Addr, Port},
    wire::{ethertype, protocol},
};

/// Octets kept of a packet at most, before and after; a power of two.
pub const MAX_SNAP: usize = 2048;
/// Octets looked at by the filter: two VLAN tags, the longest IPv4 header and the ports end at 86.
pub const HEAD: usize = 128;
/// Octets of the ring buffer, a power of two and whole pages.
pub const RING: usize = 4 << 20;
/// Octets of a record at most.
pub const MAX_RECORD: usize = size_of::<Record>() + 2 * MAX_SNAP;

/// The program.
pub const PROGRAM: &str = "capture";
/// Array of one [`Settings`].
pub const SETTINGS: &str = "settings";
/// Program array of one: the XDP program's entry. Pinned as `capture_entry`, since the kernel empties a program array that
/// nobody holds.
pub const ENTRY: &str = "entry";
/// Per-CPU array of one `u64`: packets for which the ring buffer had no room. Pinned as `capture_lost`.
pub const LOST: &str = "lost";
/// Ring buffer of [`Record`]s, each followed by the octets it tells of. Pinned as `capture_records`.
pub const RECORDS: &str = "records";
/// What the names of its pins begin with.
pub const PIN: &str = "capture_";

/// What is captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    /// Nothing is, after this, ns of `CLOCK_MONOTONIC`: put off as long as somebody reads.
    pub until: u64,
    /// Packets from or to this client; [`Endpoint::ANY`]: all.
    pub client: Endpoint,
    /// Packets from or to this backend; [`Endpoint::ANY`]: all.
    pub backend: Endpoint,
    /// Octets kept of a packet, before and after, at most [`MAX_SNAP`].
    pub snap: u32,
    /// 1: packets that XDP passes on as they came, too.
    pub passed: u32,
    /// What is answered if the entry is missing: the kernel empties its array only with the last pin, and then the host's
    /// own traffic is what is left to care for. `XDP_PASS`.
    pub missing: u32,
    /// 0.
    pub reserved: u32,
}

/// An end of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Endpoint {
    /// Its address; unspecified: any.
    pub address: Addr,
    /// Its port; 0: any.
    pub port: Port,
    /// 0.
    pub reserved: u16,
}

impl Endpoint {
    /// Every end.
    pub const ANY: Self = Self { address: Addr::UNSPECIFIED, port: Port::new(0), reserved: 0 };

    /// Of an address, and a port unless that is 0.
    pub const fn new(address: Addr, port: u16) -> Self {
        Self { address, port: Port::new(port), reserved: 0 }
    }

    #[inline(always)]
    fn is(self, address: Addr, port: Port) -> bool {
        let of_no_port = port.word() == 0 || self.port.word() == 0;
        self.address == address && (of_no_port || self.port.word() == port.word())
    }
}

/// One packet: what the XDP program got and what it left, which follow this head without a gap.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Record {
    /// When the XDP program was done, ns of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The interface by which the packet came.
    pub ifindex: u32,
    /// Its receive queue.
    pub queue: u32,
    /// What the XDP program answered (`enum xdp_action`).
    pub verdict: u32,
    /// Octets of the packet before.
    pub before: u32,
    /// Octets of the packet after.
    pub after: u32,
    /// Octets kept of it before.
    pub before_kept: u16,
    /// Octets kept of it after.
    pub after_kept: u16,
}

/// Between which ends a packet goes; ports are 0 where it has none (other protocols than TCP, later fragments, IPv6 with
/// extension headers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub source: (Addr, Port),
    /// Where it goes.
    pub destination: (Addr, Port),
}

impl Ends {
    /// Of a packet that is not of IP.
    pub const NONE: Self =
        Self { source: (Addr::UNSPECIFIED, Port::new(0)), destination: (Addr::UNSPECIFIED, Port::new(0)) };

    /// Reads the ends of a frame that begins with `head`, of which `length` octets are the frame's. Not an option: the
    /// compiler copies what `None` leaves undefined, which the verifier refuses.
    #[inline(always)]
    pub fn of(head: &[u8; HEAD], length: u32) -> Self {
        let (mut l3, mut kind) = (14, half(head, 12));
        let mut tags = 0;
        while tags < 2 && is_tag(kind) {
            kind = half(head, l3 + 2);
            l3 += 4;
            tags += 1;
        }
        let (addresses, l4) = if kind == ethertype::IPV4 {
            let header = u32::from(byte(head, l3) & 0xf) * 4;
            let first_fragment = half(head, l3 + 6) & 0x1fffu16.to_be() == 0;
            let ports = first_fragment && byte(head, l3 + 9) == protocol::TCP;
            let source = Addr::from_v4_word(word(head, l3 + 12));
            let destination = Addr::from_v4_word(word(head, l3 + 16));
            ((source, destination), if ports { l3 + header } else { 0 })
        } else if kind == ethertype::IPV6 {
            let at = |offset| {
                Addr::from_words([
                    word(head, offset),
                    word(head, offset + 4),
                    word(head, offset + 8),
                    word(head, offset + 12),
                ])
            };
            let ports = byte(head, l3 + 6) == protocol::TCP;
            ((at(l3 + 8), at(l3 + 24)), if ports { l3 + 40 } else { 0 })
        } else {
            return Self::NONE;
        };
        let ports = if l4 != 0 && l4 + 4 <= length { (half(head, l4), half(head, l4 + 2)) } else { (0, 0) };
        Self {
            source: (addresses.0, Port::from_word(ports.0)),
            destination: (addresses.1, Port::from_word(ports.1)),
        }
    }

    #[inline(always)]
    fn has(&self, end: Endpoint) -> bool {
        end.is(self.source.0, self.source.1) || end.is(self.destination.0, self.destination.1)
    }
}

/// Whether an end is one of those that the packet had before or after; [`Endpoint::ANY`] always is.
#[inline(always)]
pub fn concerns(end: Endpoint, before: Ends, after: Ends) -> bool {
    end.address == Addr::UNSPECIFIED || before.has(end) || after.has(end)
}

/// 802.1Q and 802.1ad.
#[inline(always)]
fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN
}

// An offset beyond the head reads as 0: the bound is for the verifier, no offset computed above reaches it.
#[inline(always)]
fn byte(head: &[u8; HEAD], offset: u32) -> u8 {
    if offset > HEAD as u32 - 1 { 0 } else { head[offset as usize] }
}

#[inline(always)]
fn half(head: &[u8; HEAD], offset: u32) -> u16 {
    u16::from_ne_bytes([byte(head, offset), byte(head, offset + 1)])
}

#[inline(always)]
fn word(head: &[u8; HEAD], offset: u32) -> u32 {
    let [a, b] = half(head, offset).to_ne_bytes();
    let [c, d] = half(head, offset + 2).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: ([u8; 4], [u8; 4]) = ([10, 0, 2, 7], [10, 0, 1, 100]);

    fn v4(link: &[u8], words: u8, fragment: u16, protocol: u8) -> ([u8; HEAD], u32) {
        let mut frame = [&[0; 12], link].concat();
        frame.extend([0x40 | words, 0, 0, 0, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend([V4.0, V4.1].concat());
        frame.resize(frame.len() + usize::from(words - 5) * 4, 1);
        frame.extend([0x9c, 0x40, 0x09, 0x4b]);
        head(&frame)
    }

    fn head(frame: &[u8]) -> ([u8; HEAD], u32) {
        let mut head = [0; HEAD];
        head[..frame.len()].copy_from_slice(frame);
        (head, frame.len() as u32)
    }

    fn ports(ends: Ends) -> (u16, u16) {
        (ends.source.1.get(), ends.destination.1.get())
    }

    #[test]
    fn ends_are_read_behind_tags_and_options() {
        let links: [&[u8]; 3] = [&[8, 0], &[0x81, 0, 0, 7, 8, 0], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9, 8, 0]];
        for link in links {
            for words in [5, 6, 15] {
                let (head, length) = v4(link, words, 0x4000, 6);
                let ends = Ends::of(&head, length);
                assert_eq!(ends.source.0, Addr::from(Ipv4Addr::from(V4.0)));
                assert_eq!(ends.destination.0, Addr::from(Ipv4Addr::from(V4.1)));
                assert_eq!(ports(ends), (40_000, 2379), "{link:?} {words}");
                // Cut before its ports end.
                assert_eq!(ports(Ends::of(&head, length - 1)), (0, 0));
            }
        }
    }

    #[test]
    fn what_has_no_ports_has_none_and_what_is_not_ip_no_ends() {
        for (fragment, protocol) in [(1, 6), (0x2001, 6), (0, 1), (0, 17)] {
            let (head, length) = v4(&[8, 0], 5, fragment, protocol);
            assert_eq!(ports(Ends::of(&head, length)), (0, 0));
        }
        let (head, length) = v4(&[8, 0], 5, 0x2000, 6);
        assert_eq!(ports(Ends::of(&head, length)), (40_000, 2379));
        let (head, length) = v4(&[8, 6], 5, 0, 6);
        assert_eq!(Ends::of(&head, length), Ends::NONE);
    }

    #[test]
    fn ends_of_ipv6_are_read() {
        let (from, to) = (Ipv6Addr::LOCALHOST, "2001:db8::100".parse::<Ipv6Addr>().unwrap());
        for (next, expected) in [(6, (40_000, 2379)), (0, (0, 0))] {
            let mut frame = [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next, 64]].concat();
            frame.extend([from.octets(), to.octets()].concat());
            frame.extend([0x9c, 0x40, 0x09, 0x4b]);
            let (head, length) = head(&frame);
            let ends = Ends::of(&head, length);
            assert_eq!((ends.source.0.to_ip(), ends.destination.0.to_ip()), (from.into(), to.into()));
            assert_eq!(ports(ends), expected);
        }
    }

    #[test]
    fn an_end_without_a_port_matches_every_port_and_icmp_any() {
        let ends = |port| {
            let end = |address: [u8; 4], port| (Addr::from(Ipv4Addr::from(address)), Port::new(port));
            Ends { source: end(V4.0, port), destination: end(V4.1, 2379) }
        };
        let client = |port| Endpoint::new(Ipv4Addr::from(V4.0).into(), port);
        assert!(concerns(client(0), ends(7), Ends::NONE) && concerns(client(7), Ends::NONE, ends(7)));
        assert!(concerns(client(7), ends(0), Ends::NONE) && !concerns(client(7), ends(8), ends(9)));
        assert!(
            concerns(Endpoint::ANY, Ends::NONE, Ends::NONE) && !concerns(client(0), Ends::NONE, Ends::NONE)
        );
    }
}
