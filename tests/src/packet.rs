//! Raw frames in and out of a host's interface.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::Host;

/// Longest frame received: larger than any MTU here.
const MAX_FRAME: usize = 65_536;

/// A frame seen at an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// From the destination MAC on. The kernel takes the outermost VLAN tag off before a socket sees it.
    pub bytes: Vec<u8>,
    /// Whether the host itself sent it.
    pub outgoing: bool,
}

/// A raw socket on a host's interface. It sees what the kernel gets, so not what an XDP program there consumes.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens one that sees frames of all protocols.
    ///
    /// # Errors
    ///
    /// If the interface is gone, or raw sockets are not allowed.
    pub fn open(host: &Host) -> Result<Self> {
        host.run(|| Self::open_here(host.interface()))
            .with_context(|| format!("raw socket on {} of {}", host.interface(), host.name()))
    }

    /// Sends a frame, from the destination MAC on.
    ///
    /// # Errors
    ///
    /// If the interface is down, or the frame is longer than its MTU.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the kernel reads `frame.len()` bytes of `frame`, which outlives the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("sending a frame of {} bytes", frame.len()));
        }
        Ok(())
    }

    /// The first frame within `limit` that the predicate takes, `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the socket fails, as when the interface goes down.
    pub fn receive(&self, limit: Duration, mut wanted: impl FnMut(&Frame) -> bool) -> Result<Option<Frame>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            match self.next(left)? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                _ => {}
            }
        }
    }

    /// Every frame within `duration` that the predicate takes.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub fn capture(&self, duration: Duration, mut wanted: impl FnMut(&Frame) -> bool) -> Result<Vec<Frame>> {
        let deadline = Instant::now() + duration;
        let mut frames = Vec::new();
        while let Some(frame) =
            self.receive(deadline.saturating_duration_since(Instant::now()), &mut wanted)?
        {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn open_here(interface: &str) -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a plain system call without pointers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the call succeeded, so this is a new file descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        // SAFETY: a C struct of integers and an array of them, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index_of(interface)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes, the size of `address`, which outlives the call.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(Self { fd })
    }

    /// The next frame, `None` if there is none within `limit`.
    fn next(&self, limit: Duration) -> Result<Option<Frame>> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // At least 1 ms, so that a fraction does not become a busy loop.
        let milliseconds = i32::try_from(limit.as_millis().max(1)).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => return Ok(None),
            ready if ready < 0 => return interrupted(),
            _ => {}
        }

        let mut bytes = vec![0; MAX_FRAME];
        // SAFETY: a C struct of integers and an array of them, for which zero is valid.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes.len()` bytes to `bytes` and `from_length` bytes to `from`; all
        // outlive the call.
        let length = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_length,
            )
        };
        let Ok(length) = usize::try_from(length) else { return interrupted() };
        bytes.truncate(length);
        Ok(Some(Frame { bytes, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING }))
    }
}

/// A wait cut short by a signal is no failure; any other error is.
fn interrupted() -> Result<Option<Frame>> {
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        error => Err(error).context("receiving a frame"),
    }
}

/// The MAC address of a host's interface.
pub(crate) fn mac_of(host: &Host) -> Result<[u8; 6]> {
    // Not from /sys, which shows the namespace it was mounted in.
    let text = host.output("ip", &["-j", "link", "show", "dev", host.interface()])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let address = links[0]["address"].as_str().with_context(|| format!("no address in {text}"))?;
    let bytes =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    bytes.try_into().ok().with_context(|| format!("not a MAC address: {address}"))
}

fn index_of(interface: &str) -> Result<i32> {
    let name = CString::new(interface)?;
    // SAFETY: `name` is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("interface {interface}"));
    }
    Ok(i32::try_from(index)?)
}
