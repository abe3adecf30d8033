//! Neighbour discovery of our own (RFC 4861): is an address free (RFC 4862 section 5.4), announcements, and the groups that
//! solicitations for an address are sent to.

use std::net::Ipv6Addr;

use lb_common::{addr::Mac, checksum};

/// Everybody on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ICMPv6 types.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Next header ICMPv6.
const ICMPV6: u8 = 58;
/// The hop limit of all neighbour discovery: no router passed it on.
const HOP_LIMIT: u8 = 255;
/// Where the IPv6 header, the message, and the message's target start in an untagged frame.
const L3: usize = 14;
const MESSAGE: usize = L3 + 40;
const TARGET: usize = MESSAGE + 8;

/// The group that solicitations for an address are sent to (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | (address.to_bits() & 0xff_ffff))
}

/// A solicitation for `address` from nobody, so that no cache is touched by it.
pub(super) fn probe(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    frame(mac, (Ipv6Addr::UNSPECIFIED, solicited_node(address)), (SOLICITATION, 0), address, &[])
}

/// An advertisement to all nodes that `address` is at `mac`, whatever they have in their caches.
pub(super) fn announcement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let option = [&[2, 1], &mac.octets()[..]].concat();
    frame(mac, (address, ALL_NODES), (ADVERTISEMENT, OVERRIDE), address, &option)
}

/// The sender's MAC of a frame by which a host says that it has `address`, or tries whether it may have it.
pub(super) fn claimant(frame: &[u8], address: Ipv6Addr) -> Option<Mac> {
    let message = frame.get(MESSAGE..TARGET + 16)?;
    let discovery = frame[12..14] == [0x86, 0xdd] && frame[L3 + 6..L3 + 8] == [ICMPV6, HOP_LIMIT];
    let source = &frame[L3 + 8..L3 + 24];
    let claims = match message[0] {
        ADVERTISEMENT => true,
        SOLICITATION => source == [0; 16] || source == address.octets(),
        _ => false,
    };
    if !discovery || !claims || message[8..] != address.octets() {
        return None;
    }
    frame[6..12].first_chunk().map(|octets| Mac::new(*octets))
}

fn frame(
    mac: Mac,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    (kind, flags): (u8, u8),
    target: Ipv6Addr,
    option: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend(option);
    // At most 32 octets.
    let length = [0, message.len() as u8];
    let pseudo =
        [&source.octets()[..], &destination.octets(), &[0, 0], &length, &[0, 0, 0, ICMPV6], &message];
    let pseudo = pseudo.concat();
    let words = pseudo.chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])));
    let check = !checksum::fold(words.sum());
    message[2..4].copy_from_slice(&check.to_be_bytes());

    let group = destination.octets();
    let mut frame = [&[0x33, 0x33], &group[12..], &mac.octets()[..]].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length);
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0xab, 0x100);
    const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 9]);

    #[test]
    fn frames_are_as_the_rfc_has_them() {
        assert_eq!(solicited_node(VIP), "ff02::1:ffab:100".parse::<Ipv6Addr>().unwrap());
        let probe = probe(OTHER, VIP);
        assert_eq!(probe[..14], [0x33, 0x33, 0xff, 0xab, 1, 0, 2, 0, 0, 0, 0, 9, 0x86, 0xdd]);
        assert_eq!((probe.len(), probe[18..20].to_vec()), (78, vec![0, 24]));
        let announcement = announcement(OTHER, VIP);
        assert_eq!(announcement[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!((announcement.len(), announcement[58]), (86, 0x20));
        assert_eq!(announcement[78..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn who_advertises_or_tries_the_vip_claims_it() {
        assert_eq!(claimant(&announcement(OTHER, VIP), VIP), Some(OTHER));
        assert_eq!(claimant(&probe(OTHER, VIP), VIP), Some(OTHER));
        let near = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0xab, 0x101);
        assert_eq!(claimant(&announcement(OTHER, near), VIP), None);
        let mut asks = probe(OTHER, VIP);
        asks[L3 + 8] = 0xfd;
        assert_eq!(claimant(&asks, VIP), None, "a host that only asks");
        assert_eq!(claimant(&announcement(OTHER, VIP)[..TARGET + 15], VIP), None);
    }
}
