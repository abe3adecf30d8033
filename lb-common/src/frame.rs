//! The frame under way: the one bounds-checked accessor, and what the headers say of the packet.

use crate::{
    addr::{Addr, Port},
    counters::Counter,
    tcp::{self, Segment},
    wire::{Ethernet, Extension, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, Tcp, Vlan, ethertype, extension, protocol},
};

/// A frame's linear part. To be taken anew after any helper that can move it.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The octets from `start` to `end`, as addresses. Only reading or writing through a pointer of [`Self::at`] asks that
    /// they are there.
    #[inline(always)]
    pub const fn between(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// A header at `offset`, if the whole of it lies in the frame: reads and writes through the pointer stay inside as
    /// long as the frame is not moved.
    #[inline(always)]
    pub fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let start = self.start + offset as usize;
        if start + size_of::<T>() > self.end { None } else { Some(start as *mut T) }
    }

    /// Whether the linear part has `length` octets.
    #[inline(always)]
    pub fn has(&self, length: u32) -> bool {
        self.start + length as usize <= self.end
    }
}

/// Ethernet header and VLAN tags.
#[derive(Clone, Copy)]
pub struct Link {
    /// The Ethernet header.
    pub ethernet: *mut Ethernet,
    /// EtherType of what follows, network order.
    pub ethertype: u16,
    /// Where it starts, octets: 14, 18 or 22.
    pub l3: u32,
    /// Tag control information, outermost first, network order; 0: no tag.
    pub tags: [u16; 2],
}

impl Link {
    /// Reads up to two tags; a third one is left as the EtherType, which is then none of ours.
    #[inline(always)]
    pub fn parse(frame: &Frame) -> Option<Self> {
        let ethernet = frame.at::<Ethernet>(0)?;
        // SAFETY: `at` checked that the header lies in the frame.
        let ethertype = unsafe { (*ethernet).ethertype };
        let mut link = Self { ethernet, ethertype, l3: 14, tags: [0; 2] };
        if is_tag(link.ethertype) {
            let outer = frame.at::<Vlan>(14)?;
            // SAFETY: `at` checked that the tag lies in the frame.
            unsafe {
                link.tags[0] = (*outer).control;
                link.ethertype = (*outer).ethertype;
            }
            link.l3 = 18;
            if is_tag(link.ethertype) {
                let inner = frame.at::<Vlan>(18)?;
                // SAFETY: `at` checked that the tag lies in the frame.
                unsafe {
                    link.tags[1] = (*inner).control;
                    link.ethertype = (*inner).ethertype;
                }
                link.l3 = 22;
            }
        }
        Some(link)
    }

    /// The VLAN identifiers, outermost first, network order. A tag of identifier 0 only carries a priority: the frame is
    /// as untagged (IEEE 802.1Q section 6.9).
    #[inline(always)]
    pub const fn vlan(&self) -> [u16; 2] {
        [self.tags[0] & Vlan::IDENTIFIER, self.tags[1] & Vlan::IDENTIFIER]
    }
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ethertype::VLAN || ethertype == ethertype::SERVICE_VLAN
}

/// The IP header of a TCP packet, of either family: that of the family lies in the frame.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Where it starts.
    pub start: *mut Ipv6,
    /// Which of the two it is. Known while a program is built for one family, so that no branch is left there.
    pub is_v6: bool,
}

impl Ip {
    /// IPv4.
    #[inline(always)]
    pub fn v4(header: *mut Ipv4) -> Self {
        Self { start: header.cast(), is_v6: false }
    }

    /// IPv6.
    #[inline(always)]
    pub fn v6(header: *mut Ipv6) -> Self {
        Self { start: header, is_v6: true }
    }
}

/// Where a TCP header starts at most, octets: Ethernet, two tags, IPv6 and its extension headers.
pub const MAX_L4: u32 = 22 + IPV6_LEN + MAX_EXTENSIONS;
/// IPv6 extension headers at most, octets. RFC 9098 section 5 tells what others take; TCP is sent with none.
pub const MAX_EXTENSIONS: u32 = 256;

/// A whole TCP packet: headers that do not contradict each other or the frame.
#[derive(Clone, Copy)]
pub struct TcpPacket {
    /// The IP header.
    pub ip: Ip,
    /// The TCP header.
    pub tcp: *mut Tcp,
    /// Where the TCP header starts, octets: at most [`MAX_L4`].
    pub l4: u32,
    /// From whom.
    pub source: Addr,
    /// To whom.
    pub destination: Addr,
    /// The ports, from and to.
    pub ports: (Port, Port),
    /// Length of the IP packet, octets.
    pub length: u32,
    /// What TCP says.
    pub segment: Segment,
}

impl TcpPacket {
    /// Length of the IP packet, octets.
    #[inline(always)]
    pub fn octets(&self) -> u64 {
        self.length as u64
    }

    /// Reads an IPv4 packet; the error names what is wrong with it, or that it is no TCP. `length` is the frame's, octets,
    /// also of what does not lie in its linear part; it is asked for only if the packet goes on there.
    #[inline(always)]
    pub fn parse(frame: &Frame, link: &Link, length: impl FnOnce() -> u32) -> Result<Self, Counter> {
        let ip = frame.at::<Ipv4>(link.l3).ok_or(Counter::Malformed)?;
        // SAFETY: `at` checked that the header lies in the frame.
        let header = unsafe { &*ip };
        if !header.is_sound() {
            return Err(Counter::Malformed);
        }
        if header.is_fragment() {
            return Err(Counter::Fragment);
        }
        if header.protocol() != protocol::TCP {
            return Err(Counter::Protocol);
        }
        let total = u16::from_be(header.total_length) as u32;
        let ends = (Addr::from_v4_word(header.source), Addr::from_v4_word(header.destination));
        Self::over(frame, length, Ip::v4(ip), (link.l3, header.header_len(), total), ends)
    }

    /// Reads an IPv6 packet whose TCP header comes after `before` octets; the error names what is wrong with it.
    #[inline(always)]
    pub fn parse_v6(
        frame: &Frame,
        link: &Link,
        length: impl FnOnce() -> u32,
        before: u32,
    ) -> Result<Self, Counter> {
        let ip = frame.at::<Ipv6>(link.l3).ok_or(Counter::Malformed)?;
        // SAFETY: `at` checked that the header lies in the frame.
        let header = unsafe { &*ip };
        let ends = (Addr::from_words(header.source), Addr::from_words(header.destination));
        // An IPv4-mapped address stands for an IPv4 one, in the tables too; no packet has it (RFC 4291 section 2.5.5.2).
        // A group sends nothing (section 2.7).
        if !header.is_sound() || header.is_from_group() || ends.0.is_v4() || ends.1.is_v4() {
            return Err(Counter::Malformed);
        }
        let total = IPV6_LEN + u16::from_be(header.payload_length) as u32;
        Self::over(frame, length, Ip::v6(ip), (link.l3, before, total), ends)
    }

    /// Reads the TCP header of an IP packet: where the packet starts in the frame, octets before TCP, and octets of the
    /// whole packet.
    #[inline(always)]
    fn over(
        frame: &Frame,
        length: impl FnOnce() -> u32,
        ip: Ip,
        (l3, ip_len, total): (u32, u32, u32),
        (source, destination): (Addr, Addr),
    ) -> Result<Self, Counter> {
        let l4 = l3 + ip_len;
        let tcp = frame.at::<Tcp>(l4).ok_or(Counter::Malformed)?;
        // SAFETY: `at` checked that the header lies in the frame.
        let (tcp_len, seq, ack, flags, ports) = unsafe {
            (
                (*tcp).header_len(),
                u32::from_be((*tcp).seq),
                u32::from_be((*tcp).ack),
                (*tcp).flags(),
                (Port::from_word((*tcp).source), Port::from_word((*tcp).destination)),
            )
        };
        let headers = ip_len + tcp_len;
        if tcp_len < tcp::HEADER_LEN || total < headers {
            return Err(Counter::Malformed);
        }
        // The rest of a frame in several pieces does not show in the linear part.
        if !frame.has(l3 + total) && length() < l3 + total {
            return Err(Counter::Malformed);
        }
        let segment = Segment { seq, ack, payload: total - headers, flags };
        Ok(Self { ip, tcp, l4, source, destination, ports, length: total, segment })
    }
}

/// Octets of the extension headers of an IPv6 packet before TCP: `first` is the one at `start`, octets into the frame.
/// The error names what is wrong with them, or that no TCP follows.
#[inline(always)]
pub fn extensions(frame: &Frame, start: u32, first: u8) -> Result<u32, Counter> {
    let (mut next, mut octets) = (first, 0);
    for _ in 0..=MAX_HEADERS {
        match next {
            // Only the first one can be for every hop (RFC 8200 section 4.1).
            extension::HOP_BY_HOP if octets != 0 => return Err(Counter::ExtensionHeaders),
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {}
            protocol::TCP => return Ok(octets),
            extension::FRAGMENT => return Err(Counter::Fragment),
            // Only behind extension headers, whose options an answer would have to reverse.
            protocol::ICMPV6 => return Err(Counter::Icmp),
            _ => return Err(Counter::Protocol),
        }
        let header = frame.at::<Extension>(start + octets).ok_or(Counter::Malformed)?;
        // SAFETY: `at` checked that the header's start lies in the frame.
        let header = unsafe { &*header };
        octets += header.length();
        if octets > MAX_EXTENSIONS || (next == extension::ROUTING && header.stops_left() != 0) {
            return Err(Counter::ExtensionHeaders);
        }
        next = header.next_header();
    }
    Err(Counter::ExtensionHeaders)
}

/// Extension headers that TCP may stand behind: hop-by-hop options, a route, and destination options before and after it
/// (RFC 8200 section 4.1).
const MAX_HEADERS: u32 = 4;

// `handover` knows a TCP packet's IP header by 40 octets, in either family.
const _: () = assert!(IPV4_LEN + tcp::HEADER_LEN == IPV6_LEN);
