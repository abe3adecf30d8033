//! VRRP, versions 3 (RFC 9568, with RFC 5798's checksum) and 2 (RFC 3768): who owns the VIPs.
//!
//! [`packet`] writes and reads advertisements, [`Machine`] decides. One machine has a node's whole role: its IPv4 and its
//! IPv6 virtual router have one VRID and one priority, become active together and yield together.
//!
//! Interval and priority may differ between the nodes of a pair, everything else may not: an advertisement with another
//! list of addresses or of another version is another pair's, or a mistake in one of the two configs.

mod machine;
pub mod packet;
mod reject;
#[cfg(test)]
mod tests;
mod words;

use std::{net::IpAddr, time::Duration};

use lb_common::{
    addr::Addr,
    election::{self, Election},
};

pub use machine::{AGENT_PATIENCE, Machine};
pub use packet::{Advertisement, Datagram};
pub use reject::Reject;
pub use words::{Action, Preemption, Role, Settings, Why};

use crate::config::{Config, Vrrp};
pub use crate::config::{VrrpChecksum as Checksum, VrrpVersion as Version};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The group that advertisements are sent to.
    pub fn group(self) -> IpAddr {
        match self {
            Self::V4 => election::GROUP_V4.to_ip(),
            Self::V6 => election::GROUP_V6.to_ip(),
        }
    }
}

/// What the two nodes of a pair must agree on, for one family: RFC 9568's virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualRouter {
    pub version: Version,
    /// VRID, 1 to 255.
    pub router_id: u8,
    /// The addresses owned, 1 to 255 of one family; of IPv6 the first is link-local (RFC 9568 section 5.2.9).
    pub addresses: Vec<IpAddr>,
    /// Whence this node advertises: an address of its own, of IPv6 a link-local one.
    pub source: IpAddr,
    /// To whom, and from whom alone; empty: multicast.
    pub peers: Vec<IpAddr>,
    /// Over IPv4 in version 3: implementations differ.
    pub checksum: Checksum,
    /// Version 2 only: sent and compared, padded with zeros.
    pub auth_pass: Option<[u8; 8]>,
    /// What this node announces; version 2 takes no other from the peer.
    pub interval: Duration,
}

impl VirtualRouter {
    /// Those of a node of a pair, one for each family that its addresses are of. `source` tells whence a family's
    /// advertisements are sent where the config does not; the error is the family of which there is none.
    ///
    /// # Errors
    /// The family in which the interface has no address.
    pub fn of_node(
        config: &Config,
        vrrp: &Vrrp,
        source: impl Fn(Family) -> Option<IpAddr>,
    ) -> Result<Vec<Self>, Family> {
        let all = config.addresses();
        let mut routers = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut addresses: Vec<_> = all.iter().copied().filter(|a| Family::of(*a) == family).collect();
            if addresses.is_empty() {
                continue;
            }
            // RFC 9568 section 5.2.9: the link-local address comes first.
            addresses.sort_by_key(|address| vrrp.link_local.map(IpAddr::V6) != Some(*address));
            let written = vrrp.source.filter(|address| Family::of(*address) == family);
            let pass = vrrp.auth_pass.as_ref().map(|pass| {
                let mut octets = [0; 8];
                octets.iter_mut().zip(pass.bytes()).for_each(|(octet, byte)| *octet = byte);
                octets
            });
            routers.push(Self {
                version: vrrp.version,
                router_id: vrrp.router_id,
                addresses,
                source: written.or_else(|| source(family)).ok_or(family)?,
                peers: vrrp.unicast_peers.iter().copied().filter(|a| Family::of(*a) == family).collect(),
                checksum: vrrp.checksum,
                auth_pass: pass,
                interval: vrrp.advert_interval,
            });
        }
        Ok(routers)
    }

    /// The family of all addresses.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// Where advertisements are sent.
    pub fn destinations(&self) -> Vec<IpAddr> {
        if self.peers.is_empty() { vec![self.family().group()] } else { self.peers.clone() }
    }

    /// What the data plane needs to see that an advertisement that comes by `ifindex` is stronger than ours.
    pub fn election(&self, ifindex: u32, priority: u8) -> Election {
        let message = packet::message(self, priority, self.interval, self.family().group());
        let own = if self.peers.is_empty() { self.family().group() } else { self.source };
        let mut peers = [Addr::UNSPECIFIED; election::MAX_PEERS];
        for (slot, peer) in peers.iter_mut().zip(&self.peers) {
            *slot = (*peer).into();
        }
        let word = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        Election {
            source: self.source.into(),
            destination: own.into(),
            peers,
            ifindex,
            list_sum: packet::sum(&message[packet::HEADER_LEN..]).to_be(),
            head: word(0),
            timing: if self.version == Version::V2 { word(4) } else { 0 },
            // 8 octets, at most 255 addresses of 16, 8 more.
            length: message.len() as u16,
            priority,
            // At most 255 by `packet::message`.
            count: message[3],
            reserved: 0,
        }
    }
}
