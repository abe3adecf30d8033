//! What the kernel says of an interface: which XDP program runs on it, how, and by which driver.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya::programs::{loaded_links, loaded_programs};
use aya_obj::generated::XDP_FLAGS_DRV_MODE;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::AttachedMode;

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// How it is attached.
    pub(super) mode: AttachedMode,
    /// The kernel's number of it.
    pub(super) program_id: u32,
}

/// The XDP program that runs on an interface.
///
/// # Errors
///
/// The kernel's; `ENODEV` if there is no such interface.
pub(super) fn running(ifindex: u32) -> io::Result<Option<Running>> {
    let attributes = query(ifindex)?;
    let mut mode = None;
    let mut program_id = 0;
    let xdp = attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    for attribute in xdp.flatten() {
        match attribute {
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(AttachedMode::Generic),
            LinkXdp::Attached(XdpAttached::None) => {}
            LinkXdp::Attached(_) => mode = Some(AttachedMode::Native),
            LinkXdp::ProgId(id) => program_id = *id,
            _ => {}
        }
    }
    Ok(mode.map(|mode| Running { mode, program_id }))
}

/// Name of the driver, or the kind of a device that has none; "unknown" if the kernel does not say.
pub(super) fn driver(ifindex: u32, name: &str) -> String {
    // First what the kernel says of this namespace's interface: sysfs may be another namespace's.
    let kind = query(ifindex).ok().and_then(|attributes| {
        attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.into_iter().find_map(|info| match info {
                LinkInfo::Kind(kind) => Some(kind.to_string()),
                _ => None,
            }),
            _ => None,
        })
    });
    if let Some(kind) = kind {
        return kind;
    }
    let link = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok();
    let driver = link.as_deref().and_then(std::path::Path::file_name);
    driver.map_or_else(|| "unknown".into(), |driver| driver.to_string_lossy().into_owned())
}

/// A program's name and number, as `bpftool prog` shows them.
pub(super) fn program_name(id: u32) -> String {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    match program.as_ref().and_then(|program| program.name_as_str()) {
        Some(name) if !name.is_empty() => format!("`{name}` (id {id})"),
        _ => format!("id {id}"),
    }
}

/// The command that takes a program off an interface.
pub(super) fn removal(name: &str, running: Running) -> String {
    let link = loaded_links().filter_map(Result::ok).find(|link| link.program_id() == running.program_id);
    match (link, running.mode) {
        (Some(link), _) => format!("bpftool link detach id {}", link.id()),
        (None, AttachedMode::Native) => format!("ip link set dev {name} xdp off"),
        (None, AttachedMode::Generic) => format!("ip link set dev {name} xdpgeneric off"),
    }
}

/// Attaches a program in the driver, without a link: until another replaces it, or the interface goes.
///
/// # Errors
///
/// The kernel's.
pub(super) fn attach(ifindex: u32, program: &OwnedFd) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let attached = vec![LinkXdp::Fd(program.as_raw_fd()), LinkXdp::Flags(XDP_FLAGS_DRV_MODE)];
    link.attributes.push(LinkAttribute::Xdp(attached));
    match ask(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK)? {
        NetlinkPayload::Error(answer) if answer.code.is_some() => Err(answer.to_io()),
        NetlinkPayload::Error(_) => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of another kind")),
    }
}

fn query(ifindex: u32) -> io::Result<Vec<LinkAttribute>> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    match ask(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)? {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link.attributes),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of another kind")),
    }
}

/// One question, and the kernel's answer.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&buffer, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(answer.payload)
}
