//! A running balancer.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Host, Process, eventually};

/// Environment variable that names the binary to test.
pub const BIN_ENV: &str = "ETCD_LB_BIN";
/// Time to load the program and to probe the backends once.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Time for a clean end: the interface's promise is 2 s.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A balancer on a host: its files, and its process while it runs. Dropping it kills it; the data plane goes with the
/// lab's bpffs.
#[derive(Debug)]
pub struct Balancer {
    host: Host,
    binary: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    pin_dir: PathBuf,
    process: Option<Process>,
}

impl Balancer {
    /// Starts the balancer with this config, and waits until it is ready. A config without `[api]` gets one whose
    /// socket, pins and HTTP listener are the lab's.
    ///
    /// # Errors
    ///
    /// If there is no binary, it ends, or it is not ready within 20 s.
    pub fn start(host: &Host, config: &str) -> Result<Self> {
        let mut balancer = Self::prepare(host, config)?;
        balancer.run()?;
        Ok(balancer)
    }

    /// Writes the config without starting anything, for what is expected to fail.
    ///
    /// # Errors
    ///
    /// If there is no binary, or the config cannot be written.
    pub fn prepare(host: &Host, config: &str) -> Result<Self> {
        let run = host.lab_dir().join("run");
        let balancer = Self {
            host: host.clone(),
            binary: binary()?,
            config: run.join(format!("{}.toml", host.name())),
            socket: run.join(format!("{}.sock", host.name())),
            pin_dir: host.lab_dir().join("bpf").join(host.name()),
            process: None,
        };
        balancer.write_config(config)?;
        Ok(balancer)
    }

    /// Starts the process, on the pins that are there, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it runs already, ends, or is not ready within 20 s.
    pub fn run(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the balancer on {} runs already", self.host.name());
        let mut command = self.host.command(&self.binary);
        command.arg("run").arg("--config").arg(&self.config);
        self.process = Some(self.host.spawn("etcd-lb", command)?);
        self.wait_ready()
    }

    /// Replaces the config file; [`Balancer::reload`] applies it.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write_config(&self, config: &str) -> Result<()> {
        // Never the defaults: those are the machine's own.
        let ours = format!("socket = {:?}\npin_dir = {:?}\n", self.socket, self.pin_dir);
        let text = match config.split_once("[api]\n") {
            None => format!("{config}\n[api]\n{ours}http_listen = \"{}\"\n", http_listen(&self.host)),
            Some(_) if config.contains("pin_dir") => config.to_owned(),
            Some((before, after)) => format!("{before}[api]\n{ours}{after}"),
        };
        fs::write(&self.config, text).with_context(|| format!("cannot write {}", self.config.display()))
    }

    /// Applies the config file.
    ///
    /// # Errors
    ///
    /// If the balancer refuses it.
    pub fn reload(&self) -> Result<String> {
        self.cli(&["reload"])
    }

    /// Runs from the next start on another binary.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = binary.to_path_buf();
    }

    /// Runs a subcommand against this balancer and returns its stdout.
    ///
    /// # Errors
    ///
    /// If it fails: with what it said.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let output = self.cli_output(args)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "etcd-lb {}: {}: {}{stdout}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// Runs a subcommand against this balancer, for a test of its exit status.
    ///
    /// # Errors
    ///
    /// If the binary cannot be run.
    pub fn cli_output(&self, args: &[&str]) -> Result<Output> {
        self.cli_command().args(args).stdin(Stdio::null()).output().context("cannot run etcd-lb")
    }

    /// `etcd-lb --socket …`, without a subcommand.
    pub fn cli_command(&self) -> Command {
        let mut command = self.host.command(&self.binary);
        command.arg("--socket").arg(&self.socket);
        command
    }

    /// What `status --json` says.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or it is not JSON.
    pub fn status(&self) -> Result<Value> {
        let text = self.cli(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status --json printed: {text}"))
    }

    /// What the HTTP listener of a config without `[api]` says.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub fn metrics(&self) -> Result<String> {
        let listen = http_listen(&self.host);
        let mut stream = self.host.run(|| TcpStream::connect_timeout(&listen, STOP_LIMIT))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// The sum of the metrics whose lines start so and contain `label`.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn metric(&self, start: &str, label: &str) -> Result<f64> {
        let page = self.metrics()?;
        let found = page.lines().filter(|line| line.starts_with(start) && line.contains(label));
        let found: Vec<&str> = found.collect();
        ensure!(!found.is_empty(), "no {start} with {label} in {page}");
        let values = found.iter().map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values.sum::<Result<f64, _>>().with_context(|| format!("a value of {start}"))
    }

    /// The state of a backend in the first service that has it, as `status --json` names it.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or knows no such backend.
    pub fn backend_state(&self, backend: &str) -> Result<String> {
        let status = self.status()?;
        let services = status["services"].as_array().context("status has no services")?;
        let backends = services.iter().filter_map(|service| service["backends"].as_array()).flatten();
        let found = backends.into_iter().find(|entry| entry["name"] == backend);
        let state = found.and_then(|entry| entry["state"].as_str());
        Ok(state.with_context(|| format!("status has no backend {backend}: {status}"))?.to_owned())
    }

    /// Waits until a backend is in a state.
    ///
    /// # Errors
    ///
    /// If it is not within `limit`.
    pub fn wait_backend(&self, backend: &str, state: &str, limit: Duration) -> Result<()> {
        eventually(limit, &format!("{backend} {state}"), || {
            let now = self.backend_state(backend)?;
            ensure!(now == state, "it is {now}");
            Ok(())
        })
    }

    /// Kills the agent as `kill -9` does; the data plane stays.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("no balancer runs on {}", self.host.name()))?.kill()
    }

    /// Ends the agent with SIGTERM, as systemd does; the data plane stays.
    ///
    /// # Errors
    ///
    /// If it does not run, or does not exit with status 0 within 5 s.
    pub fn stop(&mut self) -> Result<()> {
        let mut process =
            self.process.take().with_context(|| format!("no balancer runs on {}", self.host.name()))?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(STOP_LIMIT)?;
        ensure!(status.success(), "etcd-lb ended with {status} after SIGTERM");
        Ok(())
    }

    /// Its process, while it was not ended.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its config file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where its maps, program and links are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Leaves it running.
    pub fn keep(self) {
        if let Some(process) = self.process {
            process.keep();
        }
    }

    fn wait_ready(&mut self) -> Result<()> {
        eventually(READY_LIMIT, &format!("the balancer on {}", self.host.name()), || {
            let answer = self.status();
            if let Some(process) = &mut self.process {
                process.check_alive()?;
            }
            // It answers before it has attached its program.
            let attached = answer?["interfaces"][0]["xdp_mode"].is_string();
            ensure!(attached, "its program is not attached");
            Ok(())
        })
    }
}

/// The binary to test: what the environment names, else what lies where this program was built.
///
/// # Errors
///
/// If there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(BIN_ENV) {
        return Ok(named.into());
    }
    // This program is TARGET/PROFILE/xtask-like or TARGET/PROFILE/deps/test-like.
    let own = std::env::current_exe().context("own path")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("etcd-lb"))
        .find(|path| path.is_file())
        .with_context(|| format!("no etcd-lb beside {}; build it: cargo build -p etcd-lb", own.display()))
}

fn http_listen(host: &Host) -> SocketAddr {
    (host.address(), 9479).into()
}
