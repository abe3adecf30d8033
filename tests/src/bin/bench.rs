//! ns per packet of the XDP program, net of the harness: `cargo xtask bench`.
//!
//! Rounds of all cases are interleaved, so that what else the machine does falls on all of them; median and spread are
//! printed, each figure with the goal it is to be compared with.

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use clap::Parser;
use etcd_lb_tests::frames::{BACKEND_MAC, Program, TcpFrame};
use lb_common::{
    maps::{MAX_BACKENDS, program},
    tcp::{ACK, SYN},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
/// Flows of one backend: as many NAT ports, the clients' own.
const FLOWS_PER_BACKEND: u32 = 32_768;
const FIRST_PORT: u16 = 16_384;
/// Offsets in an untagged frame.
const SOURCE: u32 = 26;
const SOURCE_PORT: u32 = 34;
const DESTINATION_PORT: u32 = 36;

#[derive(Parser)]
struct Options {
    /// The object with the program `bench`
    object: PathBuf,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The value of the map `bench_template`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    frame: [u32; 16],
    mask: u32,
    stride: u32,
    flow: u32,
    address: u32,
    port: u32,
}

// SAFETY: an array and words, without padding, of which every bit pattern is a value.
unsafe impl aya::Pod for Template {}

struct Case {
    name: String,
    /// ns, from the project's goals; none where there is none.
    goal: Option<f64>,
    template: Template,
    samples: Vec<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let object = fs::read(&options.object).with_context(|| format!("{}", options.object.display()))?;
    let sizes: &[u32] = if options.quick { &[1, 4096] } else { &[1, 4096, 65_536, 1_048_576] };
    let (rounds, repeat) = if options.quick { (5, 200_000) } else { (9, 1_000_000) };
    let mut figures = Vec::new();
    for &flows in sizes {
        measure(&object, flows, rounds, repeat, &mut figures)?;
    }
    if let Some(path) = &options.json {
        let json: Vec<_> = figures
            .iter()
            .map(|(name, median, spread, goal)| {
                serde_json::json!({"case": name, "ns": median, "spread": spread, "goal": goal})
            })
            .collect();
        fs::write(path, serde_json::to_string_pretty(&json)?)
            .with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

type Figure = (String, f64, f64, Option<f64>);

fn measure(object: &[u8], flows: u32, rounds: usize, repeat: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let mut program = Program::load_object(object, flows.max(4096) * 2);
    program.service(0, VIP, 2379, 0);
    establish(&mut program, flows);
    let goals = |one, k4, k64, m1| {
        Some([one, k4, k64, m1][[1, 4096, 65_536, 1_048_576].iter().position(|n| *n == flows)?])
    };
    let forward = TcpFrame::new((client(0), FIRST_PORT), (VIP, 2379), ACK).numbers(1001, 5001).payload(10);
    let back = TcpFrame::new((backend(0), 2379), (VIP, FIRST_PORT), ACK)
        .numbers(5001, 1001)
        .payload(10)
        .from_mac(BACKEND_MAC);
    let mut other = forward.clone();
    other.destination.0 = Ipv4Addr::new(10, 0, 1, 7);
    let mut syn = TcpFrame::new((Ipv4Addr::new(10, 3, 0, 1), FIRST_PORT), (VIP, 2379), SYN).payload(10);
    syn.seq = 7;
    let template = |frame: &TcpFrame, flows: u32, address, port| Template {
        frame: words(&frame.build()),
        mask: flows - 1,
        // Odd, and far from any power of two: 0x9e3779b1 is the golden ratio's (Knuth, TAOCP volume 3, section 6.4).
        stride: 0x9e37_79b1,
        flow: 0,
        address,
        port,
    };
    let mut cases = vec![
        case(
            "forward",
            flows,
            goals(45.0, 50.0, 85.0, 200.0),
            template(&forward, flows, SOURCE, SOURCE_PORT),
        ),
        case(
            "return",
            flows,
            goals(45.0, 45.0, 60.0, 120.0),
            template(&back, flows, SOURCE, DESTINATION_PORT),
        ),
    ];
    if flows == 4096 {
        cases.push(case("not ours", flows, Some(6.0), template(&other, 1, 0, 0)));
        cases.push(case("new flow", flows, Some(500.0), template(&syn, 1 << 20, SOURCE, SOURCE_PORT)));
    }
    let mut harness = Vec::new();
    for _ in 0..rounds {
        let base = template(&forward, flows, SOURCE, SOURCE_PORT);
        harness.push(run(program.ebpf(), program::PASS, &base, repeat)?);
        for case in &mut cases {
            let base = run(program.ebpf(), program::PASS, &case.template, repeat)?;
            let whole = run(program.ebpf(), program::ENTRY, &case.template, repeat)?;
            case.samples.push((whole - base).max(0.0));
        }
    }
    println!("{flows} flows; harness {:.0} ns", median(&mut harness).0);
    for mut case in cases {
        let (ns, spread) = median(&mut case.samples);
        let goal = case.goal.map_or(String::new(), |goal| format!("  goal {goal:.0}"));
        println!("  {:<20} {ns:>6.0} ns ± {spread:.0}{goal}", case.name);
        figures.push((case.name, ns, spread, case.goal));
    }
    Ok(())
}

fn case(name: &str, flows: u32, goal: Option<f64>, template: Template) -> Case {
    Case { name: format!("{name}, {flows} flows"), goal, template, samples: Vec::new() }
}

fn client(group: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + group + 1)
}

fn backend(group: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + group + 1)
}

/// Makes flows by complete handshakes: a group of 32,768 a backend, each with its client's own port.
fn establish(program: &mut Program, flows: u32) {
    for flow in 0..flows {
        let (group, low) = (flow / FLOWS_PER_BACKEND, flow % FLOWS_PER_BACKEND);
        if low == 0 {
            assert!((group as usize) < MAX_BACKENDS);
            program.backend(group as u16, 0, VIP, (backend(group), 2379));
            program.maglev(0, group as u16);
        }
        let client = (client(group), FIRST_PORT + low as u16);
        for frame in [
            TcpFrame::new(client, (VIP, 2379), SYN).numbers(1000, 0),
            TcpFrame::new((backend(group), 2379), (VIP, client.1), SYN | ACK)
                .numbers(5000, 1001)
                .from_mac(BACKEND_MAC),
            TcpFrame::new(client, (VIP, 2379), ACK).numbers(1001, 5001),
        ] {
            program.run(&frame.build());
        }
    }
    let established = program.load_of(lb_common::maps::LOAD_TOTAL);
    assert_eq!(established, i64::from(flows), "not every handshake was completed");
}

fn words(frame: &[u8]) -> [u32; 16] {
    let mut words = [0; 16];
    for (word, octets) in words.iter_mut().zip(frame.chunks_exact(4)) {
        *word = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
    }
    words
}

/// ns per repetition of the wrapper with a target.
fn run(ebpf: &mut Ebpf, target: &str, template: &Template, repeat: u32) -> Result<f64> {
    for name in ["bench", program::PASS] {
        let program: &mut Xdp = ebpf.program_mut(name).context("no program bench")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
    }
    let fd = {
        let program: &Xdp = ebpf.program(target).context("no such program")?.try_into()?;
        program.fd()?.try_clone()?
    };
    let mut targets = ProgramArray::try_from(ebpf.map_mut("bench_target").context("no bench_target")?)?;
    targets.set(0, &fd, 0)?;
    let mut templates: Array<_, Template> =
        ebpf.map_mut("bench_template").context("no bench_template")?.try_into()?;
    templates.set(0, template, 0)?;
    let bench: &Xdp = ebpf.program("bench").context("no program bench")?.try_into()?;
    let frame = [0u8; 64];
    let options = TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::new() };
    let duration: Duration = bench.test_run(options)?.duration;
    Ok(duration.as_secs_f64() * 1e9)
}

/// Median, and half the distance between the quartiles.
fn median(samples: &mut [f64]) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |part: usize| samples[(samples.len() - 1) * part / 4];
    (at(2), (at(3) - at(1)) / 2.0)
}
