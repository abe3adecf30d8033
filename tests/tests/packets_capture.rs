//! The program of `capture`: it calls the entry, changes nothing, and tells both sides of each packet.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, ProgramArray, RingBuf},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use etcd_lb::object::CAPTURE_OBJECT;
use etcd_lb_tests::frames::{IFINDEX, Program, Random, TcpFrame, scene::*};
use lb_common::{
    capture::{self, Endpoint, Record, Settings},
    maps::program,
    tcp::{ACK, PSH, RST, SYN},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// The settings as aya takes them.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value([u8; size_of::<Settings>()]);

// SAFETY: octets.
unsafe impl aya::Pod for Value {}

struct Capture {
    ebpf: Ebpf,
    // The array of programs is emptied when its last descriptor goes.
    _entry: ProgramArray<MapData>,
    records: RingBuf<MapData>,
}

const ALL: Settings = Settings {
    until: u64::MAX,
    client: Endpoint::ANY,
    backend: Endpoint::ANY,
    snap: 2048,
    passed: 1,
    missing: PASS,
    reserved: 0,
};

impl Capture {
    fn of(program: &mut Program) -> Self {
        let mut ebpf = EbpfLoader::new().load(CAPTURE_OBJECT).expect("loads");
        let capture: &mut Xdp =
            ebpf.program_mut(capture::PROGRAM).expect("capture").try_into().expect("an XDP program");
        capture.load().unwrap_or_else(|error| panic!("{error}"));
        let info = capture.info().expect("info");
        println!("{} verified instructions", info.verified_instruction_count().unwrap_or(0));
        let mut array: ProgramArray<MapData> =
            ebpf.take_map(capture::ENTRY).expect("entry").try_into().expect("a program array");
        let entry: &Xdp =
            program.ebpf().program(program::ENTRY).expect("xdp").try_into().expect("an XDP program");
        array.set(0, entry.fd().expect("loaded"), 0).expect("set");
        let records =
            RingBuf::try_from(ebpf.take_map(capture::RECORDS).expect("records")).expect("a ring buffer");
        let mut this = Self { ebpf, _entry: array, records };
        this.set(&ALL);
        this
    }

    fn set(&mut self, settings: &Settings) {
        let mut map: Array<&mut MapData, Value> =
            self.ebpf.map_mut(capture::SETTINGS).expect("settings").try_into().expect("an array");
        map.set(0, Value(settings.as_bytes().try_into().expect("its size")), 0).expect("set");
    }

    fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &Xdp =
            self.ebpf.program(capture::PROGRAM).expect("capture").try_into().expect("an XDP program");
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap_or_else(|error| panic!("test run: {error:?}"));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// What was told of the packets since.
    fn told(&mut self) -> Vec<(Record, Vec<u8>, Vec<u8>)> {
        let mut told = Vec::new();
        while let Some(item) = self.records.next() {
            let (record, octets) = Record::read_from_prefix(&item).expect("a record");
            let (before, after) = octets.split_at(record.before_kept.into());
            told.push((record, before.to_vec(), after[..usize::from(record.after_kept)].to_vec()));
        }
        told
    }
}

#[test]
fn every_packet_is_what_it_would_be_without_and_both_sides_are_told() {
    let (mut plain, mut captured) = (setup(), setup());
    let mut capture = Capture::of(&mut captured);
    let mut random = Random(11);
    let mut frames = vec![
        client(SYN).numbers(1000, 0).build(),
        backend(SYN | ACK).numbers(5000, 1001).build(),
        client(ACK).numbers(1001, 5001).build(),
        client(ACK | PSH).numbers(1001, 5001).payload(1400).build(),
        // Cut to 60 octets: shorter than what the filter looks at.
        client(RST).numbers(2401, 0).build(),
    ];
    frames.extend((0..300).map(|_| random.any(VIP)));
    let (mut told, mut dropped) = (0, 0);
    for (number, frame) in frames.iter().enumerate() {
        let without = plain.run(frame);
        let with = capture.run(frame);
        // A choice of what the clock says is not compared: none of these frames has one.
        assert_eq!((with.0, &with.1), (without.action, &without.frame), "frame {number}");
        let records = capture.told();
        let [(record, before, after)] = &records[..] else { panic!("{} records", records.len()) };
        assert_eq!((record.verdict, record.ifindex), (without.action, IFINDEX));
        assert_eq!((record.before as usize, before), (frame.len(), frame), "frame {number}");
        if without.action == DROP {
            assert!(after.is_empty());
            dropped += 1;
        } else {
            assert_eq!(
                (record.after as usize, after),
                (without.frame.len(), &without.frame),
                "frame {number}"
            );
        }
        told += 1;
    }
    println!("{told} packets told, {dropped} of them dropped");
    assert!(dropped > 0);
}

#[test]
fn filters_see_both_sides() {
    let mut program = setup();
    let mut capture = Capture::of(&mut program);
    let frames = [
        client(SYN).numbers(1000, 0).build(),
        backend(SYN | ACK).numbers(5000, 1001).build(),
        client(ACK).numbers(1001, 5001).build(),
    ];
    let end = |(address, port): (std::net::Ipv4Addr, u16)| Endpoint::new(address.into(), port);
    let other = Endpoint::new(std::net::Ipv4Addr::new(192, 0, 2, 1).into(), 0);
    for (client, backend, expected) in [
        (end(CLIENT), Endpoint::ANY, 3),
        (end((CLIENT.0, 0)), Endpoint::ANY, 3),
        (end((CLIENT.0, 1)), Endpoint::ANY, 0),
        (Endpoint::ANY, end(BACKEND), 3),
        (end(CLIENT), end(BACKEND), 3),
        (end(CLIENT), other, 0),
        (other, end(BACKEND), 0),
    ] {
        capture.set(&Settings { client, backend, ..ALL });
        for frame in &frames {
            assert_eq!(capture.run(frame).0, TX);
        }
        assert_eq!(capture.told().len(), expected, "{client:?} {backend:?}");
    }
    // Kept is what was asked for; what is passed unchanged, if it was asked for; and after the end, nothing.
    let stranger = TcpFrame::new(CLIENT, (std::net::Ipv4Addr::new(10, 0, 9, 9), 80), SYN).build();
    for (settings, frame, expected) in [
        (Settings { snap: 64, ..ALL }, &frames[2], Some(64)),
        (ALL, &stranger, Some(stranger.len())),
        (Settings { passed: 0, ..ALL }, &stranger, None),
        (Settings { until: 1, ..ALL }, &frames[2], None),
    ] {
        capture.set(&settings);
        let direct = capture.run(frame);
        assert_eq!(direct.0, if frame == &stranger { PASS } else { TX });
        let told = capture.told();
        assert_eq!(told.first().map(|(_, before, _)| before.len()), expected.map(|n| n.min(frame.len())));
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let mut program = setup();
    let mut capture = Capture::of(&mut program);
    handshake(&mut program);
    let frame = client(ACK | PSH).numbers(1001, 5001).payload(1400).build();
    let room = capture::RING / (2 * frame.len() + size_of::<Record>() + 8);
    for _ in 0..room + 500 {
        assert_eq!(capture.run(&frame).0, TX);
    }
    let told = capture.told().len();
    let lost: PerCpuArray<_, u64> =
        capture.ebpf.map_mut(capture::LOST).expect("lost").try_into().expect("a per-CPU array");
    let lost: u64 = lost.get(&0, 0).expect("get").iter().sum();
    println!("{told} told, {lost} lost");
    assert_eq!(told as u64 + lost, room as u64 + 500);
    assert!(lost >= 400 && told > room - 100);
}
