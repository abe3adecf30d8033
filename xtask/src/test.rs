//! `cargo xtask test`: every check and test, one after the other, with a count at the end.

mod glob;
mod tally;

use std::{
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{cargo, kernels, lab, run, tidy};
use glob::Glob;
use tally::Tally;

/// Labs at once: each has a cluster of three, its clients and one or two balancers, which keep two cores busy. With more at once
/// checks time out and members are found down that are none.
fn labs() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1).to_string()
}

#[derive(Args)]
pub(crate) struct Options {
    /// Also what takes long: load tests, other kernels
    #[arg(long)]
    long: bool,
    /// Also the packet tests in virtual machines, on the oldest and the newest kernels supported
    #[arg(long)]
    kernels: bool,
    /// Only the tests whose names match, with `*` for anything; no other checks
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
}

/// Runs them all, goes on after a failure, and ends with the line `N passed, N failed`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    lab::need_root("the test run")?;
    let start = Instant::now();
    let mut tally = Tally::default();
    let only = options.only.as_deref().map(Glob::new);

    if only.is_none() {
        checks(&mut tally)?;
    }
    // Scenarios run the binary, which no test target builds.
    step(&mut tally, "build", || build().map(|()| true))?;
    if only.is_none() {
        step(&mut tally, "release build", || {
            Ok(run::status(cargo::cargo()?.args(["build", "--quiet", "--release", "--package", "etcd-lb"]))?
                .success())
        })?;
    }
    let host = test_command(&["--quiet", "--workspace", "--exclude", "etcd-lb-tests"])?;
    tests(&mut tally, "host tests", host, &[], only.as_ref())?;
    let mut scenarios = test_command(&["--package", "etcd-lb-tests"])?;
    if options.long {
        scenarios.args(["--features", "long"]);
    }
    // Scenarios print what they measured.
    tests(
        &mut tally,
        "packet tests and scenarios",
        scenarios,
        &["--show-output", "--test-threads", &labs()],
        only.as_ref(),
    )?;
    if options.long || options.kernels {
        other_kernels(&mut tally)?;
    }

    heading("result");
    for failed in tally.failures() {
        println!("failed: {failed}");
    }
    println!("{:.0} s", start.elapsed().as_secs_f32());
    println!("{} passed, {} failed", tally.passed(), tally.failed());
    Ok(if tally.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checks(tally: &mut Tally) -> Result<()> {
    let succeeds = |args: &[&str]| -> Result<bool> { Ok(run::status(cargo::cargo()?.args(args))?.success()) };
    step(tally, "fmt", || succeeds(&["fmt", "--all", "--check"]))?;
    step(tally, "tidy", || {
        let result = tidy::check(&cargo::workspace_root()?);
        if let Err(error) = &result {
            println!("{error:#}");
        }
        Ok(result.is_ok())
    })?;
    step(tally, "clippy", || {
        succeeds(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"])
    })
}

/// Builds the programs, and beside them `etcd-lb-debug-log`, whose XDP program is another one, and `etcd-lb-other-layout`, whose
/// maps are others, for the scenarios in which one replaces the other.
fn build() -> Result<()> {
    let built = cargo::target_dir()?.join("debug");
    for feature in ["debug-log", "other-layout"] {
        lab::build(&["--package", "etcd-lb", "--features", feature])?;
        fs::copy(built.join("etcd-lb"), built.join(format!("etcd-lb-{feature}")))
            .with_context(|| format!("copying the build with the feature {feature}"))?;
    }
    lab::build(&["--package", "etcd-lb", "--package", "etcd-lb-tests", "--bins"])
}

fn test_command(args: &[&str]) -> Result<Command> {
    let mut command = cargo::cargo()?;
    command.args(["test", "--no-fail-fast"]).args(args);
    // A failed step's message suffices; traces of every error would bury it.
    command.env("RUST_LIB_BACKTRACE", "0");
    Ok(command)
}

fn other_kernels(tally: &mut Tally) -> Result<()> {
    heading("other kernels");
    let start = Instant::now();
    for tried in kernels::run(|_| {})? {
        tally.step(&format!("kernel {}", tried.kernel), tried.passed);
    }
    duration(start.elapsed());
    Ok(())
}

/// A step that passes or fails as a whole. An error that keeps it from running (a signal above all) ends the run.
fn step(tally: &mut Tally, name: &str, work: impl FnOnce() -> Result<bool>) -> Result<()> {
    heading(name);
    let start = Instant::now();
    let passed = work().with_context(|| name.to_owned())?;
    tally.step(name, passed);
    duration(start.elapsed());
    Ok(())
}

/// A `cargo test`, whose tests count one by one.
fn tests(
    tally: &mut Tally,
    name: &str,
    mut command: Command,
    flags: &[&str],
    only: Option<&Glob>,
) -> Result<()> {
    heading(name);
    let start = Instant::now();
    command.arg("--");
    if let Some(glob) = only {
        let names = glob::matching_tests(&mut command_like(&command)?, glob)?;
        if names.is_empty() {
            println!("none match");
            return Ok(());
        }
        command.arg("--exact").args(names);
    }
    command.args(flags);
    let status = run::watch(&mut command, |line| tally.line(line))?;
    tally.end(name, status.success());
    duration(start.elapsed());
    Ok(())
}

/// The same command once more, since `Command` cannot be cloned.
fn command_like(command: &Command) -> Result<Command> {
    let mut copy = cargo::cargo()?;
    copy.args(command.get_args());
    Ok(copy)
}

fn heading(name: &str) {
    println!("\n== {name}");
}

fn duration(time: Duration) {
    println!("-- {:.1} s", time.as_secs_f32());
}
