//! Which hosts a lab has.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What a host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the balancer. The bridge's port toward it gets an XDP program too, without which a veth does not deliver
    /// what the balancer's program transmits.
    Balancer,
    /// Runs an etcd member.
    Member,
    /// Runs clients.
    Client,
}

/// A host to be made.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Unique in the lab, at most 15 characters: it also names the bridge's port.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Address of its interface, with the prefix of the lab's subnet.
    pub address: Ipv4Addr,
    /// Name of its interface.
    pub interface: String,
}

impl HostSpec {
    /// Its IPv6 address, fd00:1::LAST, where LAST is written like the last octet of the other one.
    pub fn address_v6(&self) -> Ipv6Addr {
        let [.., last] = self.address.octets().map(u16::from);
        let digits = ((last / 100) << 8) | ((last / 10 % 10) << 4) | (last % 10);
        Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, digits)
    }
}

/// The hosts of a lab, all in one subnet, 10.0.1.0/24 and fd00:1::/64.
#[derive(Debug, Clone)]
pub struct Topology {
    /// In the order they are made.
    pub hosts: Vec<HostSpec>,
}

impl Topology {
    /// Prefix length of the subnet.
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
    pub fn with(mut self, role: Role, name: &str, last: u8) -> Self {
        let address = Ipv4Addr::new(10, 0, 1, last);
        self.hosts.push(HostSpec { name: name.into(), role, address, interface: "eth0".into() });
        self
    }

    /// Without a host.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.hosts.retain(|host| host.name != name);
        self
    }

    /// With another name for a host's interface, as `eth0.7`.
    #[must_use]
    pub fn interface(mut self, host: &str, interface: &str) -> Self {
        for spec in self.hosts.iter_mut().filter(|spec| spec.name == host) {
            interface.clone_into(&mut spec.interface);
        }
        self
    }
}
