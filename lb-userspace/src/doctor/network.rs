//! Interfaces, their drivers and settings, who has the VIPs and the VRID, and the ways to the members.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::addr::Mac;
use lb_core::{
    config::{Config, Vrrp, XdpMode},
    vrrp::{Family, Reject, VirtualRouter},
};

use super::Findings;
use crate::{
    agent::fit,
    api::status::Status,
    dataplane::{self, AttachedMode},
    netlink::{Link, Network, hops::Hops, node_link, offloads, vip},
    vrrp,
};

/// Drivers that are known to run XDP themselves (kernel's `Documentation/networking` and drivers' `ndo_bpf`, Linux 6.12).
const NATIVE: [&str; 22] = [
    "atlantic",
    "bnxt_en",
    "cpsw",
    "ena",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "tun",
    "veth",
    "virtio_net",
];
/// Longest time to listen for other nodes' advertisements: three of the slowest usual ones.
const LISTEN: Duration = Duration::from_millis(3200);

pub(super) async fn examine(
    config: &Config,
    network: &Network,
    agent: Option<&Status>,
    findings: &mut Findings,
) {
    if let Some(misfit) = fit::misfit(config, network.mirror()) {
        findings.error(
            "host",
            misfit,
            "the agent would not start",
            "change the config, or the host, as it says",
        );
    }
    for name in &config.interfaces {
        if let Some(link) = network.mirror().link_named(name) {
            interface(config, link, agent, findings);
        }
    }
    node(config, network, findings);
    vips(config, network, findings).await;
    if let Some(vrrp) = &config.vrrp {
        router_id(config, vrrp, network, findings).await;
    }
    ways(config, network, findings).await;
}

fn interface(config: &Config, link: &Link, agent: Option<&Status>, findings: &mut Findings) {
    let subject = format!("interface {}", link.name);
    if !link.up || !link.carrier {
        let what = if link.up { "has no carrier" } else { "is down" };
        findings.error(
            &subject,
            what,
            "nothing comes in by it",
            format!("ip link set dev {} up, and look at the cable or the switch", link.name),
        );
    }
    if link.vlan.is_some() {
        findings.error(
            &subject,
            "is a VLAN device",
            "XDP has to run on the interface that carries the VLAN",
            "write its parent as `interface`",
        );
    }
    program(config, link, agent, &subject, findings);
    offload(link, &subject, findings);
    // A VLAN's tags are seen by XDP only where the card leaves them in.
    let strict = |scope: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    if config.node_link.is_some() && config.vrrp.is_some() && strict("all").max(strict(&link.name)) == 1 {
        findings.warn(
            &subject,
            "has strict reverse path filtering (rp_filter = 1)",
            "clients on this node would lose their connections while its agent is dead and another node has the VIPs",
            format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2", link.name),
        );
    }
}

/// Which program runs there, and which mode ours will have.
fn program(config: &Config, link: &Link, agent: Option<&Status>, subject: &str, findings: &mut Findings) {
    match dataplane::foreign_program(&config.api.pin_dir, link.index, &link.name) {
        Ok(Some((program, remedy))) => {
            findings.error(
                subject,
                format!("runs another XDP program, {program}"),
                "an interface runs one; the agent does not replace what is not its own",
                remedy,
            );
            return;
        }
        Ok(None) => {}
        Err(error) => findings.warn(subject, format!("its XDP program cannot be asked for: {error}"), "", ""),
    }
    let status =
        agent.and_then(|status| status.interfaces.iter().find(|interface| interface.name == link.name));
    if let Some(mode) = status.and_then(|interface| interface.xdp_mode.as_deref()) {
        if mode == AttachedMode::Generic.to_string() && config.xdp_mode != XdpMode::Generic {
            generic(link, subject, findings);
        } else {
            findings.ok(subject, format!("up, MTU {}, XDP in {mode} mode", link.mtu));
        }
        return;
    }
    let driver = dataplane::driver(link.index, &link.name);
    match config.xdp_mode {
        XdpMode::Generic => findings.ok(subject, format!("up, MTU {}, driver {driver}", link.mtu)),
        _ if NATIVE.contains(&driver.as_str()) => {
            findings.ok(subject, format!("up, MTU {}, driver {driver}, which has native XDP", link.mtu));
        }
        _ => generic(link, subject, findings),
    }
}

fn generic(link: &Link, subject: &str, findings: &mut Findings) {
    let driver = dataplane::driver(link.index, &link.name);
    findings.warn(
        subject,
        format!("its driver, {driver}, is not known to have native XDP"),
        "generic XDP works everywhere and is several times slower",
        "use a card with native XDP, or write xdp_mode = \"generic\" to agree",
    );
}

fn offload(link: &Link, subject: &str, findings: &mut Findings) {
    if link.veth_peer.is_some() && offloads::leaves_checksums(&link.name).is_ok_and(|leaves| leaves) {
        findings.error(
            subject,
            "is a veth that leaves TCP checksums to hardware that is not there (checksum offload is on)",
            "XDP at the other end would rewrite partial checksums, and the packets be dropped",
            format!("ethtool -K {} tx off", link.name),
        );
    }
    let Ok(offloads::Receives { lro, strips_vlan_tags }) = offloads::receives(&link.name) else { return };
    if lro {
        findings.warn(
            subject,
            "joins packets as they come in (LRO)",
            "a driver may refuse XDP so, or hand over packets that are longer than the MTU",
            format!("ethtool -K {} lro off", link.name),
        );
    }
    if strips_vlan_tags && std::fs::read_dir("/proc/net/vlan").is_ok_and(|mut entries| entries.any(|_| true))
    {
        findings.warn(
            subject,
            "takes VLAN tags off as packets come in",
            "XDP must see the tags where VIPs or members are on a VLAN",
            format!("ethtool -K {} rxvlan off", link.name),
        );
    }
}

/// The node's own veth pair.
fn node(config: &Config, network: &Network, findings: &mut Findings) {
    let Some(names) = &config.node_link else { return };
    match node_link::find(network.mirror(), names) {
        Ok(Some(_)) => {
            findings.ok("node", format!("{} is there for clients and members on this node", names.near));
        }
        Ok(None) => {
            findings.ok("node", format!("{} will be made for clients and members on this node", names.near));
        }
        Err(error) => findings.error(
            "node",
            error.to_string(),
            "clients and members on this node would not be served",
            "as it says",
        ),
    }
}

/// Whether a host that is no node of this pair has a VIP.
async fn vips(config: &Config, network: &Network, findings: &mut Findings) {
    let mirror = network.mirror();
    let mut own: Vec<Mac> = mirror.links().filter_map(|link| link.mac).collect();
    let interfaces: Vec<&Link> =
        config.interfaces.iter().filter_map(|name| mirror.link_named(name)).collect();
    let asked = |address: IpAddr| {
        let on = interfaces.iter().flat_map(move |link| mirror.reaches_by(link.index, address));
        on.filter_map(|(link, _)| Some((link.index, link.name.clone(), link.mac.filter(|_| link.up)?)))
            .collect::<Vec<_>>()
    };
    // A node of the pair may have it.
    let peers = config.sync.iter().flat_map(|sync| &sync.peers).map(SocketAddr::ip);
    let peers: BTreeSet<IpAddr> =
        peers.chain(config.vrrp.iter().flat_map(|vrrp| vrrp.unicast_peers.iter().copied())).collect();
    for peer in peers {
        for (ifindex, _, mac) in asked(peer) {
            if let Ok(Some(mac)) = vip::owner(ifindex, mac, &own, peer).await {
                own.push(mac);
            }
        }
    }
    let has_unknown_peer = config.vrrp.is_some() && config.sync.is_none();
    for address in config.addresses() {
        let subject = format!("VIP {address}");
        let mut free = true;
        let places = asked(address);
        if places.is_empty() {
            findings.warn(
                &subject,
                "is in no prefix of the interfaces",
                "nobody is told where it is: routers need a route to this node",
                "give an interface an address in its prefix, or route it here",
            );
            continue;
        }
        for (ifindex, interface, mac) in places {
            match vip::owner(ifindex, mac, &own, address).await {
                Ok(Some(mac)) if has_unknown_peer => {
                    free = false;
                    findings.warn(
                        &subject,
                        format!("is answered for by {mac} on {interface}"),
                        "that may be the other node of the pair, which the config does not name",
                        "see whose MAC it is",
                    );
                }
                Ok(Some(mac)) => {
                    free = false;
                    findings.error(
                        &subject,
                        format!("is in use: another host, {mac}, answers for it on {interface}"),
                        "two hosts that claim one address take each other's connections away",
                        "find that host (an HAProxy or keepalived that still runs?), or write another VIP",
                    );
                }
                Ok(None) => {}
                Err(error) => {
                    free = false;
                    findings.warn(&subject, format!("nobody could be asked on {interface}: {error}"), "", "");
                }
            }
        }
        if free {
            findings.ok(&subject, "no other host has it");
        }
    }
}

/// Whether somebody else uses the VRID.
async fn router_id(config: &Config, vrrp: &Vrrp, network: &Network, findings: &mut Findings) {
    let subject = format!("VRID {}", vrrp.router_id);
    let mirror = network.mirror();
    let Some(link) = mirror.link_named(&vrrp.interface) else { return };
    let routers =
        VirtualRouter::of_node(config, vrrp, |family| mirror.source(link.index, family == Family::V6));
    let Ok(routers) = routers else {
        findings.error(
            &subject,
            format!("interface {} has no address to advertise from", link.name),
            "the node cannot take part in VRRP",
            "give it an address, IPv6 a link-local one",
        );
        return;
    };
    let known = config.sync.iter().flat_map(|sync| &sync.peers).map(SocketAddr::ip).collect();
    match vrrp::overhear(link.index, routers, known, LISTEN).await {
        Ok(rejects) => {
            let strange: Vec<_> = rejects
                .into_iter()
                .filter(|reject| !reject.is_usual() && !matches!(reject, Reject::Own))
                .collect();
            for reject in &strange {
                findings.error(
                    &subject,
                    format!(
                        "is in use by somebody who is not of this pair, or is set up otherwise: {reject}"
                    ),
                    "the two would not heed each other, and both own their addresses",
                    "as it says; VRIDs are 1 to 255, one for each pair on a LAN",
                );
            }
            if strange.is_empty() {
                findings.ok(&subject, format!("nobody else used it in {} s", LISTEN.as_secs()));
            }
        }
        Err(error) => findings.warn(&subject, format!("nobody could be overheard: {error}"), "", ""),
    }
}

/// Whether each member has a route and, on this LAN, a MAC.
async fn ways(config: &Config, network: &Network, findings: &mut Findings) {
    let mirror = network.mirror();
    let members: BTreeSet<IpAddr> = config
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.address.ip()))
        .filter(|address| mirror.holder(*address).is_none())
        .collect();
    let mut hops = Hops::default();
    hops.look_up(network.handle(), &members).await;
    for member in members {
        let subject = format!("way to {member}");
        match hops.interface(member) {
            None => findings.error(
                &subject,
                "there is no route to it",
                "it would get no connections",
                format!("ip route get {member}"),
            ),
            Some(ifindex) => {
                let lan = mirror.lan(ifindex);
                let on = lan.and_then(|lan| mirror.link(lan.ifindex));
                match on {
                    Some(link) if config.interfaces.contains(&link.name) => {
                        findings.ok(&subject, format!("by {}", link.name));
                    }
                    on => findings.error(
                        &subject,
                        format!(
                            "leads by {}, which is not among `interface`",
                            on.map_or("no interface", |link| &link.name)
                        ),
                        "XDP sends only by interfaces that it is attached to",
                        "add that interface to `interface`, or change the route",
                    ),
                }
            }
        }
    }
}
