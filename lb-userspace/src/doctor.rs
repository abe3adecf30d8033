//! `etcd-lb doctor`: what stands in the way of a config on this host and toward its members, before the agent is started or
//! while it runs. Nothing is changed.
//!
//! | file | what |
//! | --- | --- |
//! | `host.rs` | kernel, BPF file system, capabilities |
//! | `network.rs` | interfaces, their drivers and settings, who has the VIPs and the VRID |
//! | `members.rs` | each member: TLS, certificate, version, cluster, alarms |

mod host;
mod members;
mod network;

use std::path::Path;

use lb_core::config::Config;
use serde::Serialize;

use crate::{
    agent::files,
    api::{client, status::Status},
    netlink::Network,
};

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// It works, but not as it should.
    Warning,
    /// Something breaks by it.
    Error,
}

/// What was looked at, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: `kernel`, `interface eth0`, `member etcd/etcd-1`.
    pub subject: String,
    /// What is so, or what is wrong.
    pub what: String,
    /// Why that matters; empty if nothing is wrong.
    pub why: String,
    /// The command or setting that mends it; empty if nothing is wrong.
    pub fix: String,
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, subject: &str, what: impl Into<String>) {
        let (subject, what) = (subject.to_owned(), what.into());
        self.0.push(Finding { level: Level::Ok, subject, what, why: String::new(), fix: String::new() });
    }

    fn warn(&mut self, subject: &str, what: impl Into<String>, why: &str, fix: impl Into<String>) {
        self.add(Level::Warning, subject, what.into(), why, fix.into());
    }

    fn error(&mut self, subject: &str, what: impl Into<String>, why: &str, fix: impl Into<String>) {
        self.add(Level::Error, subject, what.into(), why, fix.into());
    }

    fn add(&mut self, level: Level, subject: &str, what: String, why: &str, fix: String) {
        self.0.push(Finding { level, subject: subject.to_owned(), what, why: why.to_owned(), fix });
    }
}

/// Looks at everything. An error is a config that cannot be used at all.
///
/// # Errors
/// All that is wrong with the config, with places.
pub async fn examine(path: &Path, socket: Option<&Path>) -> Result<Vec<Finding>, String> {
    let loaded = files::load(path)?;
    let config = &loaded.config;
    let mut findings = Findings::default();
    findings.ok("config", format!("{} is good", path.display()));
    for warning in &loaded.warnings {
        findings.warn("config", format!("{warning:#}"), "", "");
    }
    let socket = socket.unwrap_or(&config.api.socket);
    // One that does not answer is looked at as one that does not run.
    let agent: Option<Status> = client::get(socket, "/status").await.ok();
    findings.ok(
        "agent",
        match &agent {
            Some(status) => format!("runs here, version {}", status.version),
            None => "does not run here now".into(),
        },
    );
    host::examine(config, &mut findings);
    match Network::open().await {
        Ok(network) => network::examine(config, &network, agent.as_ref(), &mut findings).await,
        Err(error) => findings.error(
            "network",
            error.to_string(),
            "the agent follows interfaces and neighbours by netlink",
            "allow AF_NETLINK sockets (RestrictAddressFamilies= of systemd)",
        ),
    }
    members::examine(config, &mut findings).await;
    Ok(findings.0)
}

/// Service and backend, as they are named in findings.
fn member_subject(config: &Config, service: &str, backend: &str) -> String {
    if config.services.len() == 1 {
        format!("member {backend}")
    } else {
        format!("member {service}/{backend}")
    }
}
