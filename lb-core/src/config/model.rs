//! What a config means: the types that the rest of the agent works with. Everything here is validated.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::Prefix;
use super::value::words;
use crate::health::Timing;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// At least one, each once.
    pub interfaces: Vec<String>,
    /// The veth pair by which clients and members on the node itself are served; `None`: they are not.
    pub node_link: Option<NodeLink>,
    pub xdp_mode: XdpMode,
    /// Flows at once, 1,024 to 4,194,304.
    pub max_flows: u32,
    pub hash_seed_file: Option<PathBuf>,
    pub flow_log: Option<PathBuf>,
    /// In the file's order. At least one; name, and VIP with port, are unique.
    pub services: Vec<Service>,
    pub vrrp: Option<Vrrp>,
    pub sync: Option<PeerSync>,
    pub api: Api,
}

/// The names of a veth pair's two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLink {
    /// The end of the node's own stack, which its routes to the VIPs lead to.
    pub near: String,
    /// The end that the program is attached to.
    pub far: String,
}

impl NodeLink {
    /// What is written instead of a name for none.
    pub const NONE: &'static str = "none";
    /// Follows the near end's name in the far end's.
    pub const FAR: &'static str = "-xdp";

    /// The pair whose near end has this name.
    pub fn new(near: impl Into<String>) -> Self {
        let near = near.into();
        let far = format!("{near}{}", Self::FAR);
        Self { near, far }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub vip: IpAddr,
    pub port: u16,
    pub mode: Mode,
    pub algorithm: Algorithm,
    pub affinity: Affinity,
    /// What backends see as the client: the VIP if nothing else is written. Of the VIP's family.
    pub source_address: IpAddr,
    /// Who may connect; empty: everyone. Of the VIP's family.
    pub allow: Vec<Prefix>,
    pub drain_timeout: Duration,
    pub idle_timeout: Duration,
    /// 0: no limit.
    pub max_flows_per_client: u32,
    pub on_backend_down: OnBackendDown,
    pub fail_open: bool,
    pub no_backend: NoBackend,
    pub prefer_local: bool,
    pub health: HealthCheck,
    /// In the file's order; name and address are unique within the service. Not empty unless `discovery`
    /// finds some.
    pub backends: Vec<Backend>,
    pub discovery: Option<Discovery>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its address, if no name is written.
    pub name: String,
    pub address: SocketAddr,
    /// 1 to 1,000.
    pub weight: u32,
    /// 0: no limit.
    pub max_connections: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub timing: Timing,
    /// The port to check, if it is not the backend's.
    pub port: Option<u16>,
    pub probe: Probe,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Connects.
    Tcp,
    Http(HttpProbe),
    /// grpc.health.v1 Check.
    Grpc {
        tls: Option<Tls>,
    },
    Etcd {
        tls: Option<Tls>,
        max_raft_lag: Option<u64>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// Begins with `/`, printable ASCII without spaces.
    pub path: String,
    pub expect_status: u16,
    pub expect_body: Option<String>,
    pub tls: Option<Tls>,
}

/// TLS toward a backend. The files are read by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca_file: PathBuf,
    pub client: Option<ClientCertificate>,
    /// The name to expect in the backend's certificate, if not its address.
    pub server_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub source: DiscoverySource,
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoverySource {
    Etcd,
    Dns {
        domain: String,
        srv_name: Option<String>,
        /// `None`: those of /etc/resolv.conf.
        nameserver: Option<SocketAddr>,
    },
    Kubernetes {
        namespace: String,
        service: String,
        kubeconfig: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vrrp {
    pub router_id: u8,
    /// 1 to 254.
    pub priority: u8,
    pub version: VrrpVersion,
    /// 10 ms to 40.95 s in steps of 10 ms for version 3, 1 to 255 s in whole seconds for version 2.
    pub advert_interval: Duration,
    pub preempt: bool,
    pub preempt_delay: Duration,
    /// Empty: multicast.
    pub unicast_peers: Vec<IpAddr>,
    pub source: Option<IpAddr>,
    pub interface: String,
    /// Present if a VIP is IPv6.
    pub link_local: Option<Ipv6Addr>,
    pub checksum: VrrpChecksum,
    /// 1 to 8 bytes, version 2 only.
    pub auth_pass: Option<String>,
    pub track_healthy_backends: u8,
    pub notify: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VrrpVersion {
    /// RFC 3768, IPv4 only.
    V2,
    /// RFC 9568.
    V3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSync {
    pub listen: SocketAddr,
    /// At least one, each once.
    pub peers: Vec<SocketAddr>,
    pub key_file: PathBuf,
    pub takeover_grace: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    pub socket: PathBuf,
    pub http_listen: Option<SocketAddr>,
    pub pin_dir: PathBuf,
}

words! {
    pub enum XdpMode {
        /// Native where the driver has it, else generic.
        Auto = "auto",
        Native = "native",
        Generic = "generic",
    }

    pub enum Mode {
        Nat = "nat",
        /// Direct server return.
        Dsr = "dsr",
    }

    pub enum Algorithm {
        /// Consistent hashing with bounded loads.
        Bounded = "bounded",
        Maglev = "maglev",
        LeastConn = "least-conn",
        RoundRobin = "round-robin",
    }

    pub enum Affinity {
        None = "none",
        /// The client's address alone chooses.
        ClientIp = "client-ip",
    }

    /// What becomes of a backend's flows while it is down and another is healthy.
    pub enum OnBackendDown {
        Reset = "reset",
        Keep = "keep",
    }

    /// What a new connection meets where no backend can be used.
    pub enum NoBackend {
        Reset = "reset",
        Drop = "drop",
    }

    pub enum HealthKind {
        Etcd = "etcd",
        Http = "http",
        Grpc = "grpc",
        Tcp = "tcp",
    }

    pub enum DiscoveryKind {
        Etcd = "etcd",
        Dns = "dns",
        Kubernetes = "kubernetes",
    }

    /// What a version 3 advertisement over IPv4 is summed over.
    pub enum VrrpChecksum {
        /// RFC 5798 and most peers.
        PseudoHeader = "pseudo-header",
        /// RFC 9568, section 5.2.8.
        Message = "message",
    }
}

impl Config {
    /// The addresses that this node answers for while it owns the VIPs, each once: VIPs, source addresses, and with IPv6
    /// the link-local one of the pair.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.services.iter().flat_map(|service| [service.vip, service.source_address]);
        let mut addresses: BTreeSet<_> = services.collect();
        let link_local = self.vrrp.as_ref().and_then(|vrrp| vrrp.link_local);
        if addresses.iter().any(IpAddr::is_ipv6) {
            addresses.extend(link_local.map(IpAddr::V6));
        }
        addresses
    }
}

impl Probe {
    pub fn kind(&self) -> HealthKind {
        match self {
            Probe::Tcp => HealthKind::Tcp,
            Probe::Http(_) => HealthKind::Http,
            Probe::Grpc { .. } => HealthKind::Grpc,
            Probe::Etcd { .. } => HealthKind::Etcd,
        }
    }

    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Probe::Tcp => None,
            Probe::Http(HttpProbe { tls, .. }) | Probe::Grpc { tls } | Probe::Etcd { tls, .. } => {
                tls.as_ref()
            }
        }
    }
}

impl HealthCheck {
    /// Where the probe of a backend goes.
    pub fn target(&self, backend: &Backend) -> SocketAddr {
        SocketAddr::new(backend.address.ip(), self.port.unwrap_or(backend.address.port()))
    }
}
