//! `etcd-lb reload`

use std::path::Path;

use clap::Args;
use etcd_lb::api::{client, command::ReloadAnswer};

use super::{Failure, block_on};

/// Apply the changed config file; no flow is touched, and a bad file changes nothing
#[derive(Debug, Args)]
pub(super) struct Reload {}

impl Reload {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let answer: ReloadAnswer = block_on(client::post(socket, "/reload", &()))?;
        for warning in &answer.warnings {
            eprintln!("warning: {warning}");
        }
        println!("{}: applied", answer.config);
        Ok(())
    }
}
