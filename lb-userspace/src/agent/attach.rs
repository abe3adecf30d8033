//! Where the program is attached, and how it comes back to an interface that was deleted and returns.

use std::collections::BTreeMap;

use lb_common::{addr::Mac, maps};
use lb_core::config::{Config, XdpMode};
use tracing::{error, info, warn};

use crate::{
    dataplane::{self, AttachedMode, DataPlane},
    netlink::{Link, Mirror},
};

/// The interfaces of the config that are there, by name.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    attached: BTreeMap<String, (u32, AttachedMode)>,
    /// The MAC under which the VIPs were announced last.
    announced: BTreeMap<u32, Mac>,
    /// Interfaces whose attaching failed, so that it is reported once.
    failed: BTreeMap<String, u32>,
}

impl Attachments {
    /// Attaches to every interface of the config.
    ///
    /// # Errors
    /// The first interface that cannot be attached to.
    pub(super) fn attach_all(
        &mut self,
        config: &Config,
        mirror: &Mirror,
        plane: &mut DataPlane,
    ) -> Result<(), dataplane::Error> {
        for name in &config.interfaces {
            if let Some(link) = mirror.link_named(name) {
                self.attach(config, link, plane)?;
            }
        }
        if let Some(names) = &config.node_link
            && let Some(link) = mirror.link_named(&names.far)
            && let Err(error) = self.attach(config, link, plane)
        {
            // Others are served without it.
            self.failed.insert(link.name.clone(), link.index);
            error!(interface = link.name, %error, "clients and members on this node are not served; trying again");
        }
        Ok(())
    }

    /// Detaches from interfaces that only a former config named.
    pub(super) fn leave_others(&self, mirror: &Mirror, plane: &mut DataPlane) {
        let pinned = plane.pinned_interfaces().unwrap_or_default();
        let ours: Vec<_> = self.attached.values().map(|(ifindex, _)| *ifindex).collect();
        for ifindex in pinned.into_iter().filter(|ifindex| !ours.contains(ifindex)) {
            let interface = mirror.link(ifindex).map_or("", |link| link.name.as_str());
            match plane.detach_interface(ifindex) {
                Ok(()) => info!(interface, ifindex, "detached: the config does not name it any more"),
                Err(error) => error!(interface, ifindex, %error, "cannot detach"),
            }
        }
    }

    /// Follows interfaces that went away, came back, or came back as another one of the same name.
    pub(super) fn follow(&mut self, config: &Config, mirror: &Mirror, plane: &mut DataPlane) {
        for name in names(config) {
            let link = mirror.link_named(name);
            let before = self.attached.get(name).map(|(ifindex, _)| *ifindex);
            if let Some(gone) = before.filter(|before| link.map(|link| link.index) != Some(*before)) {
                warn!(interface = name, "the interface is gone; it is attached to again when it returns");
                self.attached.remove(name);
                plane.forget_interface(gone);
            }
            let Some(link) = link.filter(|_| !self.attached.contains_key(name)) else { continue };
            match self.attach(config, link, plane) {
                Ok(mode) => info!(interface = name, xdp_mode = %mode, "attached anew"),
                Err(error) if self.failed.insert(name.to_owned(), link.index) != Some(link.index) => {
                    error!(interface = name, %error, "cannot attach; trying again");
                }
                Err(_) => {}
            }
        }
    }

    /// Whether an interface's MAC is not the one that the VIPs were announced under; it counts as announced then.
    pub(super) fn take_unannounced(&mut self, mirror: &Mirror) -> bool {
        let now =
            self.interfaces(mirror).into_iter().map(|interface| (interface.ifindex, interface.mac)).collect();
        let before = std::mem::replace(&mut self.announced, now);
        before != self.announced
    }

    /// How an interface is attached to.
    pub(super) fn mode(&self, name: &str) -> Option<AttachedMode> {
        self.attached.get(name).map(|(_, mode)| *mode)
    }

    /// All that are attached to.
    pub(super) fn interfaces(&self, mirror: &Mirror) -> Vec<maps::Interface> {
        let links = self.attached.values().filter_map(|(ifindex, _)| mirror.link(*ifindex));
        links.filter_map(interface).collect()
    }

    /// A native program can redirect to no interface whose driver has no XDP: then the far end has a generic one too.
    fn wanted_mode(&self, config: &Config, name: &str) -> XdpMode {
        let is_generic = |name: &String| self.mode(name) == Some(AttachedMode::Generic);
        if is_far(config, name) && config.interfaces.iter().any(is_generic) {
            XdpMode::Generic
        } else {
            config.xdp_mode
        }
    }

    fn attach(
        &mut self,
        config: &Config,
        link: &Link,
        plane: &mut DataPlane,
    ) -> Result<AttachedMode, dataplane::Error> {
        let mode = plane.attach(link.index, &link.name, self.wanted_mode(config, &link.name))?;
        self.attached.insert(link.name.clone(), (link.index, mode));
        self.failed.remove(&link.name);
        Ok(mode)
    }
}

/// The interfaces of the config that are there, as the data plane needs them: also those that only an earlier agent's
/// program is on until this one's is, so that it goes on answering.
pub(super) fn named(config: &Config, mirror: &Mirror) -> Vec<maps::Interface> {
    let with_flags = |name| {
        let flags = if is_far(config, name) { maps::INTERFACE_NODE } else { 0 };
        Some(maps::Interface { flags, ..interface(mirror.link_named(name)?)? })
    };
    names(config).filter_map(with_flags).collect()
}

/// The interfaces that the program is attached to: the config's, and the far end of the node's own veth pair.
fn names(config: &Config) -> impl Iterator<Item = &str> {
    let far = config.node_link.iter().map(|names| names.far.as_str());
    config.interfaces.iter().map(String::as_str).chain(far)
}

fn is_far(config: &Config, name: &str) -> bool {
    config.node_link.as_ref().is_some_and(|names| names.far == name)
}

fn interface(link: &Link) -> Option<maps::Interface> {
    // An IP packet has at most 65,535 octets, whatever the interface would carry.
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    Some(maps::Interface { ifindex: link.index, mtu, mac: link.mac?, flags: 0 })
}
