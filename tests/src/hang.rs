//! Stopping one thread of a process and no other, as a debugger does.

use std::{
    fs,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// A thread that is stopped, until this is dropped or the time is over.
#[derive(Debug)]
pub struct Hung {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Hung {
    /// Stops the thread of this name, for so long at most.
    ///
    /// # Errors
    ///
    /// If the process has no such thread, or may not be traced.
    pub fn thread(pid: u32, name: &str, time: Duration) -> Result<Self> {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm"))?.trim() == name {
                let number = task.file_name().to_string_lossy().parse()?;
                return Self::task(number, time);
            }
        }
        anyhow::bail!("process {pid} has no thread {name}")
    }

    /// Stops a process's first thread.
    ///
    /// # Errors
    ///
    /// If it may not be traced.
    pub fn first_thread(pid: u32, time: Duration) -> Result<Self> {
        Self::task(i32::try_from(pid)?, time)
    }

    fn task(task: i32, time: Duration) -> Result<Self> {
        let (release, released) = channel::<()>();
        let (stopped, is_stopped) = channel();
        // A tracer is a thread: all that is asked of the kernel comes from this one.
        let tracer = thread::spawn(move || {
            let task = Pid::from_raw(task);
            let done = ptrace::seize(task, ptrace::Options::empty())
                .and_then(|()| ptrace::interrupt(task))
                .and_then(|()| waitpid(task, Some(WaitPidFlag::__WALL)));
            let has_stopped = done.is_ok();
            let _nobody_waits = stopped.send(done.map(drop));
            if has_stopped {
                // Either way it is time.
                let _ = released.recv_timeout(time);
                let _gone = ptrace::detach(task, None);
            }
        });
        let hung = Self { release: Some(release), tracer: Some(tracer) };
        is_stopped.recv().context("the tracer has ended")?.context("cannot stop the thread")?;
        Ok(hung)
    }

    /// Waits until the time is over.
    pub fn join(mut self) {
        if let Some(tracer) = self.tracer.take() {
            let _ended = tracer.join();
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ended = tracer.join();
        }
    }
}
