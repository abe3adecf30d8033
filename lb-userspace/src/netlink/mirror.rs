//! A copy of the kernel's interfaces, addresses and neighbours, kept by applying its messages one by one.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    ops::BitOrAssign,
};

use lb_common::addr::Mac;
use lb_core::reconcile::Lan;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; `None` where it has none of six octets (a tunnel).
    pub mac: Option<Mac>,
    /// Octets of an IP packet.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// It has a carrier: a cable, or its like.
    pub carrier: bool,
    /// On a VLAN device: the interface that carries it, and its VLAN identifier (1 to 4094).
    pub vlan: Option<(u32, u16)>,
    /// Of a veth: its other end.
    pub veth_peer: Option<u32>,
    /// What the administrator, or another program, calls it beside its name.
    pub alias: Option<String>,
}

/// An address on an interface, with the prefix that is reached there directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's number.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The prefix's length in bits.
    pub prefix_len: u8,
}

impl InterfaceAddress {
    /// Whether `other` is in this address's prefix.
    pub fn prefix_holds(&self, other: IpAddr) -> bool {
        fn same(a: u128, b: u128, width: u32, len: u8) -> bool {
            let rest = width.saturating_sub(u32::from(len));
            rest >= width || (a ^ b) >> rest == 0
        }
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same(a.to_bits().into(), b.to_bits().into(), 32, self.prefix_len)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128, self.prefix_len),
            _ => false,
        }
    }
}

/// An entry of the kernel's neighbour table (ARP, ND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC, where the kernel has one.
    pub mac: Option<Mac>,
    /// Confirmed lately, or set by hand: nothing needs to be asked.
    pub fresh: bool,
}

/// What a message changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// An interface came, went, or changed.
    pub links: bool,
    /// An interface's address came or went.
    pub addresses: bool,
    /// A neighbour's MAC or state changed.
    pub neighbours: bool,
    /// A route changed.
    pub routes: bool,
    /// The kernel could not deliver all messages.
    pub lost: bool,
}

impl Touched {
    /// Messages were lost: anything may have changed.
    pub const LOST: Self = Self { links: true, addresses: true, neighbours: true, routes: true, lost: true };

    /// Whether anything changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl BitOrAssign for Touched {
    fn bitor_assign(&mut self, other: Self) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.neighbours |= other.neighbours;
        self.routes |= other.routes;
        self.lost |= other.lost;
    }
}

/// The copy.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    links: BTreeMap<u32, Link>,
    addresses: Vec<InterfaceAddress>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

impl Mirror {
    /// The interface with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The interface with this number.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// All interfaces, by number.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The address by which the interface speaks for itself: of IPv4 its first, of IPv6 a link-local one.
    pub fn source(&self, ifindex: u32, is_v6: bool) -> Option<IpAddr> {
        let held = self.addresses.iter().filter(|held| held.ifindex == ifindex).map(|held| held.address);
        held.into_iter().find(|address| match address {
            IpAddr::V4(_) => !is_v6,
            IpAddr::V6(v6) => is_v6 && v6.is_unicast_link_local(),
        })
    }

    /// The addresses of this host that others can know it by: neither loopback nor a group.
    pub fn own_addresses(&self) -> impl Iterator<Item = InterfaceAddress> {
        let known = |held: &&InterfaceAddress| !held.address.is_loopback() && !held.address.is_multicast();
        self.addresses.iter().filter(known).copied()
    }

    /// The interface's own address in the prefix that holds another one.
    pub fn source_toward(&self, ifindex: u32, address: IpAddr) -> Option<IpAddr> {
        let mut of_interface = self.own_addresses().filter(|held| held.ifindex == ifindex);
        of_interface.find(|held| held.prefix_holds(address)).map(|held| held.address)
    }

    /// The interface that holds this address as its own.
    pub fn holder(&self, address: IpAddr) -> Option<&Link> {
        let found = self.addresses.iter().find(|a| a.address == address)?;
        self.links.get(&found.ifindex)
    }

    /// The groups that are joined by an address of their own, with their interfaces: those of neighbour solicitations.
    pub fn groups(&self) -> impl Iterator<Item = (u32, Ipv6Addr)> {
        self.addresses.iter().filter_map(|held| match held.address {
            IpAddr::V6(v6) if super::nd::solicited_node(v6) == v6 => Some((held.ifindex, v6)),
            _ => None,
        })
    }

    /// Whether one of the interface's prefixes holds this address.
    pub fn reaches_directly(&self, ifindex: u32, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.ifindex == ifindex && a.prefix_holds(address))
    }

    /// The interface itself and its VLAN devices that reach this address directly, and the LAN that each is on.
    pub fn reaches_by(&self, ifindex: u32, address: IpAddr) -> impl Iterator<Item = (&Link, Lan)> {
        self.links.values().filter_map(move |link| {
            let lan = self.lan(link.index).filter(|lan| lan.ifindex == ifindex)?;
            self.reaches_directly(link.index, address).then_some((link, lan))
        })
    }

    /// The LAN that an interface is on: a VLAN device has that of the interface that carries its frames, by at most two
    /// tags. `None` if there is no such interface, or more tags.
    pub fn lan(&self, ifindex: u32) -> Option<Lan> {
        let mut lan = Lan::untagged(ifindex);
        let mut link = self.link(ifindex)?;
        while let Some((carrier, identifier)) = link.vlan {
            if lan.vlan[1] != 0 {
                return None;
            }
            lan = Lan { ifindex: carrier, vlan: [identifier.to_be(), lan.vlan[0]] };
            link = self.link(carrier)?;
        }
        Some(lan)
    }

    /// The neighbour at this address on this interface.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&(ifindex, address)).copied()
    }

    /// Takes in one of the kernel's messages.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Touched {
        let mut touched = Touched::default();
        match message {
            RouteNetlinkMessage::NewLink(link) => touched.links = self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => touched.links = self.del_link(link),
            RouteNetlinkMessage::NewAddress(message) => touched.addresses = self.new_address(message),
            RouteNetlinkMessage::DelAddress(message) => touched.addresses = self.del_address(message),
            RouteNetlinkMessage::NewNeighbour(message) => touched.neighbours = self.new_neighbour(message),
            RouteNetlinkMessage::DelNeighbour(message) => touched.neighbours = self.del_neighbour(message),
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => touched.routes = true,
            _ => {}
        }
        touched
    }

    fn new_link(&mut self, message: &LinkMessage) -> bool {
        // A bridge reports its ports' membership by link messages of another family.
        if message.header.interface_family != AddressFamily::Unspec {
            return false;
        }
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            vlan: None,
            veth_peer: None,
            alias: None,
        };
        let (mut below, mut identifier, mut is_veth) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(octets) => link.mac = mac(octets),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => below = Some(*index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::LinkInfo(about) => {
                    identifier = vlan_identifier(about);
                    is_veth = about.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        link.vlan = below.zip(identifier);
        link.veth_peer = below.filter(|_| is_veth);
        self.links.insert(link.index, link.clone()).as_ref() != Some(&link)
    }

    fn del_link(&mut self, message: &LinkMessage) -> bool {
        if message.header.interface_family != AddressFamily::Unspec {
            return false;
        }
        let index = message.header.index;
        self.addresses.retain(|address| address.ifindex != index);
        self.neighbours.retain(|(ifindex, _), _| *ifindex != index);
        self.links.remove(&index).is_some()
    }

    fn new_address(&mut self, message: &AddressMessage) -> bool {
        let Some(address) = interface_address(message) else { return false };
        if self.addresses.contains(&address) {
            return false;
        }
        self.addresses.push(address);
        true
    }

    fn del_address(&mut self, message: &AddressMessage) -> bool {
        let Some(address) = interface_address(message) else { return false };
        let before = self.addresses.len();
        self.addresses.retain(|known| *known != address);
        before != self.addresses.len()
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let Some(key) = neighbour_key(message) else { return false };
        let usable = !matches!(message.header.state, NeighbourState::Incomplete | NeighbourState::Failed);
        let neighbour = Neighbour {
            mac: message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(octets) => mac(octets),
                    _ => None,
                })
                .filter(|_| usable),
            fresh: matches!(
                message.header.state,
                NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp
            ),
        };
        self.neighbours.insert(key, neighbour) != Some(neighbour)
    }

    fn del_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        neighbour_key(message).is_some_and(|key| self.neighbours.remove(&key).is_some())
    }
}

fn mac(octets: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(octets).ok().map(Mac::new).filter(|mac| !mac.is_unknown())
}

fn vlan_identifier(about: &[LinkInfo]) -> Option<u16> {
    let data = about.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(identifier) => Some(*identifier),
        _ => None,
    })
}

fn interface_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    // On a point-to-point interface IFA_ADDRESS is the peer and IFA_LOCAL our own; elsewhere both are ours.
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    let (ifindex, prefix_len) = (message.header.index, message.header.prefix_len);
    local.or(other).map(|address| InterfaceAddress { ifindex, address, prefix_len })
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
            Some((message.header.ifindex, IpAddr::V4(*v4)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
            Some((message.header.ifindex, IpAddr::V6(*v6)))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(state: NeighbourState, octets: Option<[u8; 6]>) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 7;
        message.header.state = state;
        let v4 = "10.0.1.10".parse().unwrap();
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)));
        if let Some(octets) = octets {
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(octets.to_vec()));
        }
        RouteNetlinkMessage::NewNeighbour(message)
    }

    #[test]
    fn a_neighbours_mac_is_followed() {
        let mut mirror = Mirror::default();
        let key = (7, "10.0.1.10".parse().unwrap());
        assert!(mirror.apply(&neighbour(NeighbourState::Incomplete, None)).neighbours);
        assert_eq!(mirror.neighbour(key.0, key.1), Some(Neighbour { mac: None, fresh: false }));
        assert!(mirror.apply(&neighbour(NeighbourState::Reachable, Some([2, 0, 0, 0, 0, 1]))).neighbours);
        assert!(!mirror.apply(&neighbour(NeighbourState::Reachable, Some([2, 0, 0, 0, 0, 1]))).neighbours);
        assert!(mirror.apply(&neighbour(NeighbourState::Stale, Some([2, 0, 0, 0, 0, 2]))).neighbours);
        let now = mirror.neighbour(key.0, key.1).unwrap();
        assert_eq!(now, Neighbour { mac: Some(Mac::new([2, 0, 0, 0, 0, 2])), fresh: false });
    }

    #[test]
    fn a_bridge_port_that_leaves_its_bridge_is_not_gone() {
        let mut mirror = Mirror::default();
        let mut link = LinkMessage::default();
        link.header.index = 3;
        link.attributes.push(LinkAttribute::IfName("eth0.100".into()));
        mirror.apply(&RouteNetlinkMessage::NewLink(link.clone()));
        let mut left = link.clone();
        left.header.interface_family = AddressFamily::Bridge;
        assert!(!mirror.apply(&RouteNetlinkMessage::DelLink(left)).any());
        assert_eq!(mirror.link_named("eth0.100").unwrap().index, 3);
        assert!(mirror.apply(&RouteNetlinkMessage::DelLink(link)).links);
        assert!(mirror.link_named("eth0.100").is_none());
    }

    #[test]
    fn a_vlan_device_is_on_the_lan_of_its_carrier() {
        let mut mirror = Mirror::default();
        let mut add = |index: u32, name: &str, vlan: Option<(u32, u16)>| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::IfName(name.into()));
            if let Some((carrier, identifier)) = vlan {
                message.attributes.push(LinkAttribute::Link(carrier));
                let data = InfoData::Vlan(vec![InfoVlan::Id(identifier)]);
                message.attributes.push(LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vlan),
                    LinkInfo::Data(data),
                ]));
            }
            mirror.apply(&RouteNetlinkMessage::NewLink(message));
        };
        add(2, "eth0", None);
        add(3, "eth0.7", Some((2, 7)));
        add(4, "eth0.7.8", Some((3, 8)));
        add(5, "eth0.7.8.9", Some((4, 9)));
        add(6, "lost.7", Some((99, 7)));
        mirror.addresses = [(2, "10.0.1.2"), (3, "10.0.7.2"), (4, "10.0.8.2")]
            .map(|(ifindex, address)| InterfaceAddress {
                ifindex,
                address: address.parse().unwrap(),
                prefix_len: 24,
            })
            .into();
        let tagged = |vlan: [u16; 2]| Some(Lan { ifindex: 2, vlan: vlan.map(u16::to_be) });
        let lans = [2, 3, 4, 5, 6].map(|ifindex| mirror.lan(ifindex));
        assert_eq!(lans, [tagged([0, 0]), tagged([7, 0]), tagged([7, 8]), None, None]);
        let by = |address: &str| -> Vec<_> {
            mirror.reaches_by(2, address.parse().unwrap()).map(|(link, lan)| (link.index, lan)).collect()
        };
        assert_eq!(by("10.0.7.100"), [(3, tagged([7, 0]).unwrap())]);
        assert_eq!(by("10.0.8.100"), [(4, tagged([7, 8]).unwrap())]);
        assert_eq!(by("10.0.1.100"), [(2, Lan::untagged(2))]);
    }

    #[test]
    fn prefixes_hold_what_they_say() {
        let on = |address: &str, prefix_len| InterfaceAddress {
            ifindex: 1,
            address: address.parse().unwrap(),
            prefix_len,
        };
        let ip = |text: &str| text.parse().unwrap();
        assert!(on("10.0.1.2", 24).prefix_holds(ip("10.0.1.100")));
        assert!(!on("10.0.1.2", 24).prefix_holds(ip("10.0.2.100")));
        assert!(on("10.0.1.2", 0).prefix_holds(ip("192.0.2.1")));
        assert!(on("10.0.1.2", 32).prefix_holds(ip("10.0.1.2")));
        assert!(!on("10.0.1.2", 32).prefix_holds(ip("10.0.1.3")));
        assert!(!on("::", 0).prefix_holds(ip("10.0.1.3")));
        assert!(on("2001:db8::1", 64).prefix_holds(ip("2001:db8::ffff")));
    }
}
