//! `etcd-lb man`

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use super::{Cli, Failure};

/// Write manual pages, one for each command
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory, made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let failed = |error| {
            let dir = self.dir.display();
            Failure::Operation(format!(
                "cannot write to {dir}: {error}; name a directory, which is made if it is not there"
            ))
        };
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).map_err(failed)?;
        println!("{}: written; read one with `man -l {}/etcd-lb.1`", self.dir.display(), self.dir.display());
        Ok(())
    }
}
