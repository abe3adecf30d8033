//! The data plane, as the agent sees it: loads the XDP program, keeps it attached, writes the policy maps and reads what
//! the program counts.
//!
//! | file | what |
//! | --- | --- |
//! | `load.rs`, `layout.rs`, `pins.rs`, `privilege.rs` | start: what is pinned, whether it fits, loading on it |
//! | `links.rs`, `device.rs`, `foreign.rs` | attaching to interfaces; what else is there |
//! | `apply.rs`, `maps.rs` | the policy maps, written by the plan of [`lb_core::reconcile`] and by nothing else |
//! | `port_table.rs`, `windows.rs`, `shared.rs` | port tables and other maps in memory |
//! | `migrate.rs`, `raw_map.rs` | flows carried over from maps of another layout |
//! | `census.rs`, `flows.rs` | counting and listing flows |
//! | `explain.rs` | which backend a new flow would go to |
//! | `resets.rs`, `farewell.rs` | ending flows, and telling both ends |
//! | `rings.rs`, `told.rs` | what the data plane tells by itself: signals and events |
//! | `sweep.rs`, `forward.rs`, `loads.rs`, `clients.rs`, `leaving.rs` | what is cleaned up about once a second |
//! | `lease.rs` | the lease on the VIPs |
//! | `sync.rs` | flows of other nodes, in and out |
//! | `ways.rs` | live flows follow the routes to their clients |
//! | `detach.rs` | removing it all |
//! | `debug_log.rs` | the program's own messages, in builds with the feature `debug-log` |
//! | `bpf.rs` | calls to the kernel that aya does not have |
//!
//! The agent is never on the packet path. Everything here outlives it: maps, programs and links are pinned, and the next
//! agent adopts them, also one of another version, as long as the layouts are the same.

mod apply;
mod bpf;
mod capture;
mod census;
mod clients;
#[cfg(feature = "debug-log")]
mod debug_log;
mod detach;
mod device;
mod error;
mod explain;
mod farewell;
mod flows;
mod foreign;
mod forward;
mod layout;
mod lease;
mod leaving;
mod links;
mod load;
mod loads;
mod maps;
mod migrate;
mod mode;
mod pins;
mod port_table;
mod privilege;
mod raw_map;
mod resets;
mod rings;
mod shared;
mod sweep;
mod sync;
mod told;
mod ways;
mod windows;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
};

use aya::maps::Map;
use lb_common::{
    addr::{Addr, Port},
    counters::{BackendCounters, Counters},
    maps::{BACKEND_DRAINED, BACKEND_HEALTHY, BACKEND_LEAVING, Backend, ServiceKey, name},
};
use lb_core::reconcile::{Actual, Change, Desired, Planner};
use tracing::{debug, warn};

use self::{
    capture::Capturing,
    links::{Device, Origin},
    load::Loaded,
    maps::Maps,
    migrate::Migration,
    pins::{Contents, PinDir},
    port_table::PortTable,
    resets::Resets,
    sweep::Sweeper,
};
pub use self::{
    capture::{Captured, Captures, Wanted},
    census::{BackendCensus, Census},
    detach::{DetachReport, detach},
    error::Error,
    explain::{Explanation, LiveBackend},
    farewell::EndedFlow,
    flows::{FlowFilter, FlowState, FlowView},
    foreign::{driver, foreign_program},
    lease::LeaseMap,
    mode::AttachedMode,
    pins::has_links,
    resets::Reason,
    rings::Ring,
    sweep::SweepReport,
    sync::{Installed, Way},
    told::BackendPlace,
};
use crate::object::XDP_OBJECT;
pub use lb_core::config::XdpMode;

/// How to open the data plane.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Where maps, programs and links are pinned: a directory on a BPF file system, made if it is not there.
    pub pin_dir: &'a Path,
    /// Established flows at most.
    pub max_flows: u32,
}

/// What [`DataPlane::reconcile`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Map writes.
    pub changes: usize,
}

/// The data plane.
///
/// Until [`Self::keep`], dropping it takes the program off the interfaces to which this process attached it, and removes
/// the pins that this process made: a start that fails leaves nothing behind. What was there before stays.
pub struct DataPlane {
    pins: PinDir,
    entry: OwnedFd,
    pass: OwnedFd,
    max_flows: u32,
    /// The kernel's number of the entry program, which numbers the load.
    load: u32,
    adopted: bool,
    kept: bool,
    maps: Maps,
    tables: BTreeMap<u16, PortTable>,
    actual: Actual,
    planner: Planner,
    desired: Option<Desired>,
    attached: BTreeMap<u32, AttachedMode>,
    /// Interfaces that nothing of ours ran on before.
    new_links: BTreeSet<u32>,
    sweeper: Sweeper,
    resets: Resets,
    /// Whether flows that are idle or drained are this node's to end.
    is_owner: bool,
    /// Packets are captured.
    capture: Option<Capturing>,
    /// The map of the layout, until it is pinned.
    layout: Option<Map>,
    /// Maps of another layout, until their flows are carried over.
    migration: Option<Migration>,
}

/// Whether a data plane is pinned in a directory.
pub fn is_pinned(pin_dir: &Path) -> bool {
    PinDir::open(pin_dir)
        .and_then(|pins| pins.contents())
        .is_ok_and(|contents| contents == Contents::DataPlane)
}

/// Now, ns of `CLOCK_MONOTONIC`, the clock of the data plane.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that every kernel has, and a struct that it fills in. It cannot fail then.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The kernel's tick, ns, which is the resolution of its coarse clocks; 0 if it does not say.
pub fn tick_ns() -> u64 {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a struct that the call fills in, or leaves.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    tick.tv_sec as u64 * 1_000_000_000 + tick.tv_nsec as u64
}

impl DataPlane {
    /// Loads this build's program on the pinned maps, or on new ones where there are none. Nothing is attached by this,
    /// and what is attached goes on as it is. The caller sees to it that no other process works on the directory.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`] if what is pinned does not fit; then it is left untouched.
    pub fn open(options: &Options<'_>) -> Result<Self, Error> {
        Self::open_object(options, XDP_OBJECT)
    }

    /// As [`Self::open`], with another object than this build's.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_object(options: &Options<'_>, object: &[u8]) -> Result<Self, Error> {
        privilege::check()?;
        let pins = PinDir::prepare(options.pin_dir)?;
        let Loaded { entry, id, pass, maps, adopted, layout, migration } =
            load::load(&pins, object, options.max_flows)?;
        let mut plane = Self {
            pins,
            entry,
            pass,
            max_flows: options.max_flows,
            load: id,
            adopted,
            kept: false,
            maps,
            tables: BTreeMap::new(),
            actual: Actual::default(),
            planner: Planner::default(),
            desired: None,
            attached: BTreeMap::new(),
            new_links: BTreeSet::new(),
            sweeper: Sweeper::default(),
            resets: Resets::default(),
            is_owner: true,
            capture: None,
            layout,
            migration,
        };
        plane.tables = plane.maps.port_tables()?;
        plane.actual = plane.maps.read()?;
        let reserved = |(&number, table): (&u16, &PortTable)| (number, table.reserved().clone());
        plane.actual.reserved = plane.tables.iter().map(reserved).collect();
        Ok(plane)
    }

    /// Whether maps were pinned already.
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// The start went well: from now on, what is attached and pinned outlives this process.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Makes an interface run this load's program: in its pinned link if there is one, which no packet notices, else by a
    /// new one.
    ///
    /// # Errors
    ///
    /// [`Error::Occupied`] by another program, [`Error::NoNative`], [`Error::NoInterface`], [`Error::Attach`].
    pub fn attach(&mut self, ifindex: u32, name: &str, mode: XdpMode) -> Result<AttachedMode, Error> {
        let device = Device { ifindex, name };
        let (mode, origin) = links::attach(&self.pins, self.program(), device, mode)?;
        if origin == Origin::New {
            self.new_links.insert(ifindex);
        }
        self.attached.insert(ifindex, mode);
        self.promote()?;
        Ok(mode)
    }

    /// Makes the near end of a veth take what XDP sends by the far one: a driver without a program there drops it. Not by a
    /// link, which would need a pin of its own: the program changes nothing, in no version, and goes with the interface.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`].
    pub fn attach_pass(&self, ifindex: u32, name: &str) -> Result<(), Error> {
        let done = match device::running(ifindex) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => device::attach(ifindex, &self.pass),
            Err(error) => Err(error),
        };
        done.map_err(|source| Error::Attach {
            interface: name.into(),
            driver: device::driver(ifindex, name),
            source,
        })
    }

    /// Interfaces that run this load's program.
    pub fn attached(&self) -> Vec<(u32, AttachedMode)> {
        self.attached.iter().map(|(&ifindex, &mode)| (ifindex, mode)).collect()
    }

    /// Interfaces whose pinned link is attached, whichever load's program it runs: also those that a former config named.
    ///
    /// # Errors
    ///
    /// [`Error::PinDir`].
    pub fn pinned_interfaces(&self) -> Result<Vec<u32>, Error> {
        Ok(self.pins.attached()?.into_iter().map(|link| link.ifindex).collect())
    }

    /// Takes the program off an interface.
    ///
    /// # Errors
    ///
    /// [`Error::PinDir`].
    pub fn detach_interface(&mut self, ifindex: u32) -> Result<(), Error> {
        links::detach(&self.pins, ifindex)?;
        self.attached.remove(&ifindex);
        self.new_links.remove(&ifindex);
        self.promote()
    }

    /// An interface is gone: the pin of its link goes too. Does nothing while the interface is there.
    pub fn forget_interface(&mut self, ifindex: u32) {
        match links::forget(&self.pins, ifindex) {
            Ok(true) => {
                self.attached.remove(&ifindex);
                self.new_links.remove(&ifindex);
            }
            Ok(false) => {}
            Err(error) => warn!(ifindex, %error, "the link of an interface that is gone stays pinned"),
        }
    }

    /// Writes what differs between the maps and what is desired. What is no longer desired goes once its flows have
    /// ended: see [`Self::sweep`].
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if it does not fit; nothing is written then. [`Error::Map`], [`Error::MapCall`]: what comes before
    /// is written, the rest is by the next call.
    pub fn reconcile(&mut self, desired: &Desired) -> Result<Reconciled, Error> {
        let plan = self.planner.plan(desired, &self.actual)?;
        self.desired = Some(desired.clone());
        let written = self.write(&plan)?;
        if ways::concern(&plan) {
            self.follow_client_routes();
        }
        self.sweeper.leaving.follow(&self.actual, self.desired.as_ref(), monotonic_ns());
        Ok(written)
    }

    /// The number of a backend, also of one that leaves; what counters and flows name it by.
    pub fn backend_number(&self, vip: IpAddr, port: u16, backend: SocketAddr) -> Option<u16> {
        self.find_backend(vip, port, backend).map(|(number, _)| number)
    }

    /// Slots of its service's Maglev table that a backend's number owns.
    pub fn maglev_slots(&self, number: u16) -> usize {
        let service = self.actual.backends.get(&number).map(|backend| backend.service);
        let table = service.and_then(|service| self.actual.maglev.get(&service));
        table.map_or(0, |table| table.iter().filter(|owner| **owner == number).count())
    }

    /// The last verdict on a backend that a former agent left, if it knew the backend.
    pub fn restored_health(&self, vip: IpAddr, port: u16, backend: SocketAddr) -> Option<bool> {
        let (_, entry) = self.find_backend(vip, port, backend)?;
        (entry.flags & BACKEND_LEAVING == 0).then_some(entry.flags & BACKEND_HEALTHY != 0)
    }

    /// Where a service's backends are, as a former agent left them; not those that leave.
    pub fn backends_of(&self, vip: IpAddr, port: u16) -> Vec<SocketAddr> {
        let Some(service) = self.actual.service_number(&ServiceKey::new(vip.into(), Port::new(port))) else {
            return vec![];
        };
        let stays = |backend: &Backend| backend.service == service && backend.flags & BACKEND_LEAVING == 0;
        let backends = self.actual.used_backends().filter(|(_, backend)| stays(backend));
        backends.map(|(_, backend)| address_of(backend)).collect()
    }

    /// The backends that the operator drains, as a former agent left them: VIP, port, backend.
    pub fn restored_drains(&self) -> Vec<(IpAddr, u16, SocketAddr)> {
        let is_drained =
            |backend: &Backend| backend.flags & (BACKEND_DRAINED | BACKEND_LEAVING) == BACKEND_DRAINED;
        let drained = self.actual.used_backends().filter(|(_, backend)| is_drained(backend));
        let named = drained.filter_map(|(_, backend)| {
            let service = self.actual.services.get(&backend.service)?;
            Some((service.vip.to_ip(), service.port.get(), address_of(backend)))
        });
        named.collect()
    }

    /// What the data plane counted, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters, Error> {
        let values = self.maps.counters.get(&0, 0).map_err(Error::map(name::COUNTERS))?;
        let mut sum = Counters::default();
        values.iter().for_each(|counters| sum.add(counters));
        Ok(sum)
    }

    /// What a backend's number counted, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn backend_counters(&self, number: u16) -> Result<BackendCounters, Error> {
        let counters = self.maps.backend_counters.get(&u32::from(number), 0);
        let values = counters.map_err(Error::map(name::BACKEND_COUNTERS))?;
        let mut sum = BackendCounters::default();
        values.iter().for_each(|counters| sum.add(counters));
        Ok(sum)
    }

    fn write(&mut self, plan: &[Change]) -> Result<Reconciled, Error> {
        for change in plan {
            debug!(?change, "map write");
            apply::apply(&mut self.maps, &mut self.tables, change)?;
            self.actual.apply(change);
        }
        Ok(Reconciled { changes: plan.len() })
    }

    fn find_backend(&self, vip: IpAddr, port: u16, backend: SocketAddr) -> Option<(u16, &Backend)> {
        let service = self.actual.service_number(&ServiceKey::new(vip.into(), Port::new(port)))?;
        let (address, port) = (Addr::from(backend.ip()), Port::new(backend.port()));
        self.actual
            .used_backends()
            .find(|(_, entry)| (entry.service, entry.address, entry.port) == (service, address, port))
    }

    /// Once every link runs this load's program, the older one and its program array are let go.
    fn promote(&self) -> Result<(), Error> {
        let attached = self.pins.attached()?;
        if !attached.is_empty() && attached.iter().all(|link| self.is_this_load(link.program_id)) {
            self.pins.promote(self.load)?;
            if self.capture.is_none() {
                // Of an agent that was killed meanwhile.
                self.pins.clear_capture()?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane")
            .field("pins", &self.pins)
            .field("load", &self.load)
            .finish_non_exhaustive()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for &ifindex in &self.new_links {
            if let Err(error) = links::detach(&self.pins, ifindex) {
                warn!(ifindex, %error, "the program stays attached: remove it with `etcd-lb detach`");
            }
        }
        let in_use =
            self.pins.attached().map_or(true, |links| links.iter().any(|l| self.is_this_load(l.program_id)));
        if in_use {
            return;
        }
        self.pins.discard(self.load);
        if self.take_back_maps() {
            return;
        }
        if !self.adopted {
            if let Err(error) = self.pins.clear() {
                warn!(%error, "pins stay behind: remove them with `etcd-lb detach`");
            }
            self.pins.remove_dir();
        }
    }
}

fn address_of(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address.to_ip(), backend.port.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_plane_may_move_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<DataPlane>();
    }

    #[test]
    fn the_clock_runs() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }
}
