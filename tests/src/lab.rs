//! A lab: hosts on bridges, removed with everything in them when the guard goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Host, Nic, Role, Topology,
    netns::{Netns, output},
    pass, process, signals, state,
};

/// Lines of each log shown when a test fails.
const TAIL: usize = 25;
/// The bridges' namespace, named as a host.
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
        self.hosts.values().filter(move |host| host.role().plays(role))
    }

    /// Unplugs a host's first interface, or plugs it in again.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn plug(&self, host: &str, plugged: bool) -> Result<()> {
        self.ip_on_bridge(&["link", "set", "dev", host, if plugged { "up" } else { "down" }])
    }

    /// Deletes a host's first interface, as when a driver is unloaded.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn delete_interface(&self, host: &str) -> Result<()> {
        self.ip_on_bridge(&["link", "del", "dev", host])
    }

    /// Makes a host's first interface again, after [`Lab::delete_interface`], with its address.
    ///
    /// # Errors
    ///
    /// If `ip` or `ethtool` fails.
    pub fn restore_interface(&self, host: &str) -> Result<()> {
        let host = self.host(host);
        self.wire(host, &host.nics()[0])
    }

    /// Gives every interface of the lab an MTU.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let lans: BTreeSet<u8> = self.hosts.values().flat_map(Host::nics).map(|nic| nic.lan).collect();
        lans.into_iter().try_for_each(|lan| self.set_lan_mtu(lan, mtu))
    }

    /// Gives every interface on a LAN an MTU.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn set_lan_mtu(&self, lan: u8, mtu: u32) -> Result<()> {
        let mtu = mtu.to_string();
        for host in self.hosts.values() {
            for nic in host.nics().iter().filter(|nic| nic.lan == lan) {
                self.ip_on_bridge(&["link", "set", "dev", &port(host, nic), "mtu", &mtu])?;
                host.output("ip", &["link", "set", "dev", &nic.interface, "mtu", &mtu])?;
            }
        }
        self.ip_on_bridge(&["link", "set", "dev", &bridge(lan), "mtu", &mtu])
    }

    /// Drops frames between hosts, by nftables rules in the bridge's forward hook (`iifname "lb1" oifname "lb2" drop`), several
    /// with `;` between; `counter` drops none any more.
    ///
    /// # Errors
    ///
    /// If `nft` refuses the rules.
    pub fn filter(&self, rules: &str) -> Result<()> {
        let bridge = self.bridge.as_ref().context("the lab has no bridge yet")?;
        let chain = "type filter hook forward priority 0; policy accept;";
        let table = format!(
            "table bridge lab\ndelete table bridge lab\ntable bridge lab {{ chain forward {{ {chain} {rules}; }}; }}"
        );
        output(bridge.command("nft").arg(table)).map(drop)
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

        self.bridge = Some(Netns::create(&state::netns_name(&self.id, BRIDGE))?);
        self.as_a_switch()?;
        let lans: BTreeSet<u8> =
            topology.hosts.iter().flat_map(|spec| &spec.nics).map(|nic| nic.lan).collect();
        for lan in lans {
            let name = bridge(lan);
            // Without snooping: multicast reaches every host, as on a switch that knows no better.
            self.ip_on_bridge(&["link", "add", &name, "type", "bridge", "mcast_snooping", "0"])?;
            self.ip_on_bridge(&["link", "set", &name, "up"])?;
        }

        for spec in &topology.hosts {
            ensure!(spec.name != BRIDGE, "`{BRIDGE}` cannot name a host");
            ensure!(!self.hosts.contains_key(&spec.name), "two hosts are named {}", spec.name);
            let netns = Netns::create(&state::netns_name(&self.id, &spec.name))?;
            let host = Host::new(spec.clone(), netns, self.dir.clone());
            spec.nics.iter().try_for_each(|nic| self.wire(&host, nic))?;
            if spec.role == Role::Router {
                host.output("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])?;
            }
            if let Some(last) = spec.gateway {
                let lan = spec.nics[0].lan;
                let via = Topology::address(lan, last).to_string();
                host.output("ip", &["route", "add", "default", "via", &via])?;
                let via = Topology::address_v6(lan, last).to_string();
                host.output("ip", &["route", "add", "default", "via", &via])?;
            }
            self.hosts.insert(spec.name.clone(), host);
        }
        Ok(())
    }

    /// Where the kernel has `br_netfilter`, it shows each frame that a bridge forwards to iptables' hooks as if it were routed: a
    /// switch has none.
    fn as_a_switch(&self) -> Result<()> {
        let bridge = self.bridge.as_ref().context("the lab has no bridge yet")?;
        bridge.run(|| {
            for tables in ["arptables", "ip6tables", "iptables"] {
                let hook = Path::new("/proc/sys/net/bridge").join(format!("bridge-nf-call-{tables}"));
                if hook.exists() {
                    fs::write(&hook, "0").with_context(|| format!("{}", hook.display()))?;
                }
            }
            Ok(())
        })
    }

    /// Makes a host's interface and the bridge's port that is its other end.
    fn wire(&self, host: &Host, nic: &Nic) -> Result<()> {
        let (port, interface, netns) = (port(host, nic), &nic.interface, host.netns().name());
        self.ip_on_bridge(&[
            "link", "add", "name", &port, "type", "veth", "peer", "name", interface, "netns", netns,
        ])?;
        self.ip_on_bridge(&["link", "set", "dev", &port, "master", &bridge(nic.lan), "up"])?;
        if host.role().plays(Role::Balancer) {
            let pin = self.pass_pin();
            let pin = pin.to_str().context("path of the pin")?;
            self.ip_on_bridge(&["link", "set", "dev", &port, "xdpdrv", "pinned", pin])?;
        }

        host.output("ip", &["link", "set", "dev", interface, "address", &nic.mac()])?;
        // A veth leaves TCP checksums to hardware that is not there, and XDP would update the partial value.
        host.output("ethtool", &["-K", interface, "tx", "off"])?;
        let address = format!("{}/{}", nic.address(), Topology::PREFIX);
        host.output("ip", &["address", "add", &address, "dev", interface])?;
        // Nobody is asked whether the address is free, so that it can be used at once.
        let address = format!("{}/{}", nic.address_v6(), Topology::PREFIX_V6);
        host.output("ip", &["address", "add", &address, "dev", interface, "nodad"])?;
        // Nor is it asked of the link-local address, which for up to 2 s the kernel would not ask for neighbours by.
        host.output("sysctl", &["-qw", &format!("net/ipv6/conf/{interface}/accept_dad=0")])?;
        host.output("ip", &["link", "set", "dev", interface, "up"])?;
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

/// The name of a LAN's bridge.
fn bridge(lan: u8) -> String {
    format!("lan.{lan}")
}

/// The bridge's port toward an interface: named as the host, with the LAN's number if it is not the host's first.
fn port(host: &Host, nic: &Nic) -> String {
    let first = nic.interface == host.interface();
    if first { host.name().into() } else { format!("{}.{}", host.name(), nic.lan) }
}
