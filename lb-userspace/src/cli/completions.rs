//! `etcd-lb completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) {
        clap_complete::generate(self.shell, &mut Cli::command(), "etcd-lb", &mut std::io::stdout());
    }
}
