//! What an interface leaves to the card, or in a veth's case to the other end: set as `ethtool -K` sets it.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

/// Commands of `linux/ethtool.h`, each with a word: 1 on, 0 off.
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GTXCSUM: u32 = 0x16;
/// With a word of flags.
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Makes the near end of a veth send what XDP at the far end can work on: whole checksums, and no segment that is longer
/// than the MTU. What comes in is joined before the stack has it.
///
/// # Errors
/// The kernel's.
pub(super) fn for_xdp_at_the_other_end(interface: &str) -> io::Result<()> {
    // Any socket will do; nothing is sent.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for (command, data) in [(ETHTOOL_STXCSUM, 0), (ETHTOOL_STSO, 0), (ETHTOOL_SGSO, 0), (ETHTOOL_SGRO, 1)] {
        set(&socket, interface, Value { command, data })?;
    }
    Ok(())
}

/// Whether an interface leaves the checksums of what it sends to the hardware.
///
/// # Errors
/// The kernel's.
pub(crate) fn leaves_checksums(interface: &str) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut value = Value { command: ETHTOOL_GTXCSUM, data: 0 };
    ask(&socket, interface, &mut value)?;
    Ok(value.data != 0)
}

/// What an interface does to what it receives.
pub(crate) struct Receives {
    /// It joins packets of one connection (LRO).
    pub(crate) lro: bool,
    /// It takes VLAN tags off.
    pub(crate) strips_vlan_tags: bool,
}

/// What an interface does to what it receives.
///
/// # Errors
/// The kernel's.
pub(crate) fn receives(interface: &str) -> io::Result<Receives> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    ask(&socket, interface, &mut value)?;
    let has = |flag: u32| value.data & flag != 0;
    Ok(Receives { lro: has(ETH_FLAG_LRO), strips_vlan_tags: has(ETH_FLAG_RXVLAN) })
}

fn set(socket: &UdpSocket, interface: &str, mut value: Value) -> io::Result<()> {
    ask(socket, interface, &mut value)
}

fn ask(socket: &UdpSocket, interface: &str, value: &mut Value) -> io::Result<()> {
    // SAFETY: all zero is an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last one stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *value).cast();
    // SAFETY: the kernel reads and writes the request and the value that it points to, both of which outlive the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
