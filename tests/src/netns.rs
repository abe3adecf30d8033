//! Network namespaces: made by name, entered by threads and children.
//!
//! Entered by `setns` alone: `ip netns exec` would also mount a fresh /sys, which hides bpffs.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};

/// Where iproute2 keeps its names of namespaces, so that `ip -n NAME` and `ip netns list` know ours.
const NAMES: &str = "/run/netns";

/// A named network namespace. Dropping it leaves the namespace; the lab's state deletes what has its prefix.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace of that name, with its loopback up.
    ///
    /// # Errors
    ///
    /// If `ip` fails: not root, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self::open(name)?;
        output(netns.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(netns)
    }

    /// Opens an existing namespace.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(NAMES).join(name);
        let file = File::open(&path).with_context(|| format!("network namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file) })
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `nsenter --net=FILE`.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs a closure in the namespace, in a thread of its own. Sockets made in it stay in the namespace wherever they
    /// are used later.
    ///
    /// # Panics
    ///
    /// If the closure panics, or the namespace cannot be entered (not root).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("cannot enter network namespace {}: {error}", self.name));
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let file = Arc::clone(&self.file);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes one, the setns
        // system call, on a file descriptor that the closure itself keeps open; it does not allocate (`Errno` is a
        // plain number, and so is the io::Error made from it).
        unsafe {
            command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }
}

/// Runs a command to its end and returns its stdout.
///
/// # Errors
///
/// If it cannot be run, or fails: with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        bail!("{command:?}: {}: {}{stdout}", result.status, String::from_utf8_lossy(&result.stderr));
    }
    Ok(stdout)
}

/// Names of the namespaces that begin with a prefix.
pub(crate) fn names_with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NAMES) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Removes a name. The namespace itself goes with its last process, socket and file descriptor.
pub(crate) fn delete(name: &str) -> Result<()> {
    let path = Path::new(NAMES).join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // Not a mount: an `ip netns add` that was cut short. Not there: another teardown was faster.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => bail!("cannot unmount {}: {error}", path.display()),
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Processes whose main thread is in one of these namespaces, without our own.
pub(crate) fn processes_in(names: &[String]) -> Vec<i32> {
    use std::os::unix::fs::MetadataExt as _;

    let inodes: Vec<u64> = names
        .iter()
        .filter_map(|name| std::fs::metadata(Path::new(NAMES).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| u32::try_from(*pid) != Ok(std::process::id()))
        .filter(|pid| {
            std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|metadata| inodes.contains(&metadata.ino()))
        })
        .collect()
}
