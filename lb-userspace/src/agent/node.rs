//! Clients and members on this node itself.
//!
//! While this node has the VIPs, its own routes to them lead into a veth pair, at whose far end the XDP program is
//! (`netlink/node_link.rs`). For the program that is one more interface: a client on this node is one that comes by it, a
//! member on this node a backend that it sends to by it. While another node has the VIPs there are no such routes, and
//! clients on this node reach that node over the wire, as all others do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::maps::{ClientRoute, NextHop};
use lb_core::{config::Config, reconcile::Prefix, vrrp::Role};
use tracing::{info, warn};

use super::state::Agent;
use crate::dataplane::Reason;
use crate::netlink::{
    Mirror,
    node_link::{self, Ends, Way},
};

/// How long the routes stay, at most, until the kernel knows the way to the node that has the VIPs now. Meanwhile the data
/// plane hands over to that node whatever comes by them.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same of an agent that ends.
const LAST_PATIENCE: Duration = Duration::from_millis(300);

/// What is known of the pair's routes.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Something has changed.
    pub(super) look_again: bool,
    /// The near end, and what is led into it; `None`: not looked at yet.
    led: Option<(u32, BTreeSet<Way>)>,
    /// Since when the routes wait for the way to the other node.
    leaving_since: Option<tokio::time::Instant>,
    /// What went wrong, so that it is told once.
    told: Option<String>,
    /// The program that lets everything pass is attached to this near end.
    passes: Option<u32>,
}

impl Node {
    /// Whether the routes wait for the way to the other node.
    pub(super) const fn is_leaving(&self) -> bool {
        self.leaving_since.is_some()
    }

    /// The addresses that are led into the pair.
    pub(super) fn led(&self) -> Vec<IpAddr> {
        self.led.iter().flat_map(|(_, led)| led.iter().map(|way| way.address)).collect()
    }
}

impl Agent {
    /// The hop toward an address of this node itself, which no route of the kernel's leads to from outside.
    pub(super) fn node_hop(&self, address: IpAddr) -> Option<NextHop> {
        let mirror = self.network.mirror();
        mirror.holder(address)?;
        let Ends { near, far } = self.ends()?;
        Some(NextHop { ifindex: far.index, mac: near.mac?, source_mac: far.mac?, tags: [0; 2] })
    }

    /// The ways to clients at each of this node's own addresses.
    pub(super) fn ways_to_own(&self) -> BTreeMap<Prefix, ClientRoute> {
        let Some((ifindex, mac)) = self.ends().and_then(|ends| Some((ends.far.index, ends.near.mac?))) else {
            return BTreeMap::new();
        };
        let own = self.network.mirror().own_addresses().map(|held| held.address);
        own.map(|address| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            (Prefix { address, length }, ClientRoute::by(ifindex, mac))
        })
        .collect()
    }

    fn ends(&self) -> Option<Ends<'_>> {
        let names = self.config.node_link.as_ref()?;
        node_link::find(self.network.mirror(), names).ok().flatten()
    }

    /// Makes the pair if it is not there, before the program is attached to it. Whether it was made.
    pub(super) async fn make_node_link(&mut self) -> bool {
        match self.try_make_node_link().await {
            Ok(made) => made,
            Err(reason) => {
                self.tell_node_trouble(Some(reason));
                false
            }
        }
    }

    async fn try_make_node_link(&mut self) -> Result<bool, String> {
        let Some(names) = self.config.node_link.clone() else { return Ok(false) };
        let is_there =
            node_link::find(self.network.mirror(), &names).map_err(|error| error.to_string())?.is_some();
        if !is_there {
            node_link::make(self.network.handle(), &names)
                .await
                .map_err(|error| format!("the veth pair {} cannot be made: {error}", names.near))?;
            self.network.refresh().await.map_err(|error| error.to_string())?;
        }
        match self.settle_node_link().await {
            Ok(true) => self.network.refresh().await.map_err(|error| error.to_string())?,
            Ok(false) => {}
            Err(reason) => {
                if !is_there {
                    self.unmake_node_link().await;
                }
                return Err(reason);
            }
        }
        Ok(!is_there)
    }

    /// Brings MTU, offloads and state of the pair's ends into line. Whether they were not.
    async fn settle_node_link(&mut self) -> Result<bool, String> {
        let Some(Ends { near, far }) = self.ends() else { return Ok(false) };
        let failed = |error: std::io::Error| format!("the veth pair {} cannot be set up: {error}", near.name);
        let mtu = mtu(&self.config, self.network.mirror());
        let ends = Ends { near, far };
        let pin_dir = &self.config.api.pin_dir;
        let settled = node_link::settle(self.network.handle(), &ends, mtu, pin_dir).await.map_err(failed)?;
        if self.node.passes != Some(near.index) {
            self.plane.attach_pass(near.index, &near.name).map_err(|error| error.to_string())?;
            self.node.passes = Some(near.index);
        }
        Ok(settled)
    }

    /// Takes back what [`Self::make_node_link`] made.
    pub(super) async fn unmake_node_link(&mut self) {
        if let Some(Ends { near, .. }) = self.ends() {
            let _ = node_link::remove(self.network.handle(), near.index).await;
        }
    }

    /// Brings the pair and its routes into line with config and role, if anything has changed.
    pub(super) async fn follow_node(&mut self) {
        let is_late = self.node.leaving_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        if !std::mem::take(&mut self.node.look_again) && !is_late {
            return;
        }
        let trouble = self.try_follow_node().await.err();
        if trouble.is_some() {
            // What was done before it went wrong the kernel knows; it is tried again with the next refresh.
            self.node.led = None;
        }
        self.tell_node_trouble(trouble);
    }

    fn tell_node_trouble(&mut self, trouble: Option<String>) {
        if let Some(reason) = trouble.as_ref().filter(|reason| self.node.told.as_ref() != Some(reason)) {
            warn!(%reason, "clients and members on this node are not served; trying again");
        }
        self.node.told = trouble;
    }

    async fn try_follow_node(&mut self) -> Result<(), String> {
        self.remove_other_pairs().await?;
        if self.config.node_link.is_none() {
            self.node.led.get_or_insert_default();
            return Ok(());
        }
        if self.serving {
            self.try_make_node_link().await?;
        }
        let Some(Ends { near, far }) = self.ends() else {
            self.node.led.get_or_insert_default();
            return Ok(());
        };
        let (near, far_mac) = (near.index, far.mac.ok_or("the veth pair has no MAC")?);
        let handle = self.network.handle().clone();
        let before = match self.node.led.take() {
            Some((of, led)) if of == near => led,
            _ => {
                node_link::led(&handle, near).await.map_err(|error| error.to_string())?.into_iter().collect()
            }
        };
        let wanted = self.wanted_ways(&before);
        self.node.led = Some((near, wanted.clone()));
        let refused =
            |way: &Way, error| format!("the way of {} on this node cannot be changed: {error}", way.address);
        for way in wanted.difference(&before) {
            node_link::lead(&handle, near, far_mac, *way).await.map_err(|error| refused(way, error))?;
        }
        let keeps = |address: IpAddr| wanted.iter().any(|way| way.address == address);
        for way in before.iter().filter(|way| !keeps(way.address)) {
            node_link::release(&handle, near, way.address).await.map_err(|error| refused(way, error))?;
        }
        Ok(())
    }

    /// What is to be led into the pair.
    fn wanted_ways(&mut self, before: &BTreeSet<Way>) -> BTreeSet<Way> {
        let is_active = self.pair.as_ref().is_none_or(|pair| pair.role == Role::Active || pair.owns_vips());
        if !is_active {
            let waits = self.node.leaving_since.is_some_and(|since| since.elapsed() < PATIENCE);
            if waits && !self.knows_the_other_node(before) {
                return before.clone();
            }
            self.node.leaving_since = None;
            return BTreeSet::new();
        }
        self.node.leaving_since = None;
        let is_attached =
            self.config.node_link.as_ref().is_some_and(|names| self.attachments.mode(&names.far).is_some());
        if !self.serving || !is_attached {
            // An earlier agent's data plane goes on as it is.
            return before.clone();
        }
        let mirror = self.network.mirror();
        let interfaces: Vec<_> =
            self.config.interfaces.iter().filter_map(|name| mirror.link_named(name)).collect();
        let source = |address: IpAddr| {
            let lans = interfaces.iter().flat_map(|link| mirror.reaches_by(link.index, address));
            lans.filter_map(|(link, _)| mirror.source_toward(link.index, address)).next()
        };
        // A link-local address has no meaning on another link.
        let is_global = |address: &IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let addresses = self.config.addresses().into_iter().filter(is_global);
        addresses.map(|address| Way { address, source: source(address) }).collect()
    }

    /// Whether the kernel knows where each of these addresses is now.
    fn knows_the_other_node(&self, ways: &BTreeSet<Way>) -> bool {
        self.neighbours_of(ways).into_iter().all(|(ifindex, address)| {
            self.network.mirror().neighbour(ifindex, address).is_some_and(|neighbour| neighbour.mac.is_some())
        })
    }

    fn neighbours_of(&self, ways: &BTreeSet<Way>) -> Vec<(u32, IpAddr)> {
        let mirror = self.network.mirror();
        let interfaces = self.config.interfaces.iter().filter_map(|name| mirror.link_named(name));
        interfaces
            .flat_map(|link| {
                ways.iter().flat_map(move |way| {
                    mirror.reaches_by(link.index, way.address).map(|(link, _)| (link.index, way.address))
                })
            })
            .collect()
    }

    /// The role has changed.
    pub(super) fn follow_role_on_node(&mut self, role: Role) {
        self.node.look_again = true;
        if role == Role::Active {
            return;
        }
        self.node.leaving_since.get_or_insert_with(tokio::time::Instant::now);
        let ways = self.node.led.as_ref().map(|(_, led)| led.clone()).unwrap_or_default();
        if ways.is_empty() {
            return;
        }
        self.reset_clients_of_this_node_alone();
        let neighbours = self.neighbours_of(&ways);
        // Whoever has them now answers, or says so by itself to whom it finds asking.
        let handle = self.network.handle().clone();
        tokio::spawn(async move { crate::netlink::hops::ask(&handle, neighbours.into_iter()).await });
    }

    /// Ends the flows of clients on this node whose address no other node can reach.
    fn reset_clients_of_this_node_alone(&mut self) {
        let Some(far) = self.ends().map(|ends| ends.far.index) else { return };
        let clients: Vec<IpAddr> =
            self.plane.clients_by(far).into_iter().filter(|client| !self.is_known_outside(*client)).collect();
        for client in clients {
            let flows = self.plane.reset_client(client, Reason::Unreachable);
            self.census_at = None;
            info!(%client, flows, "flows of a client whose address the other node cannot reach are reset");
        }
    }

    /// Whether an address is this node's own on one of the interfaces that it shares with the other nodes.
    fn is_known_outside(&self, client: IpAddr) -> bool {
        let mirror = self.network.mirror();
        let lan = mirror.holder(client).and_then(|link| mirror.lan(link.index));
        let on = lan.and_then(|lan| mirror.link(lan.ifindex));
        on.is_some_and(|link| self.config.interfaces.contains(&link.name))
    }

    /// The agent ends: its clients are to find the node that has the VIPs then.
    pub(super) async fn leave_node_to_the_other(&mut self) {
        if self.pair.as_ref().is_none_or(super::pair::Pair::is_held) {
            return;
        }
        self.follow_role_on_node(Role::Stopped);
        let begun = tokio::time::Instant::now();
        self.follow_node().await;
        while self.node.is_leaving() && begun.elapsed() < LAST_PATIENCE {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.network.changed()).await;
            self.node.look_again = true;
            self.follow_node().await;
        }
        if self.node.is_leaving() {
            self.node.leaving_since = None;
            self.node.look_again = true;
            self.follow_node().await;
        }
    }

    /// Pairs that an earlier config named.
    async fn remove_other_pairs(&mut self) -> Result<(), String> {
        let wanted = self.config.node_link.as_ref().map(|names| names.near.as_str());
        let others: Vec<_> = node_link::of_pin_dir(self.network.mirror(), &self.config.api.pin_dir)
            .filter(|link| Some(link.name.as_str()) != wanted)
            .map(|link| (link.index, link.name.clone()))
            .collect();
        for (index, name) in others {
            node_link::remove(self.network.handle(), index).await.map_err(|error| error.to_string())?;
            info!(interface = name, "removed: the config does not name it any more");
        }
        Ok(())
    }
}

/// That of the narrowest interface: what leaves the pair has to go on by any of them.
fn mtu(config: &Config, mirror: &Mirror) -> u32 {
    /// Ethernet's, where no interface is there to tell (RFC 894).
    const ETHERNET: u32 = 1500;
    /// A veth's widest (`ETH_MAX_MTU` of `linux/if_ether.h`); the loopback has more.
    const WIDEST: u32 = 65_535;
    let links = config.interfaces.iter().filter_map(|name| mirror.link_named(name));
    links.map(|link| link.mtu).min().unwrap_or(ETHERNET).min(WIDEST)
}
