//! Kernel, BPF file system, capabilities.

use std::{
    ffi::CString,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use lb_core::config::Config;

use super::Findings;

/// The oldest kernel that the program is tested on: Debian 12's.
const OLDEST: (u32, u32) = (6, 1);
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Bits of capability sets (linux/capability.h), and what each is for.
const NEEDED: [(&str, u32, &str); 4] = [
    ("CAP_NET_ADMIN", 12, "attach the XDP program and read the network's state"),
    ("CAP_NET_RAW", 13, "announce VIPs and tell both ends of a connection that it was reset"),
    ("CAP_SYS_ADMIN", 21, "reach the port tables of a data plane that is there already"),
    ("CAP_BPF", 39, "load the XDP program"),
];
/// Of a pair too.
const OF_A_PAIR: [(&str, u32, &str); 2] = [
    ("CAP_IPC_LOCK", 14, "keep the VRRP thread's memory from being swapped out"),
    ("CAP_SYS_NICE", 23, "give the VRRP thread real-time priority"),
];

pub(super) fn examine(config: &Config, findings: &mut Findings) {
    kernel(findings);
    pin_dir(&config.api.pin_dir, findings);
    capabilities(config.vrrp.is_some(), findings);
}

fn kernel(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(version) if version < OLDEST => findings.error(
            "kernel",
            format!("Linux {release} is older than {}.{}", OLDEST.0, OLDEST.1),
            "the XDP program uses what older kernels lack",
            "install a newer kernel (on Debian: apt install linux-image-amd64)",
        ),
        Some(_) => findings.ok("kernel", format!("Linux {release}")),
        None => findings.warn("kernel", "its version cannot be read", "", ""),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        findings.ok("kernel", "has BTF");
    } else {
        findings.warn(
            "kernel",
            "has no BTF (/sys/kernel/btf/vmlinux)",
            "maps may be refused, and bpftool shows no field names",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as every large distribution's is",
        );
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn pin_dir(dir: &Path, findings: &mut Findings) {
    let subject = "pin_dir";
    // It is made by the agent; its parent must be there.
    let there = if dir.exists() { dir } else { dir.parent().unwrap_or(dir) };
    if file_system(there) == Some(BPF_FS_MAGIC) {
        findings.ok(subject, format!("{} is on a BPF file system", dir.display()));
        return;
    }
    let mount: PathBuf = if dir.starts_with("/sys/fs/bpf") { "/sys/fs/bpf".into() } else { there.into() };
    findings.error(
        subject,
        format!("{} is not on a BPF file system (bpffs)", dir.display()),
        "the data plane is pinned there, so that it outlives the agent",
        format!("mount -t bpf bpf {}", mount.display()),
    );
}

fn file_system(path: &Path) -> Option<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zero is a `statfs`.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string with its NUL, and a struct that the kernel fills in; both outlive the call.
    let answer = unsafe { libc::statfs(path.as_ptr(), &raw mut about) };
    (answer == 0).then_some(about.f_type)
}

fn capabilities(is_pair: bool, findings: &mut Findings) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else { return };
    let has = |bit: u32| held & (1 << bit) != 0;
    let missing = |&&(name, bit, _): &&(&str, u32, &str)| {
        // Includes CAP_BPF.
        !(has(bit) || name == "CAP_BPF" && has(21))
    };
    let mut all = true;
    let fix = "run it as root, or with this capability (AmbientCapabilities= and CapabilityBoundingSet= of systemd)";
    for (name, _, purpose) in NEEDED.iter().filter(missing) {
        all = false;
        findings.error(
            "capabilities",
            format!("{name} is missing"),
            &format!("it is needed to {purpose}"),
            fix,
        );
    }
    for (name, _, purpose) in OF_A_PAIR.iter().filter(missing).filter(|_| is_pair) {
        all = false;
        findings.warn(
            "capabilities",
            format!("{name} is missing"),
            &format!("it is needed to {purpose}"),
            fix,
        );
    }
    if all {
        findings.ok("capabilities", "all that the agent needs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        assert_eq!(version("6.1.0-28-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("x"), None);
    }
}
