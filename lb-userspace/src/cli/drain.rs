//! `etcd-lb drain` and `etcd-lb undrain`

use std::path::Path;

use clap::Args;
use etcd_lb::api::{
    client,
    command::{DrainAnswer, DrainRequest},
};
use etcd_lb::units;

use super::{Failure, block_on, print_json};

/// Send no new connections to a backend; those it has go on
#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    which: Which,
}

/// Send new connections to a drained backend again
#[derive(Debug, Args)]
pub(super) struct Undrain {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
struct Which {
    /// Its name, or its address IP:port
    #[arg(value_name = "BACKEND")]
    backend: String,
    /// Only in this service; default: in every service that holds it
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Drain {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        self.which.post(socket, "/drain", "draining", "draining already")
    }
}

impl Undrain {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        self.which.post(socket, "/undrain", "no longer draining", "was not draining")
    }
}

impl Which {
    fn post(self, socket: &Path, path: &str, done: &str, done_before: &str) -> Result<(), Failure> {
        let request = DrainRequest { backend: self.backend, service: self.service };
        let answer: DrainAnswer = block_on(client::post(socket, path, &request))?;
        if self.json {
            return print_json(&answer);
        }
        for backend in &answer.backends {
            println!(
                "{} ({}) in service {}: {}, {}",
                backend.backend,
                backend.address,
                backend.service,
                if backend.changed { done } else { done_before },
                units::counted(backend.flows, "flow"),
            );
        }
        Ok(())
    }
}
