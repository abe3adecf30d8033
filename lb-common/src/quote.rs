//! The packet that an ICMP error quotes (RFC 792, RFC 4443), and giving it other ends.

use crate::{
    addr::{Addr, Port},
    checksum::Delta,
    counters::Counter,
    frame::Frame,
    rewrite::{self, End},
    wire::{IPV6_LEN, Icmp, Ipv4, Ipv6, ethertype, protocol},
};

/// Length of an ICMP header, octets; the quoted packet follows.
const ICMP_LEN: u32 = size_of::<Icmp>() as u32;
const PORTS_LEN: u32 = size_of::<Ports>() as u32;

/// The ends of the quoted packet, and where things are in the frame, octets.
pub struct Quote {
    /// Who sent it.
    pub source: Addr,
    /// Who it was for.
    pub destination: Addr,
    /// Where the ICMP header is: at most 22 + 60.
    pub l4: u32,
    /// Where the quoted packet's ports are: at most 22 + 60 + 8 + 60.
    pub ports: u32,
}

/// The quoted packet's ports, as words.
#[repr(C)]
pub struct Ports {
    source: u16,
    destination: u16,
}

impl Ports {
    /// From and to.
    #[inline(always)]
    pub const fn get(&self) -> (Port, Port) {
        (Port::from_word(self.source), Port::from_word(self.destination))
    }
}

impl Quote {
    /// Reads what an ICMP error quotes whose IP packet starts at `l3`, and is sound; the error tells that it is not about a
    /// TCP packet of the host that the error is for.
    #[inline(always)]
    pub fn read(frame: &Frame, ethertype: u16, l3: u32) -> Result<Self, Counter> {
        if ethertype == ethertype::IPV4 { read_v4(frame, l3) } else { read_v6(frame, l3) }
    }
}

/// Gives the quoted packet its ends and the error its destination; who says it stays. `l4` and `ports` are what
/// [`Quote::read`] found.
///
/// # Safety
/// Nothing else refers to the frame's headers, and the frame has not changed since it was read.
#[inline(always)]
pub unsafe fn rewrite(
    frame: &Frame,
    ethertype: u16,
    (l3, l4): (u32, u32),
    ports: *mut Ports,
    from: End,
    to: End,
) -> Result<(), Counter> {
    let icmp = frame.at::<Icmp>(l4).ok_or(Counter::Malformed)?;
    // SAFETY: the caller vouches for `ports`, `at` for the other headers; they do not overlap.
    unsafe {
        let (source, destination) = (from.port.word(), to.port.word());
        let words = Delta::new().word((*ports).source, source).word((*ports).destination, destination);
        (*ports).source = source;
        (*ports).destination = destination;
        let said = if ethertype == ethertype::IPV4 {
            rewrite_v4(frame, l3, l4, from.address, to.address)?
        } else {
            rewrite_v6(frame, l3, l4, from.address, to.address)?
        };
        (*icmp).check = said.and(words).apply((*icmp).check);
    }
    Ok(())
}

#[inline(always)]
fn read_v4(frame: &Frame, l3: u32) -> Result<Quote, Counter> {
    let outer = frame.at::<Ipv4>(l3).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that the header lies in the frame.
    let outer = unsafe { &*outer };
    let l4 = l3 + outer.header_len();
    let quoted = frame.at::<Ipv4>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: as above.
    let quoted = unsafe { &*quoted };
    // Ours is the quoted packet's source, and the error came to it.
    let ports = l4 + ICMP_LEN + quoted.header_len();
    let ends = l3 + u16::from_be(outer.total_length) as u32;
    let ours = quoted.is_sound()
        && ports + PORTS_LEN <= ends
        && quoted.protocol() == protocol::TCP
        && !quoted.is_later_fragment()
        && outer.destination == quoted.source;
    if !ours {
        return Err(Counter::Icmp);
    }
    Ok(Quote {
        source: Addr::from_v4_word(quoted.source),
        destination: Addr::from_v4_word(quoted.destination),
        l4,
        ports,
    })
}

/// Neither the error nor the packet that it quotes has extension headers: the error's own would have come no
/// further than `other_v6`, and no end sends TCP behind any.
#[inline(always)]
fn read_v6(frame: &Frame, l3: u32) -> Result<Quote, Counter> {
    let l4 = l3 + IPV6_LEN;
    let outer = frame.at::<Ipv6>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv6>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both headers lie in the frame.
    let (outer, quoted) = unsafe { (&*outer, &*quoted) };
    let (source, destination) = (Addr::from_words(quoted.source), Addr::from_words(quoted.destination));
    // The tables have IPv4 addresses as IPv4-mapped ones, which no IPv6 packet has.
    let ports = l4 + ICMP_LEN + IPV6_LEN;
    let ends = l4 + u16::from_be(outer.payload_length) as u32;
    let ours = quoted.next_header() == protocol::TCP
        && ports + PORTS_LEN <= ends
        && outer.destination == quoted.source
        && !source.is_v4()
        && !destination.is_v4();
    if !ours {
        return Err(Counter::Icmp);
    }
    Ok(Quote { source, destination, l4, ports })
}

/// Returns what it changed of the error's sum.
///
/// # Safety
/// Nothing else refers to the frame's headers.
#[inline(always)]
unsafe fn rewrite_v4(frame: &Frame, l3: u32, l4: u32, from: Addr, to: Addr) -> Result<Delta, Counter> {
    let outer = frame.at::<Ipv4>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv4>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both lie in the frame; the second begins 28 octets behind the first or later.
    let (outer, quoted) = unsafe { (&mut *outer, &mut *quoted) };
    let (source, destination) = (from.v4_word(), to.v4_word());
    let addresses = Delta::new().dword(quoted.source, source).dword(quoted.destination, destination);
    let check = addresses.apply(quoted.check);
    let said = addresses.word(quoted.check, check);
    quoted.check = check;
    quoted.source = source;
    quoted.destination = destination;
    rewrite::rewrite_v4(outer, Addr::from_v4_word(outer.source), from)?;
    Ok(said)
}

/// The same; the error's sum is over the pseudo-header too.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn rewrite_v6(frame: &Frame, l3: u32, l4: u32, from: Addr, to: Addr) -> Result<Delta, Counter> {
    let outer = frame.at::<Ipv6>(l3).ok_or(Counter::Malformed)?;
    let quoted = frame.at::<Ipv6>(l4 + ICMP_LEN).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that both lie in the frame; the second begins 48 octets behind the first.
    let (outer, quoted) = unsafe { (&mut *outer, &mut *quoted) };
    let (source, destination) = (from.words(), to.words());
    let addresses = Delta::new().address(quoted.source, source).address(quoted.destination, destination);
    quoted.source = source;
    quoted.destination = destination;
    Ok(addresses.and(rewrite::rewrite_v6(outer, Addr::from_words(outer.source), from)?))
}
