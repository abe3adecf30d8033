//! `etcd-lb failover`

use std::path::Path;

use clap::Args;
use etcd_lb::api::client;

use super::{Failure, block_on};

/// Hand the VIPs over to the other node, which keeps them until it fails or hands them back
#[derive(Debug, Args)]
pub(super) struct Failover {}

impl Failover {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let () = block_on(client::post(socket, "/failover", &()))?;
        println!("the VIPs are given up; this node is backup");
        Ok(())
    }
}
