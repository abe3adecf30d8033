//! A port table, in memory: which NAT port belongs to which flow, and the changes that the agent makes to claims.
//!
//! Claims change by compare-and-swap from what was read, so that a flow which moves on meanwhile is never touched.

use std::{
    collections::BTreeSet,
    io,
    mem::offset_of,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::MapData;
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use lb_common::{
    addr::Mac,
    claim::{Claim, State},
    maps::{ClientRoute, Forward, Gate, PORT_TABLE_LEN, PORT_TABLE_SLOTS, Record, name},
};
use zerocopy::{Immutable, IntoBytes};

use super::{error::Error, windows::Windows};

/// The NAT ports of one (source address, backend).
#[derive(Debug)]
pub(super) struct PortTable {
    records: Windows<Record>,
    forwards: Windows<Forward>,
    /// Ports that are kept from flows, or will be when they are free.
    wanted: BTreeSet<u16>,
    /// Whether a flow still has one of these.
    waits: bool,
}

impl PortTable {
    /// Makes a table; the map is to be put into `ports`.
    pub(super) fn create(reserved: &BTreeSet<u16>) -> Result<(MapData, Self), Error> {
        let definition = aya_obj::Map::new_from_params(
            bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            size_of::<Record>() as u32,
            PORT_TABLE_LEN,
            BPF_F_MMAPABLE,
        );
        let map = MapData::create(definition, "port_table", None).map_err(Error::map(name::PORTS))?;
        let mut table = Self::open(&map)?;
        table.reserve(reserved.clone());
        Ok((map, table))
    }

    /// Opens a table that exists.
    pub(super) fn open(map: &MapData) -> Result<Self, Error> {
        let (records, forwards) = halves(map).map_err(Error::call("map into memory", name::PORTS))?;
        let mut table = Self { records, forwards, wanted: BTreeSet::new(), waits: false };
        table.wanted = table.ports().filter(|&port| table.claim(port).is(State::Reserved)).collect();
        Ok(table)
    }

    /// The ports that are kept from flows.
    pub(super) fn reserved(&self) -> &BTreeSet<u16> {
        &self.wanted
    }

    /// Keeps exactly these ports from flows. One that a flow has is kept once it is free: see [`Self::retry`].
    pub(super) fn reserve(&mut self, ports: BTreeSet<u16>) {
        for &port in self.wanted.difference(&ports) {
            let claim = self.claim(port);
            if claim.is(State::Reserved) {
                self.change(port, claim, Claim::new(State::Free, claim.generation()));
            }
        }
        self.wanted = ports;
        self.waits = true;
        self.retry();
    }

    /// Keeps from flows what was not free when it was to be kept.
    pub(super) fn retry(&mut self) {
        if !self.waits {
            return;
        }
        self.waits = false;
        for &port in &self.wanted {
            let claim = self.claim(port);
            let reserved = Claim::new(State::Reserved, claim.generation());
            let kept =
                claim.is(State::Reserved) || (claim.is(State::Free) && self.change(port, claim, reserved));
            self.waits |= !kept;
        }
    }

    /// The ports that are not free as the walk comes to them, in order, at about memory's speed.
    pub(super) fn ports(&self) -> Ports<'_> {
        Ports { table: self, next: 0, found: Vec::new() }
    }

    /// The claim of a port, as it is now.
    pub(super) fn claim(&self, port: u16) -> Claim {
        Claim(self.u64(port, offset_of!(Record, claim), |word| word.load(Ordering::Acquire)))
    }

    /// When the backend's last packet came, ns.
    pub(super) fn last_seen(&self, port: u16) -> u64 {
        self.u64(port, offset_of!(Record, last_seen), |word| word.load(Ordering::Relaxed))
    }

    /// The record of a live flow; `None` if there is none, or if it changed while it was read.
    pub(super) fn flow(&self, port: u16) -> Option<Record> {
        let claim = self.claim(port);
        let record = self.records.read(usize::from(port));
        let same = self.claim(port).generation() == claim.generation() && self.claim(port).is_live();
        (claim.is_live() && same).then_some(Record { claim: claim.0, ..record })
    }

    /// The backend's epoch when the flow of a port was made.
    pub(super) fn epoch(&self, port: u16) -> u32 {
        self.records.u32(usize::from(port), offset_of!(Record, epoch), |word| word.load(Ordering::Relaxed))
    }

    /// Sends a flow's packets to its client by a router, if its record still says what was read; whether that is news.
    pub(super) fn reroute(&self, port: u16, was: &Record, route: &ClientRoute) -> bool {
        if (was.ifindex, was.client_mac) == (route.ifindex, route.mac) {
            return false;
        }
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        let turn = |old, new| {
            let at = (usize::from(port), offset_of!(Record, ifindex));
            self.records.u32(at.0, at.1, |word| word.compare_exchange(old, new, acquire, relaxed)).is_ok()
        };
        let lead = |old, new| {
            let at = offset_of!(Record, client_mac);
            self.u64(port, at, |word| word.compare_exchange(old, new, acquire, relaxed)).is_ok()
        };
        let (old, new) = (mac_word(was.client_mac, was.outer_tag), mac_word(route.mac, was.outer_tag));
        // What somebody else has changed meanwhile is left to the next sweep.
        let turned = turn(was.ifindex, route.ifindex);
        let done = lead(old, new);
        if self.claim(port).generation() == was.claim().generation() {
            return turned || done;
        }
        // The slot went to another flow just now. If that had written the new way by itself, the next sweep does it again.
        if turned {
            turn(route.ifindex, was.ifindex);
        }
        if done {
            lead(new, old);
        }
        false
    }

    /// From now on the port rests as if its backend had spoken at `now_ns`.
    pub(super) fn rest_from(&self, port: u16, now_ns: u64) {
        self.u64(port, offset_of!(Record, last_seen), |word| word.store(now_ns, Ordering::Relaxed));
    }

    /// Changes a claim if it still is what was read; whether it was.
    pub(super) fn change(&self, port: u16, from: Claim, to: Claim) -> bool {
        // In one order with the gate, for the data plane too: it opens that and looks at the claim again.
        let order = Ordering::SeqCst;
        let at = offset_of!(Record, claim);
        self.u64(port, at, |word| word.compare_exchange(from.0, to.0, order, order)).is_ok()
    }

    /// Writes both halves of a slot but its claim, which must be this process's own in state `Claiming`.
    pub(super) fn fill(&self, port: u16, record: &Record, forward: &Forward) {
        const { assert!(offset_of!(Record, claim) == 0 && offset_of!(Forward, gate) == 0) };
        let index = usize::from(port);
        // The gate first, and closed: nobody takes a former owner's established path into what follows.
        let gate = |word| self.forwards.u64(index, 0, |gate| gate.store(word, Ordering::Release));
        gate(Gate::closed(forward.gate().generation()).0);
        for (place, word) in words(record).skip(1) {
            self.u64(port, place * 8, |to| to.store(word, Ordering::Relaxed));
        }
        for (place, word) in words(forward).skip(1) {
            self.forwards.u64(index, place * 8, |to| to.store(word, Ordering::Relaxed));
        }
        gate(forward.gate);
    }

    /// The forward half of a slot, if it is of this generation's flow.
    pub(super) fn forward(&self, port: u16, generation: u32) -> Option<Forward> {
        let forward = self.forwards.read(usize::from(port));
        (forward.gate().generation() == generation).then_some(forward)
    }

    /// When the client's last packet came, ns; 0 if the slot is not this generation's.
    pub(super) fn client_last_seen(&self, port: u16, generation: u32) -> u64 {
        self.forward(port, generation).map_or(0, |forward| forward.last_seen)
    }

    /// From here on every packet of this generation's flow leaves the established path.
    pub(super) fn close_gate(&self, port: u16, generation: u32) {
        let (open, closed) = (Gate::open(generation).0, Gate::closed(generation).0);
        let order = Ordering::SeqCst;
        // Where it is neither of the two the slot is another flow's, or it was closed before.
        let _ = self.forwards.u64(usize::from(port), offset_of!(Forward, gate), |gate| {
            gate.compare_exchange(open, closed, order, order)
        });
    }

    /// Frees a port if its claim, which is not established, still is what was read; whether it was. Whoever ended the flow may have
    /// been killed before it closed the gate.
    pub(super) fn free(&self, port: u16, claim: Claim) -> bool {
        self.close_gate(port, claim.generation());
        self.change(port, claim, Claim::new(State::Free, claim.generation()))
    }

    /// Lets go of the part of the table that is in memory, until it is looked at again. A walk does so as it ends.
    pub(super) fn close(&self) {
        self.records.close();
        self.forwards.close();
    }

    fn u64<R>(&self, port: u16, offset: usize, work: impl FnOnce(&AtomicU64) -> R) -> R {
        self.records.u64(usize::from(port), offset, work)
    }
}

/// A walk over the ports that are not free; once it has ended, nothing of the table stays in memory.
pub(super) struct Ports<'a> {
    table: &'a PortTable,
    /// Where those begin that were not looked at.
    next: usize,
    /// What was found before, the last first.
    found: Vec<u16>,
}

impl Iterator for Ports<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        while self.found.is_empty() && self.next < PORT_TABLE_SLOTS as usize {
            let found = &mut self.found;
            self.next = self.table.records.see_u64s(self.next, offset_of!(Record, claim), |port, claim| {
                if !Claim(claim).is(State::Free) {
                    found.push(port as u16);
                }
            });
            found.reverse();
        }
        self.found.pop()
    }
}

impl Drop for Ports<'_> {
    fn drop(&mut self) {
        self.table.close();
    }
}

/// The two halves of every slot, by one descriptor.
fn halves(map: &MapData) -> io::Result<(Windows<Record>, Windows<Forward>)> {
    let slots = PORT_TABLE_SLOTS as usize;
    let map = Arc::new(map.fd().as_fd().try_clone_to_owned()?);
    Ok((Windows::new(map.clone(), 0, slots)?, Windows::new(map, slots, slots)?))
}

/// A value's words of 64 bits, with their places.
fn words<T: IntoBytes + Immutable>(value: &T) -> impl Iterator<Item = (usize, u64)> {
    let word = |octets: &[u8]| octets.try_into().map_or(0, u64::from_ne_bytes);
    value.as_bytes().chunks_exact(8).map(word).enumerate()
}

/// The word of a record that holds the client's MAC and its first tag.
fn mac_word(mac: Mac, outer_tag: u16) -> u64 {
    const { assert!(offset_of!(Record, outer_tag) == offset_of!(Record, client_mac) + size_of::<Mac>()) };
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(mac.octets());
    octets[6..].copy_from_slice(&outer_tag.to_ne_bytes());
    u64::from_ne_bytes(octets)
}
