//! The maps. Names and layouts are those of [`lb_common::maps`], to which a test holds this object.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    addr::Addr,
    counters::{BackendCounters, Counters},
    election::Election,
    maps::{
        self, AllowData, Backend, ClientKey, ClientLoad, ClientRoute, EVENTS_LEN, Filter, Flow, FlowKey,
        Forward, Handshakes, Interface, LOAD_SLOTS, Layout, Lease, Load, MAGLEV_TABLES, MAX_ALLOW,
        MAX_BACKENDS, MAX_CLIENT_ROUTES, MAX_INTERFACES, MAX_SERVICES, MAX_VIPS, Maglev, PORT_TABLE_LEN,
        PORT_TABLE_SLOTS, Record, ReturnKey, SIGNALS_LEN, SUSPECT_SLOTS, Service, ServiceKey, Suspect, Ticks,
        VipClaim, VipOnInterface,
    },
    shortcut::Bucket,
};

use crate::{handover::Handover, walk::Choice};

/// The agent maps these into its memory.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// LPM tries allocate their nodes as they come.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
// The loader sets the capacities of these from `max_flows`.
const FLOWS_CAPACITY: usize = maps::flows_capacity(maps::DEFAULT_MAX_FLOWS) as usize;
const HALF_OPEN_CAPACITY: usize = maps::half_open_capacity(maps::DEFAULT_MAX_FLOWS) as usize;

const SHORTCUTS_CAPACITY: usize = maps::shortcuts_capacity(maps::DEFAULT_MAX_FLOWS) as usize;

#[btf_map(name = "layout")]
pub static LAYOUT: Array<Layout, 1> = Array::new();
#[btf_map(name = "filter")]
pub static FILTER: Array<Filter, 1> = Array::new();
#[btf_map(name = "interfaces")]
pub static INTERFACES: Array<Interface, MAX_INTERFACES> = Array::new();
#[btf_map(name = "vips")]
pub static VIPS: HashMap<VipOnInterface, VipClaim, MAX_VIPS> = HashMap::new();
#[btf_map(name = "service_ports")]
pub static SERVICE_PORTS: HashMap<ServiceKey, u32, MAX_SERVICES> = HashMap::new();
#[btf_map(name = "services")]
pub static SERVICES: Array<Service, MAX_SERVICES> = Array::new();
#[btf_map(name = "allow")]
pub static ALLOW: LpmTrie<AllowData, u32, MAX_ALLOW, NO_PREALLOC> = LpmTrie::new();
#[btf_map(name = "client_routes")]
pub static CLIENT_ROUTES: LpmTrie<Addr, ClientRoute, MAX_CLIENT_ROUTES, NO_PREALLOC> = LpmTrie::new();
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, MAX_BACKENDS, MMAPABLE> = Array::new();
#[btf_map(name = "returns")]
pub static RETURNS: HashMap<ReturnKey, u32, MAX_BACKENDS> = HashMap::new();
#[btf_map(name = "maglev")]
pub static MAGLEV: ArrayOfMaps<Array<Words<{ size_of::<Maglev>() / 4 }>, MAGLEV_TABLES>, MAX_SERVICES> =
    ArrayOfMaps::new();
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<FlowKey, Flow, FLOWS_CAPACITY> = HashMap::new();
#[btf_map(name = "half_open")]
pub static HALF_OPEN: LruHashMap<FlowKey, Flow, HALF_OPEN_CAPACITY> = LruHashMap::new();
#[btf_map(name = "shortcuts")]
pub static SHORTCUTS: Array<Bucket, SHORTCUTS_CAPACITY> = Array::new();
#[btf_map(name = "ports")]
pub static PORTS: ArrayOfMaps<PortTable, MAX_BACKENDS> = ArrayOfMaps::new();
#[btf_map(name = "loads")]
pub static LOADS: Array<Load, LOAD_SLOTS, MMAPABLE> = Array::new();
#[btf_map(name = "clients")]
pub static CLIENTS: HashMap<ClientKey, ClientLoad, FLOWS_CAPACITY, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "lease")]
pub static LEASE: Array<Lease, 1, MMAPABLE> = Array::new();
#[btf_map(name = "elections")]
pub static ELECTIONS: Array<Election, 2> = Array::new();
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map(name = "backend_counters")]
pub static BACKEND_COUNTERS: PerCpuArray<BackendCounters, MAX_BACKENDS> = PerCpuArray::new();
// No value type: libbpf takes one for a contradiction to the value size of 0 that a ring buffer has.
#[btf_map(name = "signals")]
pub static SIGNALS: RingBuf<(), SIGNALS_LEN> = RingBuf::new();
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<(), EVENTS_LEN> = RingBuf::new();
#[btf_map(name = "suspects")]
pub static SUSPECTS: Array<Suspect, SUSPECT_SLOTS> = Array::new();
#[btf_map(name = "handshakes")]
pub static HANDSHAKES: PerCpuArray<Handshakes, MAX_BACKENDS> = PerCpuArray::new();
#[btf_map(name = "programs")]
pub static PROGRAMS: ProgramArray<16> = ProgramArray::new();

/// See `walk::Choice`.
#[btf_map(name = "choice")]
pub static CHOICE: PerCpuArray<Choice, 1> = PerCpuArray::new();
#[btf_map(name = "handover")]
pub static HANDOVER: PerCpuArray<Handover, 1> = PerCpuArray::new();

/// See `clock::coarse`.
#[btf_map(name = "ticks")]
pub static TICKS: Array<Ticks, 1> = Array::new();

/// See `frame::forget`.
#[btf_map(name = "forget")]
pub static FORGET: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The NAT ports of one backend: an array of [`Record`], then of [`Forward`].
pub type PortTable = Array<Words<{ size_of::<Record>() / 4 }>, { PORT_TABLE_LEN as usize }, MMAPABLE>;

/// The value of an inner map. Its type must not be a struct: the agent makes inner maps without BTF, and Linux before 6.2
/// holds a map whose BTF value is a struct for another kind than one without BTF (`timer_off` in `bpf_map_meta_equal`).
pub type Words<const LENGTH: usize> = [u32; LENGTH];

/// Which Maglev table of a service counts; `load`: the service's.
#[inline(always)]
pub fn table_in_use(load: *const Load) -> u64 {
    // SAFETY: a live map value, of which one word is read.
    unsafe { (&raw const (*load).table).read_volatile() }
}

/// A Maglev table of a service.
#[inline(always)]
pub fn maglev(service: u16, table: u64) -> Option<&'static Maglev> {
    let words = MAGLEV.get_value(service as u32, &(table as u32))?;
    // SAFETY: the value has the size of a `Maglev`, and more than its alignment, as every map value. The agent writes nothing
    // else into it, and only while it does not count; should it count no longer since a moment, and be written, each number
    // read is one of the old or of the new table, which is checked as any.
    Some(unsafe { &*core::ptr::from_ref(words).cast::<Maglev>() })
}

/// The record of a NAT port.
#[inline(always)]
pub fn record(backend: u16, port: u16) -> Option<*mut Record> {
    // A slot has the size of a `Record`, and its alignment: the values of a map that can be mapped into memory begin a page.
    PORTS.get_value_ptr_mut(backend as u32, &(port as u32)).map(<*mut _>::cast)
}

/// The forward half of a NAT port's slot.
#[inline(always)]
pub fn forward(backend: u16, port: u16) -> Option<*mut Forward> {
    // As above.
    PORTS.get_value_ptr_mut(backend as u32, &(PORT_TABLE_SLOTS + port as u32)).map(<*mut _>::cast)
}
