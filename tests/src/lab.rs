//! A lab: hosts on a bridge, removed with everything in them when the guard goes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Host, HostSpec, Role, Topology,
    netns::{Netns, output},
    pass, process, signals, state,
};

/// Lines of each log shown when a test fails.
const TAIL: usize = 25;
/// The bridge's namespace, named as a host.
const BRIDGE: &str = "bridge";

/// A lab that is up. Dropping it removes its processes, namespaces, pins and files, also after a panic; a signal does
/// the same.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    bridge: Option<Netns>,
    hosts: BTreeMap<String, Host>,
    kept: bool,
}

impl Lab {
    /// Brings up a lab with a unique id made from the name.
    ///
    /// # Errors
    ///
    /// If something of it cannot be made; nothing is left then.
    pub fn start(name: &str, topology: &Topology) -> Result<Self> {
        Self::start_as(&state::unique_id(name), topology)
    }

    /// Brings up a lab whose id is exactly this, for one that people refer to by name.
    ///
    /// # Errors
    ///
    /// If there is one of that id, or something of it cannot be made; nothing is left then.
    pub fn start_as(id: &str, topology: &Topology) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root: it makes network namespaces and loads XDP programs"
        );
        for reaped in state::reap_stale().context("removing what a killed run left")? {
            eprintln!("removed lab {reaped}, whose owner was killed");
        }

        // Once the id is ours the guard cleans up, whatever of the lab there is.
        let dir = state::claim(id)?;
        signals::protect(id);
        let mut lab = Self { id: id.to_owned(), dir, bridge: None, hosts: BTreeMap::new(), kept: false };
        lab.build(topology).with_context(|| format!("bringing up lab {id}"))?;
        Ok(lab)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory, in memory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its bpffs is mounted.
    pub fn bpffs(&self) -> PathBuf {
        state::bpffs(&self.id)
    }

    /// A host.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("lab {} has no host {name}, only {:?}", self.id, self.hosts.keys()))
    }

    /// The hosts of a role, by name.
    pub fn hosts(&self, role: Role) -> impl Iterator<Item = &Host> {
        self.hosts.values().filter(move |host| host.role() == role)
    }

    /// Unplugs a host from the bridge, or plugs it in again.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn plug(&self, host: &str, plugged: bool) -> Result<()> {
        self.ip_on_bridge(&["link", "set", "dev", host, if plugged { "up" } else { "down" }])
    }

    /// Deletes a host's interface, as when a driver is unloaded.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn delete_interface(&self, host: &str) -> Result<()> {
        self.ip_on_bridge(&["link", "del", "dev", host])
    }

    /// Makes a host's interface again, after [`Lab::delete_interface`], with its address.
    ///
    /// # Errors
    ///
    /// If `ip` or `ethtool` fails.
    pub fn restore_interface(&self, host: &str) -> Result<()> {
        let host = self.host(host);
        let spec = HostSpec {
            name: host.name().into(),
            role: host.role(),
            address: host.address(),
            interface: host.interface().into(),
        };
        self.wire(&spec, host.netns())
    }

    /// Gives every interface of the lab an MTU.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let mtu = mtu.to_string();
        for host in self.hosts.values() {
            self.ip_on_bridge(&["link", "set", "dev", host.name(), "mtu", &mtu])?;
            host.output("ip", &["link", "set", "dev", host.interface(), "mtu", &mtu])?;
        }
        self.ip_on_bridge(&["link", "set", "dev", "br0", "mtu", &mtu])
    }

    /// Leaves the lab up when the guard goes; `cargo xtask lab down` removes it.
    ///
    /// # Errors
    ///
    /// If that cannot be recorded.
    pub fn keep(mut self) -> Result<()> {
        state::keep(&self.id)?;
        self.kept = true;
        Ok(())
    }

    /// The last lines of every log.
    pub fn log_tails(&self) -> String {
        let mut logs: Vec<PathBuf> = fs::read_dir(self.dir.join("log"))
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        logs.sort();
        logs.iter()
            .map(|log| format!("--- end of {}\n{}\n", log.display(), process::tail(log, TAIL)))
            .collect()
    }

    fn build(&mut self, topology: &Topology) -> Result<()> {
        state::mount_bpffs(&self.id)?;
        pass::pin(&self.pass_pin())?;

        let bridge = Netns::create(&state::netns_name(&self.id, BRIDGE))?;
        self.bridge = Some(bridge);
        // Without snooping: multicast reaches every host, as on a switch that knows no better.
        self.ip_on_bridge(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])?;
        self.ip_on_bridge(&["link", "set", "br0", "up"])?;

        for spec in &topology.hosts {
            ensure!(spec.name != BRIDGE, "`{BRIDGE}` cannot name a host");
            ensure!(!self.hosts.contains_key(&spec.name), "two hosts are named {}", spec.name);
            let netns = Netns::create(&state::netns_name(&self.id, &spec.name))?;
            self.wire(spec, &netns)?;
            self.hosts.insert(spec.name.clone(), Host::new(spec.clone(), netns, self.dir.clone()));
        }
        Ok(())
    }

    /// Makes a host's interface and the bridge's port that is its other end.
    fn wire(&self, spec: &HostSpec, netns: &Netns) -> Result<()> {
        let HostSpec { name, interface, .. } = spec;
        self.ip_on_bridge(&[
            "link",
            "add",
            "name",
            name,
            "type",
            "veth",
            "peer",
            "name",
            interface,
            "netns",
            netns.name(),
        ])?;
        self.ip_on_bridge(&["link", "set", "dev", name, "master", "br0", "up"])?;
        if spec.role == Role::Balancer {
            let pin = self.pass_pin();
            let pin = pin.to_str().context("path of the pin")?;
            self.ip_on_bridge(&["link", "set", "dev", name, "xdpdrv", "pinned", pin])?;
        }

        // Made from the address, so that an interface that returns has the MAC that its neighbours know.
        let [a, b, c, d] = spec.address.octets();
        let mac = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        output(netns.command("ip").args(["link", "set", "dev", interface, "address", &mac]))?;
        // A veth leaves TCP checksums to hardware that is not there, and XDP would update the partial value.
        output(netns.command("ethtool").args(["-K", interface, "tx", "off"]))?;
        let address = format!("{}/{}", spec.address, Topology::PREFIX);
        output(netns.command("ip").args(["address", "add", &address, "dev", interface]))?;
        // Nobody is asked whether the address is free, so that it can be used at once.
        let address = format!("{}/{}", spec.address_v6(), Topology::PREFIX_V6);
        output(netns.command("ip").args(["address", "add", &address, "dev", interface, "nodad"]))?;
        output(netns.command("ip").args(["link", "set", "dev", interface, "up"]))?;
        Ok(())
    }

    fn ip_on_bridge(&self, args: &[&str]) -> Result<()> {
        let bridge = self.bridge.as_ref().context("the lab has no bridge yet")?;
        output(bridge.command("ip").args(args)).map(drop)
    }

    fn pass_pin(&self) -> PathBuf {
        self.bpffs().join("pass")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            if std::thread::panicking() {
                eprintln!("{}", self.log_tails());
            }
            if let Err(error) = state::teardown(&self.id) {
                eprintln!("lab {}: {error:#}", self.id);
            }
        }
        signals::release(&self.id);
    }
}
