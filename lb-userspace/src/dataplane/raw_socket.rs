//! Sending whole frames.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// A packet socket that receives nothing.
#[derive(Debug)]
pub(super) struct RawSocket(OwnedFd);

impl RawSocket {
    /// # Errors
    ///
    /// The kernel's: CAP_NET_RAW is missing.
    pub(super) fn open() -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket() takes three integers and touches no memory of ours. Protocol 0 receives nothing (packet(7)).
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() has just returned this descriptor, so it is open and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a frame out of an interface.
    ///
    /// # Errors
    ///
    /// The kernel's: no such interface, or it is down, or its queue is full.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: both pointers and lengths are those of slices and structs that live across the call, which only reads
        // them.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
