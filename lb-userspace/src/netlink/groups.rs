//! The multicast groups that neighbour solicitations for the VIPs are sent to: joined on each interface, so that switches
//! and the interface's own filter let them through to the XDP program.
//!
//! A group is joined as an address of its own that the kernel joins for (`ip address add GROUP dev X autojoin`), not by a
//! socket: the membership outlives the agent, as the data plane does.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};
use rtnetlink::Handle;
use tracing::debug;

use super::{Network, mirror::Mirror, nd::solicited_node};

/// Joins the group of each (interface, VIP), and leaves all others on `interfaces` and their VLAN devices.
pub async fn follow(
    handle: &Handle,
    mirror: &Mirror,
    interfaces: &BTreeSet<u32>,
    vips: &BTreeSet<(u32, Ipv6Addr)>,
) {
    let wanted: BTreeSet<_> = vips.iter().map(|(ifindex, vip)| (*ifindex, solicited_node(*vip))).collect();
    let ours = |ifindex| mirror.lan(ifindex).is_some_and(|lan| interfaces.contains(&lan.ifindex));
    let joined: BTreeSet<_> = mirror.groups().filter(|(ifindex, _)| ours(*ifindex)).collect();
    for &(ifindex, group) in wanted.difference(&joined) {
        let mut request = handle.address().add(ifindex, IpAddr::V6(group), 128).replace();
        request.message_mut().attributes = vec![AddressAttribute::Address(IpAddr::V6(group)), flags()];
        if let Err(error) = request.execute().await {
            // Most often an interface that is going away, or has no IPv6. Tried again with each refresh.
            debug!(ifindex, %group, %error, "not joined");
        }
    }
    for &(ifindex, group) in joined.difference(&wanted) {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.index = ifindex;
        message.header.prefix_len = 128;
        message.attributes.push(AddressAttribute::Address(IpAddr::V6(group)));
        if let Err(error) = handle.address().del(message).execute().await {
            debug!(ifindex, %group, %error, "not left");
        }
    }
}

/// Leaves all groups on `interfaces`: for whoever takes the data plane off them.
///
/// # Errors
/// No runtime, or the kernel refuses to list the network.
pub fn leave(interfaces: &[u32]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let network = Network::open().await.map_err(io::Error::other)?;
        let interfaces = interfaces.iter().copied().collect();
        follow(network.handle(), network.mirror(), &interfaces, &BTreeSet::new()).await;
        Ok(())
    })
}

/// The kernel joins; nobody is asked whether the group is free.
fn flags() -> AddressAttribute {
    AddressAttribute::Flags(AddressFlags::Mcautojoin | AddressFlags::Nodad)
}
