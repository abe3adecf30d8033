//! Who is measured: each on a host and behind an address of its own, before the same members.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use etcd_lb_tests::{Balancer, Cluster, Config, Host, Lab, Process, eventually};

use crate::{haproxy, machine, responder, yardstick};

/// How ours is named in every row.
pub const OURS: &str = "etcd-lb";
/// Time until a peer that was started serves.
const SERVING: Duration = Duration::from_secs(10);

/// A way to the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without a balancer.
    Direct,
    EtcdLb,
    /// As its manual advises, without anything that closes sessions.
    Haproxy,
    /// The same with `on-marked-down shutdown-sessions`.
    HaproxyClosing,
    Nginx,
    /// Destination and source NAT by the kernel, with connection tracking.
    Nftables,
    /// What XDP does at the least: [`crate::yardstick`].
    Yardstick,
}

/// What peers stand before.
pub struct Behind<'a> {
    pub ports: Vec<u16>,
    pub members: Vec<Ipv4Addr>,
    /// The port that health checks connect to.
    pub checked: u16,
    /// If it is etcd, which is then checked as such.
    pub cluster: Option<&'a Cluster>,
    /// The object that has the yardstick's program; none where that is not wanted.
    pub object: Option<&'a Path>,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::EtcdLb => OURS,
            Self::Haproxy => "HAProxy",
            Self::HaproxyClosing => "HAProxy, shutdown-sessions",
            Self::Nginx => "NGINX stream",
            Self::Nftables => "nftables DNAT",
            Self::Yardstick => "static NAT by XDP",
        }
    }

    /// The program without which it cannot be run, as [`machine::Machine::has`] knows it.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::EtcdLb | Self::Yardstick => None,
            Self::Haproxy | Self::HaproxyClosing => Some("HAProxy"),
            Self::Nginx => Some("NGINX"),
            Self::Nftables => Some("nftables"),
        }
    }

    /// The name of its host, and the last octet of that one's address.
    pub fn host(self) -> Option<(&'static str, u8)> {
        match self {
            Self::Direct => None,
            Self::EtcdLb => Some(("lb1", 2)),
            Self::Haproxy => Some(("haproxy", 4)),
            Self::HaproxyClosing => Some(("haproxy-close", 5)),
            Self::Nginx => Some(("nginx", 6)),
            Self::Nftables => Some(("nftables", 7)),
            Self::Yardstick => Some(("xdp", 8)),
        }
    }

    /// What clients connect to.
    pub fn vip(self) -> Option<Ipv4Addr> {
        let (_, last) = self.host()?;
        Some(if self == Self::EtcdLb { etcd_lb_tests::VIP } else { Ipv4Addr::new(10, 0, 1, 100 + last) })
    }
}

/// A peer at work, which ends with this.
pub struct Peer {
    pub kind: Kind,
    address: Ipv4Addr,
    balancer: Option<Balancer>,
    process: Option<Process>,
    yardstick: Option<Ebpf>,
}

impl Peer {
    pub fn start(kind: Kind, lab: &Lab, behind: &Behind<'_>) -> Result<Self> {
        let address = kind.vip().unwrap_or(behind.members[0]);
        let mut peer = Self { kind, address, balancer: None, process: None, yardstick: None };
        let Some((host, _)) = kind.host() else { return Ok(peer) };
        let host = lab.host(host);
        if kind != Kind::EtcdLb {
            host.output("ip", &["address", "add", &format!("{address}/32"), "dev", host.interface()])?;
        }
        match kind {
            Kind::Direct => {}
            Kind::Yardstick => peer.yardstick = Some(yardstick::attach(lab, host, address, behind)?),
            Kind::EtcdLb => peer.balancer = Some(Balancer::start(host, &etcd_lb(host, behind))?),
            Kind::Haproxy | Kind::HaproxyClosing => {
                let closing = kind == Kind::HaproxyClosing;
                peer.process = Some(haproxy::start(host, address, behind, closing)?);
            }
            Kind::Nginx => peer.process = Some(nginx(host, address, behind)?),
            Kind::Nftables => nftables(host, address, behind)?,
        }
        Ok(peer)
    }

    pub fn name(&self) -> String {
        self.kind.name().to_owned()
    }

    pub fn target(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// Ours.
    pub fn balancer(&self) -> Option<&Balancer> {
        self.balancer.as_ref()
    }

    /// The processes that packets of users go through: none of a peer whose data path is in the kernel.
    pub fn processes(&self) -> Vec<u32> {
        let Some(process) = &self.process else { return Vec::new() };
        let pid = process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).chain([pid]).collect()
    }

    /// The process to look at: the agent, or the proxy.
    pub fn pid(&mut self) -> Option<u32> {
        let agent = self.balancer.as_mut().and_then(|balancer| balancer.process());
        agent.or(self.process.as_mut()).map(|process| process.pid())
    }

    /// Ends it, with everything that it left on its host.
    pub fn end(mut self, lab: &Lab) -> Result<()> {
        if let Some(balancer) = &mut self.balancer {
            balancer.stop()?;
            fs::remove_dir_all(balancer.pin_dir()).context("removing the pins")?;
        }
        if let (Some((host, _)), None) = (self.kind.host(), &self.balancer) {
            let host = lab.host(host);
            host.output("ip", &["address", "del", &format!("{}/32", self.address), "dev", host.interface()])?;
        }
        Ok(())
    }

    /// Waits for an answer through it.
    pub fn wait_serving(&self, client: &Host, port: u16) -> Result<()> {
        eventually(SERVING, &format!("{} serves", self.name()), || {
            let mut stream = responder::connect(client, self.target(port))?;
            Ok(responder::trip(&mut stream)?)
        })
    }
}

/// A service for each port.
pub fn etcd_lb(host: &Host, behind: &Behind<'_>) -> String {
    let services = behind.ports.iter().enumerate().map(|(number, port)| {
        let config = match behind.cluster {
            Some(cluster) => Config::etcd(host, cluster),
            None => {
                let members = behind.members.iter().map(|member| SocketAddr::from((*member, *port)));
                // As seldom as HAProxy's checks, and as patient.
                let health = "kind = \"tcp\"\ninterval = \"1s\"\nfast_interval = \"200ms\"\ntimeout = \"1s\"";
                let health = format!("{health}\nport = {}", behind.checked);
                Config::tcp(host).health(&health).numbered(members)
            }
        };
        let config = config.name(&format!("port-{port}")).port(*port).default_algorithm();
        if number == 0 { config.text() } else { config.service_text() }
    });
    services.collect::<Vec<_>>().join("\n")
}

fn nginx(host: &Host, address: Ipv4Addr, behind: &Behind<'_>) -> Result<Process> {
    let module = machine::stream_module().context("NGINX without its stream module")?;
    let run = host.lab_dir().join("run");
    let servers = behind.ports.iter().map(|port| {
        let members: String = behind.members.iter().map(|member| format!(" server {member}:{port};")).collect();
        format!(
            "upstream port{port} {{ least_conn;{members} }}\n  server {{ listen {address}:{port} backlog=4096; proxy_pass \
             port{port}; }}\n  "
        )
    });
    // One worker, as one thread of HAProxy.
    let text = format!(
        "load_module {module};\ndaemon off;\nworker_processes 1;\nworker_rlimit_nofile 16000;\nuser root;\npid {pid};\nerror_log \
         stderr error;\nevents {{ worker_connections 8000; multi_accept on; }}\nstream {{\n  access_log off;\n  tcp_nodelay \
         on;\n  proxy_buffer_size 16k;\n  proxy_timeout 2h;\n  proxy_connect_timeout 1s;\n  {servers}}}\n",
        pid = run.join("nginx.pid").display(),
        servers = servers.collect::<String>(),
    );
    let config = run.join("nginx.conf");
    fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(&run).arg("-c").arg(&config).args(["-e", "stderr"]);
    host.spawn("nginx", command)
}

fn nftables(host: &Host, address: Ipv4Addr, behind: &Behind<'_>) -> Result<()> {
    host.output("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"])?;
    let member = behind.members[0];
    let interface = host.interface();
    let rules = format!(
        "table ip bench {{ chain in {{ type nat hook prerouting priority dstnat; ip daddr {address} dnat to {member}; }}; chain \
         out {{ type nat hook postrouting priority srcnat; oifname {interface:?} ip daddr {member} masquerade; }}; }}"
    );
    host.output("nft", &[&rules]).map(drop)
}
