//! Asking the kernel how an address is reached: its rules, tables and metrics decide, not a copy of them.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::{Handle, RouteMessageBuilder};

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves by.
    pub ifindex: u32,
    /// Who gets the frame: the gateway, or the address itself.
    pub neighbour: IpAddr,
}

/// Why an address is not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The kernel has no route.
    #[error("no route to {0}: {1}")]
    None(IpAddr, String),
    /// The route is not one that a packet is sent by.
    #[error("the route to {0} is of type {1}, which sends nothing")]
    Kind(IpAddr, String),
}

/// The kernel's route to `destination`.
///
/// # Errors
/// No route, or one that sends nothing (local, blackhole, unreachable).
pub(super) async fn look_up(handle: &Handle, destination: IpAddr) -> Result<Route, RouteError> {
    let request = match destination {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build()
        }
    };
    let none = |reason: String| RouteError::None(destination, reason);
    let answer =
        handle.route().get(request).execute().try_next().await.map_err(|error| none(reason(&error)))?;
    let message = answer.ok_or_else(|| none("the kernel gave no answer".into()))?;
    if message.header.kind != RouteType::Unicast {
        return Err(RouteError::Kind(destination, format!("{:?}", message.header.kind).to_lowercase()));
    }
    let (ifindex, router) = next_hop(&message);
    let ifindex = ifindex.ok_or_else(|| none("the route names no interface".into()))?;
    Ok(Route { ifindex, neighbour: router.unwrap_or(destination) })
}

/// A route's interface, and the router that it names.
pub(super) fn next_hop(message: &RouteMessage) -> (Option<u32>, Option<IpAddr>) {
    let (mut ifindex, mut router) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => router = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => router = Some(IpAddr::V6(*v6)),
            // A gateway of the other family (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(v4)) => router = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => router = Some(IpAddr::V6(*v6)),
            _ => {}
        }
    }
    (ifindex, router)
}

fn reason(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}
