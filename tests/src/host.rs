//! A host of a lab.

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Result;

use crate::{HostSpec, Nic, Process, Role, netns, netns::Netns};

/// A host: a network namespace with interfaces on the lab's LANs. A clone is the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: HostSpec,
    netns: Netns,
    lab_dir: PathBuf,
}

impl Host {
    pub(crate) fn new(spec: HostSpec, netns: Netns, lab_dir: PathBuf) -> Self {
        Self(Arc::new(Inner { spec, netns, lab_dir }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.0.spec.role
    }

    /// The address of its first interface.
    pub fn address(&self) -> Ipv4Addr {
        self.nics()[0].address()
    }

    /// The IPv6 address of its first interface.
    pub fn address_v6(&self) -> Ipv6Addr {
        self.nics()[0].address_v6()
    }

    /// The name of its first interface.
    pub fn interface(&self) -> &str {
        &self.nics()[0].interface
    }

    /// Its interfaces.
    pub fn nics(&self) -> &[Nic] {
        &self.0.spec.nics
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// The directory of its lab.
    pub fn lab_dir(&self) -> &Path {
        &self.0.lab_dir
    }

    /// Runs a closure on the host; see [`Netns::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.netns.run(work)
    }

    /// A command that will run on the host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.0.netns.command(program)
    }

    /// Runs a program to its end on the host, and returns its stdout.
    ///
    /// # Errors
    ///
    /// If it cannot be run, or fails: with what it said.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        netns::output(self.command(program).args(args))
    }

    /// Starts a long-running program made by [`Host::command`]; its output goes to `log/HOST-NAME.log` of the lab.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let log = self.0.lab_dir.join("log").join(format!("{}-{name}.log", self.name()));
        Process::spawn(&format!("{name} on {}", self.name()), command, &log)
    }

    /// The MAC address of its first interface.
    ///
    /// # Errors
    ///
    /// If the interface is gone.
    pub fn mac(&self) -> Result<[u8; 6]> {
        crate::packet::mac_of(self)
    }
}
