//! Does a config fit this machine? Interfaces that exist, VIPs that are not this host's own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use lb_common::addr::Mac;
use lb_core::config::{Config, Mode};
use tracing::debug;

use super::error::Error;
use crate::netlink::{Mirror, vip};

/// The first thing that does not fit, in words.
pub(crate) fn misfit(config: &Config, mirror: &Mirror) -> Option<String> {
    missing_interface(config, mirror).or_else(|| local_address(config, mirror))
}

fn missing_interface(config: &Config, mirror: &Mirror) -> Option<String> {
    let name = config.interfaces.iter().find(|name| mirror.link_named(name).is_none())?;
    let there: Vec<_> = mirror.links().map(|link| link.name.as_str()).filter(|name| *name != "lo").collect();
    Some(format!("interface \"{name}\" does not exist; this host has {}", there.join(", ")))
}

/// A VIP or source address that is this host's own, or a backend that is and cannot be, in words.
pub(super) fn local_address(config: &Config, mirror: &Mirror) -> Option<String> {
    let holder = |address: IpAddr| mirror.holder(address).map(|link| link.name.as_str());
    for service in &config.services {
        let name = &service.name;
        for (key, address) in [("vip", service.vip), ("source_address", service.source_address)] {
            if let Some(interface) = holder(address) {
                return Some(format!(
                    "{key} {address} of service \"{name}\" is an address of interface {interface}: the kernel would \
                     answer for it too; remove it there (`ip address del {address} dev {interface}`) or change `{key}`"
                ));
            }
        }
        for backend in &service.backends {
            let address = backend.address.ip();
            let why = if address.is_loopback() {
                "a loopback address: members of a cluster are reached by addresses that others reach them by; write that one"
            } else if holder(address).is_none() {
                continue;
            } else if config.node_link.is_none() {
                "this host itself, and `node_interface` is \"none\": write a name there"
            } else if service.mode == Mode::Dsr {
                "this host itself, which `mode = \"dsr\"` cannot serve: the VIP would be the host's own; use `mode = \"nat\"`"
            } else {
                continue;
            };
            return Some(format!(
                "backend \"{}\" ({}) of service \"{name}\" is {why}",
                backend.name, backend.address
            ));
        }
    }
    None
}

/// Asks the network whether another host has one of the VIPs. Those in `ours` are known to be this node's.
///
/// # Errors
/// One is taken, or cannot be asked for.
pub(super) async fn vips_are_free(config: &Config, mirror: &Mirror, ours: &[IpAddr]) -> Result<(), Error> {
    let own: Vec<Mac> = mirror.links().filter_map(|link| link.mac).collect();
    let mut asked = Vec::new();
    for vip in config.addresses().into_iter().filter(|vip| !ours.contains(vip)) {
        let interfaces = config.interfaces.iter().filter_map(|name| mirror.link_named(name));
        for (link, _) in interfaces.flat_map(|interface| mirror.reaches_by(interface.index, vip)) {
            let Some(mac) = link.mac.filter(|_| link.up) else { continue };
            asked.push((vip, link.index, link.name.clone(), mac));
        }
    }
    // All at once: the time is that of one. None is cut short, for each closes its socket elsewhere.
    let answers = asked.into_iter().map(|(vip, ifindex, interface, mac)| {
        let own = &own;
        async move {
            match vip::owner(ifindex, mac, own, vip).await {
                Ok(None) => Ok(()),
                Ok(Some(mac)) => Err(Error::VipInUse { vip, mac, interface }),
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                    debug!(%vip, interface, "nobody was asked: the interface is down");
                    Ok(())
                }
                Err(source) => Err(Error::VipProbe { vip, interface, source }),
            }
        }
    });
    futures_util::future::join_all(answers).await.into_iter().collect()
}

/// The interfaces of the config, and on which of them which IPv6 VIP is answered for.
pub(super) fn solicited(config: &Config, mirror: &Mirror) -> (BTreeSet<u32>, BTreeSet<(u32, Ipv6Addr)>) {
    let interfaces: BTreeSet<u32> =
        config.interfaces.iter().filter_map(|name| Some(mirror.link_named(name)?.index)).collect();
    let mut on = BTreeSet::new();
    for vip in config.addresses() {
        let IpAddr::V6(v6) = vip else { continue };
        let here = interfaces.iter().flat_map(|ifindex| mirror.reaches_by(*ifindex, vip));
        on.extend(here.map(|(link, _)| (link.index, v6)));
    }
    (interfaces, on)
}
