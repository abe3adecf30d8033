//! Reads `[vrrp]` and `[sync]`, what makes two nodes a pair.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lb_common::election::MAX_PEERS;

use super::limits;
use super::model::{PeerSync, Vrrp, VrrpChecksum, VrrpVersion};
use super::section::Section;
use super::value::{InterfaceName, OneOrMore};

/// `interfaces` are those of the top level, or `None` if they could not be read.
pub(super) fn read_vrrp(section: &Section<'_>, interfaces: Option<&[String]>) -> Option<Vrrp> {
    let version = section.get::<u64>("version").and_then(|version| match version {
        2 => Some(VrrpVersion::V2),
        3 => Some(VrrpVersion::V3),
        _ => {
            section.error("version", "is not a VRRP version", "write 2 or 3");
            None
        }
    });
    let router_id = section.within("router_id", &limits::ROUTER_ID);
    let priority = section.within("priority", &limits::PRIORITY);
    let advert_interval = version.and_then(|v| read_advert_interval(section, v));
    let preempt = section.get("preempt");
    let preempt_delay = section.within("preempt_delay", &limits::PREEMPT_DELAY);
    let unicast_peers = section.optional::<Vec<IpAddr>>("unicast_peers");
    let source = section.optional("source");
    let interface = read_interface(section, interfaces);
    let link_local = section.optional::<Ipv6Addr>("link_local").filter(|address| {
        let good = address.is_none_or(|a| a.is_unicast_link_local());
        if !good {
            section.error("link_local", "is not a link-local address", "write one in fe80::/10");
        }
        good
    });
    let checksum = section.get("checksum");
    let auth_pass = section.optional::<String>("auth_pass");
    let track_healthy_backends = section.within("track_healthy_backends", &limits::TRACK);
    let notify = section.optional("notify");

    let vrrp = Vrrp {
        router_id: u8::try_from(router_id?).ok()?,
        priority: u8::try_from(priority?).ok()?,
        version: version?,
        advert_interval: advert_interval?,
        preempt: preempt?,
        preempt_delay: preempt_delay?,
        unicast_peers: unicast_peers?.unwrap_or_default(),
        source: source?,
        interface: interface?,
        link_local: link_local?,
        checksum: checksum?,
        auth_pass: auth_pass?,
        track_healthy_backends: u8::try_from(track_healthy_backends?).ok()?,
        notify: notify?,
    };
    check_vrrp(section, &vrrp);
    Some(vrrp)
}

pub(super) fn read_sync(section: &Section<'_>) -> Option<PeerSync> {
    let listen = section.get::<SocketAddr>("listen");
    let peers = section.get::<OneOrMore<SocketAddr>>("peer");
    let key_file = section.get("key_file");
    let takeover_grace = section.within("takeover_grace", &limits::TAKEOVER_GRACE);
    let (listen, OneOrMore(peers)) = (listen?, peers?);
    for (key, port) in peers.iter().map(|p| ("peer", p.port())).chain([("listen", listen.port())]) {
        if port == 0 {
            section.error(key, "has port 0", "write the port that the other node uses");
        }
    }
    // The nodes tell each other apart by these addresses.
    for (key, ip) in peers.iter().map(|p| ("peer", p.ip())).chain([("listen", listen.ip())]) {
        if ip.is_unspecified() || ip.is_multicast() {
            section.error(
                key,
                &format!("is {ip}, which is no node's address"),
                "write the node's own address",
            );
        }
    }
    if peers.contains(&listen) {
        section.error("peer", "is this node's own `listen` address", "write the other node's");
    }
    if peers.iter().collect::<HashSet<_>>().len() < peers.len() {
        section.error("peer", "names an address twice", "remove one");
    }
    Some(PeerSync { listen, peers, key_file: key_file?, takeover_grace: takeover_grace? })
}

fn read_advert_interval(section: &Section<'_>, version: VrrpVersion) -> Option<Duration> {
    let (range, step, default) = match version {
        VrrpVersion::V2 => (limits::ADVERT_INTERVAL_V2, Duration::from_secs(1), Duration::from_secs(1)),
        VrrpVersion::V3 => {
            (limits::ADVERT_INTERVAL_V3, Duration::from_millis(10), Duration::from_millis(100))
        }
    };
    let interval = section.optional_within("advert_interval", &range)?.unwrap_or(default);
    if !interval.as_nanos().is_multiple_of(step.as_nanos()) {
        let fix = match version {
            VrrpVersion::V2 => "version 2 knows whole seconds only",
            VrrpVersion::V3 => "write a multiple of 10ms",
        };
        section.error("advert_interval", "cannot be announced", fix);
        return None;
    }
    Some(interval)
}

fn read_interface(section: &Section<'_>, interfaces: Option<&[String]>) -> Option<String> {
    let written = section.optional::<InterfaceName>("interface")?;
    let interfaces = interfaces?;
    match (written, interfaces) {
        (Some(InterfaceName(name)), _) if interfaces.contains(&name) => Some(name),
        (Some(_), _) => {
            section.error("interface", "is not among the top-level `interface`", "write one of those");
            None
        }
        (None, [only]) => Some(only.clone()),
        (None, _) => {
            section.error("interface", "is needed with several interfaces", "say where to advertise");
            None
        }
    }
}

fn check_vrrp(section: &Section<'_>, vrrp: &Vrrp) {
    match vrrp.version {
        VrrpVersion::V2 if vrrp.checksum == VrrpChecksum::Message => {
            section.error("checksum", "has no meaning in version 2", "remove it");
        }
        VrrpVersion::V3 if vrrp.auth_pass.is_some() => {
            section.error("auth_pass", "has no meaning in version 3", "remove it");
        }
        VrrpVersion::V2 | VrrpVersion::V3 => {}
    }
    if vrrp.auth_pass.as_ref().is_some_and(|pass| pass.len() > 8) {
        section.error("auth_pass", "is longer than 8 bytes", "shorten it: the packet has no room for more");
    }
    if vrrp.unicast_peers.len() > MAX_PEERS {
        let fix = format!("name at most {MAX_PEERS}");
        section.error("unicast_peers", "has too many addresses", &fix);
    }
    if vrrp.source.is_some_and(|source| vrrp.unicast_peers.contains(&source)) {
        section.error(
            "unicast_peers",
            "contains this node's own `source`",
            "write the other nodes' addresses",
        );
    }
}
