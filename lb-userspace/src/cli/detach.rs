//! `etcd-lb detach`

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use etcd_lb::{
    agent::lock,
    dataplane,
    netlink::{groups, node_link},
    units,
};

use super::{DEFAULT_CONFIG, Failure};

/// Where the maps are pinned if no config says otherwise.
const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/etcd-lb";

/// Remove the data plane: detach the XDP program and remove its maps; every flow ends
#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The config file, which names the pin directory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The pin directory itself, whatever the config says
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pin_dir: Option<PathBuf>,
}

impl Detach {
    pub(super) fn run(self) -> Result<(), Failure> {
        let pin_dir = self.pin_dir()?;
        // An agent that runs would lose its maps from under it.
        let _lock = lock::lock_directory(&pin_dir).map_err(|error| Failure::Operation(error.to_string()))?;
        // First of all: what is led into it would be lost.
        let pairs = node_link::remove_all(&pin_dir).map_err(|error| {
            Failure::Operation(format!("cannot remove the node's own veth pair: {error}"))
        })?;
        let report = dataplane::detach(&pin_dir).map_err(|error| Failure::Operation(error.to_string()))?;
        // What is left of it does no harm: a group that nobody answers in.
        if let Err(error) = groups::leave(&report.interfaces) {
            eprintln!("the groups of IPv6 VIPs are still joined: {error}");
        }
        for pair in pairs {
            println!("{pair}: removed, with its routes");
        }
        let pin_dir = pin_dir.display();
        match (report.found, report.interfaces.len()) {
            (false, _) => println!("{pin_dir}: nothing is pinned there"),
            (true, count) => println!(
                "{pin_dir}: detached from {}, maps removed",
                units::counted(count as u64, "interface")
            ),
        }
        Ok(())
    }

    fn pin_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(pin_dir) = &self.pin_dir {
            return Ok(pin_dir.clone());
        }
        let path = self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // Without a config at the default place, the default pin directory is meant.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.config.is_none() => {
                return Ok(DEFAULT_PIN_DIR.into());
            }
            Err(error) => {
                return Err(Failure::Config(format!("cannot read the config {}: {error}", path.display())));
            }
        };
        let (config, _) = lb_core::config::parse(&text, &path.display().to_string()).map_err(|errors| {
            Failure::Config(format!("{errors}\nor name the pin directory with --pin-dir"))
        })?;
        Ok(config.api.pin_dir)
    }
}
