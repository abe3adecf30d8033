//! Who has a VIP? Asked before anything is attached, and told to all hosts when it is here: by ARP or neighbour discovery.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::addr::Mac;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{arp, nd};
use crate::packet;

/// Probes sent: PROBE_NUM of RFC 5227 section 1.1.
const PROBES: u32 = 3;
/// Between two probes, and after the last. RFC 5227 waits 1 to 2 s and RFC 4862 one, for media that lose frames and
/// stacks that sleep; a switched network answers within a millisecond, and a start or reload waits for this.
const PAUSE: Duration = Duration::from_millis(50);
/// Shortest Ethernet frame without FCS.
pub(super) const MIN_FRAME: usize = 60;

/// Asks on an interface who has `address`, for at most [`PROBES`] × [`PAUSE`].
///
/// Answers the MAC of a host that claims it, by an answer or an announcement; MACs in `own` are ourselves.
///
/// # Errors
/// No packet socket (CAP_NET_RAW is missing), or the interface is down.
pub async fn owner(ifindex: u32, mac: Mac, own: &[Mac], address: IpAddr) -> io::Result<Option<Mac>> {
    let protocol = if address.is_ipv4() { libc::ETH_P_ARP } else { libc::ETH_P_IPV6 };
    let socket = Arc::new(packet_socket(ifindex, protocol as u16)?);
    let found = ask(&socket, mac, own, address).await;
    // See `packet`: this would wait.
    spawn_blocking(move || drop(socket));
    found
}

async fn ask(socket: &Arc<File>, mac: Mac, own: &[Mac], address: IpAddr) -> io::Result<Option<Mac>> {
    let shared = Arc::clone(socket);
    // SAFETY: the `File` owns an open descriptor and nobody takes it out of the `Arc`, of which the `AsyncFd` has one, so
    // that the descriptor stays open and the same until the `AsyncFd` is dropped.
    let readable = unsafe { AsyncFd::register_with_interest(shared, Interest::READABLE) }?;
    let probe = match address {
        IpAddr::V4(v4) => arp::probe(mac, v4).to_vec(),
        IpAddr::V6(v6) => nd::probe(mac, v6),
    };
    for _ in 0..PROBES {
        (&**socket).write_all(&probe)?;
        let until = Instant::now() + PAUSE;
        while let Ok(ready) = timeout_at(until, readable.readable()).await {
            let mut frame = [0u8; 128];
            match ready?.try_io(|_| (&**socket).read(&mut frame)) {
                Ok(Ok(length)) => {
                    if let Some(claimant) =
                        claimant_in(&frame[..length], address).filter(|mac| !own.contains(mac))
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

/// The frames by which every host learns that `address` is at `mac`: gratuitous ARP as request and as reply, for there are
/// hosts that heed only one of them, or an unsolicited neighbour advertisement.
pub fn announcements(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => arp::announcements(mac, v4).into(),
        IpAddr::V6(v6) => vec![nd::announcement(mac, v6)],
    }
}

/// The MAC that claims `address` in an ARP or neighbour discovery frame, by an answer or an announcement; of a group or of
/// nobody it is no claim.
pub fn claimant_in(frame: &[u8], address: IpAddr) -> Option<Mac> {
    let claimant = match address {
        IpAddr::V4(v4) => arp::claimant(frame, v4),
        IpAddr::V6(v6) => nd::claimant(frame, v6),
    };
    claimant.filter(|mac| !mac.is_unknown() && !mac.is_group())
}

/// A packet socket that receives packets of one protocol on one interface and sends there.
fn packet_socket(ifindex: u32, protocol: u16) -> io::Result<File> {
    let socket = packet::socket()?;
    packet::bind(&socket, ifindex, protocol)?;
    Ok(File::from(socket))
}
