//! `cargo xtask bench`.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{cargo, lab};

/// Builds an object with the program that benchmarks run the others by, and the benchmark; runs it.
pub(crate) fn run(quick: bool, json: Option<&Path>) -> Result<ExitCode> {
    lab::need_root("the benchmark")?;
    let target_dir = cargo::target_dir()?;
    let options = ebpf_build::Options {
        workspace_root: cargo::workspace_root()?,
        target_dir: target_dir.clone(),
        features: &["bench"],
    };
    let built = ebpf_build::build(&options)?;
    // The next build of the product's object takes this one's place.
    let object = target_dir.join("etcd-lb-xdp-bench");
    std::fs::copy(&built, &object).with_context(|| format!("copying {}", built.display()))?;
    lab::build(&["--package", "etcd-lb-tests", "--bin", "etcd-lb-bench"])?;
    let mut bench = Command::new(target_dir.join("debug").join("etcd-lb-bench"));
    bench.arg(&object).args(quick.then_some("--quick"));
    if let Some(json) = json {
        bench.arg("--json").arg(json);
    }
    Err(bench.exec()).context("cannot run the benchmark")
}
