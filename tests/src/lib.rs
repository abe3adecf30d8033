//! The lab: hosts in network namespaces on a bridge, a real etcd cluster with TLS, clients that count what breaks, and
//! balancers, all on one machine.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use etcd_lb_tests::{Cluster, Lab, Topology};
//!
//! let lab = Lab::start("example", &Topology::standard())?;
//! let mut cluster = Cluster::start(&lab)?;
//! cluster.member_mut("etcd-1").kill()?;
//! // Whatever happens, dropping the lab leaves nothing behind.
//! # Ok(())
//! # }
//! ```
//!
//! A lab needs root. Several run at once, in one process or in many: names are unique and addresses repeat, since each
//! lab's namespaces are its own.

pub mod balancer;
pub mod config;
pub mod crowd;
pub mod dns;
pub mod echo;
pub mod etcd;
pub mod fleet;
pub mod flow_log;
pub mod frames;
pub mod fuzz;
pub mod guide;
pub mod hang;
pub mod held;
pub mod host;
pub mod https;
pub mod keepalived;
pub mod kube;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod networking;
pub mod owner;
pub mod packet;
pub mod pair;
mod pass;
pub mod process;
mod signals;
pub mod stacked;
pub mod state;
pub mod tls;
pub mod topology;
pub mod typed;
pub mod wait;

pub use balancer::Balancer;
pub use config::Config;
pub use etcd::{Cluster, Member};
pub use fleet::Fleet;
pub use host::Host;
pub use lab::Lab;
pub use process::Process;
pub use topology::{HostSpec, Nic, Role, Topology};
pub use wait::eventually;

use std::net::{Ipv4Addr, Ipv6Addr};

/// The address the balancers of the standard topology serve.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
/// The same of IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x100);
/// etcd's client port.
pub const CLIENT_PORT: u16 = 2379;
