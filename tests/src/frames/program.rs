//! The loaded program with map state that a test made, run on one frame at a time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapFd, PerCpuArray, ProgramArray, lpm_trie::Key,
    },
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use etcd_lb::dataplane::tick_ns;
use lb_common::{
    addr::{Addr, Mac, Port},
    counters::{BackendCounters, Counters},
    election::Election,
    hash::Seed,
    maps::*,
    nat,
    shortcut::Bucket,
    wire::MIN_FRAME,
};
use lb_core::reconcile::{Member, Table};
use zerocopy::FromZeros as _;

/// MAC of the interface that frames come in by: the loopback's number is what `BPF_PROG_TEST_RUN` gives them.
pub const OWN_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0x11]);
pub const CLIENT_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0x22]);
pub const BACKEND_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0x33]);
/// The interface that frames come in by.
pub const IFINDEX: u32 = 1;
/// Key of every service's flow hash.
pub const SEED: Seed = Seed { key: [7, 9] };
/// `include/uapi/linux/bpf.h`.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What became of a frame.
pub struct Ran {
    /// XDP action.
    pub action: u32,
    pub frame: Vec<u8>,
}

pub struct Program {
    pub(super) ebpf: Ebpf,
    filter: Filter,
}

impl Program {
    /// Loads the object with fresh maps for `max_flows`, standalone, with one interface.
    pub fn load(max_flows: u32) -> Self {
        Self::load_object(etcd_lb::object::XDP_OBJECT, max_flows)
    }

    /// The same with another build of the object.
    pub fn load_object(object: &[u8], max_flows: u32) -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, flows_capacity(max_flows))
            .map_max_entries(name::CLIENTS, flows_capacity(max_flows))
            .map_max_entries(name::HALF_OPEN, half_open_capacity(max_flows))
            .map_max_entries(name::SHORTCUTS, shortcuts_capacity(max_flows))
            .load(object)
            .unwrap_or_else(|error| panic!("the object does not load: {error:?}"));
        for (name, _) in [(program::ENTRY, 0)].into_iter().chain(program::TAIL_CALLED) {
            let program: &mut Xdp = ebpf.program_mut(name).expect(name).try_into().expect("an XDP program");
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut programs = ProgramArray::try_from(ebpf.take_map(name::PROGRAMS).expect("programs"))
            .expect("a program array");
        for (name, index) in program::TAIL_CALLED {
            let program: &Xdp = ebpf.program(name).expect(name).try_into().expect("an XDP program");
            programs.set(index, program.fd().expect("loaded"), 0).expect("set");
        }
        // The array is emptied when its last descriptor goes.
        std::mem::forget(programs);
        let mut this = Self { ebpf, filter: Filter::EMPTY };
        this.array(name::LAYOUT)
            .set(0, Layout { version: LAYOUT_VERSION, max_flows, hash: layout_hash() }, 0)
            .expect("set");
        this.array(name::LEASE).set(0, Lease::STANDALONE, 0).expect("set");
        this.set_clock();
        this.set_mtu(1500);
        this
    }

    /// Sets the clock anew.
    fn set_clock(&mut self) {
        self.array(name::TICKS).set(0, Ticks { ns: tick_ns(), offset: 0 }, 0).expect("set");
        let clock: &mut Xdp =
            self.ebpf.program_mut(program::SET_CLOCK).expect("set_clock").try_into().expect("an XDP program");
        clock.load().expect("load");
        let frame = [0; MIN_FRAME as usize];
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        clock.test_run(options).expect("run");
    }

    /// The clock's offset, ns: how far the programs' clock goes wrong if it is another.
    pub fn clock_offset(&mut self) -> u64 {
        self.array::<Ticks>(name::TICKS).get(&0, 0).expect("get").offset
    }

    /// Puts the programs' clock wrong.
    pub fn set_clock_offset(&mut self, offset: u64) {
        self.array(name::TICKS).set(0, Ticks { ns: tick_ns(), offset }, 0).expect("set");
    }

    /// Gives the interface an MTU.
    pub fn set_mtu(&mut self, mtu: u16) {
        let interface = Interface { ifindex: IFINDEX, mtu, mac: OWN_MAC, flags: 0 };
        self.array(name::INTERFACES).set(interface_slot(IFINDEX), interface, 0).expect("set");
    }

    /// Makes the interface another kind, by `INTERFACE_*` bits.
    pub fn set_interface(&mut self, flags: u32) {
        let interface = Interface { ifindex: IFINDEX, mtu: 1500, mac: OWN_MAC, flags };
        self.array(name::INTERFACES).set(interface_slot(IFINDEX), interface, 0).expect("set");
    }

    /// Adds a service, its VIP answered for on the interface.
    pub fn service(&mut self, number: u16, vip: impl Into<IpAddr>, port: u16, flags: u16) {
        let (vip, port) = (Addr::from(vip.into()), Port::new(port));
        self.filter.add_address(&vip);
        self.filter.add_service(&ServiceKey::new(vip, port), number);
        let filter = self.filter;
        self.array(name::FILTER).set(0, filter, 0).expect("set");
        self.answer_for(vip);
        let service = Service {
            seed: SEED,
            vip,
            port,
            flags: SERVICE_USED | flags,
            max_flows_per_client: 0,
            nat: nat::Range::ALL,
            near: 0,
        };
        self.array(name::SERVICES).set(u32::from(number), service, 0).expect("set");
        self.hash(name::SERVICE_PORTS)
            .insert(ServiceKey::new(vip, port), u32::from(number), 0)
            .expect("insert");
    }

    fn answer_for(&mut self, address: Addr) {
        let here = VipOnInterface { address, ifindex: IFINDEX, vlan: [0; 2] };
        for key in [VipOnInterface::anywhere(address), here] {
            self.hash(name::VIPS).insert(key, VipClaim { answered: 1 }, 0).expect("insert");
        }
    }

    /// Answers for a VIP in a VLAN of the interface too.
    pub fn answer_in_vlan(&mut self, vip: impl Into<IpAddr>, identifiers: [u16; 2]) {
        let vlan = identifiers.map(u16::to_be);
        let here = VipOnInterface { address: vip.into().into(), ifindex: IFINDEX, vlan };
        self.hash(name::VIPS).insert(here, VipClaim { answered: 1 }, 0).expect("insert");
    }

    /// Adds a backend whose packets go out by the interface.
    pub fn backend<A: Into<IpAddr>>(&mut self, number: u16, service: u16, source: A, address: (A, u16)) {
        let backend = Backend {
            address: address.0.into().into(),
            source: source.into().into(),
            port: Port::new(address.1),
            service,
            epoch: 1,
            hop: NextHop { ifindex: IFINDEX, mac: BACKEND_MAC, source_mac: OWN_MAC, tags: [0; 2] },
            flags: BACKEND_USED,
        };
        let key = ReturnKey::new(backend.source, backend.address, backend.port);
        self.filter.add_address(&backend.source);
        self.filter.add_return(&key, number);
        let filter = self.filter;
        self.array(name::FILTER).set(0, filter, 0).expect("set");
        self.set_backend(number, backend);
        let table = Array::<MapData, Record>::create(PORT_TABLE_LEN, BPF_F_MMAPABLE).expect("a port table");
        let mut ports: ArrayOfMaps<_, Array<MapData, Record>> =
            self.ebpf.map_mut(name::PORTS).expect("ports").try_into().expect("an array of maps");
        ports.set(u32::from(number), &table, 0).expect("set");
        self.hash(name::RETURNS).insert(key, u32::from(number), 0).expect("insert");
    }

    pub fn set_backend(&mut self, number: u16, backend: Backend) {
        self.array(name::BACKENDS).set(u32::from(number), backend, 0).expect("set");
    }

    pub fn get_backend(&mut self, number: u16) -> Backend {
        self.array(name::BACKENDS).get(&u32::from(number), 0).expect("get")
    }

    /// Gives every Maglev slot of a service to one backend, or to none.
    pub fn maglev(&mut self, service: u16, backend: u16) {
        self.maglev_of(service, |_| backend);
    }

    /// Gives each Maglev slot of a service to a backend; each of them is live, with weight 1.
    pub fn maglev_of(&mut self, service: u16, owner: impl Fn(usize) -> u16) {
        let slots: Vec<u16> = (0..MAGLEV_SLOTS as usize).map(owner).collect();
        let numbers: BTreeSet<u16> = slots.iter().copied().filter(|number| *number != NO_BACKEND).collect();
        let live = numbers.into_iter().map(|number| Member { number, weight: 1, max_connections: 0 });
        self.table(service, &Table::new(slots, live));
    }

    /// Swaps what a service's choices are made by. It is in the last of its tables, which counts; the others are empty, so that
    /// whoever reads another one finds nobody.
    pub fn table(&mut self, service: u16, of: &Table) {
        let last = MAGLEV_TABLES as u32 - 1;
        let mut table = Array::<MapData, Maglev>::create(MAGLEV_TABLES as u32, 0).expect("Maglev tables");
        let mut value = Maglev::new_zeroed();
        of.write(&mut value);
        table.set(last, value, 0).expect("set");
        let mut maglev: ArrayOfMaps<_, Array<MapData, Maglev>> =
            self.ebpf.map_mut(name::MAGLEV).expect("maglev").try_into().expect("an array of maps");
        maglev.set(u32::from(service), &table, 0).expect("set");
        let slot = load_of_service(service);
        let load = self.whole_load(slot);
        self.array(name::LOADS).set(slot, Load { table: last.into(), ..load }, 0).expect("set");
    }

    /// Lets the clients of a prefix connect to a service that has `SERVICE_ALLOW`.
    pub fn allow(&mut self, service: u16, prefix: impl Into<IpAddr>, length: u32) {
        let prefix = prefix.into();
        let length = if prefix.is_ipv4() { 96 + length } else { length };
        let data = AllowData { service: u32::from(service).to_be_bytes(), address: prefix.into() };
        let mut trie: LpmTrie<_, AllowData, u32> =
            self.ebpf.map_mut(name::ALLOW).expect("allow").try_into().expect("a trie");
        trie.insert(&Key::new(ALLOW_SERVICE_BITS + length, data), 1, 0).expect("insert");
    }

    /// Adds a route to clients.
    pub fn client_route(&mut self, prefix: impl Into<IpAddr>, length: u32, route: ClientRoute) {
        let prefix = prefix.into();
        let length = if prefix.is_ipv4() { 96 + length } else { length };
        let mut trie: LpmTrie<_, Addr, ClientRoute> =
            self.ebpf.map_mut(name::CLIENT_ROUTES).expect("client_routes").try_into().expect("a trie");
        trie.insert(&Key::new(length, prefix.into()), route, 0).expect("insert");
    }

    pub fn set_lease(&mut self, lease: Lease) {
        self.array(name::LEASE).set(0, lease, 0).expect("set");
    }

    pub fn lease(&mut self) -> Lease {
        self.array(name::LEASE).get(&0, 0).expect("get")
    }

    /// Takes part in the election of one family.
    pub fn set_election(&mut self, is_v4: bool, election: Election) {
        self.filter.add_address(&election.destination);
        let filter = self.filter;
        self.array(name::FILTER).set(0, filter, 0).expect("set");
        self.array(name::ELECTIONS).set(u32::from(!is_v4), election, 0).expect("set");
    }

    pub fn set_load(&mut self, slot: u32, established: i64) {
        let table = self.whole_load(slot).table;
        self.array(name::LOADS).set(slot, Load { established, table, ..Load::default() }, 0).expect("set");
    }

    /// Changes a service's entry.
    pub fn change_service(&mut self, number: u16, change: impl FnOnce(&mut Service)) {
        let mut service: Service = self.array(name::SERVICES).get(&u32::from(number), 0).expect("get");
        change(&mut service);
        self.array(name::SERVICES).set(u32::from(number), service, 0).expect("set");
    }

    /// Established flows of a client as the limit counts them.
    pub fn client_load(&mut self, service: u16, client: Ipv4Addr) -> Option<i64> {
        let key = ClientKey { client: client.into(), service: u32::from(service) };
        self.hash::<ClientKey, ClientLoad>(name::CLIENTS).get(&key, 0).ok().map(|load| load.established)
    }

    pub fn set_turn(&mut self, slot: u32, turn: i64) {
        let load = self.whole_load(slot);
        self.array(name::LOADS).set(slot, Load { turn, ..load }, 0).expect("set");
    }

    pub fn whole_load(&mut self, slot: u32) -> Load {
        self.array(name::LOADS).get(&slot, 0).expect("get")
    }

    pub fn load_of(&mut self, slot: u32) -> i64 {
        self.array::<Load>(name::LOADS).get(&slot, 0).expect("get").established
    }

    pub fn record(&mut self, backend: u16, port: u16) -> Record {
        self.port_table(backend).get(&u32::from(port), 0).expect("get")
    }

    pub fn set_record(&mut self, backend: u16, port: u16, record: Record) {
        self.port_table(backend).set(u32::from(port), record, 0).expect("set");
    }

    pub fn forward(&mut self, backend: u16, port: u16) -> Forward {
        self.port_table(backend).get(&(PORT_TABLE_SLOTS + u32::from(port)), 0).expect("get")
    }

    pub fn set_forward(&mut self, backend: u16, port: u16, forward: Forward) {
        self.port_table(backend).set(PORT_TABLE_SLOTS + u32::from(port), forward, 0).expect("set");
    }

    /// The forward half of the slot that a client's flow has.
    pub fn forward_of(&mut self, key: &FlowKey) -> Option<Forward> {
        let flow = self.flow(key).or_else(|| self.half_open(key))?;
        Some(self.forward(flow.backend, flow.nat_port.get()))
    }

    /// Forgets every shortcut, as if other flows had taken their places.
    pub fn forget_shortcuts(&mut self) {
        let mut shortcuts: Array<_, Bucket> = self.array(name::SHORTCUTS);
        for bucket in 0..shortcuts.len() {
            shortcuts.set(bucket, 0, 0).expect("set");
        }
    }

    fn port_table<H: aya::Pod>(&mut self, backend: u16) -> Array<MapData, H> {
        let ports: ArrayOfMaps<_, Array<MapData, H>> =
            self.ebpf.map_mut(name::PORTS).expect("ports").try_into().expect("an array of maps");
        ports.get(&u32::from(backend), 0).expect("a port table")
    }

    pub fn flow(&mut self, key: &FlowKey) -> Option<Flow> {
        self.hash(name::FLOWS).get(key, 0).ok()
    }

    pub fn set_flow(&mut self, key: &FlowKey, flow: Flow) {
        self.hash::<FlowKey, Flow>(name::FLOWS).insert(key, flow, 0).expect("insert");
    }

    pub fn half_open(&mut self, key: &FlowKey) -> Option<Flow> {
        self.hash(name::HALF_OPEN).get(key, 0).ok()
    }

    pub fn forget_half_open(&mut self, key: &FlowKey) {
        self.hash::<FlowKey, Flow>(name::HALF_OPEN).remove(key).expect("remove");
    }

    /// All CPUs' counters together.
    pub fn counters(&mut self) -> Counters {
        let mut sum = Counters::default();
        let counters: PerCpuArray<_, Counters> =
            self.ebpf.map_mut(name::COUNTERS).expect("counters").try_into().expect("a per-CPU array");
        counters.get(&0, 0).expect("get").iter().for_each(|one| sum.add(one));
        sum
    }

    pub fn backend_counters(&mut self, backend: u16) -> BackendCounters {
        let mut sum = BackendCounters::default();
        let counters: PerCpuArray<_, BackendCounters> =
            self.ebpf.map_mut(name::BACKEND_COUNTERS).expect("counters").try_into().expect("a per-CPU array");
        counters.get(&u32::from(backend), 0).expect("get").iter().for_each(|one| sum.add(one));
        sum
    }

    /// What was loaded, for what this type has no method for.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Runs the entry on a frame.
    pub fn run(&mut self, frame: &[u8]) -> Ran {
        let program: &Xdp =
            self.ebpf.program(program::ENTRY).expect("xdp").try_into().expect("an XDP program");
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap_or_else(|error| panic!("test run: {error:?}"));
        out.truncate(result.data_size_out as usize);
        Ran { action: result.return_value, frame: out }
    }

    /// (program, verified instructions, octets of BPF code after translation).
    pub fn sizes(&self) -> Vec<(&'static str, u32, u32)> {
        [(program::ENTRY, 0)]
            .into_iter()
            .chain(program::TAIL_CALLED)
            .map(|(name, _)| {
                let program: &Xdp = self.ebpf.program(name).expect(name).try_into().expect("an XDP program");
                let info = program.info().expect("info");
                (name, info.verified_instruction_count().unwrap_or(0), info.size_translated().unwrap_or(0))
            })
            .collect()
    }

    /// (map, octets of kernel memory), port and Maglev tables included.
    pub fn memory(&mut self) -> Vec<(String, u64)> {
        let mut memory: Vec<(String, u64)> =
            self.ebpf.maps().map(|(name, map)| (name.to_owned(), octets(map_data(map)))).collect();
        for index in 0..MAX_BACKENDS as u32 {
            for outer in [name::PORTS, name::MAGLEV] {
                let maps: ArrayOfMaps<_, MapData> =
                    self.ebpf.map_mut(outer).expect(outer).try_into().expect("an array of maps");
                if let Ok(inner) = maps.get(&index, 0) {
                    memory.push((format!("{outer}[{index}]"), octets(inner.fd())));
                }
            }
        }
        memory
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect("an array")
    }

    fn hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect("a hash")
    }
}

fn map_data(map: &Map) -> &MapFd {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::LpmTrie(data)
        | Map::ArrayOfMaps(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data.fd(),
        other => panic!("a map of a type that the test does not know: {other:?}"),
    }
}

/// What the kernel charges for a map, from its descriptor's `memlock` line.
fn octets(fd: &MapFd) -> u64 {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).expect("a memlock line");
    line.trim().parse().expect("a number")
}
