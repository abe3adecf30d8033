//! The tasks of this workspace: `cargo xtask TASK`.

mod bench;
mod cargo;
mod deb;
mod kernels;
mod lab;
mod run;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the etcd-lb workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the XDP object and print its path
    BuildEbpf,
    /// Bring up, enter, list and take down labs (needs root); `cargo xtask lab help` shows how
    #[command(disable_help_flag = true)]
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show what etcd-lb does, in under a minute (needs root)
    Demo,
    /// Run every check and test (needs root)
    Test(test::Options),
    /// Measure etcd-lb and others side by side (needs root)
    Bench(bench::Options),
    /// Build the Debian package, in target/debian, and print its path
    Deb {
        /// Another version than the workspace's, with the revision: 0.2.0-1
        #[arg(long, value_name = "VERSION")]
        deb_version: Option<String>,
        /// Features of etcd-lb besides the usual ones
        #[arg(long, value_name = "FEATURES")]
        features: Option<String>,
    },
    /// Check the house rules
    Tidy,
}

fn main() -> ExitCode {
    run::end_children_on_signals();
    match Cli::parse().task.perform() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Task {
    fn perform(self) -> Result<ExitCode> {
        match self {
            Self::BuildEbpf => {
                let (workspace_root, target_dir) = (cargo::workspace_root()?, cargo::target_dir()?);
                let options = ebpf_build::Options { workspace_root, target_dir, features: &[] };
                println!("{}", ebpf_build::build(&options)?.display());
            }
            Self::Lab { args } => return lab::exec(&args),
            Self::Demo => return lab::exec(&["demo".to_owned()]),
            Self::Test(options) => return test::run(&options),
            Self::Bench(options) => return bench::run(&options),
            Self::Deb { deb_version, features } => deb::build(deb_version.as_deref(), features.as_deref())?,
            Self::Tidy => {
                tidy::check(&cargo::workspace_root()?)?;
                tidy::docs(&cargo::workspace_root()?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
