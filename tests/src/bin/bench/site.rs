//! The lab that the wire is measured in: a client, a server, and a host for each peer, all on one bridge; packets as large
//! as a wire's.

use anyhow::{Context as _, Result};
use etcd_lb_tests::{Host, Lab, Role, Topology, netns::Netns, state};

use crate::{
    Options,
    machine::Machine,
    peers::{Behind, Kind, Peer},
    responder::Responder,
};

/// Where the responder listens.
pub const REQUESTS: u16 = 2379;
/// Where iperf3 listens.
pub const BULK: u16 = 5201;
/// Of every link: a veth's own, and a wire's.
pub const MTU: u16 = 1500;
/// Concurrent connections that the responder serves.
const SERVED: usize = 32;

/// All that hosts are here.
const ROLES: [Role; 4] = [Role::Client, Role::Member, Role::Balancer, Role::Proxy];

/// Everything that runs while the wire is measured. Peers that are not asked stand idle.
pub struct Site {
    pub peers: Vec<Peer>,
    _responder: Responder,
    _bulk: etcd_lb_tests::Process,
    lab: Lab,
}

impl Site {
    /// Starts every peer that is there.
    pub fn start(options: &Options, machine: &Machine) -> Result<Self> {
        let kinds = [Kind::Direct, Kind::EtcdLb, Kind::Haproxy, Kind::Nginx, Kind::Nftables, Kind::Yardstick];
        let kinds: Vec<Kind> =
            kinds.into_iter().filter(|kind| kind.needs().is_none_or(|name| machine.has(name))).collect();
        let lab = lab("wire", &kinds, &[("etcd-1", 11)])?;
        wire_size(&lab, options.gro)?;
        let server = lab.host("etcd-1");
        let responder = Responder::start(server, REQUESTS, SERVED)?;
        let mut bulk = server.command("iperf3");
        bulk.args(["-s", "-p", &BULK.to_string()]);
        let bulk = server.spawn("iperf3", bulk)?;
        let behind = Behind {
            ports: vec![REQUESTS, BULK],
            members: vec![server.address()],
            checked: REQUESTS,
            cluster: None,
            object: Some(&options.object),
        };
        let mut peers = Vec::new();
        for kind in kinds {
            peers
                .push(Peer::start(kind, &lab, &behind).with_context(|| format!("starting {}", kind.name()))?);
        }
        let site = Self { peers, _responder: responder, _bulk: bulk, lab };
        for peer in &site.peers {
            peer.wait_serving(site.client(), REQUESTS)?;
        }
        Ok(site)
    }

    pub fn client(&self) -> &Host {
        self.lab.host("client-1")
    }
}

/// A lab with a host for each peer, these members, and a client.
pub fn lab(name: &str, kinds: &[Kind], members: &[(&str, u8)]) -> Result<Lab> {
    let mut topology = Topology::empty().with(Role::Client, "client-1", 21);
    for (member, last) in members {
        topology = topology.with(Role::Member, member, *last);
    }
    for kind in kinds {
        if let Some((host, last)) = kind.host() {
            let by_xdp = matches!(kind, Kind::EtcdLb | Kind::Yardstick);
            topology = topology.with(if by_xdp { Role::Balancer } else { Role::Proxy }, host, last);
        }
    }
    let lab = Lab::start(name, &topology)?;
    for host in ROLES.into_iter().flat_map(|role| lab.hosts(role)) {
        // Whatever the machine's own choice is: one that paces, as BBR, would be what is measured. Cubic, the default of most,
        // does not, but a namespace may choose it only if the machine allows it to all users.
        host.output("sysctl", &["-qw", "net.ipv4.tcp_congestion_control=reno"])?;
    }
    for host in [Role::Client, Role::Balancer, Role::Proxy].into_iter().flat_map(|role| lab.hosts(role)) {
        // As both HAProxy's and NGINX's documentation advise for many connections; the client's is the same for all.
        host.output(
            "sysctl",
            &["-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=1024 65000"],
        )?;
    }
    Ok(lab)
}

/// No packet is larger than the MTU on any link: a veth would carry 64 KiB at once, which no wire does. GRO is what a host
/// does with what it has received, so it may be on; then it is at every host.
pub fn wire_size(lab: &Lab, gro: bool) -> Result<()> {
    let bridge = Netns::open(&state::netns_name(lab.id(), "bridge"))?;
    let gro = if gro { "on" } else { "off" };
    for host in ROLES.into_iter().flat_map(|role| lab.hosts(role)) {
        let features = ["tso", "off", "gso", "off", "gro", gro];
        host.output("ethtool", &[&["-K", host.interface()], &features[..]].concat())?;
        let mut port = bridge.command("ethtool");
        port.args(["-K", host.name(), "tso", "off", "gso", "off", "gro", "off"]);
        etcd_lb_tests::netns::output(&mut port)?;
    }
    Ok(())
}
