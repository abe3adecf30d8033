//! What a lab leaves on the machine, and how all of it is removed.
//!
//! A lab is found by its id alone: namespaces `elb-ID-HOST`, the processes in them, and the directory
//! [`BASE`]`/ID` with a mounted bpffs. So one function takes a lab down, for the guard that is dropped, for Ctrl-C, for
//! `cargo xtask lab down`, and for the leftovers of a run that was killed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns;

/// Directory of all labs, in memory: etcd's fsyncs cost nothing there.
pub const BASE: &str = "/dev/shm/etcd-lb-lab";
/// Longest id: with prefix and host it must fit a namespace's file name, and people must type it.
const MAX_ID: usize = 40;
/// Time for killed processes to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Who answers for a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A process, by its id and its start time in clock ticks since boot (a process id alone may be reused).
    Process(u32, u64),
    /// Nobody: it was kept up, and is taken down by name.
    Kept,
}

/// A lab found on the machine.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// `None` if its owner is unknown, so also dead.
    pub owner: Option<Owner>,
}

impl Found {
    /// Whether its owner died without taking it down.
    pub fn is_stale(&self) -> bool {
        match self.owner {
            Some(Owner::Process(pid, started)) => start_time(pid) != Some(started),
            Some(Owner::Kept) => false,
            None => true,
        }
    }
}

/// An id that no other lab has: the name, this process, a number.
pub fn unique_id(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The lab's directory.
pub fn dir(id: &str) -> PathBuf {
    Path::new(BASE).join(id)
}

/// Where a lab's bpffs is mounted.
pub fn bpffs(id: &str) -> PathBuf {
    dir(id).join("bpf")
}

/// Name of a host's network namespace.
pub fn netns_name(id: &str, host: &str) -> String {
    format!("{}{host}", netns_prefix(id))
}

/// Every lab on the machine.
pub fn list() -> Vec<Found> {
    let Ok(entries) = fs::read_dir(BASE) else { return Vec::new() };
    let mut found: Vec<Found> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| check_id(id).is_ok())
        .map(|id| Found { owner: read_owner(&id), id })
        .collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// Takes down the labs whose owner is dead; returns their ids.
///
/// # Errors
///
/// The first that could not be taken down.
pub fn reap_stale() -> Result<Vec<String>> {
    let mut reaped = Vec::new();
    for found in list().into_iter().filter(Found::is_stale) {
        teardown(&found.id)?;
        reaped.push(found.id);
    }
    Ok(reaped)
}

/// Makes the lab's directory, owned by this process from the moment it is seen. Fails if the id is taken, and then
/// leaves nothing.
pub(crate) fn claim(id: &str) -> Result<PathBuf> {
    check_id(id)?;
    let dir = dir(id);
    // A dot makes it no id; the rename makes directory and owner appear at once, for one claimant only.
    let staging = Path::new(BASE).join(format!(".{id}_{}", std::process::id()));
    let claimed = fill(&staging).and_then(|()| {
        fs::rename(&staging, &dir)
            .with_context(|| format!("lab {id} exists already; `cargo xtask lab down {id}` removes it"))
    });
    if claimed.is_err() {
        // What is left of it has no owner's name, so nobody else would remove it.
        let _ = fs::remove_dir_all(&staging);
    }
    claimed.map(|()| dir)
}

fn fill(staging: &Path) -> Result<()> {
    for part in ["log", "run", "tls", "bpf", "data"] {
        fs::create_dir_all(staging.join(part))
            .with_context(|| format!("cannot create {}", staging.display()))?;
    }
    let pid = std::process::id();
    let started = start_time(pid).context("cannot read /proc/self/stat")?;
    write_owner(staging, Owner::Process(pid, started))
}

/// Gives the lab its own bpffs.
pub(crate) fn mount_bpffs(id: &str) -> Result<()> {
    let bpffs = bpffs(id);
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount bpffs at {}", bpffs.display()))
}

/// Leaves the lab up when this process ends.
pub(crate) fn keep(id: &str) -> Result<()> {
    write_owner(&dir(id), Owner::Kept)
}

/// Removes everything a lab left: processes, namespaces, pins, files. What is not there any more is no error, so it may
/// run twice, or on a lab that was never finished.
///
/// # Errors
///
/// If a process cannot be killed, or a mount or file not be removed.
pub fn teardown(id: &str) -> Result<()> {
    check_id(id)?;
    let names = netns::names_with_prefix(&netns_prefix(id));
    kill_all(&names)?;
    for name in &names {
        netns::delete(name)?;
    }
    let bpffs = bpffs(id);
    match umount2(&bpffs, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => bail!("cannot unmount {}: {error}", bpffs.display()),
    }
    // Renamed first, so that nobody sees a lab that has lost its owner's name on the way.
    let going = Path::new(BASE).join(format!(".{id}_gone_{}", std::process::id()));
    match fs::rename(dir(id), &going).and_then(|()| fs::remove_dir_all(&going)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir(id).display()))
        }
        _ => Ok(()),
    }
}

/// Kills what runs in these namespaces, also what is started meanwhile.
fn kill_all(names: &[String]) -> Result<()> {
    let start = Instant::now();
    loop {
        let pids = netns::processes_in(names);
        if pids.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < KILL_LIMIT, "processes {pids:?} do not die");
        for pid in pids {
            // It may have ended by itself since it was seen.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn netns_prefix(id: &str) -> String {
    format!("elb-{id}-")
}

/// Ids hold no dash, so that no id's prefix begins another's.
fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    ensure!(
        !id.is_empty() && id.len() <= MAX_ID && id.chars().all(plain),
        "a lab's name is 1 to {MAX_ID} of a-z, 0-9 and _, not {id:?}"
    );
    Ok(())
}

fn write_owner(dir: &Path, owner: Owner) -> Result<()> {
    let text = match owner {
        Owner::Process(pid, started) => format!("{pid} {started}"),
        Owner::Kept => "kept".to_owned(),
    };
    let path = dir.join("owner");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read_owner(id: &str) -> Option<Owner> {
    let text = fs::read_to_string(dir(id).join("owner")).ok()?;
    if text == "kept" {
        return Some(Owner::Kept);
    }
    let (pid, started) = text.split_once(' ')?;
    Some(Owner::Process(pid.parse().ok()?, started.parse().ok()?))
}

/// Start time of a living process, the 22nd field of proc_pid_stat(5).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name, is in parentheses and may hold anything, spaces too.
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_reach_outside_or_into_each_other() {
        for bad in ["", "a-b", "..", "a/b", "A", ".a"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id(&unique_id("demo")).is_ok());
        assert_ne!(unique_id("demo"), unique_id("demo"));
    }

    #[test]
    fn a_lab_is_stale_once_its_owner_is_another_process() {
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        let found = |owner| Found { id: "x".into(), owner };
        assert!(!found(Some(Owner::Process(pid, started))).is_stale());
        assert!(found(Some(Owner::Process(pid, started + 1))).is_stale());
        assert!(found(None).is_stale());
        assert!(!found(Some(Owner::Kept)).is_stale());
    }
}
