//! Which hosts a lab has.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What a host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the balancer. The bridge's port toward it gets an XDP program too, without which a veth does not deliver
    /// what the balancer's program transmits.
    Balancer,
    /// Runs another balancer, which a bridge's port needs nothing for: a program there would copy each of its packets.
    Proxy,
    /// Runs an etcd member.
    Member,
    /// Runs clients.
    Client,
    /// Runs a balancer, an etcd member and clients: a node of a stacked control plane.
    Node,
    /// Forwards between the LANs that it is on.
    Router,
}

impl Role {
    /// Whether a host of this role does what one of another does.
    pub fn plays(self, other: Self) -> bool {
        self == other || (self == Self::Node && matches!(other, Self::Balancer | Self::Member | Self::Client))
    }
}

/// An interface of a host.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its name on the host.
    pub interface: String,
    /// The LAN that it is on.
    pub lan: u8,
    /// Last octet of its address.
    pub last: u8,
}

impl Nic {
    /// Its address, 10.0.LAN.LAST.
    pub fn address(&self) -> Ipv4Addr {
        Topology::address(self.lan, self.last)
    }

    /// Its IPv6 address, fd00:LAN::LAST.
    pub fn address_v6(&self) -> Ipv6Addr {
        Topology::address_v6(self.lan, self.last)
    }

    /// Its MAC, made from the address, so that an interface that returns has the one that its neighbours know.
    pub fn mac(&self) -> String {
        let [a, b, c, d] = self.address().octets();
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

/// A host to be made.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Unique in the lab, at most 15 characters: it also names the bridge's port.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its interfaces; at least one.
    pub nics: Vec<Nic>,
    /// Last octet of its default router on the LAN of its first interface.
    pub gateway: Option<u8>,
}

/// The hosts of a lab. A LAN is a bridge and a subnet, 10.0.LAN.0/24 and fd00:LAN::/64; LAN 1 is the one that hosts are on
/// unless it is said otherwise.
#[derive(Debug, Clone)]
pub struct Topology {
    /// In the order they are made.
    pub hosts: Vec<HostSpec>,
}

impl Topology {
    /// Prefix length of a LAN's subnet.
    pub const PREFIX: u8 = 24;
    /// The same of the IPv6 subnet.
    pub const PREFIX_V6: u8 = 64;

    /// No hosts.
    pub fn empty() -> Self {
        Self { hosts: Vec::new() }
    }

    /// Balancers lb1 (10.0.1.2) and lb2 (.3), members etcd-1 to etcd-3 (.11 to .13), clients client-1 and client-2
    /// (.21 and .22), each with an interface eth0.
    pub fn standard() -> Self {
        Self::empty()
            .with(Role::Balancer, "lb1", 2)
            .with(Role::Balancer, "lb2", 3)
            .with(Role::Member, "etcd-1", 11)
            .with(Role::Member, "etcd-2", 12)
            .with(Role::Member, "etcd-3", 13)
            .with(Role::Client, "client-1", 21)
            .with(Role::Client, "client-2", 22)
    }

    /// With one host more, its address 10.0.1.`last`.
    #[must_use]
    pub fn with(self, role: Role, name: &str, last: u8) -> Self {
        self.with_on(1, role, name, last)
    }

    /// With one host more, its address 10.0.`lan`.`last`.
    #[must_use]
    pub fn with_on(mut self, lan: u8, role: Role, name: &str, last: u8) -> Self {
        let nic = Nic { interface: "eth0".into(), lan, last };
        self.hosts.push(HostSpec { name: name.into(), role, nics: vec![nic], gateway: None });
        self
    }

    /// With one interface more for a host (eth1, eth2, …), its address 10.0.`lan`.`last`.
    #[must_use]
    pub fn also_on(mut self, host: &str, lan: u8, last: u8) -> Self {
        for spec in self.hosts.iter_mut().filter(|spec| spec.name == host) {
            spec.nics.push(Nic { interface: format!("eth{}", spec.nics.len()), lan, last });
        }
        self
    }

    /// With a default router for a host, by the last octet of its address on the LAN of the host's first interface.
    #[must_use]
    pub fn gateway(mut self, host: &str, last: u8) -> Self {
        for spec in self.hosts.iter_mut().filter(|spec| spec.name == host) {
            spec.gateway = Some(last);
        }
        self
    }

    /// Without a host.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.hosts.retain(|host| host.name != name);
        self
    }

    /// With another name for a host's first interface, as `eth0.7`.
    #[must_use]
    pub fn interface(mut self, host: &str, interface: &str) -> Self {
        for spec in self.hosts.iter_mut().filter(|spec| spec.name == host) {
            interface.clone_into(&mut spec.nics[0].interface);
        }
        self
    }

    /// An address on a LAN.
    pub fn address(lan: u8, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, lan, last)
    }

    /// An IPv6 address on a LAN, fd00:LAN::LAST, where LAN and LAST are written like the octets of the other one.
    pub fn address_v6(lan: u8, last: u8) -> Ipv6Addr {
        let as_written = |octet: u8| {
            let octet = u16::from(octet);
            ((octet / 100) << 8) | ((octet / 10 % 10) << 4) | (octet % 10)
        };
        Ipv6Addr::new(0xfd00, as_written(lan), 0, 0, 0, 0, 0, as_written(last))
    }
}
