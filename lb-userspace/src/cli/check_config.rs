//! `etcd-lb check-config`

use std::path::PathBuf;

use clap::Args;
use etcd_lb::{agent::files, api::command::CheckReport, units};
use lb_core::config::Warning;

use super::{DEFAULT_CONFIG, Failure, print_json};

/// Check a config file, and the files it names, without touching anything
#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// The config file
    #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl CheckConfig {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let loaded = files::load(&self.config);
        if self.json {
            let (error, warnings) = match &loaded {
                Ok(loaded) => (None, &loaded.warnings[..]),
                Err(error) => (Some(error.clone()), &[][..]),
            };
            let warnings = warnings.iter().map(Warning::to_string).collect();
            print_json(&CheckReport { ok: error.is_none(), error, warnings })?;
        }
        let loaded = loaded.map_err(Failure::Config)?;
        if !self.json {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning:#}");
            }
            let config = &loaded.config;
            let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
            println!(
                "{}: good, {}, {}",
                self.config.display(),
                units::counted(config.services.len() as u64, "service"),
                units::counted(backends as u64, "backend")
            );
        }
        Ok(())
    }
}
