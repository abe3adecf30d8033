//! `etcd-lb hold`

use std::path::Path;

use clap::Args;
use etcd_lb::api::{client, command::HoldRequest};
use etcd_lb::units;

use super::{Failure, block_on, values};

/// Keep the VIPs on this node while its agent is restarted; run it just before the restart
#[derive(Debug, Args)]
pub(super) struct Hold {
    /// Seconds that the restart may take, up to 120
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 10,
          value_parser = values::whole::<1, 120>, allow_negative_numbers = true)]
    seconds: u64,
}

impl Hold {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let ms: u64 = block_on(client::post(socket, "/hold", &HoldRequest { ms: self.seconds * 1000 }))?;
        println!("the VIPs stay here for {} without the agent", units::milliseconds(ms));
        Ok(())
    }
}
