//! A real name server: dnsmasq, authoritative for `example.com` and for nothing else.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};

use crate::{Host, Process};

/// Where the records are.
pub const DOMAIN: &str = "example.com";

/// A name server on a host. It ends with this.
#[derive(Debug)]
pub struct NameServer {
    host: Host,
    process: Option<Process>,
}

impl NameServer {
    /// Starts one whose `_etcd-client-ssl` records name these hosts, each with its address and client port.
    ///
    /// # Errors
    ///
    /// If dnsmasq is not installed, or its config cannot be written.
    pub fn start(host: &Host, records: &[(&str, SocketAddr)]) -> Result<Self> {
        let mut server = Self { host: host.clone(), process: None };
        server.serve(records)?;
        Ok(server)
    }

    /// Serves other records from now on.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn serve(&mut self, records: &[(&str, SocketAddr)]) -> Result<()> {
        let mut text = format!("no-resolv\nno-hosts\nlocal=/{DOMAIN}/\nport=53\nlocal-ttl=60\n");
        for (name, address) in records {
            // Writing to a string cannot fail.
            let _ =
                writeln!(text, "srv-host=_etcd-client-ssl._tcp.{DOMAIN},{name}.{DOMAIN},{}", address.port());
            let _ = match address.ip() {
                IpAddr::V4(v4) => writeln!(text, "host-record={name}.{DOMAIN},{v4}"),
                IpAddr::V6(v6) => writeln!(text, "host-record={name}.{DOMAIN},{v6}"),
            };
        }
        let config = self.host.lab_dir().join("run").join(format!("{}-dnsmasq.conf", self.host.name()));
        fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
        self.stop();
        let mut command = self.host.command("dnsmasq");
        command.args(["--no-daemon", "--user=root", "--pid-file="]);
        command.arg(format!("--conf-file={}", config.display()));
        self.process = Some(self.host.spawn("dnsmasq", command)?);
        Ok(())
    }

    /// Ends it: nobody answers.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (self.host.address(), 53).into()
    }
}
