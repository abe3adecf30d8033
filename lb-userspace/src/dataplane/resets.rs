//! Ending flows at both ends.
//!
//! A flow is ended by its claim (`ENDED`), and stops counting as established at once. From then on the data plane answers
//! whatever either end says with an exact RST. So it does from the instant that a backend's epoch is raised; the agent
//! follows with the claims. Then both ends are told, paced by [`lb_core::resets::Schedule`], in case they say nothing.
//!
//! The NAT port rests for as long as one in TIME_WAIT: the backend may hold the connection yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::maps::MapError;
use lb_common::{
    addr::{Addr, Port},
    claim::{Claim, ENDED, State},
    maps::{Backend, Flow, FlowKey, Record, SERVICE_DSR, Service, age_ns, interface_slot},
};
use lb_core::{
    resets::{Schedule, Time},
    segment::{self, End, Link},
};
use tracing::{debug, warn};

use super::{
    BackendPlace, DataPlane, leaving,
    maps::{Maps, is_absent},
    monotonic_ns,
    port_table::PortTable,
    raw_socket::RawSocket,
    sweep::count_out,
};

/// Frames are built and sent for so many flows before the agent's loop turns again: about a millisecond.
const BATCH: usize = 50;
/// `BPF_NOEXIST` of bpf(2).
const NO_EXIST: u64 = 1;

/// Why flows were ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Their backend is down, and another is healthy.
    BackendDown,
    /// Their backend was drained or left the config, and `drain_timeout` is over.
    Drained,
    /// Neither end spoke for `idle_timeout`.
    Idle,
    /// The operator's `reset`.
    Operator,
    /// The operator's `rebalance`.
    Rebalance,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::BackendDown, Self::Drained, Self::Idle, Self::Operator, Self::Rebalance];

    /// The label of the metrics and the word of the flow log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BackendDown => "backend_down",
            Self::Drained => "drain_timeout",
            Self::Idle => "idle",
            Self::Operator => "command",
            Self::Rebalance => "rebalance",
        }
    }
}

/// An established flow that the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedFlow {
    /// When, ns of [`monotonic_ns`].
    pub at_ns: u64,
    /// The client.
    pub client: SocketAddr,
    /// The source port toward the backend.
    pub nat_port: u16,
    /// Its service and backend.
    pub place: BackendPlace,
    /// How long it was established; `None` if its forward entry is gone.
    pub lasted: Option<Duration>,
    /// Why.
    pub reason: Reason,
}

/// A NAT port and whose it is.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) backend: u16,
    pub(super) service: u16,
    pub(super) port: u16,
}

/// A flow that was ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    backend: u16,
    port: u16,
    generation: u32,
    client: Addr,
    client_port: Port,
    reason: Reason,
    at_ns: u64,
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Resets {
    schedule: Schedule<Ended>,
    /// Opened when it is needed first.
    socket: Option<RawSocket>,
    /// Why a backend's epoch was raised last.
    reasons: BTreeMap<u16, Reason>,
    /// Established flows ended, by backend and reason, since this process began.
    counted: BTreeMap<(u16, Reason), u64>,
}

impl DataPlane {
    /// Ends every flow of a backend, at both ends; how many were established.
    pub fn reset_flows(&mut self, number: u16, reason: Reason) -> u32 {
        self.reset_flows_at(number, reason, monotonic_ns())
    }

    pub(super) fn reset_flows_at(&mut self, number: u16, reason: Reason, now_ns: u64) -> u32 {
        leaving::raise_epoch(&self.maps, &mut self.actual, number);
        self.resets.because(number, reason);
        self.end_stale(number, now_ns)
    }

    /// As [`Self::reset_flows`], if the backend has flows that were not reset yet; `None` if it has none.
    pub fn reset_flows_if_any(&mut self, number: u16, reason: Reason) -> Option<u32> {
        let (table, backend) = (self.tables.get(&number)?, self.actual.backends.get(&number)?);
        let lives = |claim: Claim| claim.is(State::Established) || claim.is(State::HalfOpen);
        let any = table.ports().any(|port| lives(table.claim(port)) && table.epoch(port) == backend.epoch);
        any.then(|| self.reset_flows(number, reason))
    }

    /// Ends every established flow of a client, at both ends; how many there were.
    pub fn reset_client(&mut self, client: IpAddr) -> u32 {
        let client = Addr::from(client);
        let numbers: Vec<u16> = self.tables.keys().copied().collect();
        let of_client = |record: &Record| record.client == client;
        numbers
            .into_iter()
            .map(|number| self.end_chosen(number, usize::MAX, Reason::Operator, of_client))
            .sum()
    }

    /// Ends `count` established flows of a backend, those first on which it was silent longest; how many.
    pub fn reset_some(&mut self, number: u16, count: u32, reason: Reason) -> u32 {
        self.end_chosen(number, count as usize, reason, |_| true)
    }

    /// When [`Self::tell_ended`] or [`Self::end_drained`] has something to do, ns; `None`: not before more flows are
    /// ended or drained.
    pub fn resets_due_ns(&self) -> Option<u64> {
        [self.resets.schedule.due_ns(), self.sweeper.leaving.due_ns()].into_iter().flatten().min()
    }

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

    /// Established flows of a backend's number that were ended for a reason, since this process began.
    pub fn ended_flows(&self, number: u16, reason: Reason) -> u64 {
        self.resets.counted.get(&(number, reason)).copied().unwrap_or_default()
    }

    /// Ends the established flows whose epoch is not their backend's any more; how many.
    pub(super) fn end_stale(&mut self, number: u16, now_ns: u64) -> u32 {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return 0;
        };
        let reason = self.resets.reason(number);
        let mut count = 0;
        for port in table.ports() {
            let claim = table.claim(port);
            if is_stale(table, port, claim, Some(backend.epoch)) {
                let slot = Slot { backend: number, service: backend.service, port };
                count += u32::from(self.resets.end(&self.maps, table, slot, claim, reason, now_ns));
            }
        }
        count
    }

    fn end_chosen(
        &mut self,
        number: u16,
        count: usize,
        reason: Reason,
        chosen: impl Fn(&Record) -> bool,
    ) -> u32 {
        let (Some(table), Some(backend)) = (self.tables.get(&number), self.actual.backends.get(&number))
        else {
            return 0;
        };
        let now_ns = monotonic_ns();
        let established = |port: &u16| table.claim(*port).is(State::Established);
        let mut found: Vec<_> = table
            .ports()
            .filter(established)
            .filter_map(|port| Some((port, table.flow(port).filter(&chosen)?)))
            .map(|(port, record)| (record.last_seen, port, record.claim()))
            .collect();
        found.sort_unstable_by_key(|(last_seen, port, _)| (*last_seen, *port));
        let ended = found.into_iter().take(count).filter(|(_, port, claim)| {
            let slot = Slot { backend: number, service: backend.service, port: *port };
            self.resets.end(&self.maps, table, slot, *claim, reason, now_ns)
        });
        ended.count() as u32
    }

    /// Takes the flow off the established path, and says farewell to both its ends. `None` if nothing is known of its
    /// backend any more.
    fn tell(&mut self, ended: &Ended, time: Time) -> Option<EndedFlow> {
        let (backend, service) = self.owner(ended.backend).map(|(b, s)| (*b, *s))?;
        let key = FlowKey { client: ended.client, port: ended.client_port, service: backend.service };
        let ours = |flow: &Flow| flow.backend == ended.backend && flow.generation == ended.generation;
        let forward = forward_entry(&self.maps, &key).unwrap_or_else(|error| {
            debug!(%error, "the client's last ACK cannot be read");
            None
        });
        let own = forward.filter(|(flow, _)| ours(flow));
        if let Some((flow, true)) = &own
            && time == Time::First
        {
            self.leave_established_path(&key, flow);
        }
        let still =
            |record: &Record| record.claim().generation() == ended.generation && record.claim().has(ENDED);
        let record = self.tables.get(&ended.backend).and_then(|table| table.flow(ended.port)).filter(still);
        if let Some(record) = record {
            let client_ack = match (&own, &forward) {
                (Some((flow, _)), _) => Some((flow.last_ack, flow.edge)),
                // The client has begun another connection.
                (None, Some(_)) => None,
                // Pushed out of `half_open`: the client has acknowledged about what the backend sent.
                (None, None) => Some((record.edge, record.last_ack)),
            };
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
        let lasted = |flow: &Flow| Duration::from_nanos(age_ns(flow.established, ended.at_ns));
        Some(EndedFlow {
            at_ns: ended.at_ns,
            client: SocketAddr::new(ended.client.to_ip(), ended.client_port.get()),
            nat_port: ended.port,
            place: self.place_of(ended.backend)?,
            lasted: own.map(|(flow, _)| lasted(&flow)),
            reason: ended.reason,
        })
    }

    /// Into `half_open`, where packets of ended flows find it, and which makes room by itself.
    fn leave_established_path(&mut self, key: &FlowKey, flow: &Flow) {
        let moved = match self.maps.half_open.insert(key, flow, NO_EXIST) {
            // Somebody has it already: the client begins anew.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            moved => moved,
        };
        let removed = self.maps.flows.remove(key);
        for outcome in [moved, removed] {
            if let Err(error) = outcome
                && !is_absent(&error)
            {
                debug!(%error, "a forward entry could not be moved");
            }
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
            if let Err(error) = self.resets.send(way.ifindex, &frame) {
                debug!(ifindex = way.ifindex, %error, "a reset was not sent");
            }
        }
    }
}

impl Resets {
    /// Ends a flow if it still is the one whose claim was read, and established, and has both ends told; whether it was.
    pub(super) fn end(
        &mut self,
        maps: &Maps,
        table: &PortTable,
        slot: Slot,
        claim: Claim,
        reason: Reason,
        now_ns: u64,
    ) -> bool {
        let mut held = claim;
        // Each turn loses to a step that the flow took, and a flow has few to take.
        let record = loop {
            // Its identity stands as long as its claim does.
            let Some(record) = table.flow(slot.port) else { return false };
            if held.generation() != claim.generation() || !held.is(State::Established) {
                return false;
            }
            if table.change(slot.port, held, held.after(ENDED)) {
                break record;
            }
            held = table.claim(slot.port);
        };
        table.rest_from(slot.port, now_ns);
        count_out(maps, slot.backend, slot.service);
        *self.counted.entry((slot.backend, reason)).or_default() += 1;
        self.schedule.add(Ended {
            backend: slot.backend,
            port: slot.port,
            generation: claim.generation(),
            client: record.client,
            client_port: record.client_port,
            reason,
            at_ns: now_ns,
        });
        true
    }

    /// A backend has left: its number may be another's from now on.
    pub(super) fn forget(&mut self, number: u16) {
        self.reasons.remove(&number);
        self.counted.retain(|(backend, _), _| *backend != number);
    }

    /// Why the backend's epoch is raised.
    pub(super) fn because(&mut self, number: u16, reason: Reason) {
        self.reasons.insert(number, reason);
    }

    /// Why the backend's epoch was raised last.
    pub(super) fn reason(&self, number: u16) -> Reason {
        self.reasons.get(&number).copied().unwrap_or(Reason::BackendDown)
    }

    /// Backends of the flows that are being told.
    pub(super) fn backends(&self) -> BTreeSet<u16> {
        self.schedule.waiting().map(|ended| ended.backend).collect()
    }

    fn send(&mut self, ifindex: u32, frame: &[u8]) -> std::io::Result<()> {
        if self.socket.is_none() {
            let opened = RawSocket::open();
            if let Err(error) = &opened {
                warn!(%error, "no packet socket: silent ends of flows are not told that these were reset");
            }
            self.socket = Some(opened?);
        }
        self.socket.as_ref().map_or(Ok(()), |socket| socket.send(ifindex, frame))
    }
}

/// Whether a flow is to be ended because its backend's epoch was raised.
pub(super) fn is_stale(table: &PortTable, port: u16, claim: Claim, epoch: Option<u32>) -> bool {
    claim.is(State::Established) && epoch.is_some_and(|epoch| table.epoch(port) != epoch)
}

/// The way to one end, and in whose name.
struct Way {
    ifindex: u32,
    mac: lb_common::addr::Mac,
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
