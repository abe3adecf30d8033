//! What the kernel grants this process, and what it has used.

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit},
    time::{TimeVal, TimeValLike as _},
};

/// Files open besides the connections: standard streams, the runtime's, files of TLS while they are read.
const OTHER_FILES: u64 = 64;

/// Sees to it that this many connections may be open, raising the soft limit of open files if need be.
///
/// # Errors
///
/// If the hard limit is too low.
pub(crate) fn allow(connections: usize) -> Result<()> {
    let needed = connections as u64 + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft >= needed {
        return Ok(());
    }
    ensure!(
        hard >= needed,
        "{connections} connections need {needed} open files, and {hard} are allowed: raise it with ulimit -n"
    );
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).context("raising the limit of open files")
}

/// CPU time of this process, in µs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTime {
    pub(crate) user: u64,
    pub(crate) system: u64,
}

impl CpuTime {
    /// What was used until now.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell, which it does.
    pub(crate) fn now() -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF).context("reading the process's CPU time")?;
        let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or_default();
        Ok(Self { user: micros(usage.user_time()), system: micros(usage.system_time()) })
    }

    /// What was used since then.
    pub(crate) fn since(self, then: Self) -> Self {
        Self { user: self.user.saturating_sub(then.user), system: self.system.saturating_sub(then.system) }
    }
}
