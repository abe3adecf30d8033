//! Telling both ends of a flow that it was ended.
//!
//! Each is told three times, paced by [`lb_core::resets::Schedule`], in case it says nothing by itself: see
//! [`segment::farewell`].

use std::{net::SocketAddr, time::Duration};

use aya::maps::MapError;
use lb_common::{
    addr::{Mac, Port},
    claim::ENDED,
    maps::{Backend, Flow, FlowKey, Forward, Record, SERVICE_DSR, Service, age_ns, interface_slot, name},
};
use lb_core::{
    resets::Time,
    segment::{self, End, Link},
};
use tracing::debug;

use super::{
    BackendPlace, DataPlane,
    error::Error,
    forward::{self, NO_EXIST},
    maps::{Maps, is_absent},
    resets::{Ended, Reason},
};

/// Frames are built and sent for so many flows before the agent's loop turns again: about a millisecond.
const BATCH: usize = 50;

/// An established flow that the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedFlow {
    /// When, ns of [`super::monotonic_ns`].
    pub at_ns: u64,
    /// The client.
    pub client: SocketAddr,
    /// The source port toward the backend.
    pub nat_port: u16,
    /// Its service and backend.
    pub place: BackendPlace,
    /// How long it was established; `None` if another flow has its slot already.
    pub lasted: Option<Duration>,
    /// Why.
    pub reason: Reason,
}

impl DataPlane {
    /// Tells both ends of some of the flows that were ended. Returns those of which this is the first time.
    pub fn tell_ended(&mut self, now_ns: u64) -> Vec<EndedFlow> {
        let mut first = Vec::new();
        for _ in 0..BATCH {
            let Some((ended, time)) = self.resets.schedule.take(now_ns) else { break };
            let told = self.tell(&ended, time);
            first.extend(told.filter(|_| time == Time::First));
        }
        first
    }

    /// Flows that were ended and whose ends were not told yet.
    pub fn untold(&self) -> usize {
        self.resets.schedule.untold()
    }

    /// Takes the flow off the established path, and says farewell to both its ends. `None` if nothing is known of its
    /// backend any more.
    fn tell(&mut self, ended: &Ended, time: Time) -> Option<EndedFlow> {
        let (backend, service) = self.owner(ended.backend).map(|(b, s)| (*b, *s))?;
        let key = FlowKey { client: ended.client, port: ended.client_port, service: backend.service };
        let ours = |flow: &Flow| flow.is_of(ended.backend, Port::new(ended.port), ended.generation);
        let entry = forward_entry(&self.maps, &key).unwrap_or_else(|error| {
            debug!(%error, "whether the client has begun another connection cannot be read");
            None
        });
        if let Some((flow, true)) = &entry
            && ours(flow)
            && time == Time::First
        {
            self.make_evictable(&key, flow);
        }
        let begun_anew = entry.is_some_and(|(flow, _)| !ours(&flow));
        let table = self.tables.get(&ended.backend);
        let forward = table.and_then(|table| table.forward(ended.port, ended.generation));
        let still =
            |record: &Record| record.claim().generation() == ended.generation && record.claim().has(ENDED);
        let record = table.and_then(|table| table.flow(ended.port)).filter(still);
        if let Some(record) = record {
            let client_ack = forward.filter(|_| !begun_anew).map(|half| (half.last_ack, half.edge));
            if let Some((last_ack, edge)) = client_ack {
                self.say_farewell(&client_side(&service, &record), last_ack, edge);
            }
            if service.flags & SERVICE_DSR == 0 {
                self.say_farewell(&backend_side(&backend, ended.port), record.last_ack, record.edge);
            } else if let Some((last_ack, edge)) = client_ack {
                // What the backend says is not seen; the client's own numbers are what it expects next.
                self.say_farewell(&unseen_backend_side(&backend, &service, &record), edge, last_ack);
            }
        }
        let lasted = |half: Forward| Duration::from_nanos(age_ns(half.since, ended.at_ns));
        Some(EndedFlow {
            at_ns: ended.at_ns,
            client: SocketAddr::new(ended.client.to_ip(), ended.client_port.get()),
            nat_port: ended.port,
            place: self.place_of(ended.backend)?,
            lasted: forward.map(lasted),
            reason: ended.reason,
        })
    }

    /// Into `half_open`, where packets of ended flows find their slot, and which makes room by itself.
    fn make_evictable(&mut self, key: &FlowKey, flow: &Flow) {
        let moved = match self.maps.half_open.insert(key, flow, NO_EXIST) {
            // Somebody has it already: the client begins anew.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            moved => moved,
        };
        let removed = forward::remove(&mut self.maps, key, flow).map(drop);
        if let Err(error) = moved.map_err(Error::map(name::HALF_OPEN)).and(removed) {
            debug!(%error, "a forward entry could not be moved");
        }
    }

    fn say_farewell(&mut self, way: &Way, last_ack: u32, edge: u32) {
        let interface = self.actual.interfaces.get(&interface_slot(way.ifindex));
        let Some(interface) = interface.filter(|interface| interface.ifindex == way.ifindex) else { return };
        if way.mac.is_unknown() {
            return;
        }
        let link = Link { source: interface.mac, destination: way.mac, tags: way.tags };
        for segment in segment::farewell(last_ack, edge) {
            let Some(frame) = segment::frame(&link, &way.from, &way.to, &segment) else { return };
            if let Err(error) = self.resets.sender.send(way.ifindex, &frame) {
                debug!(ifindex = way.ifindex, %error, "a reset was not sent");
            }
        }
    }
}

/// The way to one end, and in whose name.
struct Way {
    ifindex: u32,
    mac: Mac,
    tags: [u16; 2],
    from: End,
    to: End,
}

fn client_side(service: &Service, record: &Record) -> Way {
    Way {
        ifindex: record.ifindex,
        mac: record.client_mac,
        tags: [record.outer_tag, record.inner_tag],
        from: End { address: service.vip, port: service.port },
        to: End { address: record.client, port: record.client_port },
    }
}

fn backend_side(backend: &Backend, nat_port: u16) -> Way {
    Way {
        ifindex: backend.hop.ifindex,
        mac: backend.hop.mac,
        tags: backend.hop.tags,
        from: End { address: backend.source, port: Port::new(nat_port) },
        to: End { address: backend.address, port: backend.port },
    }
}

/// The same where the backend holds the VIP: it knows the client by its own address.
fn unseen_backend_side(backend: &Backend, service: &Service, record: &Record) -> Way {
    Way {
        ifindex: backend.hop.ifindex,
        mac: backend.hop.mac,
        tags: backend.hop.tags,
        from: End { address: record.client, port: record.client_port },
        to: End { address: service.vip, port: service.port },
    }
}

/// A forward entry, and whether it is in `flows`.
fn forward_entry(maps: &Maps, key: &FlowKey) -> Result<Option<(Flow, bool)>, MapError> {
    for (map, established) in [(&maps.flows, true), (&maps.half_open, false)] {
        match map.get(key, 0) {
            Ok(flow) => return Ok(Some((flow, established))),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
