//! `etcd-lb import`

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use lb_core::import::{self, Given};

use super::{Failure, values};

/// Print a config made from one of HAProxy, keepalived or NGINX (stream), with notes on what has no counterpart
///
/// Of HAProxy with keepalived: `import haproxy FILE --vip VIP > config.toml`, then `import keepalived FILE >> config.toml`.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// Whose config it is
    kind: Kind,
    /// The file
    file: PathBuf,
    /// The VIP, where the file says to listen on all addresses
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    vip: Option<IpAddr>,
    /// The interface that clients and members are reached by
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Haproxy,
    Keepalived,
    Nginx,
}

impl Import {
    pub(super) fn run(self) -> Result<(), Failure> {
        let file = self.file.display();
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| Failure::Config(format!("cannot read {file}: {error}")))?;
        let kind = match self.kind {
            Kind::Haproxy => import::Kind::Haproxy,
            Kind::Keepalived => import::Kind::Keepalived,
            Kind::Nginx => import::Kind::Nginx,
        };
        let given = Given { vip: self.vip, interface: self.interface };
        let imported = import::import(kind, &text, &given);
        print!("{}", imported.map_err(|reason| Failure::Config(format!("{file}: {reason}")))?);
        Ok(())
    }
}
