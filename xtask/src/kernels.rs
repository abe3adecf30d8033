//! `cargo xtask test --kernels`: the object is loaded and the packet tests run in virtual machines, on the oldest and the
//! newest kernels that are supported. Software emulation is enough; a machine boots in seconds.

mod image;
mod suite;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo;
use suite::Suite;

/// The release whose kernel is the oldest, one between, the newest.
const SUITES: [&str; 3] = ["bookworm", "bookworm-backports", "sid"];
/// The tests that need a kernel and no network.
const TESTS: [&str; 13] = [
    "packets_object",
    "packets_flow",
    "packets_vip",
    "packets_ipv6",
    "packets_link",
    "packets_icmp",
    "packets_dsr",
    "packets_choose",
    "packets_signals",
    "packets_routes",
    "packets_capture",
    "packets_vrrp",
    "random_frames",
];
/// A model that has all that the kernels need, and nothing that QEMU 7.2 emulates wrongly: with `max` Linux 6.12 dies while
/// it patches itself; with the 16-byte compare-and-exchange, whose flags are wrong after an interrupt, in its allocators.
const CPU: &str = "Nehalem,-cx16";
/// What a machine has: the test programs lie in its memory, twice while they are unpacked; maps take 50 MB.
const MEMORY: &str = "1536M";
/// Longest run of a machine: emulated, it is some fifty times slower than the host.
const LIMIT: Duration = Duration::from_secs(1500);
/// What the machine's init prints last.
const DONE: &str = "etcd-lb-vm: done";

/// A kernel that was tried.
pub(crate) struct Tried {
    /// The kernel's release, as `6.1.0-50-cloud-amd64`.
    pub(crate) kernel: String,
    pub(crate) passed: bool,
}

/// Tries every kernel; `see` gets each line that a machine prints.
pub(crate) fn run(mut see: impl FnMut(&str)) -> Result<Vec<Tried>> {
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio"), ("dpkg", "dpkg")]
    {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "no {program}: install the package {package}, or run scripts/setup.sh --long");
    }
    let dir = cargo::target_dir()?.join("kernels");
    let binaries = test_binaries()?;
    let mut tried = Vec::new();
    for name in SUITES {
        let kernel = Suite::new(name, &dir.join(name))?.kernel()?;
        let initramfs = image::initramfs(&dir.join(name), &binaries)?;
        println!("kernel {} ({name})", kernel.release);
        let begun = Instant::now();
        let passed = boot(&kernel.image, &initramfs, &mut see)?;
        println!("kernel {}: {} in {:.0} s", kernel.release, verdict(passed), begun.elapsed().as_secs_f32());
        tried.push(Tried { kernel: kernel.release, passed });
    }
    Ok(tried)
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "failed" }
}

/// The test programs, and the init that runs them.
fn test_binaries() -> Result<Vec<PathBuf>> {
    let mut command = cargo::cargo()?;
    command.args(["test", "--quiet", "--package", "etcd-lb-tests", "--no-run", "--message-format", "json"]);
    command.args(TESTS.iter().flat_map(|test| ["--test", test]));
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the packet tests do not compile");
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's message")?;
        let is_test = TESTS.iter().any(|test| message["target"]["name"] == *test);
        if let (true, Some(path)) = (is_test, message["executable"].as_str()) {
            binaries.push(PathBuf::from(path));
        }
    }
    ensure!(binaries.len() == TESTS.len(), "cargo built {} of {} tests", binaries.len(), TESTS.len());
    let mut init = cargo::cargo()?;
    init.args(["build", "--quiet", "--package", "etcd-lb-tests", "--bin", "etcd-lb-vm-init"]);
    ensure!(init.status()?.success(), "the init of the machines does not compile");
    binaries.push(cargo::target_dir()?.join("debug").join("etcd-lb-vm-init"));
    Ok(binaries)
}

/// Boots a machine and follows its console; whether all tests passed in it.
fn boot(kernel: &Path, initramfs: &Path, see: &mut impl FnMut(&str)) -> Result<bool> {
    // One CPU: software emulation of two takes longer than twice the time.
    let mut qemu = Command::new("timeout");
    qemu.arg(LIMIT.as_secs().to_string()).arg("qemu-system-x86_64");
    qemu.args([
        "-machine",
        "q35",
        "-cpu",
        CPU,
        "-smp",
        "1",
        "-m",
        MEMORY,
        "-nographic",
        "-no-reboot",
        "-net",
        "none",
    ]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    let (mut done, mut failed) = (false, false);
    crate::run::watch(&mut qemu, |line| {
        let line = line.trim_end();
        done |= line.contains(DONE);
        failed |= line.contains("test result: FAILED") || line.contains("Kernel panic");
        see(line);
    })?;
    if !done {
        bail!("the machine ended, or was ended after {} s, before its tests did", LIMIT.as_secs());
    }
    Ok(!failed)
}
