//! The lab as a program: brings one up to look around in, takes it down, and shows the demo.
//! `cargo xtask lab` and `cargo xtask demo` build and run it.

mod demo;
mod demo_pair;
mod narrator;

use std::{os::unix::process::CommandExt as _, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::{Parser, Subcommand};
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Lab, Topology, VIP,
    netns::Netns,
    state::{self, Owner},
};

#[derive(Parser)]
#[command(
    name = "lab",
    about = "Hosts in network namespaces, an etcd cluster, and a balancer, on one machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up: three members, two clients, and the balancer on lb1
    Up {
        /// Its name: a-z, 0-9 and _
        name: String,
        /// Only the hosts and the cluster, no balancer
        #[arg(long)]
        no_balancer: bool,
        /// Only the hosts
        #[arg(long)]
        bare: bool,
        /// Stay in the foreground, and take it down on Ctrl-C
        #[arg(long)]
        hold: bool,
    },
    /// Take a lab down
    Down {
        /// Its name
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// All that are kept up or left over; never one whose process is alive
        #[arg(long)]
        all: bool,
    },
    /// Open a shell on a host of a lab
    Shell {
        /// The lab
        name: String,
        /// The host
        #[arg(default_value = "client-1")]
        host: String,
    },
    /// List the labs on this machine
    List,
    /// Show what etcd-lb does, in under a minute
    Demo,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up { name, no_balancer, bare, hold } => up(&name, Parts::of(no_balancer, bare), hold),
        Command::Down { name: Some(name), .. } => down(&name),
        Command::Down { name: None, .. } => down_all(),
        Command::Shell { name, host } => shell(&name, &host),
        Command::List => {
            list();
            Ok(())
        }
        Command::Demo => demo::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How much of a lab to bring up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Parts {
    Hosts,
    Cluster,
    Balancer,
}

impl Parts {
    fn of(no_balancer: bool, bare: bool) -> Self {
        match (bare, no_balancer) {
            (true, _) => Self::Hosts,
            (false, true) => Self::Cluster,
            (false, false) => Self::Balancer,
        }
    }
}

fn up(name: &str, parts: Parts, hold: bool) -> Result<()> {
    let lab = Lab::start_as(name, &Topology::standard())?;
    let cluster = if parts >= Parts::Cluster { Some(Cluster::start(&lab)?) } else { None };
    let balancer = match &cluster {
        Some(cluster) if parts >= Parts::Balancer => {
            let host = lab.host("lb1");
            Some(Balancer::start(host, &Config::etcd(host, cluster).text())?)
        }
        _ => None,
    };

    println!("lab {name} is up; its files are in {}", lab.dir().display());
    if let Some(balancer) = &balancer {
        println!("the balancer's socket: {}", balancer.socket().display());
    }
    if hold {
        println!("Ctrl-C takes it down");
        loop {
            // Signals end the process, after the lab was taken down.
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    println!("look around: cargo xtask lab shell {name} client-1\ntake it down: cargo xtask lab down {name}");
    if let Some(balancer) = balancer {
        balancer.keep();
    }
    if let Some(cluster) = cluster {
        cluster.keep();
    }
    lab.keep()
}

fn down(name: &str) -> Result<()> {
    let Some(found) = state::list().into_iter().find(|found| found.id == name) else {
        bail!("no lab {name}; `cargo xtask lab list` shows those there are");
    };
    if let (Some(Owner::Process(pid, _)), false) = (found.owner, found.is_stale()) {
        bail!(
            "lab {name} belongs to process {pid}, which is alive; end that (SIGTERM), and it takes the lab down"
        );
    }
    state::teardown(name)?;
    println!("lab {name} is gone");
    Ok(())
}

fn down_all() -> Result<()> {
    for found in state::list() {
        if found.is_stale() || found.owner == Some(Owner::Kept) {
            state::teardown(&found.id)?;
            println!("lab {} is gone", found.id);
        } else {
            println!("lab {} is left alone: its process is alive", found.id);
        }
    }
    Ok(())
}

fn shell(name: &str, host: &str) -> Result<()> {
    ensure!(
        state::list().iter().any(|found| found.id == name),
        "no lab {name}; `cargo xtask lab list` shows those there are"
    );
    let tls = state::dir(name).join("tls");
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    eprintln!(
        "etcdctl goes to the VIP with the client certificate; `unset ETCDCTL_ENDPOINTS` to use --endpoints"
    );
    let error = Netns::open(&state::netns_name(name, host))?
        .command(shell)
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", format!("https://{VIP}:{CLIENT_PORT}"))
        .env("ETCDCTL_CACERT", tls.join("ca.pem"))
        .env("ETCDCTL_CERT", tls.join("client.pem"))
        .env("ETCDCTL_KEY", tls.join("client-key.pem"))
        .env("PS1", format!("{host}@{name}# "))
        .exec();
    Err(error.into())
}

fn list() {
    for found in state::list() {
        let owner = match found.owner {
            _ if found.is_stale() => "left over by a process that was killed".to_owned(),
            Some(Owner::Process(pid, _)) => format!("of process {pid}"),
            Some(Owner::Kept) => "kept up".to_owned(),
            None => "without owner".to_owned(),
        };
        println!("{}  {owner}", found.id);
    }
}
