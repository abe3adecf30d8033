//! Sending whole frames.

use std::{io, os::fd::OwnedFd};

use crate::packet;

/// A packet socket that receives nothing.
#[derive(Debug)]
pub(super) struct RawSocket(OwnedFd);

impl RawSocket {
    /// # Errors
    ///
    /// The kernel's: CAP_NET_RAW is missing.
    pub(super) fn open() -> io::Result<Self> {
        packet::socket().map(Self)
    }

    /// Sends a frame out of an interface.
    ///
    /// # Errors
    ///
    /// The kernel's: no such interface, or it is down, or its queue is full.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        packet::send(&self.0, ifindex, frame)
    }
}
