//! `etcd-lb reset`

use std::{net::IpAddr, path::Path};

use clap::{ArgGroup, Args};
use etcd_lb::api::{
    client,
    command::{ResetAnswer, ResetRequest},
};
use etcd_lb::units;

use super::{Failure, block_on, print_json, values};

/// Reset connections, at both ends: a backend's, or a client's
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).args(["backend", "client"])))]
pub(super) struct Reset {
    /// All connections of this backend: its name, or its address IP:port
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// All connections of this client
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    client: Option<IpAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reset {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let request = ResetRequest { backend: self.backend, client: self.client };
        let answer: ResetAnswer = block_on(client::post(socket, "/reset", &request))?;
        if self.json {
            return print_json(&answer);
        }
        println!("{} reset", units::counted(answer.flows, "flow"));
        Ok(())
    }
}
