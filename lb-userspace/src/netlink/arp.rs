//! ARP of our own: does another host answer for a VIP already (address probes of RFC 5227 section 2.1.1, sent before
//! anything is attached), and telling all hosts where it is now.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use lb_common::addr::Mac;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, timeout_at},
};

/// Probes sent: PROBE_NUM of RFC 5227 section 1.1.
const PROBES: u32 = 3;
/// Between two probes, and after the last. RFC 5227 waits 1 to 2 s, for media that lose frames and stacks that sleep;
/// a switched network answers within a millisecond, and every start waits for this.
const PAUSE: Duration = Duration::from_millis(200);

/// `ETH_P_ARP`, network order.
const ETH_P_ARP_BE: u16 = (libc::ETH_P_ARP as u16).to_be();
/// Octets of an Ethernet header and an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP_FRAME: usize = 42;
/// Shortest Ethernet frame without FCS.
const MIN_FRAME: usize = 60;

/// Asks on an interface who has `address`, for at most [`PROBES`] × [`PAUSE`].
///
/// Answers the MAC of a host that claims it, by an answer or an announcement; MACs in `own` are ourselves.
///
/// # Errors
/// No packet socket (CAP_NET_RAW is missing), or the interface is down.
pub async fn owner(ifindex: u32, mac: Mac, own: &[Mac], address: Ipv4Addr) -> io::Result<Option<Mac>> {
    let socket = packet_socket(ifindex)?;
    // SAFETY: the `File` owns an open descriptor, is moved into the `AsyncFd`, and is only borrowed from it (`get_ref`),
    // so that the descriptor stays open and the same until the `AsyncFd` is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    let probe = probe(mac, address);
    for _ in 0..PROBES {
        socket.get_ref().write_all(&probe)?;
        let until = Instant::now() + PAUSE;
        while let Ok(ready) = timeout_at(until, socket.readable()).await {
            let mut frame = [0u8; 128];
            match ready?.try_io(|socket| socket.get_ref().read(&mut frame)) {
                Ok(Ok(length)) => {
                    if let Some(claimant) =
                        claimant(&frame[..length], address).filter(|mac| !own.contains(mac))
                    {
                        return Ok(Some(claimant));
                    }
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
    Ok(None)
}

/// Tells every host on an interface that `address` is at `mac`: gratuitous ARP in both its forms, since some hosts take
/// in only requests and some only replies (RFC 5227 section 3).
///
/// # Errors
/// No packet socket, or the interface is down.
pub fn announce(ifindex: u32, mac: Mac, address: Ipv4Addr) -> io::Result<()> {
    let mut socket = packet_socket(ifindex)?;
    for operation in [1, 2] {
        let mut frame = probe(mac, address);
        frame[21] = operation;
        frame[28..32].copy_from_slice(&address.octets());
        if operation == 2 {
            frame[32..38].fill(0xff);
        }
        socket.write_all(&frame)?;
    }
    Ok(())
}

/// An ARP request for `address` from nobody (sender address 0.0.0.0), so that no cache is touched by it.
fn probe(mac: Mac, address: Ipv4Addr) -> [u8; MIN_FRAME] {
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
fn claimant(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let frame: &[u8; ARP_FRAME] = frame.first_chunk()?;
    let arp_for_ipv4 = frame[12..20] == [8, 6, 0, 1, 8, 0, 6, 4];
    let claims = frame[28..32] == address.octets();
    if !arp_for_ipv4 || !claims {
        return None;
    }
    frame[22..28].first_chunk().map(|octets| Mac::new(*octets))
}

/// A packet socket that receives the ARP frames of one interface and sends on it.
fn packet_socket(ifindex: u32) -> io::Result<File> {
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, i32::from(ETH_P_ARP_BE)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() has just returned this descriptor, so it is open and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ETH_P_ARP_BE,
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer and length are those of `address`, a sockaddr_ll that lives across the call, which only reads it.
    let bound = unsafe {
        libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(socket))
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
