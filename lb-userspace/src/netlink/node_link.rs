//! A veth pair of the agent's own, through which clients and members on the node itself are served. XDP sees only what comes
//! in by an interface; what the node's own stack sends into the near end comes in by the far end.
//!
//! The pair outlives the agent, as the data plane does. It is known by the alias of its near end, which names the pin
//! directory of its data plane.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use futures_util::TryStreamExt as _;
use lb_common::addr::Mac;
use lb_core::config::NodeLink;
use netlink_packet_route::{
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage},
    neighbour::NeighbourState,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Link, Mirror, Network, offloads};

/// The pair's two ends.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The end of the node's own stack.
    pub near: &'a Link,
    /// The end that the program is attached to.
    pub far: &'a Link,
}

/// Another interface has one of the pair's names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "interface {0} is there and is no veth pair of etcd-lb's: remove it, or write another name as `node_interface` (\"none\": \
     clients and members on this node are not served)"
)]
pub struct NotOurs(String);

/// The pair, if it is there.
///
/// # Errors
/// Another interface has one of its names.
pub fn find<'a>(mirror: &'a Mirror, names: &NodeLink) -> Result<Option<Ends<'a>>, NotOurs> {
    match (mirror.link_named(&names.near), mirror.link_named(&names.far)) {
        (None, None) => Ok(None),
        (Some(near), Some(far)) if near.veth_peer == Some(far.index) => Ok(Some(Ends { near, far })),
        (Some(other), _) | (None, Some(other)) => Err(NotOurs(other.name.clone())),
    }
}

/// Makes the pair; it is down yet.
///
/// # Errors
/// The kernel's refusal.
pub async fn make(handle: &Handle, names: &NodeLink) -> Result<(), rtnetlink::Error> {
    handle.link().add(LinkVeth::new(&names.near, &names.far).build()).execute().await
}

/// Brings both ends up, with an MTU, as ends that no host is to be reached at: without addresses of their own. What is so
/// already is not touched. Whether anything was.
///
/// # Errors
/// The kernel's refusal.
pub async fn settle(handle: &Handle, ends: &Ends<'_>, mtu: u32, pin_dir: &Path) -> io::Result<bool> {
    let mut touched = false;
    for link in [ends.near, ends.far] {
        let alias = alias(pin_dir);
        if link.up && link.mtu == mtu && link.alias.as_deref() == Some(&*alias) {
            continue;
        }
        touched = true;
        offloads::for_xdp_at_the_other_end(&link.name)?;
        let bare = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let prepared = LinkMessageBuilder::<LinkUnspec>::new()
            .index(link.index)
            .mtu(mtu)
            .alias(alias)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![bare]))
            .build();
        change(handle, prepared).await?;
        // Only then: an address would be made as it comes up.
        change(handle, LinkMessageBuilder::<LinkUnspec>::new().index(link.index).up().build()).await?;
    }
    Ok(touched)
}

async fn change(handle: &Handle, message: LinkMessage) -> io::Result<()> {
    handle.link().set(message).execute().await.map_err(as_io)
}

/// Removes the pair, and with it its routes.
///
/// # Errors
/// The kernel's refusal.
pub async fn remove(handle: &Handle, near: u32) -> Result<(), rtnetlink::Error> {
    handle.link().del(near).execute().await
}

/// Removes the pairs of the data plane that is, or was, pinned in a directory; their names. For whoever takes it away.
///
/// # Errors
/// No runtime, or the kernel refuses.
pub fn remove_all(pin_dir: &Path) -> io::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let network = Network::open().await.map_err(io::Error::other)?;
        let ours: Vec<_> = of_pin_dir(network.mirror(), pin_dir).cloned().collect();
        for near in &ours {
            remove(network.handle(), near.index).await.map_err(as_io)?;
        }
        Ok(ours.into_iter().map(|link| link.name).collect())
    })
}

/// Near ends of the pairs of the data plane that is pinned in a directory.
pub fn of_pin_dir<'a>(mirror: &'a Mirror, pin_dir: &Path) -> impl Iterator<Item = &'a Link> {
    let alias = alias(pin_dir);
    mirror.links().filter(move |link| {
        let is_near = !link.name.ends_with(NodeLink::FAR);
        is_near && link.veth_peer.is_some() && link.alias.as_deref() == Some(&*alias)
    })
}

/// What both ends are called beside their names. The kernel takes 255 octets (`IFALIASZ`).
fn alias(pin_dir: &Path) -> String {
    let mut alias = format!("etcd-lb {}", pin_dir.display());
    alias.truncate((0..=255).rev().find(|&at| alias.is_char_boundary(at)).unwrap_or(0));
    alias
}

/// Leads an address into the pair: a route by the near end, with the source that the node's clients are to have, and the far
/// end's MAC, so that nobody is asked for it.
///
/// # Errors
/// The kernel's refusal.
pub async fn lead(handle: &Handle, near: u32, far: Mac, way: Way) -> io::Result<()> {
    let neighbour = handle.neighbours().add(near, way.address).state(NeighbourState::Permanent);
    neighbour.link_layer_address(far.octets()).replace().execute().await.map_err(as_io)?;
    handle.route().add(route(near, way)).replace().execute().await.map_err(as_io)
}

/// Ends what [`lead`] began.
///
/// # Errors
/// The kernel's refusal.
pub async fn release(handle: &Handle, near: u32, address: IpAddr) -> io::Result<()> {
    let route = route(near, Way { address, source: None });
    match handle.route().del(route).execute().await.map_err(as_io) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        done => done,
    }
}

/// The ways that lead into the pair.
///
/// # Errors
/// The kernel's refusal.
pub async fn led(handle: &Handle, near: u32) -> io::Result<Vec<Way>> {
    let mut found = Vec::new();
    for request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(request).execute();
        while let Some(message) = routes.try_next().await.map_err(as_io)? {
            found.extend(way(&message, near));
        }
    }
    Ok(found)
}

/// An address that is led into the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The address.
    pub address: IpAddr,
    /// What the node's own clients have as source; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
}

fn route(near: u32, way: Way) -> RouteMessage {
    match way.address {
        IpAddr::V4(v4) => {
            let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .scope(RouteScope::Link)
                .output_interface(near);
            if let Some(IpAddr::V4(source)) = way.source {
                route = route.pref_source(source);
            }
            route.build()
        }
        IpAddr::V6(v6) => {
            let mut route =
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).output_interface(near);
            if let Some(IpAddr::V6(source)) = way.source {
                route = route.pref_source(source);
            }
            route.build()
        }
    }
}

fn way(message: &RouteMessage, near: u32) -> Option<Way> {
    let (mut address, mut source, mut is_ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => source = Some(IpAddr::V4(*v4)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => source = Some(IpAddr::V6(*v6)),
            RouteAttribute::Oif(ifindex) => is_ours = *ifindex == near,
            _ => {}
        }
    }
    // The kernel's own for multicast lead there too.
    let address = address.filter(|address| is_ours && !address.is_multicast())?;
    Some(Way { address, source })
}

fn as_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
