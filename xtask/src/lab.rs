//! The lab program: built with the balancer, then run in our place.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cargo, run};

/// Builds the balancer and the lab program, and becomes the latter.
pub(crate) fn exec(args: &[String]) -> Result<ExitCode> {
    build(&[
        "--package",
        "etcd-lb",
        "--package",
        "etcd-lb-tests",
        "--bin",
        "etcd-lb",
        "--bin",
        "etcd-lb-lab",
    ])?;
    need_root("a lab")?;
    // The signals that this process watches are its own business: exec resets them.
    let error = Command::new(cargo::target_dir()?.join("debug/etcd-lb-lab")).args(args).exec();
    Err(error).context("cannot run the lab program")
}

/// `cargo build` with these arguments.
pub(crate) fn build(args: &[&str]) -> Result<()> {
    let status = run::status(cargo::cargo()?.arg("build").arg("--quiet").args(args))?;
    if !status.success() {
        bail!("cargo build {} failed", args.join(" "));
    }
    Ok(())
}

/// An error that says how, if this is not root.
pub(crate) fn need_root(what: &str) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "{what} needs root, for network namespaces and XDP; run it with sudo (scripts/test.sh and scripts/demo.sh do)"
    );
    Ok(())
}
