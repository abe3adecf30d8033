//! What it is measured on and with, and what is missing.

use std::{collections::BTreeMap, fmt, fs, process::Command};

use serde_json::{Value, json};

/// (Name, program, arguments that make it tell its version, package of Debian).
const PROGRAMS: &[(&str, &str, &[&str], &str)] = &[
    ("HAProxy", "haproxy", &["-v"], "haproxy"),
    ("NGINX", "nginx", &["-v"], "nginx libnginx-mod-stream"),
    ("nftables", "nft", &["--version"], "nftables"),
    ("keepalived", "keepalived", &["--version"], "keepalived"),
    ("iperf3", "iperf3", &["--version"], "iperf3"),
    ("etcd", "etcd", &["--version"], "etcd-server"),
    ("etcdctl", "etcdctl", &["version"], "etcd-client"),
];

/// The machine and its programs.
pub struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    memory_gb: u64,
    load: String,
    gro: bool,
    versions: BTreeMap<&'static str, String>,
    missing: Vec<(&'static str, &'static str)>,
}

impl Machine {
    pub fn look(gro: bool, etcd_lb: String) -> Self {
        let mut versions = BTreeMap::from([("etcd-lb", etcd_lb)]);
        let mut missing = Vec::new();
        for (name, program, arguments, package) in PROGRAMS {
            match version(program, arguments) {
                Some(version) => drop(versions.insert(name, version)),
                None => missing.push((*name, *package)),
            }
        }
        if !missing.iter().any(|(name, _)| *name == "NGINX") && stream_module().is_none() {
            missing.push(("NGINX", "libnginx-mod-stream"));
        }
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kilobytes: u64 = memory.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: field(&cpuinfo, "model name").unwrap_or_else(|| "an unknown processor".to_owned()),
            processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gb: kilobytes / 1_000_000,
            load: read("/proc/loadavg"),
            gro,
            versions,
            missing,
        }
    }

    /// Whether a peer of this name can be run.
    pub fn has(&self, name: &str) -> bool {
        !self.missing.iter().any(|(missing, _)| *missing == name)
    }

    pub fn json(&self) -> Value {
        let missing: Vec<_> = self.missing.iter().map(|(name, _)| *name).collect();
        json!({
            "kernel": self.kernel,
            "processor": self.processor,
            "processors": self.processors,
            "memory_gb": self.memory_gb,
            "load_before": self.load,
            "gro": self.gro,
            "versions": self.versions,
            "missing": missing,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Linux {}, {} × {}, {} GB; load before: {}",
            self.kernel, self.processors, self.processor, self.memory_gb, self.load
        )?;
        let versions: Vec<_> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(f, "{}", versions.join(", "))?;
        writeln!(
            f,
            "MTU 1500, no segmentation offload, GRO {}",
            if self.gro { "on at every host" } else { "off" }
        )?;
        for (name, package) in &self.missing {
            writeln!(f, "MISSING: {name} is not measured; to install it: apt-get install {package}")?;
        }
        Ok(())
    }
}

/// NGINX's module for TCP, which is a package of its own.
pub fn stream_module() -> Option<&'static str> {
    let path = "/usr/lib/nginx/modules/ngx_stream_module.so";
    std::path::Path::new(path).exists().then_some(path)
}

/// The first number with dots in what a program says.
fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let word = said
        .split([' ', '/', '\n', '\t'])
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.contains('.') && word.starts_with(|letter: char| letter.is_ascii_digit()));
    Some(word.unwrap_or("of an unknown version").to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
