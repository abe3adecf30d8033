//! Packet sockets (packet(7)): whole frames, in and out.
//!
//! The kernel ends one only after an RCU grace period: 6 to 16 ms on an idle machine, and seconds on one whose CPUs are all
//! busy. So those of the agent's loop stay open, see [`Sender`], or are closed elsewhere.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tracing::warn;

/// Sends frames by a socket that receives nothing, is opened when it is needed first, and stays open.
#[derive(Debug, Default)]
pub(crate) struct Sender(Option<OwnedFd>);

impl Sender {
    /// Sends a frame out of an interface.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, which is logged too; or those of [`send`].
    pub(crate) fn send(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let socket = match &mut self.0 {
            Some(socket) => socket,
            none => {
                let opened = socket().inspect_err(|error| {
                    warn!(%error, "no packet socket: VIPs are not announced, and silent ends of flows not told of their end");
                });
                none.insert(opened?)
            }
        };
        send(socket, ifindex, frame)
    }
}

/// A socket that receives nothing until it is bound; it does not block.
///
/// # Errors
/// CAP_NET_RAW is missing.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() has just returned this descriptor, so it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From now on the socket receives packets of one protocol (an EtherType; 0: none) on one interface, and sends there.
///
/// # Errors
/// There is no such interface.
pub(crate) fn bind(socket: &OwnedFd, ifindex: u32, protocol: u16) -> io::Result<()> {
    let address = address(ifindex, protocol)?;
    // SAFETY: the pointer and length are those of a sockaddr_ll that lives across the call, which only reads it.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a frame out of an interface.
///
/// # Errors
/// No such interface, or it is down, or its queue is full.
pub(crate) fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let address = address(ifindex, 0)?;
    // SAFETY: both pointers and lengths are those of a slice and a struct that live across the call, which only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address(ifindex: u32, protocol: u16) -> io::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    })
}
