//! `etcd-lb run`

use std::path::PathBuf;

use clap::Args;
use etcd_lb::agent;

use super::{DEFAULT_CONFIG, Failure};

/// Run the agent: load the data plane, check the backends, serve
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// What is logged: error, warn, info, debug, trace, or a filter as in $RUST_LOG
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Run {
    pub(super) fn run(self, socket: Option<PathBuf>) -> Result<(), Failure> {
        agent::log::start(self.log_level.as_deref())
            .map_err(|error| Failure::Config(format!("--log-level or $RUST_LOG: {error}")))?;
        agent::run(&agent::Options { config: self.config, socket }).map_err(|error| {
            if error.is_config() {
                Failure::Config(error.to_string())
            } else {
                Failure::Operation(error.to_string())
            }
        })
    }
}
