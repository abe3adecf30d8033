//! Advertisements as octets.
//!
//! ```text
//!  version 3                                     version 2
//!  0  version 3, type 1       1  VRID            0  version 2, type 1       1  VRID
//!  2  priority                3  addresses       2  priority                3  addresses
//!  4  reserved (4 bits), interval in 10 ms (12)  4  authentication type     5  interval in s
//!  6  checksum                                   6  checksum
//!  8  the addresses, 4 or 16 octets each         8  the addresses, 4 octets each; 8 octets of authentication data
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{addr::Mac, checksum::fold, election};

use super::{Checksum, Family, Reject, Version, VirtualRouter};

/// Octets before the addresses.
pub const HEADER_LEN: usize = 8;
/// Authentication data of version 2.
const AUTH_LEN: usize = 8;
/// The priority by which an active node gives up (RFC 9568 section 5.2.4).
pub const STOPPED: u8 = 0;
/// Type 1, the only one.
const ADVERTISEMENT: u8 = 1;
/// Authentication types of version 2 (RFC 2338 section 5.3.6).
const AUTH_NONE: u8 = 0;
const AUTH_PASSWORD: u8 = 1;
/// Length of an Ethernet header without tags.
const ETHERNET_LEN: usize = 14;
/// Differentiated services of all routing protocols: network control (RFC 4594 section 3.2).
const NETWORK_CONTROL: u8 = 0xc0;

/// What an advertisement said that is one of this pair's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Who advertises.
    pub source: IpAddr,
    /// 0: the sender gives up.
    pub priority: u8,
    /// What the sender announced; longer than zero.
    pub interval: Duration,
    /// Over IPv4 in version 3: whether the checksum counted a pseudo-header.
    pub checksum: Checksum,
    /// The addresses are others than ours; accepted from a peer of our own kind only.
    pub other_list: bool,
}

impl Advertisement {
    /// The family that it is about.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }
}

/// An IP packet of the protocol VRRP, cut out of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// What follows the IP header, without Ethernet's padding.
    pub message: &'a [u8],
}

/// The message that a node sends to `destination`, its checksum included. At most 255 addresses are told.
pub fn message(router: &VirtualRouter, priority: u8, interval: Duration, destination: IpAddr) -> Vec<u8> {
    let count = u8::try_from(router.addresses.len()).unwrap_or(u8::MAX);
    let mut message = match router.version {
        Version::V3 => {
            // 12 bits, checked by the config: 40.95 s at most.
            let centiseconds = u16::try_from(interval.as_millis() / 10).unwrap_or(u16::MAX).min(0x0fff);
            let [high, low] = centiseconds.to_be_bytes();
            vec![3 << 4 | ADVERTISEMENT, router.router_id, priority, count, high, low, 0, 0]
        }
        Version::V2 => {
            let kind = if router.auth_pass.is_some() { AUTH_PASSWORD } else { AUTH_NONE };
            let seconds = u8::try_from(interval.as_secs()).unwrap_or(u8::MAX);
            vec![2 << 4 | ADVERTISEMENT, router.router_id, priority, count, kind, seconds, 0, 0]
        }
    };
    for address in router.addresses.iter().take(count.into()) {
        match address {
            IpAddr::V4(v4) => message.extend(v4.octets()),
            IpAddr::V6(v6) => message.extend(v6.octets()),
        }
    }
    if router.version == Version::V2 {
        message.extend(router.auth_pass.unwrap_or_default());
    }
    let pseudo = router.version == Version::V3
        && (router.family() == Family::V6 || router.checksum == Checksum::PseudoHeader);
    let header = if pseudo { pseudo_header(router.source, destination, message.len()) } else { 0 };
    let check = !fold(header + u64::from(sum(&message)));
    message[6..8].copy_from_slice(&check.to_be_bytes());
    message
}

/// The message in its frame: to the group, or to a peer whose MAC is `to`.
pub fn frame(
    router: &VirtualRouter,
    from: Mac,
    to: (IpAddr, Mac),
    priority: u8,
    interval: Duration,
) -> Vec<u8> {
    let message = message(router, priority, interval, to.0);
    let mut frame = [*to.1.octets(), *from.octets()].concat();
    // At most 8 + 255 × 16 + 8 octets.
    let length = message.len() as u16;
    match (router.source, to.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, NETWORK_CONTROL];
            header.extend((20 + length).to_be_bytes());
            // Identification, flags and offset: nothing is fragmented (RFC 6864 section 4.1).
            header.extend([0, 0, 0, 0, election::HOP_LIMIT, election::PROTOCOL, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let check = !fold(sum(&header).into());
            header[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend([0x08, 0x00]);
            frame.extend(header);
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            };
            frame.extend([0x86, 0xdd, 0x60 | NETWORK_CONTROL >> 4, NETWORK_CONTROL << 4, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([election::PROTOCOL, election::HOP_LIMIT]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(message);
    frame
}

/// The MAC of a group (RFC 1112 section 6.4, RFC 2464 section 7).
pub fn group_mac(family: Family) -> Mac {
    match family {
        Family::V4 => Mac::new([0x01, 0x00, 0x5e, 0, 0, 18]),
        Family::V6 => Mac::new([0x33, 0x33, 0, 0, 0, 0x12]),
    }
}

/// The VRRP packet in an untagged frame; `None` if it holds none, or not the whole of it.
pub fn in_frame(frame: &[u8]) -> Option<Datagram<'_>> {
    let packet = frame.get(ETHERNET_LEN..)?;
    match frame.get(12..ETHERNET_LEN)? {
        [0x08, 0x00] => {
            let header = packet.first_chunk::<20>()?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            if header[0] >> 4 != 4 || header_len < 20 || is_fragment || header[9] != election::PROTOCOL {
                return None;
            }
            let address = |at: usize| {
                Ipv4Addr::from_octets([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            Some(Datagram {
                source: address(12).into(),
                destination: address(16).into(),
                hop_limit: header[8],
                message: packet.get(header_len..total)?,
            })
        }
        [0x86, 0xdd] => {
            let header = packet.first_chunk::<40>()?;
            if header[0] >> 4 != 6 || header[6] != election::PROTOCOL {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let (source, rest) = header[8..].split_first_chunk::<16>()?;
            Some(Datagram {
                source: Ipv6Addr::from_octets(*source).into(),
                destination: Ipv6Addr::from_octets(*rest.first_chunk()?).into(),
                hop_limit: header[7],
                message: packet.get(40..40 + length)?,
            })
        }
        _ => None,
    }
}

/// Reads an advertisement of this pair. `is_known` tells of the sender that it is a node of our own kind, whose list of
/// addresses may differ.
///
/// # Errors
/// What is wrong with it. [`Reject::Own`] is this node's own, come back; [`Reject::OtherRouter`] is none of our business.
pub fn read(
    router: &VirtualRouter,
    datagram: &Datagram<'_>,
    is_known: bool,
) -> Result<Advertisement, Reject> {
    let Datagram { source, destination, hop_limit, message } = *datagram;
    if source == router.source {
        return Err(Reject::Own);
    }
    let header = message.first_chunk::<HEADER_LEN>().ok_or(Reject::Length(message.len()))?;
    if header[1] != router.router_id {
        return Err(Reject::OtherRouter(header[1]));
    }
    let is_multicast = router.peers.is_empty();
    let expected = if is_multicast { router.family().group() } else { router.source };
    if destination != expected {
        return Err(Reject::Destination { from: source, destination, is_multicast });
    }
    if is_multicast && hop_limit != election::HOP_LIMIT {
        return Err(Reject::HopLimit { from: source, hop_limit });
    }
    if !is_multicast && !router.peers.contains(&source) {
        return Err(Reject::UnknownPeer(source));
    }
    let version = match router.version {
        Version::V2 => 2,
        Version::V3 => 3,
    };
    if header[0] >> 4 != version {
        return Err(Reject::Version { from: source, theirs: header[0] >> 4, ours: version });
    }
    if header[0] & 0xf != ADVERTISEMENT {
        return Err(Reject::Type(header[0] & 0xf));
    }
    let (width, auth_len) = match (router.family(), router.version) {
        (Family::V6, _) => (16, 0),
        (Family::V4, Version::V3) => (4, 0),
        (Family::V4, Version::V2) => (4, AUTH_LEN),
    };
    let count = usize::from(header[3]);
    if message.len() != HEADER_LEN + count * width + auth_len {
        return Err(Reject::Length(message.len()));
    }
    let checksum = whole(router, datagram).ok_or(Reject::Checksum(source))?;
    let (list, auth) = message[HEADER_LEN..].split_at(count * width);
    let interval = match router.version {
        Version::V3 => {
            let centiseconds = u16::from_be_bytes([header[4], header[5]]) & 0x0fff;
            Duration::from_millis(u64::from(centiseconds) * 10)
        }
        Version::V2 => {
            check_auth(router, source, header[4], auth)?;
            let theirs = Duration::from_secs(header[5].into());
            if theirs != router.interval {
                return Err(Reject::Interval { from: source, theirs, ours: router.interval });
            }
            theirs
        }
    };
    if interval.is_zero() {
        return Err(Reject::NoInterval(source));
    }
    let ours = router.addresses.iter().copied();
    let mut theirs = list.chunks_exact(width).map(|octets| match *octets {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => octets
            .first_chunk()
            .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |o| Ipv6Addr::from_octets(*o).into()),
    });
    // In any order: only IPv6's first has a meaning.
    let first = theirs.clone().next();
    let same = theirs.len() == router.addresses.len()
        && ours.clone().all(|ours| theirs.clone().any(|theirs| theirs == ours));
    if !same && !is_known {
        let missing = ours.clone().find(|ours| !theirs.clone().any(|theirs| theirs == *ours));
        let foreign = theirs.find(|theirs| !router.addresses.contains(theirs));
        return Err(Reject::List { from: source, missing, foreign });
    }
    if let Some(IpAddr::V6(first)) = first
        && !first.is_unicast_link_local()
    {
        return Err(Reject::NotLinkLocal { from: source, first });
    }
    Ok(Advertisement { source, priority: header[2], interval, checksum, other_list: !same })
}

fn check_auth(router: &VirtualRouter, source: IpAddr, kind: u8, auth: &[u8]) -> Result<(), Reject> {
    let expected = if router.auth_pass.is_some() { AUTH_PASSWORD } else { AUTH_NONE };
    if kind != expected {
        return Err(Reject::AuthType { from: source, theirs: kind, ours: expected });
    }
    match router.auth_pass {
        Some(pass) if auth != pass => Err(Reject::Password(source)),
        _ => Ok(()),
    }
}

/// In which of the known ways the checksum is right. keepalived before 1.3.7 counted the group's address where it sent to a
/// peer.
fn whole(router: &VirtualRouter, datagram: &Datagram<'_>) -> Option<Checksum> {
    let Datagram { source, destination, message, .. } = *datagram;
    let message_sum = u64::from(sum(message));
    let fits = |header: u64| fold(header + message_sum) == 0xffff;
    let with = |destination| fits(pseudo_header(source, destination, message.len()));
    if router.version == Version::V3
        && (with(destination) || (!router.peers.is_empty() && with(Family::of(source).group())))
    {
        return Some(Checksum::PseudoHeader);
    }
    (Family::of(source) == Family::V4 && fits(0)).then_some(Checksum::Message)
}

/// The sum of a pseudo-header (RFC 8200 section 8.1; for IPv4 the same fields, RFC 5798 section 5.2.8).
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u64 {
    let words = |address| {
        u64::from(match address {
            IpAddr::V4(v4) => sum(&v4.octets()),
            IpAddr::V6(v6) => sum(&v6.octets()),
        })
    };
    words(source) + words(destination) + u64::from(election::PROTOCOL) + length as u64
}

/// The one's complement sum of the words of some octets, in host order; of an odd number the last has a zero after it.
pub fn sum(octets: &[u8]) -> u16 {
    let words =
        octets.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    fold(words.sum())
}
