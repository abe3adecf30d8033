//! `cargo xtask bench`: etcd-lb and others, measured side by side.

mod agreement;
mod cpu;
mod etcd;
mod haproxy;
mod machine;
mod markdown;
mod memory;
mod packets;
mod peers;
mod recovery;
mod report;
mod responder;
mod rounds;
mod site;
mod stats;
mod takeover;
mod wire;
mod yardstick;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use crate::{
    agreement::{Agreement, Earlier},
    machine::Machine,
    report::{Report, Row},
    site::Site,
};

#[derive(Parser)]
struct Options {
    /// The object with the program `bench`
    object: PathBuf,
    /// Only these row groups
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// GRO on at every host
    #[arg(long)]
    gro: bool,
    /// Write all figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the document with the table
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Say whether an earlier run's JSON agrees
    #[arg(long)]
    earlier: Option<PathBuf>,
}

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Latency,
    Throughput,
    Connections,
    Cpu,
    Packets,
    Etcd,
    Takeover,
    Recovery,
    Memory,
}

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    Quick,
    Full,
}

impl Effort {
    /// Rounds that count.
    pub fn rounds(self) -> usize {
        self.pick(3, 7)
    }

    /// Rounds before those, which find cold caches and unresolved neighbours.
    pub fn warm_up(self) -> usize {
        self.pick(0, 1)
    }

    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    // Before half an hour of measuring.
    let earlier = options.earlier.as_deref().map(Earlier::read).transpose()?;
    let binary = etcd_lb_tests::balancer::binary()?;
    let version =
        std::process::Command::new(&binary).arg("--version").output().context("etcd-lb --version")?;
    let version = String::from_utf8_lossy(&version.stdout).trim().trim_start_matches("etcd-lb ").to_owned();
    let mut bench = Bench {
        effort: if options.quick { Effort::Quick } else { Effort::Full },
        report: Report {
            machine: Machine::look(options.gro, version),
            rows: Vec::new(),
            failed: Default::default(),
            seconds: 0.0,
        },
        options,
    };
    let begun = Instant::now();
    bench.measure();
    let Bench { options, mut report, .. } = bench;
    report.seconds = begun.elapsed().as_secs_f64();
    println!("{}", report.table());
    let agreement = earlier.map(|earlier| Agreement::of(&report, &earlier));
    if let Some(agreement) = &agreement {
        println!("{agreement}");
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        fs::write(path, text + "\n").with_context(|| format!("{}", path.display()))?;
    }
    if let Some(path) = &options.markdown {
        fs::write(path, markdown::document(&report, agreement.as_ref(), options.quick))
            .with_context(|| format!("{}", path.display()))?;
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Bench {
    options: Options,
    effort: Effort,
    report: Report,
}

impl Bench {
    /// Every group that is wanted; one that fails is said so, and the others are measured all the same.
    fn measure(&mut self) {
        let effort = self.effort;
        self.on_the_wire();
        if self.wants(Group::Packets) {
            let object = self.options.object.clone();
            self.group("packets", || packets::packets(&object, effort));
        }
        if self.wants(Group::Etcd) {
            let has = |name: &str| self.report.machine.has(name);
            let (haproxy, etcd) = (has("HAProxy"), has("etcd") && has("etcdctl"));
            self.group("etcd", || etcd::etcd(effort, haproxy, etcd));
        }
        if self.wants(Group::Memory) {
            let haproxy = self.report.machine.has("HAProxy");
            self.group("memory", || memory::memory(effort, haproxy));
        }
        self.outages();
    }

    fn wants(&self, group: Group) -> bool {
        self.options.groups.is_empty() || self.options.groups.contains(&group)
    }

    fn on_the_wire(&mut self) {
        type Measure = fn(&mut Site, Effort) -> Result<Vec<Row>>;
        let groups: [(Group, &'static str, Measure); 4] = [
            (Group::Latency, "latency", wire::latency),
            (Group::Throughput, "throughput", wire::throughput),
            (Group::Connections, "connections", wire::connections),
            (Group::Cpu, "cpu", |site, effort| cpu::cpu(site, effort)),
        ];
        let wanted: Vec<_> = groups.into_iter().filter(|(group, ..)| self.wants(*group)).collect();
        if wanted.is_empty() {
            return;
        }
        match Site::start(&self.options, &self.report.machine) {
            Ok(mut site) => {
                for (_, name, measure) in wanted {
                    let effort = self.effort;
                    self.group(name, || measure(&mut site, effort));
                }
            }
            Err(error) => {
                for (_, name, _) in wanted {
                    self.report.failed.insert(name, format!("{error:#}"));
                }
            }
        }
    }

    /// These wait most of the time, so that when there is little of it they do so together.
    fn outages(&mut self) {
        let effort = self.effort;
        let has = |name: &str| self.report.machine.has(name);
        let (haproxy, keepalived, etcd) =
            (has("HAProxy"), has("HAProxy") && has("keepalived"), has("etcd") && has("etcdctl"));
        let takeover = move || takeover::takeover(effort, keepalived);
        let recovery = move || recovery::recovery(effort, haproxy, etcd);
        match (self.wants(Group::Takeover), self.wants(Group::Recovery)) {
            (true, true) if effort == Effort::Quick => {
                let other = std::thread::spawn(recovery);
                self.group("takeover", takeover);
                self.group("recovery", || join(other));
            }
            (first, second) => {
                if first {
                    self.group("takeover", takeover);
                }
                if second {
                    self.group("recovery", recovery);
                }
            }
        }
    }

    fn group(&mut self, name: &'static str, measure: impl FnOnce() -> Result<Vec<Row>>) {
        let begun = Instant::now();
        match measure() {
            Ok(rows) => self.report.rows.extend(rows),
            Err(error) => drop(self.report.failed.insert(name, format!("{error:#}"))),
        }
        eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
    }
}

/// What a thread found; if it panicked, that as an error.
pub fn join<T>(thread: std::thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        anyhow::bail!("{text}")
    })
}
