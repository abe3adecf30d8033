//! The kernel's main routing table, for the ways to clients: there are too many of them to ask for each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use lb_core::{
    reconcile::Prefix,
    ways::{By, Collected, Route, TooMany, Ways},
};
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Error, routes};

/// The routes by which clients are reached.
///
/// # Errors
/// A list that the kernel refuses. Inside: the table has more than the data plane takes.
pub async fn list(handle: &Handle) -> Result<Result<Ways, TooMany>, Error> {
    let mut collected = Collected::default();
    for request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(request).execute();
        while let Some(message) =
            routes.try_next().await.map_err(|source| Error::List { what: "routes", source })?
        {
            if let Some(Err(too_many)) = route(&message).map(|route| collected.add(route)) {
                return Ok(Err(too_many));
            }
        }
    }
    Ok(Ok(collected.ways()))
}

/// A route of the main table that is in use.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let unused = RouteFlags::Dead | RouteFlags::Linkdown | RouteFlags::Cloned;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.tos != 0 || header.flags.intersects(unused) {
        return None;
    }
    let mut prefix = Prefix { address: any, length: header.destination_prefix_length };
    let (mut metric, mut several) = (0, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => prefix.address = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => prefix.address = (*v6).into(),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(_) => several = true,
            _ => {}
        }
    }
    let by = match routes::next_hop(message) {
        (Some(ifindex), Some(router)) if header.kind == RouteType::Unicast && !several => {
            By::Router(ifindex, router)
        }
        _ => By::Otherwise,
    };
    Some(Route { prefix, metric, by })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message =
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(Ipv4Addr::new(10, 0, 2, 0), 24).build();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes.extend(attributes);
        message
    }

    fn by(attributes: Vec<RouteAttribute>) -> By {
        route(&message(attributes)).unwrap().by
    }

    #[test]
    fn one_router_is_followed_and_nothing_else() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 1, 1)));
        let router = By::Router(2, Ipv4Addr::new(10, 0, 1, 1).into());
        assert_eq!(by(vec![RouteAttribute::Oif(2), gateway.clone()]), router);
        assert_eq!(by(vec![RouteAttribute::Oif(2)]), By::Otherwise, "reached directly");
        assert_eq!(by(vec![RouteAttribute::MultiPath(vec![])]), By::Otherwise, "several");
        let mut blackhole = message(vec![]);
        blackhole.header.kind = RouteType::BlackHole;
        assert_eq!(route(&blackhole).unwrap().by, By::Otherwise);
        let metric =
            route(&message(vec![RouteAttribute::Oif(2), gateway, RouteAttribute::Priority(7)])).unwrap();
        assert_eq!((metric.metric, metric.prefix.length), (7, 24));
    }

    #[test]
    fn other_tables_and_dead_routes_do_not_count() {
        let mut local = message(vec![]);
        local.header.table = 255;
        assert_eq!(route(&local), None);
        let mut dead = message(vec![]);
        dead.header.flags = RouteFlags::Linkdown;
        assert_eq!(route(&dead), None);
    }
}
