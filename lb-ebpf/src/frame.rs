//! The frame under way: the one bounds-checked accessor, and what the headers say of the packet.

use aya_ebpf::{EbpfContext as _, helpers::generated, programs::XdpContext};
use lb_common::{
    addr::{Addr, Mac, Port},
    counters::Counter,
    tcp::{self, Segment},
    wire::{Ethernet, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, Tcp, Vlan, ethertype, protocol},
};

use crate::maps::FORGET;

/// A frame's linear part. To be taken anew after any helper that can move it.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// The same, read again for sure: the verifier knows by a pointer how far it was checked, and takes two ways that
    /// checked it differently far for two states.
    #[inline(always)]
    pub fn anew(ctx: &XdpContext) -> Self {
        let raw = ctx.ctx;
        #[cfg(target_arch = "bpf")]
        let raw = {
            let mut raw = raw;
            // SAFETY: the pointer stays what it is, which the compiler does not know.
            unsafe { core::arch::asm!("{0} = {0}", inout(reg) raw, options(nomem, nostack)) };
            raw
        };
        Self::new(&XdpContext::new(raw))
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

/// Length of the frame, also of one that does not lie in one piece, octets.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> u32 {
    // SAFETY: the helper takes the context that the program was called with.
    unsafe { generated::bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// The interface that the frame came in by.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
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

    /// The same, without what the verifier knows of the number of tags (see [`forget`]). The frame is to be taken anew: it
    /// knows by its pointers too how far they were checked.
    #[inline(always)]
    pub fn forget(mut self, ctx: &XdpContext) -> Result<Self, Counter> {
        self.ethernet = Frame::anew(ctx).at(0).ok_or(Counter::Malformed)?;
        self.l3 = forget(self.l3)? & 0x1f;
        self.tags = zerocopy::transmute!(forget(zerocopy::transmute!(self.tags))?);
        Ok(self)
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
    #[inline(always)]
    pub fn v4(header: *mut Ipv4) -> Self {
        Self { start: header.cast(), is_v6: false }
    }

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

    /// Reads an IPv4 packet; the error names what is wrong with it, or that it is no TCP.
    #[inline(always)]
    pub fn parse(ctx: &XdpContext, frame: &Frame, link: &Link) -> Result<Self, Counter> {
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
        Self::over(ctx, frame, Ip::v4(ip), (link.l3, header.header_len(), total), ends)
    }

    /// Reads the TCP header of an IP packet: where the packet starts in the frame, octets before TCP, and octets of the
    /// whole packet.
    #[inline(always)]
    pub fn over(
        ctx: &XdpContext,
        frame: &Frame,
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
        if !frame.has(l3 + total) && length(ctx) < l3 + total {
            return Err(Counter::Malformed);
        }
        let segment = Segment { seq, ack, payload: total - headers, flags };
        Ok(Self { ip, tcp, l4, source, destination, ports, length: total, segment })
    }
}

/// Writes a MAC into a frame, word by word: a copy of six octets would become a call to `memmove`, which the verifier
/// does not take.
///
/// # Safety
/// `place` lies in the frame, at an even address.
#[inline(always)]
pub unsafe fn put_mac(place: *mut Mac, mac: Mac) {
    let words: [u16; 3] = zerocopy::transmute!(mac);
    let place = place.cast::<u16>();
    // SAFETY: the caller vouches for the place, which is six octets long.
    unsafe {
        place.write_volatile(words[0]);
        place.add(1).write_volatile(words[1]);
        place.add(2).write_volatile(words[2]);
    }
}

/// Copies an address word by word: as one copy it becomes a call of `memmove`, which a BPF program does not have.
///
/// # Safety
/// Both are valid and aligned to 4.
#[inline(always)]
pub unsafe fn put_address(to: *mut Addr, from: *const Addr) {
    let (to, from) = (to.cast::<u32>(), from.cast::<u32>());
    // SAFETY: an address has four words; the caller vouches for the pointers.
    unsafe {
        to.write_volatile(from.read_volatile());
        to.add(1).write_volatile(from.add(1).read_volatile());
        to.add(2).write_volatile(from.add(2).read_volatile());
        to.add(3).write_volatile(from.add(3).read_volatile());
    }
}

/// The same number, by way of a map: the verifier forgets by which branches it came to be, and walks what follows once and
/// not once for each.
#[inline(always)]
pub fn forget(number: u32) -> Result<u32, Counter> {
    let slot = FORGET.get_ptr_mut(0).ok_or(Counter::TailCall)?;
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        slot.write_volatile(number);
        Ok(slot.read_volatile())
    }
}

/// Shortens or lengthens the frame to `wanted` octets. Every pointer into it is void afterwards.
#[inline(always)]
pub fn resize(ctx: &XdpContext, wanted: u32) -> Result<(), Counter> {
    let delta = wanted as i32 - length(ctx) as i32;
    // SAFETY: the helper takes the context that the program was called with, and checks the length itself.
    let done = delta == 0 || unsafe { generated::bpf_xdp_adjust_tail(ctx.as_ptr().cast(), delta) } == 0;
    if done { Ok(()) } else { Err(Counter::AdjustFailed) }
}

/// Length of a reply of `total` octets of IP in a frame whose IP header starts at `l3`.
#[inline(always)]
pub fn reply_length(l3: u32, total: u32) -> u32 {
    let length = l3 + total;
    if length < lb_common::wire::MIN_FRAME { lb_common::wire::MIN_FRAME } else { length }
}

// `handover` knows a TCP packet's IP header by 40 octets, in either family.
const _: () = assert!(IPV4_LEN + tcp::HEADER_LEN == IPV6_LEN);
