//! A child process that ends with its guard.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::eventually;

/// A running child, its output in a log file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a child that appends its output to a log file.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A terminal's Ctrl-C is for us; we end our children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// If the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {} ({pid})", self.name))
    }

    /// Stops it as Ctrl-Z does, and waits until every thread of it has stopped.
    ///
    /// # Errors
    ///
    /// If it has ended, or does not stop within a second.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        eventually(Duration::from_secs(1), &format!("stop of {}", self.name), || {
            for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                let (_, after_name) = stat.rsplit_once(") ").context("no state in /proc")?;
                ensure!(after_name.starts_with('T'), "a thread runs");
            }
            Ok(())
        })
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    ///
    /// If it has not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of {}", self.name);
        eventually(limit, &what, || self.exited()?.context("still runs"))
    }

    /// An error with the log's end if the process has ended.
    ///
    /// # Errors
    ///
    /// That one.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}); its log ends with:\n{}", self.name, tail(&self.log, 15))
            }
        }
    }

    /// Lets the process live on after this one; it is then found by its network namespace.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
