//! What the other nodes say, and what becomes of it.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::addr::Mac;
use lb_core::{
    sync::{Difference, Event, Message, NodeRole, Place},
    vrrp::{Advertisement, Checksum},
};
use tracing::{debug, info, warn};

use super::{super::attach, Agent, now};
use crate::{
    dataplane::{Installed, Way},
    netlink::hops,
    vrrp::Order,
};

/// Clients that are asked for at once.
const MAX_CLIENTS: usize = 256;

impl Agent {
    pub(super) fn on_message(&mut self, number: usize, message: Message) -> Result<(), String> {
        let Some(stream) = self.sync.as_mut().and_then(|sync| sync.peers.get_mut(number)?.stream.as_mut())
        else {
            return Ok(());
        };
        let event = stream.peer.receive(now(), message).map_err(|violation| violation.to_string())?;
        match event {
            Some(Event::Hello { role, differences }) => {
                stream.role = role;
                self.on_differences(number, &differences)?;
                // Hosts may have the other node's MAC from when the two could not hear each other.
                self.tell_pair(Order::Announce);
            }
            Some(Event::Role(role)) => stream.role = role,
            Some(Event::Flow { place, flow, in_snapshot }) => {
                let wins = !self.is_active() && self.peer_role(number) == NodeRole::Active;
                let way = self.way_to(flow.client.ip());
                let installed =
                    self.plane.install(&place, &flow, way, wins).map_err(|error| error.to_string())?;
                self.on_installed(number, installed, flow.nat_port, in_snapshot);
            }
            Some(Event::Free { place, nat_port }) => self.on_free(number, &place, nat_port)?,
            Some(Event::SnapshotEnd { flows }) => self.on_snapshot_end(number, flows)?,
            Some(Event::AskForVips) => self.hand_over(true),
            Some(Event::Wanted(place)) => {
                if let Some(table) = self.plane.table_at(&place) {
                    let flows = self.plane.established_in(table);
                    debug!(%place.backend, flows = flows.len(), "the other node has this backend now");
                    let sync = self.sync.as_mut();
                    let stream = sync.and_then(|sync| sync.peers.get_mut(number)?.stream.as_mut());
                    if let Some(stream) = stream {
                        flows.iter().for_each(|port| stream.peer.mark(now(), table, *port));
                    }
                }
            }
            Some(Event::Advertisement { source, priority, interval }) => {
                let advertisement = Advertisement {
                    source,
                    priority,
                    interval,
                    checksum: Checksum::PseudoHeader,
                    other_list: false,
                };
                // By the second one the thread has dealt with the first.
                if let Some((awaited, heard)) = &mut stream.announced
                    && interval >= *awaited
                {
                    *heard += 1;
                    if *heard == 2 {
                        let ms = u32::try_from(awaited.as_millis()).unwrap_or(u32::MAX);
                        stream.peer.say(Message::IntervalConfirmed(ms));
                        stream.announced = None;
                    }
                }
                self.tell_pair(Order::Heard(advertisement));
                return Ok(());
            }
            Some(Event::Interval(interval)) => stream.announced = Some((interval, 0)),
            Some(Event::IntervalConfirmed(interval)) => {
                stream.confirmed = Some(interval);
                let sync = self.sync.iter().flat_map(|sync| &sync.peers);
                let mut streams = sync.map(|link| link.stream.as_ref().and_then(|stream| stream.confirmed));
                if streams.all(|confirmed| confirmed == Some(interval)) {
                    self.on_all_confirmed(interval);
                }
            }
            None => {}
        }
        Ok(())
    }

    fn on_differences(&self, number: usize, differences: &[Difference]) -> Result<(), String> {
        let peer = self.sync.as_ref().and_then(|sync| Some(sync.peers.get(number)?.address));
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        for difference in differences {
            match difference {
                Difference::Seed(service) => {
                    return Err(format!(
                        "the hash seed of service {service} is another one there: use the same `hash_seed_file` on both nodes"
                    ));
                }
                Difference::OnlyOurs(service) => {
                    warn!(peer, %service, "the other node does not have this service: its flows are not shared");
                }
                Difference::OnlyTheirs(service) => {
                    warn!(peer, %service, "only the other node has this service: its flows are not shared");
                }
                Difference::Mode(service) => {
                    warn!(peer, %service, "the service has another `mode` on the other node: its flows are not shared");
                }
            }
        }
        Ok(())
    }

    fn on_installed(&mut self, number: usize, installed: Installed, port: u16, in_snapshot: bool) {
        let Some(sync) = &mut self.sync else { return };
        match installed {
            Installed::New(table) | Installed::Known(table) => {
                sync.figures.flows_in += u64::from(matches!(installed, Installed::New(_)));
                let stream = sync.peers.get_mut(number).and_then(|link| link.stream.as_mut());
                if let Some(stream) = stream.filter(|_| in_snapshot)
                    && let Some(snapshot) = &mut stream.snapshot
                {
                    snapshot.insert((table, port));
                }
            }
            Installed::Conflict => sync.figures.conflicts += 1,
            Installed::NotHere => {}
        }
        self.census_at = None;
    }

    fn on_free(&mut self, number: usize, place: &Place, port: u16) -> Result<(), String> {
        if self.is_active() || self.peer_role(number) != NodeRole::Active {
            return Ok(());
        }
        let Some(table) = self.plane.table_at(place) else { return Ok(()) };
        self.plane.take_out(table, port).map_err(|error| error.to_string())?;
        self.census_at = None;
        Ok(())
    }

    /// All of the peer's flows are here. Copies that it did not name are of flows that have ended.
    fn on_snapshot_end(&mut self, number: usize, flows: u32) -> Result<(), String> {
        let is_copy = !self.is_active() && self.peer_role(number) == NodeRole::Active;
        let Some(sync) = &mut self.sync else { return Ok(()) };
        let has_own = sync.has_own;
        let Some(link) = sync.peers.get_mut(number) else { return Ok(()) };
        let (peer, Some(stream)) = (link.address, &mut link.stream) else { return Ok(()) };
        let snapshot = stream.snapshot.take().unwrap_or_default();
        stream.has_all |= is_copy;
        info!(%peer, flows, here = snapshot.len(), "all flows of the other node are here");
        if is_copy && !has_own {
            for (table, port) in self.plane.established() {
                if !snapshot.contains(&(table, port)) {
                    self.plane.take_out(table, port).map_err(|error| error.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// The way to a client, as far as it is known: that of a router is followed by itself.
    fn way_to(&self, client: IpAddr) -> Way {
        if let Some(hop) = self.node_hop(client) {
            return Way { ifindex: hop.ifindex, tags: hop.tags, mac: hop.mac };
        }
        let mirror = self.network.mirror();
        // Also before the program is attached to them anew: flows come as soon as there is a stream.
        let interfaces = attach::named(&self.config, mirror);
        let mut direct = interfaces.iter().flat_map(|interface| mirror.reaches_by(interface.ifindex, client));
        if let Some((link, lan)) = direct.next() {
            let mac = mirror.neighbour(link.index, client).and_then(|neighbour| neighbour.mac);
            return Way { ifindex: lan.ifindex, tags: lan.vlan, mac: mac.unwrap_or(Mac::UNKNOWN) };
        }
        let ifindex = interfaces.first().map_or(0, |interface| interface.ifindex);
        Way { ifindex, tags: [0; 2], mac: Mac::UNKNOWN }
    }

    /// Looks for the MACs of clients whose flows came without.
    pub(in crate::agent) async fn reach_clients(&mut self) {
        if self.sync.is_none() {
            return;
        }
        let unknown: BTreeSet<(u32, IpAddr)> =
            self.plane.unreachable_clients().into_iter().take(MAX_CLIENTS).collect();
        let mirror = self.network.mirror();
        let reached = self.plane.reach_clients(|ifindex, client| mirror.neighbour(ifindex, client)?.mac);
        if reached > 0 {
            debug!(flows = reached, "clients' MACs are known now");
        }
        let direct =
            unknown.into_iter().filter(|(ifindex, client)| mirror.reaches_directly(*ifindex, *client));
        hops::ask(self.network.handle(), direct).await;
    }
}
