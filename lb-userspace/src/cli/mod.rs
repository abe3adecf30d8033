//! The command line: one file a subcommand.

mod capture;
mod check_config;
mod completions;
mod detach;
mod doctor;
mod drain;
mod events;
mod explain;
mod failover;
mod flows;
mod hold;
mod import;
mod man;
mod rebalance;
mod reload;
mod reset;
mod run;
mod status;
mod table;
mod top;
mod values;

use std::{fmt, future::Future, io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use etcd_lb::api::client;

/// Where a config is looked for.
const DEFAULT_CONFIG: &str = "/etc/etcd-lb/config.toml";
/// Where the agent is looked for: the config's default.
const DEFAULT_SOCKET: &str = "/run/etcd-lb/api.sock";

/// An L4 load balancer for etcd's client port, with its data path in XDP.
///
/// Exit status: 0 done, 1 the operation failed, 2 usage or config error, 3 the agent cannot be reached.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    /// The agent's API socket [default: /run/etcd-lb/api.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    CheckConfig(check_config::CheckConfig),
    Status(status::Status),
    Top(top::Top),
    Flows(flows::Flows),
    Explain(explain::Explain),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Reset(reset::Reset),
    Rebalance(rebalance::Rebalance),
    Reload(reload::Reload),
    Events(events::Events),
    Capture(capture::Capture),
    Failover(failover::Failover),
    Hold(hold::Hold),
    Doctor(doctor::Doctor),
    Import(import::Import),
    Detach(detach::Detach),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// Why it could not be done; the exit status follows from it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let socket = || self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
        match self.command {
            Command::Run(run) => run.run(self.socket),
            Command::CheckConfig(check) => check.run(),
            Command::Status(status) => status.run(&socket()),
            Command::Top(top) => top.run(&socket()),
            Command::Flows(flows) => flows.run(&socket()),
            Command::Explain(explain) => explain.run(&socket()),
            Command::Drain(drain) => drain.run(&socket()),
            Command::Undrain(undrain) => undrain.run(&socket()),
            Command::Reset(reset) => reset.run(&socket()),
            Command::Rebalance(rebalance) => rebalance.run(&socket()),
            Command::Reload(reload) => reload.run(&socket()),
            Command::Events(events) => events.run(&socket()),
            Command::Capture(capture) => capture.run(&socket()),
            Command::Failover(failover) => failover.run(&socket()),
            Command::Hold(hold) => hold.run(&socket()),
            Command::Import(import) => import.run(),
            Command::Doctor(doctor) => doctor.run(self.socket.as_deref()),
            Command::Detach(detach) => detach.run(),
            Command::Man(man) => man.run(),
            Command::Completions(completions) => {
                completions.run();
                Ok(())
            }
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The operation failed.
    Operation(String),
    /// The command line or the config is wrong.
    Config(String),
    /// The agent cannot be reached.
    Unreachable(String),
}

impl Failure {
    /// The contract's exit status.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Operation(_) => 1.into(),
            Self::Config(_) => 2.into(),
            Self::Unreachable(_) => 3.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Operation(reason) | Self::Config(reason) | Self::Unreachable(reason)) = self;
        f.write_str(reason)
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Unreachable { .. } => Self::Unreachable(error.to_string()),
            client::Error::Refused(reason) => Self::Operation(reason),
        }
    }
}

/// Waits for one conversation with the agent.
fn block_on<T>(conversation: impl Future<Output = Result<T, client::Error>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Operation(format!("cannot start: {error}")))?;
    runtime.block_on(conversation).map_err(Failure::from)
}

/// Prints a document as JSON.
fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(document).map_err(|error| Failure::Operation(error.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Colours are for people at a terminal who have not asked for none (no-color.org).
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn docs_in_step_commands() {
        const README: &str = include_str!("../../../README.md");
        let command = Cli::command();
        for command in command.get_subcommands() {
            let name = command.get_name();
            let words = [format!("etcd-lb {name}"), format!("`{name} "), format!("`{name}`")];
            assert!(words.iter().any(|words| README.contains(words)), "{name} is not in README.md");
            assert!(command.get_about().is_some(), "{name} says nothing of itself");
        }
    }

    #[test]
    fn the_default_socket_is_the_configs() {
        let text = "interface = \"eth0\"\n[[service]]\nname = \"a\"\nvip = \"10.0.1.100\"\nport = 2379\n\
                    backend = [{ address = \"10.0.1.10:2379\" }]\n\
                    algorithm = \"maglev\"\non_backend_down = \"keep\"\nhealth = { kind = \"tcp\" }\n";
        let (config, _) = lb_core::config::parse(text, "config.toml").unwrap();
        assert_eq!(config.api.socket, PathBuf::from(DEFAULT_SOCKET));
    }
}
