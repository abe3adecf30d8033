//! ARP frames of our own: address probes (RFC 5227 section 2.1.1) and announcements.

use std::net::Ipv4Addr;

use lb_common::addr::Mac;

use super::vip::MIN_FRAME;

/// Octets of an Ethernet header and an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP_FRAME: usize = 42;

/// Gratuitous ARP in both its forms, since some hosts take in only requests and some only replies (RFC 5227 section 3).
pub(super) fn announcements(mac: Mac, address: Ipv4Addr) -> [Vec<u8>; 2] {
    [1, 2].map(|operation| {
        let mut frame = probe(mac, address);
        frame[21] = operation;
        frame[28..32].copy_from_slice(&address.octets());
        if operation == 2 {
            frame[32..38].fill(0xff);
        }
        frame.to_vec()
    })
}

/// An ARP request for `address` from nobody (sender address 0.0.0.0), so that no cache is touched by it.
pub(super) fn probe(mac: Mac, address: Ipv4Addr) -> [u8; MIN_FRAME] {
    let mut frame = [0u8; MIN_FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(mac.octets());
    frame[12..14].copy_from_slice(&(libc::ETH_P_ARP as u16).to_be_bytes());
    // Ethernet, IPv4, their address lengths, request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(mac.octets());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// The sender's MAC of an ARP packet, request or answer, whose sender's address is `address`.
pub(super) fn claimant(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let frame: &[u8; ARP_FRAME] = frame.first_chunk()?;
    let arp_for_ipv4 = frame[12..20] == [8, 6, 0, 1, 8, 0, 6, 4];
    let claims = frame[28..32] == address.octets();
    if !arp_for_ipv4 || !claims {
        return None;
    }
    frame[22..28].first_chunk().map(|octets| Mac::new(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
    const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 9]);

    fn answer(sender: Ipv4Addr) -> [u8; MIN_FRAME] {
        let mut frame = probe(OTHER, Ipv4Addr::new(10, 0, 1, 2));
        frame[21] = 2;
        frame[28..32].copy_from_slice(&sender.octets());
        frame
    }

    #[test]
    fn who_names_the_vip_as_its_own_claims_it() {
        assert_eq!(claimant(&answer(VIP), VIP), Some(OTHER));
        assert_eq!(claimant(&answer(Ipv4Addr::new(10, 0, 1, 3)), VIP), None);
    }

    #[test]
    fn a_question_claims_nothing_and_a_cut_frame_says_nothing() {
        assert_eq!(claimant(&probe(OTHER, VIP), VIP), None);
        assert_eq!(claimant(&answer(VIP)[..ARP_FRAME - 1], VIP), None);
    }
}
