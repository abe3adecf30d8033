//! Headers as they stand in a frame. Numbers are in network order: `from_be` before arithmetic.
//!
//! Fields are whole words, not byte arrays, because the BPF back end reads a byte array byte by byte. A frame's headers
//! lie at any even address; BPF's loads and stores may, the verifier sees to it where a machine cannot.

mod ipv6;

pub use self::ipv6::*;
use crate::{
    addr::Mac,
    checksum::{Delta, fold},
};

/// EtherTypes (IANA, "IEEE 802 Numbers"), as the word in the frame.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86ddu16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806u16.to_be();
    /// VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100u16.to_be();
    /// Service VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8u16.to_be();
}

/// IP protocol numbers (IANA, "Protocol Numbers").
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// Ethernet's shortest frame without FCS (IEEE 802.3 section 3.2.8).
pub const MIN_FRAME: u32 = 60;

/// Ethernet header.
#[repr(C)]
pub struct Ethernet {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// See [`ethertype`].
    pub ethertype: u16,
}

/// A VLAN tag after the EtherType that announced it.
#[repr(C)]
pub struct Vlan {
    /// Priority, drop eligibility and VLAN number.
    pub control: u16,
    /// EtherType of what follows.
    pub ethertype: u16,
}

impl Vlan {
    /// The identifier's bits of `control`.
    pub const IDENTIFIER: u16 = 0x0fffu16.to_be();
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
pub struct Arp {
    /// Hardware type: 1.
    pub hardware: u16,
    /// Protocol type: IPv4's EtherType.
    pub protocol: u16,
    /// Lengths of hardware and protocol address: 6 and 4.
    pub lengths: u16,
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Who speaks.
    pub sender_mac: Mac,
    /// Who speaks: high and low half, since the word is not aligned in any frame.
    pub sender: [u16; 2],
    /// Who is asked for.
    pub target_mac: Mac,
    /// Who is asked for.
    pub target: [u16; 2],
}

/// IPv4 header without options (RFC 791).
#[repr(C)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// Differentiated services and ECN.
    pub tos: u8,
    /// Length of the packet, octets.
    pub total_length: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live in the first octet, protocol in the second.
    pub ttl_protocol: u16,
    /// Header checksum.
    pub check: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// Length of an IPv4 header without options, octets.
pub const IPV4_LEN: u32 = 20;

impl Ipv4 {
    /// Header length, octets; below 20 in a malformed header, at most 60.
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        (self.version_ihl as u32 & 0xf) * 4
    }

    /// Whether the version is 4 and the header length at least 20.
    #[inline(always)]
    pub const fn is_sound(&self) -> bool {
        self.version_ihl >= 0x45 && self.version_ihl <= 0x4f
    }

    /// More fragments, or an offset (RFC 791 section 3.1).
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3fffu16.to_be() != 0
    }

    /// An offset: a fragment that does not begin with the next header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment & 0x1fffu16.to_be() != 0
    }

    /// Time to live, hops.
    #[inline(always)]
    pub const fn ttl(&self) -> u8 {
        self.ttl_protocol.to_ne_bytes()[0]
    }

    /// See [`protocol`].
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.ttl_protocol.to_ne_bytes()[1]
    }

    /// The `ttl_protocol` word with one hop less; the TTL must not be 0.
    #[inline(always)]
    pub const fn one_hop_less(&self) -> u16 {
        u16::from_be(self.ttl_protocol).wrapping_sub(0x100).to_be()
    }

    /// A header without options for a packet of `total_length` octets, checksum included: DF, TTL 64.
    #[inline(always)]
    pub const fn reply(protocol: u8, total_length: u16, source: u32, destination: u32) -> Self {
        let mut header = Self {
            version_ihl: 0x45,
            tos: 0,
            total_length: total_length.to_be(),
            id: 0,
            fragment: 0x4000u16.to_be(),
            ttl_protocol: u16::from_ne_bytes([64, protocol]),
            check: 0,
            source,
            destination,
        };
        let sum = u16::from_ne_bytes([0x45, 0]) as u64
            + header.total_length as u64
            + header.fragment as u64
            + header.ttl_protocol as u64
            + source as u64
            + destination as u64;
        header.check = !fold(sum);
        header
    }
}

/// TCP header without options (RFC 9293 section 3.1).
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Header length in words in the upper half of the first octet, flags in the second.
    pub offset_flags: u16,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub check: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Tcp {
    /// Header length, octets: 0 to 60.
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        (self.offset_flags.to_ne_bytes()[0] >> 4) as u32 * 4
    }

    /// The flags octet; see [`crate::tcp`].
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.offset_flags.to_ne_bytes()[1]
    }

    /// A segment without options and data, its checksum included; ports as in the frame, numbers in host order.
    /// `addresses` is the sum of the addresses' words, the part of the pseudo-header in which the families differ.
    #[inline(always)]
    pub const fn reply(ports: (u16, u16), addresses: u64, segment: &crate::tcp::Segment) -> Self {
        let mut header = Self {
            source: ports.0,
            destination: ports.1,
            seq: segment.seq.to_be(),
            ack: segment.ack.to_be(),
            offset_flags: u16::from_ne_bytes([0x50, segment.flags]),
            window: 0,
            check: 0,
            urgent: 0,
        };
        let sum = addresses
            + u16::from_ne_bytes([0, protocol::TCP]) as u64
            + (crate::tcp::HEADER_LEN as u16).to_be() as u64
            + header.source as u64
            + header.destination as u64
            + header.seq as u64
            + header.ack as u64
            + header.offset_flags as u64;
        header.check = !fold(sum);
        header
    }
}

/// ICMP header (RFC 792).
#[repr(C)]
pub struct Icmp {
    /// Type in the first octet, code in the second.
    pub type_code: u16,
    /// Checksum.
    pub check: u16,
    /// Identifier and sequence number of an echo.
    pub rest: u32,
}

impl Icmp {
    /// Echo request, code 0.
    pub const ECHO_REQUEST: u16 = u16::from_ne_bytes([8, 0]);
    /// Echo reply, code 0.
    pub const ECHO_REPLY: u16 = u16::from_ne_bytes([0, 0]);

    /// Whether it is an error that quotes a packet: destination unreachable, fragmentation needed among them, or time
    /// exceeded.
    #[inline(always)]
    pub const fn is_error(&self) -> bool {
        matches!(self.kind(), 3 | 11)
    }

    /// Whether it is an error of ICMPv6 that quotes a packet: destination unreachable, packet too big, or time exceeded
    /// (RFC 4443 sections 3.1 to 3.3).
    #[inline(always)]
    pub const fn is_error_v6(&self) -> bool {
        matches!(self.kind(), 1..=3)
    }

    #[inline(always)]
    const fn kind(&self) -> u8 {
        self.type_code.to_ne_bytes()[0]
    }

    /// The checksum after the request has become a reply.
    #[inline(always)]
    pub const fn reply_check(&self) -> u16 {
        Delta::new().word(Self::ECHO_REQUEST, Self::ECHO_REPLY).apply(self.check)
    }
}

/// Fragmentation needed (RFC 1191 section 4), and packet too big (RFC 4443 section 3.2), before the packet that they quote.
#[repr(C)]
pub struct IcmpTooBig {
    /// Type in the first octet, code in the second.
    pub type_code: u16,
    /// Checksum.
    pub check: u16,
    /// Unused; with IPv6 the upper half of the MTU.
    pub zero: u16,
    /// What fits, octets of an IP packet.
    pub mtu: u16,
}

impl IcmpTooBig {
    /// IPv4's, without a checksum.
    #[inline(always)]
    pub const fn v4(mtu: u16) -> Self {
        Self { type_code: u16::from_ne_bytes([3, 4]), check: 0, zero: 0, mtu: mtu.to_be() }
    }

    /// IPv6's, without a checksum.
    #[inline(always)]
    pub const fn v6(mtu: u16) -> Self {
        Self { type_code: u16::from_ne_bytes([2, 0]), check: 0, zero: 0, mtu: mtu.to_be() }
    }

    /// The sum of its words; the checksum's counts as 0.
    #[inline(always)]
    pub const fn sum(&self) -> u64 {
        self.type_code as u64 + self.mtu as u64
    }
}

const _: () = {
    assert!(size_of::<Ethernet>() == 14 && size_of::<Vlan>() == 4 && size_of::<Arp>() == 28);
    assert!(size_of::<Ipv4>() == IPV4_LEN as usize && size_of::<Tcp>() == 20 && size_of::<Icmp>() == 8);
};
