//! Whole frames, in and out: received before netfilter and sent past it and past the interface's queues, so that neither a
//! firewall nor a flood of other traffic keeps an advertisement back.

use std::{
    io,
    net::{Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use lb_common::election;
use lb_core::vrrp::{Family, packet};

use crate::packet as socket;

/// Longest frame that is looked at: 255 IPv6 addresses and all headers fit.
pub(super) const MAX_FRAME: usize = 4352;

/// Packet sockets (packet(7)) on one interface, one for each family.
#[derive(Debug)]
pub(super) struct Sockets {
    ifindex: u32,
    receive: Vec<OwnedFd>,
    send: OwnedFd,
    /// Joined, so that switches that watch multicast listeners (RFC 4541) let IPv6's group through. IPv4's goes everywhere.
    _member: Option<UdpSocket>,
}

impl Sockets {
    /// # Errors
    /// The interface is gone or has no IPv6, or CAP_NET_RAW is missing.
    pub(super) fn open(ifindex: u32, families: &[Family], is_multicast: bool) -> io::Result<Self> {
        let receive = families
            .iter()
            .map(|family| receiver(ifindex, *family, is_multicast))
            .collect::<Result<_, _>>()?;
        let send = socket::socket()?;
        set_option(&send, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)?;
        let needs_mld = is_multicast && families.contains(&Family::V6);
        let member = if needs_mld {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.join_multicast_v6(&Ipv6Addr::from_octets(*election::GROUP_V6.octets()), ifindex)?;
            Some(socket)
        } else {
            None
        };
        Ok(Self { ifindex, receive, send, _member: member })
    }

    /// The next frame, from whichever socket has one; octets of it, cut at the buffer's end.
    pub(super) fn receive(&self, frame: &mut [u8; MAX_FRAME]) -> Option<usize> {
        self.receive.iter().find_map(|socket| {
            // SAFETY: the buffer is exclusively ours and as long as is said.
            let length = unsafe {
                libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
            };
            // An error is an empty queue, or an interface that went down: what is to be done about that, netlink tells.
            usize::try_from(length).ok()
        })
    }

    /// Sends a frame on the interface of the election.
    ///
    /// # Errors
    /// It did not go out: no carrier, the interface is down, or its ring is full.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_on(self.ifindex, frame)
    }

    /// Sends a frame on any interface.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn send_on(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        socket::send(&self.send, ifindex, frame)
    }

    /// Waits until a frame or a wake has come, or the time is over.
    pub(super) fn wait(&self, waker: &Waker, timeout: Option<Duration>) {
        let readable = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polled: Vec<_> = self.receive.iter().map(|socket| readable(socket.as_raw_fd())).collect();
        polled.push(readable(waker.0.as_raw_fd()));
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the list and the time live across the call; no signal mask is given. A failure is a signal's: the caller
        // goes round.
        unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout, std::ptr::null()) };
        waker.take();
    }
}

/// Wakes the thread (eventfd(2)).
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: it takes two integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: eventfd() has just returned this descriptor, so it is open and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn wake(&self) {
        let one = 1u64;
        // SAFETY: 8 octets of a number that lives across the call. It fails only where 2^64 - 2 wakes are pending.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn take(&self) {
        let mut count = 0u64;
        // SAFETY: 8 octets of a number that is exclusively ours. It fails if there was no wake.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// A socket that receives what is VRRP of one family and nothing else.
fn receiver(ifindex: u32, family: Family, is_multicast: bool) -> io::Result<OwnedFd> {
    let protocol = match family {
        Family::V4 => libc::ETH_P_IP,
        Family::V6 => libc::ETH_P_IPV6,
    };
    // First the filter, then the traffic.
    let socket = socket::socket()?;
    filter(&socket, family)?;
    socket::bind(&socket, ifindex, protocol as u16)?;
    if is_multicast {
        let mut mr_address = [0; 8];
        mr_address[..6].copy_from_slice(packet::group_mac(family).octets());
        let request = libc::packet_mreq {
            mr_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
    }
    Ok(socket)
}

/// Lets through what has VRRP's protocol number, and nothing that this host sent itself.
fn filter(socket: &OwnedFd, family: Family) -> io::Result<()> {
    let protocol_at = match family {
        Family::V4 => 14 + 9,
        Family::V6 => 14 + 6,
    };
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // BPF_LD | BPF_B | BPF_ABS: the packet's type, an ancillary value (SKF_AD_OFF + SKF_AD_PKTTYPE, linux/filter.h).
        step(0x30, 0, 0, (-0x1000i32 + 4) as u32),
        // BPF_JMP | BPF_JEQ | BPF_K.
        step(0x15, 3, 0, u32::from(libc::PACKET_OUTGOING)),
        step(0x30, 0, 0, protocol_at),
        step(0x15, 0, 1, u32::from(election::PROTOCOL)),
        // BPF_RET | BPF_K: all of it, or nothing.
        step(0x06, 0, 0, u32::MAX),
        step(0x06, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set_option<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a value that lives across the call, which only reads it; pointers in it
    // (`sock_fprog`) are to memory of the caller that does too.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
