//! A machine: a host of a lab with an operating system of its own, Debian's minimal one, and real systemd as its first
//! process. For what a package does to a machine.
//!
//! It has its own files, processes, mounts, cgroups and host's network; its bpffs is the lab's.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Host, Process, eventually,
    netns::{Netns, output},
};

/// Makes the mounts.
const SCRIPT: &str = include_str!("machine.sh");
/// Time to come up, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// Begins the names of the machines' cgroups.
const PREFIX: &str = "etcd-lb-machine-";

/// What is the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// systemd.
    Systemd,
    /// One that does nothing: a container, or a chroot in which an image is made.
    Nothing,
}

/// A machine that is up. Dropping it ends every process in it; its files go with the lab.
#[derive(Debug)]
pub struct Machine {
    host: Host,
    root: PathBuf,
    cgroup: PathBuf,
    pid: u32,
    // None once it is ended.
    init: Option<Process>,
}

impl Machine {
    /// Unpacks the system in `archive` into the lab's directory, and starts it on a host.
    ///
    /// # Errors
    ///
    /// If there is no such archive, no cgroup2, or it does not come up.
    pub fn start(host: &Host, archive: &Path, init: Init) -> Result<Self> {
        let root = host.lab_dir().join("machine").join(host.name());
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&root)).with_context(|| {
            format!("unpacking {}, which `scripts/setup.sh --long` makes", archive.display())
        })?;
        let bpffs = host.lab_dir().join("bpf").join(format!("machine-{}", host.name()));
        fs::create_dir_all(&bpffs).with_context(|| format!("making {}", bpffs.display()))?;

        let cgroups = cgroup2()?;
        remove_stale(&cgroups);
        let cgroup = cgroups.join(format!("{PREFIX}{}", host.netns().name()));
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;

        // The namespace of cgroups begins at the group that the process is in.
        let mut command = host.command("sh");
        command
            .args(["-c", "echo $$ > \"$1/cgroup.procs\" && shift && exec unshare \"$@\"", "sh"])
            .arg(&cgroup);
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--cgroup", "--"]);
        command.args(["sh", "-c", SCRIPT, "sh"]).arg(&root).arg(&bpffs);
        match init {
            Init::Systemd => command.args(["/lib/systemd/systemd", "--log-target=journal"]),
            Init::Nothing => command.args(["sleep", "infinity"]),
        };
        let process = host.spawn("machine", command)?;
        let mut machine = Self { host: host.clone(), root, cgroup, pid: 0, init: Some(process) };
        machine.wait_up(init)?;
        Ok(machine)
    }

    fn wait_up(&mut self, init: Init) -> Result<()> {
        let what = format!("the machine on {}", self.host.name());
        eventually(LIMIT, &what, || {
            let process = self.init.as_mut().context("it was ended")?;
            process.check_alive()?;
            let parent = process.pid();
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            self.pid = children.trim().parse().context("it has no first process yet")?;
            // The first process's own root, so not before it has one.
            let inside = Path::new("/proc").join(self.pid.to_string()).join("root");
            ensure!(inside.join("run/mounted").exists(), "it has no mounts yet");
            if init == Init::Systemd {
                // Exit status 1 says that a unit failed: also a machine that is up.
                let state = self.command("systemctl").arg("is-system-running").output()?;
                let state = String::from_utf8_lossy(&state.stdout);
                ensure!(["running", "degraded"].contains(&state.trim()), "systemd: {state:?}");
            }
            Ok(())
        })
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A file of it, as it is reached from outside.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Where its bpffs is reached from outside.
    pub fn bpffs(&self) -> PathBuf {
        self.host.lab_dir().join("bpf").join(format!("machine-{}", self.host.name()))
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.pid.to_string(), "--", "env", "-i"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]);
        command.arg(program);
        command
    }

    /// Runs a program to its end in it, and returns its stdout.
    ///
    /// # Errors
    ///
    /// If it cannot be run, or fails: with what it said.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(program).args(args))
    }

    /// Runs a program for what it says alone: stdout, then stderr, whether it fails or not.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn said(&self, program: &str, args: &[&str]) -> Result<(bool, String)> {
        let result = self.command(program).args(args).output().with_context(|| program.to_owned())?;
        let mut text = String::from_utf8_lossy(&result.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&result.stderr));
        Ok((result.status.success(), text))
    }

    /// Every path of its own files, sorted; not what is mounted.
    ///
    /// # Errors
    ///
    /// If they cannot be listed.
    pub fn files(&self) -> Result<Vec<String>> {
        let list = self.output("find", &["/", "-xdev"])?;
        let mut paths: Vec<String> = list.lines().map(str::to_owned).collect();
        paths.sort();
        Ok(paths)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process the kernel ends all.
        drop(self.init.take());
        let gone = eventually(LIMIT, "end of the machine's processes", || {
            remove_cgroup(&self.cgroup);
            ensure!(!self.cgroup.exists(), "{} is still there", self.cgroup.display());
            Ok(())
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}

/// Where cgroup2 is mounted: alone, or beside the old hierarchies.
fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|fields| fields.get(2) == Some(&"cgroup2")).context("no cgroup2 is mounted")?;
    Ok(found[1].into())
}

/// Removes the cgroups of machines whose test was killed: their hosts' namespaces are gone with their labs.
fn remove_stale(cgroups: &Path) {
    let Ok(entries) = fs::read_dir(cgroups) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let host = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if host.is_some_and(|host| Netns::open(host).is_err()) {
            remove_cgroup(&entry.path());
        }
    }
}

/// Removes a cgroup with those in it; one in which a process is left stays.
fn remove_cgroup(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _in_use = fs::remove_dir(path);
}
