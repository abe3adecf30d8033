//! `cargo xtask bench`.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{cargo, lab, run};

/// What to measure, and where to write it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these: latency, throughput, connections, cpu, packets, etcd, takeover, recovery, memory
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// All rows in under two minutes: fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Receive offload (GRO) on at every host, as network cards of servers have it
    #[arg(long)]
    gro: bool,
    /// Also write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write docs/benchmarks.md, or another file like it
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also say in which ratios an earlier run on this machine, as --json wrote it, agrees
    #[arg(long, value_name = "FILE")]
    earlier: Option<PathBuf>,
}

/// Builds release binaries, and an object with the program that benchmarks run the others by; runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    lab::need_root("the benchmark")?;
    let target_dir = cargo::target_dir()?;
    lab::build(&[
        "--release",
        "--package",
        "etcd-lb",
        "--package",
        "etcd-lb-tests",
        "--bin",
        "etcd-lb",
        "--bin",
        "etcd-lb-bench",
    ])?;
    let object = build_object(&target_dir)?;
    let mut bench = Command::new(target_dir.join("release").join("etcd-lb-bench"));
    bench.arg(&object).args(&options.names);
    bench.args(options.quick.then_some("--quick")).args(options.gro.then_some("--gro"));
    let files =
        [("--json", &options.json), ("--markdown", &options.markdown), ("--earlier", &options.earlier)];
    for (option, file) in files {
        if let Some(file) = file {
            bench.arg(option).arg(file);
        }
    }
    let status = run::status(&mut bench).context("the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_object(target_dir: &Path) -> Result<PathBuf> {
    let built = ebpf_build::build(&ebpf_build::Options {
        workspace_root: cargo::workspace_root()?,
        target_dir: target_dir.to_path_buf(),
        features: &["bench"],
    })?;
    // The next build of the product's object takes this one's place.
    let object = target_dir.join("etcd-lb-xdp-bench");
    std::fs::copy(&built, &object).with_context(|| format!("copying {}", built.display()))?;
    Ok(object)
}
