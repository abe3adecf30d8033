//! ns per packet of the XDP program, net of the harness.
//!
//! The kernel's `BPF_PROG_TEST_RUN` gives every repetition the frame that the last one left, so a wrapper writes it anew, of
//! another flow each time, and tail-calls the program; the time of the wrapper with an empty program is subtracted.

mod scene;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    bench::Template,
    maps::{DEFAULT_MAX_FLOWS, half_open_capacity, program},
};

use crate::{Effort, peers::OURS, report::Row};

use scene::Scene;

const PASS: u32 = 2;
const TX: u32 = 3;
/// Flows of one new-flow sample: half of the handshakes under way that there is room for by default.
const NEW_FLOWS: u32 = half_open_capacity(DEFAULT_MAX_FLOWS) / 2;
/// Members of that: those of a large etcd cluster.
const MEMBERS: u16 = 5;
/// Members of a flood: enough that each of a million clients finds its own port free, although no agent frees any meanwhile.
const FLOODED: u16 = 32;
/// From one flow to the next: times this, plus [`STRIDE`]. The lower halves of the numbers that Knuth uses for MMIX (TAOCP volume 2,
/// section 3.3.4).
const FACTOR: u32 = 0x4c95_7f2d;
const STRIDE: u32 = 0xf767_814f;

/// What is run: a whole frame, of which the template writes the beginning.
pub struct Packet {
    pub frame: Vec<u8>,
    pub template: Template,
}

impl Packet {
    pub fn new(frame: Vec<u8>, flows: u32, (address, port): (u32, u32)) -> Self {
        let mut words = [0; 16];
        for (word, octets) in words.iter_mut().zip(frame.chunks_exact(4)) {
            *word = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
        }
        let (mask, factor, stride) = (flows - 1, FACTOR, STRIDE);
        let template = Template { frame: words, mask, factor, stride, flow: 0, address, port };
        Self { frame, template }
    }

    /// From this flow on, one after the other.
    #[must_use]
    pub fn in_order_from(mut self, flow: u32) -> Self {
        (self.template.factor, self.template.stride) = (1, 1);
        self.template.flow = flow.wrapping_sub(1) & self.template.mask;
        self
    }
}

/// A figure to be measured.
struct Case {
    title: String,
    goal: &'static str,
    /// Of the scenes.
    scene: usize,
    /// The program that is measured.
    program: &'static str,
    packet: Packet,
    action: u32,
    repeat: u32,
    /// Whether each round has tables of its own, in which there is no flow yet.
    fresh: bool,
    samples: Vec<f64>,
}

/// A yardstick of the machine: a program that reads one line of a flow's slot, and nothing else.
const LINE: &str = "bench_line";

/// (Flows, what is aimed at by the forward path, and by the return path.)
const SIZES: [(u32, &str, &str); 4] = [
    (1, "< 61 (Katran), aim 45", "< 61 (Katran), aim 45"),
    (4096, "< 72 (Katran), aim 50", "< 72 (Katran), aim 45"),
    (65_536, "< 110 (Katran), aim 85", "< 110 (Katran), aim 60"),
    (1_048_576, "< 290 (Katran), aim 200", "< 290 (Katran), aim 120"),
];

pub fn packets(object: &Path, effort: Effort) -> Result<Vec<Row>> {
    let object = fs::read(object).with_context(|| format!("{}", object.display()))?;
    let repeat = effort.pick(50_000, 1_000_000);
    let mut scenes = Vec::new();
    let mut cases = Vec::new();
    let mut add = |scene: usize, title: String, goal, (program, packet), action| {
        let (fresh, samples) = (false, Vec::new());
        cases.push(Case { title, goal, scene, program, packet, action, repeat, fresh, samples });
    };
    for (flows, forward, back) in SIZES {
        let many = counted(flows);
        for v6 in [false, true] {
            let scene = Scene::with_flows(&object, flows, v6)?;
            let (number, family) = (scenes.len(), if v6 { "IPv6 " } else { "" });
            let by_entry = |packet| (program::ENTRY, packet);
            add(number, format!("{family}forward, {many}"), forward, by_entry(scene.forward(flows)), TX);
            add(number, format!("{family}return, {many}"), back, by_entry(scene.back(flows)), TX);
            if !v6 {
                let title = format!("yardstick: one line of one of {many}, and nothing else");
                add(number, title, "", (LINE, scene.forward(flows)), TX);
            }
            if flows == 4096 {
                let goal = "≤ 6 (Katran 20)";
                add(number, format!("{family}not ours"), goal, by_entry(scene.not_ours()), PASS);
            }
            scenes.push(scene);
        }
    }
    for v6 in [false, true] {
        let family = if v6 { "IPv6 " } else { "" };
        let flood = Scene::for_syns(&object, 8192, FLOODED, v6);
        add(
            scenes.len(),
            format!("{family}SYN flood, each evicts another"),
            "",
            (program::ENTRY, flood.syn()),
            TX,
        );
        scenes.push(flood);
    }
    for v6 in [false, true] {
        let family = if v6 { "IPv6 " } else { "" };
        let room = new_tables(&object, v6);
        cases.push(Case {
            title: format!("{family}new flow (its SYN)"),
            goal: "≤ 500 (Katran 900)",
            scene: scenes.len(),
            program: program::ENTRY,
            packet: room.syn(),
            action: TX,
            repeat: NEW_FLOWS,
            fresh: true,
            samples: Vec::new(),
        });
        scenes.push(room);
    }
    for round in 0..effort.warm_up() + effort.rounds() {
        for case in &mut cases {
            if case.fresh {
                scenes[case.scene] = new_tables(&object, scenes[case.scene].is_v6());
            }
            let ebpf = scenes[case.scene].ebpf();
            let (base, _) = run(ebpf, program::PASS, &case.packet, case.repeat)?;
            let (whole, action) = run(ebpf, case.program, &case.packet, case.repeat)?;
            ensure!(action == case.action, "{}: the last packet's action was {action}", case.title);
            if round >= effort.warm_up() {
                case.samples.push((whole - base).max(0.0));
            }
        }
    }
    let row = |case: Case| Row::new("packets", case.title, "ns").goal(case.goal).cell(OURS, case.samples);
    Ok(cases.into_iter().map(row).collect())
}

/// Tables of default size with nothing in them.
fn new_tables(object: &[u8], v6: bool) -> Scene {
    Scene::for_syns(object, DEFAULT_MAX_FLOWS, MEMBERS, v6)
}

/// `1 flow`, `4,096 flows`.
fn counted(flows: u32) -> String {
    match flows {
        1 => "1 flow".to_owned(),
        _ if flows < 1_000_000 => format!("{},{:03} flows", flows / 1000, flows % 1000),
        _ => format!("{},{:03},{:03} flows", flows / 1_000_000, flows / 1000 % 1000, flows % 1000),
    }
}

/// ns per repetition of the wrapper with a target, and the last one's action.
pub fn run(ebpf: &mut Ebpf, target: &str, packet: &Packet, repeat: u32) -> Result<(f64, u32)> {
    for name in ["bench", target] {
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
    templates.set(0, packet.template, 0)?;
    let bench: &Xdp = ebpf.program("bench").context("no program bench")?.try_into()?;
    let options = TestRunOptions { data_in: Some(&packet.frame), repeat, ..TestRunOptions::new() };
    let result = bench.test_run(options)?;
    let duration: Duration = result.duration;
    Ok((duration.as_secs_f64() * 1e9, result.return_value))
}
