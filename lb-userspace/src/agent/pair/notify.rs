//! The operator's program, run at each change of role: one after the other, in their order, off the agent's loop.

use std::{path::PathBuf, process::Stdio, time::Duration};

use lb_core::vrrp::Role;
use tokio::{process::Command, sync::mpsc, time::timeout};
use tracing::{info, warn};

use super::name;

/// Longest run of the program.
const PATIENCE: Duration = Duration::from_secs(60);
/// Changes of role that may wait; a program that hangs while roles flap loses the later ones.
const WAITING: usize = 16;

pub(super) struct Notifications {
    program: PathBuf,
    roles: mpsc::Sender<Role>,
}

impl Notifications {
    pub(super) fn new(program: PathBuf) -> Self {
        let (roles, mut queue) = mpsc::channel(WAITING);
        let of_task = program.clone();
        tokio::spawn(async move {
            while let Some(role) = queue.recv().await {
                run(&of_task, role).await;
            }
        });
        Self { program, roles }
    }

    pub(super) fn send(&self, role: Role) {
        if self.roles.try_send(role).is_err() {
            warn!(program = %self.program.display(), role = name(role), "`notify` still runs: not run for this role");
        }
    }

    /// Runs it once more, and does not wait for its end.
    pub(super) fn last(&self, role: Role) {
        let mut command = std::process::Command::new(&self.program);
        if let Err(error) = command.arg(name(role)).stdin(Stdio::null()).spawn() {
            warn!(program = %self.program.display(), %error, "`notify` cannot be run");
        }
    }
}

async fn run(program: &PathBuf, role: Role) {
    let (path, role) = (program.display(), name(role));
    let mut command = Command::new(program);
    command.arg(role).stdin(Stdio::null()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return warn!(program = %path, role, %error, "`notify` cannot be run"),
    };
    match timeout(PATIENCE, child.wait()).await {
        Ok(Ok(status)) if status.success() => info!(program = %path, role, "`notify` was run"),
        Ok(Ok(status)) => warn!(program = %path, role, %status, "`notify` failed"),
        Ok(Err(error)) => warn!(program = %path, role, %error, "`notify` was lost"),
        // Ended with the child.
        Err(_) => warn!(program = %path, role, "`notify` did not end within {PATIENCE:?} and was ended"),
    }
}
