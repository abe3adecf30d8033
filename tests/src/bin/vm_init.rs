//! The first process of a virtual machine that tries a kernel: mounts what the tests read, runs them, and ends the machine.

use std::{fs, io, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

fn main() {
    if let Err(error) = run() {
        println!("etcd-lb-vm: test result: FAILED. {error}");
    }
    println!("etcd-lb-vm: done");
    // It returns only if this is not the first process of a machine.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("this runs as the first process of a virtual machine only: {error}");
}

fn run() -> io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("bpf", "/sys/fs/bpf")]
    {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|error| io::Error::other(format!("mounting {place}: {error}")))?;
    }
    println!("etcd-lb-vm: {}", fs::read_to_string("/proc/version")?.trim());
    let mut tests: Vec<_> =
        fs::read_dir("/tests")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    tests.sort();
    for test in tests {
        println!("etcd-lb-vm: {}", test.display());
        let status = Command::new(&test).args(["--test-threads", "2"]).env("RUST_BACKTRACE", "0").status()?;
        if !status.success() {
            println!("etcd-lb-vm: test result: FAILED. {} ended with {status}", test.display());
        }
    }
    Ok(())
}
