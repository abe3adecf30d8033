//! Fuzz targets: each takes any octets, and panics or faults where the code under it is wrong. An ordinary test replays
//! `tests/corpus/TARGET/*` and mutates seeds for a moment, `cargo xtask test --long` for minutes. Mutations are blind, since
//! coverage needs an instrumenting compiler; seeds therefore reach every branch by themselves.

mod frame;
mod guard;
mod sync;
mod vrrp;

use std::{
    fs,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::frames::{
    BACKEND_MAC, CLIENT_MAC, OWN_MAC, Random, TcpFrame, arp_request, deviations,
    scene::{CLIENT, SERVICE, VIP},
    v6::{CLIENT6, TcpFrame6, VIP6, deviations_v6, neighbour},
};

/// A target: its name, which is that of its corpus, where it starts from, and what it does with an input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", seeds: frame::seeds, run: frame::run },
    Target { name: "capture", seeds: frame::seeds, run: capture },
    Target { name: "config", seeds: config_seeds, run: config },
    Target { name: "claimant", seeds: claimant_seeds, run: claimant },
    Target { name: "vrrp", seeds: vrrp::seeds, run: vrrp::run },
    Target { name: "sync-channel", seeds: sync::channel_seeds, run: sync::channel },
    Target { name: "sync-message", seeds: sync::message_seeds, run: sync::message },
];

/// Octets of an input at most.
const LONGEST: usize = 4000;

impl Target {
    /// Runs every input of the corpus, then mutations of it and of the seeds for `time`; how many inputs there were.
    ///
    /// # Panics
    ///
    /// As the target does; the input is kept in a file then, which the message names.
    pub fn fuzz(&self, time: Duration, seed: u64) -> u64 {
        let mut inputs = corpus(self.name);
        inputs.extend((self.seeds)());
        assert!(!inputs.is_empty(), "no input to start from");
        for input in &inputs {
            self.try_input(input);
        }
        let mut random = Random(seed);
        let (begun, mut count) = (Instant::now(), inputs.len() as u64);
        while begun.elapsed() < time {
            for _ in 0..64 {
                let input = mutation(&mut random, &inputs);
                self.try_input(&input);
                count += 1;
            }
        }
        count
    }

    fn try_input(&self, input: &[u8]) {
        // What a fault (SIGSEGV) leaves behind is the last input that was written.
        guard::note(self.name, input);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.run)(input))) {
            let path =
                std::env::temp_dir().join(format!("etcd-lb-fuzz-{}-{}", self.name, std::process::id()));
            fs::write(&path, input).unwrap_or_else(|error| eprintln!("{}: {error}", path.display()));
            eprintln!(
                "target {}: the input is in {}; once mended, it belongs into tests/corpus/{}/",
                self.name,
                path.display(),
                self.name
            );
            resume_unwind(panic);
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .collect()
}

/// One to eight changes of an input.
fn mutation(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    const INTERESTING: [u8; 12] = [0, 1, 2, 4, 5, 0x0f, 0x45, 0x60, 0x7f, 0x80, 0xfe, 0xff];
    let mut input = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(8) {
        let length = input.len();
        let at = random.below(length + 1);
        match random.below(7) {
            0 if length > 0 => input[at.min(length - 1)] ^= 1 << random.below(8),
            1 if length > 0 => input[at.min(length - 1)] = random.pick(&INTERESTING),
            2 if length > 0 => input[at.min(length - 1)] = random.next() as u8,
            3 => input.truncate(at),
            4 => input.insert(at, random.pick(&INTERESTING)),
            5 if at < length => drop(input.drain(at..(at + 1 + random.below(8)).min(length))),
            _ => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// The config file: any text is a config or a list of errors with places in it.
fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(errors) = lb_core::config::parse(text, "F") {
        let lines = text.lines().count();
        for error in errors.iter() {
            assert!(error.line >= 1 && error.line <= lines.max(1), "line {} of {lines}: {error}", error.line);
            assert!(!error.message.is_empty());
        }
        assert_ne!(errors.iter().count(), 0, "refused without a reason");
    }
}

/// The filter of captures reads no more than there is, and the ends that etherparse reads too.
fn capture(input: &[u8]) {
    use lb_common::capture::{Ends, HEAD};
    let mut head = [0; HEAD];
    let length = input.len().min(HEAD);
    head[..length].copy_from_slice(&input[..length]);
    let ends = Ends::of(&head, input.len() as u32);
    let Ok(packet) = etherparse::SlicedPacket::from_ethernet(input) else { return };
    let addresses: Option<(IpAddr, IpAddr)> = match &packet.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        Some(etherparse::NetSlice::Ipv6(ip)) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        _ => None,
    };
    // More tags than two, or of another kind, are not looked behind.
    let (Some((source, destination)), true) = (addresses, ends != Ends::NONE) else { return };
    assert_eq!((ends.source.0, ends.destination.0), (source.into(), destination.into()));
    if let (Some(etherparse::TransportSlice::Tcp(tcp)), true) = (&packet.transport, ends.source.1.get() != 0)
    {
        assert_eq!(ends.source.1.get(), tcp.source_port());
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let whole = include_str!("../../lb-core/src/config/tests/whole.toml");
    let guide = include_str!("../../docs/configuration.md");
    let examples = guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    examples.chain([whole]).map(|text| text.as_bytes().to_vec()).collect()
}

/// Who claims an address, in frames that anybody can send to the agent's packet socket.
fn claimant(input: &[u8]) {
    for address in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        if let Some(mac) = etcd_lb::netlink::vip::claimant_in(input, address) {
            assert!(!mac.is_unknown() && !mac.is_group(), "no host's MAC");
        }
    }
}

fn claimant_seeds() -> Vec<Vec<u8>> {
    let mut reply = arp_request(OWN_MAC, (BACKEND_MAC, VIP), CLIENT.0);
    reply[21] = 2;
    let option = [2, 1, 2, 0, 0, 0, 0, 0x33];
    let advertisement = neighbour(136, (OWN_MAC, BACKEND_MAC), (VIP6, VIP6), VIP6, 255, &option);
    vec![arp_request(OWN_MAC, (CLIENT_MAC, CLIENT.0), VIP), reply, advertisement]
}

/// Frames of each family with each deviation.
fn frames_that_deviate() -> Vec<Vec<u8>> {
    let sound = TcpFrame::new(CLIENT, SERVICE, 2).payload(30);
    let v4 = deviations(&sound).into_iter().map(|deviation| deviation.frame);
    let v6 = deviations_v6(&TcpFrame6::new(CLIENT6, (VIP6, 2379), 2).payload(30))
        .into_iter()
        .map(|deviation| deviation.frame);
    v4.chain(v6).chain([sound.build()]).collect()
}
