//! Two CPUs at once, at full rate: clients' packets on one, backends' on the other, of the same flows, while a third
//! thread sweeps and resets as the agent does, and NAT ports are so few that they are stolen. Afterwards the tables are
//! walked: what they say of each flow must agree.

use std::{
    collections::{BTreeMap, HashMap as Seen},
    net::Ipv4Addr,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use etcd_lb::dataplane::{DataPlane, Reason, XdpMode, monotonic_ns};
use etcd_lb_tests::frames::{BACKEND_MAC, CLIENT_MAC, OWN_MAC, Random, TcpFrame};
use lb_common::{
    addr::Port,
    claim::{Claim, State},
    counters::Counters,
    maps::{
        Backend, ClientKey, ClientLoad, Flow, FlowKey, Forward, Interface, LOAD_TOTAL, Load, NextHop,
        PORT_TABLE_SLOTS, Record, load_of_backend, load_of_service, name,
    },
    tcp::{ACK, FIN, PSH, RST, SYN},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::sandbox::{PORT, Sandbox, address, desired, run};

const TIME: Duration = Duration::from_secs(if cfg!(feature = "long") { 60 } else { 4 });
const BACKENDS: u8 = 2;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
/// Clients, whose connections come from the same few ports in turn: NAT ports that all of them try first. A client begins
/// anew long before its last connection is forgotten, but not within the microsecond in which that ends.
const CLIENTS: usize = 512;
const FIRST_PORT: u16 = 40_000;
const PORTS: u16 = 16;
/// NAT ports left to each backend, of 65,536: few enough that 17 tries often find none that is free.
const PORTS_LEFT: u32 = 6_000;

/// Where each connection went: backend's number + 1, and NAT port; 0: not known yet.
type Ways = Vec<AtomicU32>;

fn client(number: usize) -> Ipv4Addr {
    let [high, low] = (number as u16).to_be_bytes();
    Ipv4Addr::new(10, 7, high, low)
}

/// A client's packet; every connection has the same numbers, so that any packet of it fits any state of it.
fn from_client(random: &mut Random, number: usize, port: &mut u16) -> TcpFrame {
    let (flags, seq, ack, payload) = match random.below(100) {
        0..10 => {
            *port = FIRST_PORT + (*port + 1) % PORTS;
            (SYN, 1000, 0, 0)
        }
        10..30 => (SYN, 1000, 0, 0),
        30..60 => (ACK, 1001, 5001, 0),
        60..88 => (ACK | PSH, 1001, 5001, 10),
        88..93 => (ACK | FIN, 1001, 5001, 0),
        93..97 => (ACK, 1002, 5002, 0),
        _ => (RST, 1001, 0, 0),
    };
    TcpFrame::new((client(number), *port), (VIP, PORT), flags).numbers(seq, ack).payload(payload)
}

fn from_backend(random: &mut Random, way: u32) -> TcpFrame {
    let (flags, seq, ack, payload) = match random.below(100) {
        0..35 => (SYN | ACK, 5000, 1001, 0),
        35..88 => (ACK | PSH, 5001, 1001, 10),
        88..93 => (ACK | FIN, 5001, 1001, 0),
        93..97 => (ACK, 5002, 1002, 0),
        _ => (RST, 5001, 0, 0),
    };
    let host = Ipv4Addr::new(10, 0, 2, (way >> 16) as u8);
    TcpFrame::new((host, PORT), (VIP, way as u16), flags)
        .numbers(seq, ack)
        .payload(payload)
        .from_mac(BACKEND_MAC)
}

/// As a softirq is: on one CPU, and not interrupted by other threads in the middle of a program. `BPF_PROG_TEST_RUN` alone
/// lets them, for milliseconds.
fn like_a_softirq(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid parameter, for the calling thread.
    assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) }, 0, "root");
}

/// Lets the agent's thread have a fifth of each CPU.
fn pause(last: &mut Instant) {
    if last.elapsed() > Duration::from_millis(1) {
        thread::sleep(Duration::from_micros(200));
        *last = Instant::now();
    }
}

fn send(program: &SchedClassifier, frame: &[u8], out: &mut [u8]) -> (u32, usize) {
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(out), ..TestRunOptions::new() };
    let result = program.test_run(options).unwrap();
    (result.return_value, result.data_size_out as usize)
}

/// The pinned entry. aya opens a pinned XDP program only with an argument of a type that it does not export; of a program
/// of another type it knows the same, a descriptor.
fn entry(pin: &Path) -> SchedClassifier {
    SchedClassifier::from_pin(pin).unwrap()
}

/// Without sweeps, which would mend a wrong count.
#[test]
fn two_cpus_at_full_rate_count_right() {
    at_full_rate(false);
}

#[test]
fn two_cpus_at_full_rate_leave_the_tables_consistent() {
    at_full_rate(true);
}

fn at_full_rate(sweeps: bool) {
    /// Each needs both CPUs.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run(|sandbox| {
        let (mut plane, maps) = open(sandbox);
        maps.leave_few_ports();
        let ways: Ways = (0..CLIENTS).map(|_| AtomicU32::new(0)).collect();
        let (stop, packets) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
        thread::scope(|scope| {
            scope.spawn(|| {
                like_a_softirq(0);
                let mut last = Instant::now();
                let (program, mut random, mut out) = (entry(&sandbox.pin(name::XDP)), Random(1), [0; 256]);
                let mut ports = [FIRST_PORT; CLIENTS];
                while !stop.load(Ordering::Relaxed) {
                    let number = random.below(CLIENTS);
                    let frame = from_client(&mut random, number, &mut ports[number]).build();
                    let (action, length) = send(&program, &frame, &mut out);
                    // Sent on to a backend: from which NAT port.
                    if action == 3 && length > 38 && out[30..33] == [10, 0, 2] {
                        let way = u32::from(out[33]) << 16 | u32::from(out[34]) << 8 | u32::from(out[35]);
                        ways[number].store(way, Ordering::Relaxed);
                    }
                    packets[0].fetch_add(1, Ordering::Relaxed);
                    pause(&mut last);
                }
            });
            scope.spawn(|| {
                like_a_softirq(1);
                let mut last = Instant::now();
                let (program, mut random, mut out) = (entry(&sandbox.pin(name::XDP)), Random(2), [0; 256]);
                while !stop.load(Ordering::Relaxed) {
                    let way = ways[random.below(CLIENTS)].load(Ordering::Relaxed);
                    if way != 0 {
                        send(&program, &from_backend(&mut random, way).build(), &mut out);
                        packets[1].fetch_add(1, Ordering::Relaxed);
                    }
                    pause(&mut last);
                }
            });
            act_as_agent(&mut plane, sweeps);
            stop.store(true, Ordering::Relaxed);
        });
        let counters = plane.counters().unwrap();
        let [forward, back] = packets.map(AtomicU64::into_inner);
        println!(
            "{forward} packets of clients and {back} of backends in {TIME:?}: {} flows begun, {} established, {} closed, \
             {} NAT ports taken from half-open flows, {} times none was free",
            counters.flow_new,
            counters.flow_established,
            counters.flow_closed,
            counters.half_open_taken,
            counters.nat_ports_exhausted
        );
        exercised(&counters);
        while plane.untold() > 0 {
            plane.tell_ended(monotonic_ns());
        }
        if sweeps {
            settle(&mut plane);
        }
        let by_client = maps.check();
        if sweeps {
            // The agent counts a client's flow out by two calls, between which the data plane may count: sweeps mend it.
            maps.check_clients(&by_client);
        }
    });
}

/// A census takes its time, so that the counts which it is compared with are a moment older or younger: what a sweep mended
/// by mistake at this rate, later ones mend again.
fn settle(plane: &mut DataPlane) {
    for _ in 0..20 {
        plane.sweep(monotonic_ns()).unwrap();
    }
}

/// Sweeps, and ends flows in each of the agent's ways.
fn act_as_agent(plane: &mut DataPlane, sweeps: bool) {
    let begun = Instant::now();
    let mut random = Random(3);
    while begun.elapsed() < TIME {
        thread::sleep(Duration::from_millis(5));
        // Half a minute ahead in time: what closed is freed while packets come.
        let ahead = Duration::from_secs(random.below(70) as u64).as_nanos() as u64;
        match random.below(10) {
            0..5 if !sweeps => {}
            0..5 => drop(plane.sweep(monotonic_ns() + ahead).unwrap()),
            5 => drop(plane.reset_flows(random.below(usize::from(BACKENDS)) as u16, Reason::BackendDown)),
            6 | 7 => drop(plane.reset_client(client(random.below(CLIENTS)).into(), Reason::Operator)),
            8 => drop(plane.reset_some(random.below(usize::from(BACKENDS)) as u16, 5, Reason::Rebalance)),
            _ => drop(plane.tell_ended(monotonic_ns())),
        }
    }
}

/// A test that cannot fail is none: everything that may collide has happened.
fn exercised(counters: &Counters) {
    for (what, count) in [
        ("flows begun", counters.flow_new),
        ("flows established", counters.flow_established),
        ("flows closed", counters.flow_closed),
        ("NAT ports taken from half-open flows", counters.half_open_taken),
        ("packets of reset flows", counters.flow_reset),
    ] {
        assert!(count > 0, "{what}: none");
    }
}

struct Maps {
    ports: ArrayOfMaps<MapData, Array<MapData, Record>>,
    forwards: ArrayOfMaps<MapData, Array<MapData, Forward>>,
    flows: HashMap<MapData, FlowKey, Flow>,
    half_open: HashMap<MapData, FlowKey, Flow>,
    clients: HashMap<MapData, ClientKey, ClientLoad>,
    loads: Array<MapData, Load>,
    backends: Array<MapData, Backend>,
}

fn open(sandbox: &Sandbox) -> (DataPlane, Maps) {
    let mut plane = sandbox.open_for(16_384).unwrap();
    let mut desired = desired(&[1, 2]);
    // The loopback, by whose number BPF_PROG_TEST_RUN sends frames in.
    desired.interfaces = vec![Interface { ifindex: 1, mtu: 1500, mac: OWN_MAC, flags: 0 }];
    desired.services[0].max_flows_per_client = 1000;
    for backend in &mut desired.services[0].backends {
        backend.hop = Some(NextHop { ifindex: 1, mac: BACKEND_MAC, source_mac: OWN_MAC, tags: [0; 2] });
    }
    plane.reconcile(&desired).unwrap();
    plane.attach(1, "lo", XdpMode::Generic).unwrap();
    let map = |name| Map::from_map_data(MapData::from_pin(sandbox.pin(name)).unwrap()).unwrap();
    let maps = Maps {
        ports: map(name::PORTS).try_into().unwrap(),
        forwards: map(name::PORTS).try_into().unwrap(),
        flows: map(name::FLOWS).try_into().unwrap(),
        half_open: map(name::HALF_OPEN).try_into().unwrap(),
        clients: map(name::CLIENTS).try_into().unwrap(),
        loads: map(name::LOADS).try_into().unwrap(),
        backends: map(name::BACKENDS).try_into().unwrap(),
    };
    assert_eq!(plane.backend_number(VIP.into(), PORT, address(1)), Some(0));
    assert_eq!(CLIENT_MAC, TcpFrame::new((VIP, 1), (VIP, 1), 0).from_mac);
    (plane, maps)
}

impl Maps {
    /// Reserves most NAT ports, as those are on which the source address has a service.
    fn leave_few_ports(&self) {
        for number in 0..u32::from(BACKENDS) {
            let mut table = self.ports.get(&number, 0).unwrap();
            for port in 0..PORT_TABLE_SLOTS {
                if port % (PORT_TABLE_SLOTS / PORTS_LEFT) != 0 {
                    let record = table.get(&port, 0).unwrap();
                    table.set(port, Record { claim: Claim::new(State::Reserved, 0).0, ..record }, 0).unwrap();
                }
            }
        }
    }

    fn epochs(&self) -> Vec<u32> {
        (0..u32::from(BACKENDS)).map(|number| self.backends.get(&number, 0).unwrap().epoch).collect()
    }

    fn load(&self, slot: u32) -> i64 {
        self.loads.get(&slot, 0).unwrap().established
    }

    /// Nothing is under way any more: every table says the same. Established flows by client.
    fn check(&self) -> BTreeMap<[u8; 16], i64> {
        let mut owners = Seen::new();
        let mut by_client = BTreeMap::new();
        let mut established = [0i64; BACKENDS as usize];
        for number in 0..u16::from(BACKENDS) {
            let table = self.ports.get(&number.into(), 0).unwrap();
            for port in 0..PORT_TABLE_SLOTS {
                let record = table.get(&port, 0).unwrap();
                let claim = record.claim();
                assert!(
                    !claim.is(State::Claiming),
                    "backend {number} port {port}: a claim that nobody finished"
                );
                let half = self.forwards.get(&number.into(), 0).unwrap();
                let half = half.get(&(PORT_TABLE_SLOTS + port), 0).unwrap();
                let gate = half.gate();
                let may_be_open = gate.generation() != claim.generation() || claim.is_plain_established();
                assert!(!gate.is_open() || may_be_open, "backend {number} port {port}: {claim:?}, {gate:?}");
                if !claim.is(State::Established) {
                    continue;
                }
                established[usize::from(number)] += 1;
                *by_client.entry(*record.client.octets()).or_insert(0i64) += 1;
                let key = FlowKey { client: record.client, port: record.client_port, service: 0 };
                let first = owners.insert(key, (number, port));
                assert_eq!(first, None, "{key:?} has two records, the second {number}:{port}");
                let flow = self.flows.get(&key, 0).unwrap_or_else(|error| {
                    let waiting = self.half_open.get(&key, 0).ok();
                    panic!(
                        "{key:?}: record {number}:{port} {claim:x?} {record:?} has no forward entry: {error}; half-open: \
                         {waiting:?}; epochs {:?}", self.epochs()
                    )
                });
                let named = (flow.backend, flow.nat_port, flow.generation);
                let is = (number, Port::new(port as u16), claim.generation());
                assert_eq!(named, is, "{key:?}: the forward entry names another record");
                assert!(self.half_open.get(&key, 0).is_err(), "{key:?} is in both hashes");
                let owner = (half.client, half.client_port, half.service, half.gate().generation());
                let is = (key.client, key.port, key.service, claim.generation());
                assert_eq!(owner, is, "{key:?}: the forward half is another flow's");
            }
        }
        let total: i64 = established.iter().sum();
        println!("{total} flows established in the end: {established:?}");
        assert!(total > 0, "nothing is left to be checked");
        for (number, count) in established.into_iter().enumerate() {
            assert_eq!(self.load(load_of_backend(number as u16)), count, "load of backend {number}");
        }
        assert_eq!((self.load(load_of_service(0)), self.load(LOAD_TOTAL)), (total, total), "loads");
        let stale: Vec<_> = self
            .flows
            .keys()
            .map(Result::unwrap)
            .filter(|key| !owners.contains_key(key))
            .map(|key| (key, self.flows.get(&key, 0).unwrap()))
            .collect();
        for (key, flow) in &stale {
            let record =
                self.ports.get(&flow.backend.into(), 0).unwrap().get(&flow.nat_port.get().into(), 0).unwrap();
            println!("forward entry without a flow: {key:?} {flow:?}: {record:?} {:?}", record.claim());
        }
        assert!(stale.is_empty(), "{} forward entries have no flow", stale.len());
        by_client
    }

    /// What is counted for each client is what it has.
    fn check_clients(&self, by_client: &BTreeMap<[u8; 16], i64>) {
        let counted: BTreeMap<_, _> = self
            .clients
            .iter()
            .map(Result::unwrap)
            .map(|(key, load)| (*key.client.octets(), load.established))
            .collect();
        assert_eq!(&counted, by_client, "clients");
    }
}
