//! A real keepalived, as the other node of a pair.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Host, Process};

/// How keepalived takes part.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// 2 or 3.
    pub version: u8,
    /// 1 to 254.
    pub priority: u8,
    /// Seconds, with a fraction in version 3.
    pub interval: &'a str,
    /// In this order.
    pub addresses: &'a [&'a str],
    /// The other node, for unicast.
    pub peer: Option<&'a str>,
    /// Of version 2.
    pub password: Option<&'a str>,
}

/// keepalived on a host. It ends with this.
#[derive(Debug)]
pub struct Keepalived {
    host: Host,
    process: Process,
    vip: String,
}

impl Keepalived {
    /// Starts it with VRID 51 on the host's first interface.
    ///
    /// # Errors
    ///
    /// If it is not installed, or its config cannot be written.
    pub fn start(host: &Host, settings: &Settings<'_>) -> Result<Self> {
        let run = host.lab_dir().join("run");
        let config = write_config(host, settings)?;
        let mut command = host.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]).arg(&config);
        for (option, name) in [("--pid", "pid"), ("--vrrp_pid", "vrrp")] {
            command.arg(option).arg(run.join(format!("{}-keepalived.{name}", host.name())));
        }
        let process = host.spawn("keepalived", command)?;
        let vip = settings.addresses.last().context("no address")?;
        Ok(Self { host: host.clone(), process, vip: (*vip).to_owned() })
    }

    /// Gives it other settings, while it runs.
    ///
    /// # Errors
    ///
    /// If the config cannot be written, or it has ended.
    pub fn reload(&self, settings: &Settings<'_>) -> Result<()> {
        write_config(&self.host, settings)?;
        self.process.signal(Signal::SIGHUP)
    }

    /// Whether it has the VIP.
    ///
    /// # Errors
    ///
    /// If the host's addresses cannot be listed.
    pub fn is_master(&self) -> Result<bool> {
        Ok(self.host.output("ip", &["-o", "address", "show", "to", &self.vip])?.contains(&self.vip))
    }

    /// Ends it cleanly: it gives the VIP up.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(5))?;
        Ok(())
    }

    /// Kills it, the process that has the VIP first.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub fn kill(mut self) -> Result<()> {
        // Its parent would start it again.
        self.process.signal(Signal::SIGSTOP)?;
        self.signal_children(Signal::SIGKILL)?;
        self.process.kill()?;
        // While nobody has asked for its child's end, the next one would take the files for those of one that runs.
        for name in ["pid", "vrrp"] {
            let file =
                self.host.lab_dir().join("run").join(format!("{}-keepalived.{name}", self.host.name()));
            let _it_may_have_none = fs::remove_file(file);
        }
        self.host.output("ip", &["address", "flush", "to", &self.vip]).map(drop)
    }

    /// Stops it and its children as Ctrl-Z does; the VIP stays where it is.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        self.signal_children(Signal::SIGSTOP)
    }

    /// Lets it and its children go on.
    ///
    /// # Errors
    ///
    /// If it has ended already.
    pub fn thaw(&self) -> Result<()> {
        self.signal_children(Signal::SIGCONT)?;
        self.process.signal(Signal::SIGCONT)
    }

    fn signal_children(&self, signal: Signal) -> Result<()> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            kill(Pid::from_raw(child), signal).context("its child")?;
        }
        Ok(())
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        self.process.log()
    }
}

fn write_config(host: &Host, settings: &Settings<'_>) -> Result<PathBuf> {
    let config = host.lab_dir().join("run").join(format!("{}-keepalived.conf", host.name()));
    fs::write(&config, text(host, settings)).with_context(|| format!("{}", config.display()))?;
    Ok(config)
}

fn text(host: &Host, settings: &Settings<'_>) -> String {
    let Settings { version, priority, interval, addresses, peer, password } = settings;
    let family = if addresses[0].contains(':') { 128 } else { 32 };
    let list: String = addresses.iter().map(|address| format!("    {address}/{family}\n")).collect();
    let unicast = peer.map_or(String::new(), |peer| {
        format!("  unicast_src_ip {}\n  unicast_peer {{\n    {peer}\n  }}\n", host.address())
    });
    let auth = password.map_or(String::new(), |password| {
        format!("  authentication {{\n    auth_type PASS\n    auth_pass {password}\n  }}\n")
    });
    format!(
        "global_defs {{\n  vrrp_version {version}\n}}\nvrrp_instance pair {{\n  state BACKUP\n  interface {}\n  \
         virtual_router_id 51\n  priority {priority}\n  advert_int {interval}\n{unicast}{auth}  virtual_ipaddress {{\n{list}  \
         }}\n}}\n",
        host.interface()
    )
}
