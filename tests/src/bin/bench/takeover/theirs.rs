//! keepalived on two nodes, with HAProxy on both.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use etcd_lb_tests::{
    CLIENT_PORT, Host, Lab, Process, Topology, VIP,
    echo::EchoServer,
    eventually,
    keepalived::{Keepalived, Settings},
    owner::OwnerWatch,
    process::tail,
};

use super::{Event, LIMIT, Nodes};
use crate::{haproxy, peers::Behind};

/// Of each log that are shown when something fails.
const LOG_LINES: usize = 12;
const NAMES: [&str; 2] = ["lb1", "lb2"];

pub struct Theirs {
    watch: OwnerWatch,
    macs: [[u8; 6]; 2],
    nodes: [Option<(Keepalived, Process)>; 2],
    /// Seconds between advertisements, as keepalived writes them.
    interval: String,
    members: Vec<Ipv4Addr>,
    _servers: Vec<EchoServer>,
    lab: Lab,
}

impl Theirs {
    pub fn start(interval: u32) -> Result<Self> {
        let lab = Lab::start(&format!("keepalived{interval}"), &Topology::standard().without("client-2"))?;
        let hosts = ["etcd-1", "etcd-2", "etcd-3"].map(|name| lab.host(name));
        let servers =
            hosts.into_iter().map(|host| EchoServer::start(host, CLIENT_PORT)).collect::<Result<_>>()?;
        let members = hosts.map(Host::address).to_vec();
        let watch = OwnerWatch::start(lab.host("client-1"))?;
        let macs = [lab.host("lb1").mac()?, lab.host("lb2").mac()?];
        let interval = (f64::from(interval) / 1e3).to_string();
        let mut this = Self { watch, macs, nodes: [None, None], interval, members, _servers: servers, lab };
        this.run(0)?;
        this.run(1)?;
        this.wait_first(Instant::now())?;
        Ok(this)
    }

    fn run(&mut self, number: usize) -> Result<()> {
        let host = self.lab.host(NAMES[number]);
        let behind = Behind {
            ports: vec![CLIENT_PORT],
            members: self.members.clone(),
            checked: CLIENT_PORT,
            cluster: None,
            object: None,
        };
        let haproxy = haproxy::start(host, VIP, &behind, false)?;
        let settings = Settings {
            version: 3,
            priority: [200, 100][number],
            interval: &self.interval,
            addresses: &[&VIP.to_string()],
            peer: None,
            password: None,
        };
        self.nodes[number] = Some((Keepalived::start(host, &settings)?, haproxy));
        Ok(())
    }

    /// The first node has the VIP, and the second one has not.
    fn wait_first(&self, since: Instant) -> Result<()> {
        let waited = eventually(LIMIT, "the stronger keepalived has the VIP", || {
            for (node, first) in self.nodes.iter().zip([true, false]) {
                let (keepalived, _) = node.as_ref().context("it does not run")?;
                let master = keepalived.is_master()?;
                let name = keepalived.host().name();
                ensure!(master == first, "{name} {} the VIP", if master { "has" } else { "has not" });
            }
            self.watch.first(self.macs[0], since).ok_or_else(|| anyhow!("it does not answer"))
        });
        let log = |(keepalived, _): &(Keepalived, Process)| tail(keepalived.log(), LOG_LINES);
        waited.with_context(|| self.nodes.iter().flatten().map(log).collect::<Vec<_>>().join("\n--\n"))?;
        // What the other one answered before is gone from the client's table by then.
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }
}

impl Nodes for Theirs {
    fn client(&self) -> &Host {
        self.lab.host("client-1")
    }

    fn watch(&self) -> &OwnerWatch {
        &self.watch
    }

    fn macs(&self) -> [[u8; 6]; 2] {
        self.macs
    }

    fn ready(&self, _connections: usize) -> Result<()> {
        Ok(())
    }

    fn cause(&mut self, event: Event) -> Result<()> {
        if event == Event::HostCut {
            return self.lab.plug("lb1", false);
        }
        if event == Event::Hung {
            let (keepalived, haproxy) = self.nodes[0].as_ref().context("it does not run")?;
            keepalived.freeze()?;
            return haproxy.freeze();
        }
        let (keepalived, mut haproxy) = self.nodes[0].take().context("it does not run")?;
        match event {
            Event::Killed => keepalived.kill()?,
            _ => keepalived.stop()?,
        }
        haproxy.kill()
    }

    fn restore(&mut self, event: Event) -> Result<()> {
        let since = Instant::now();
        match event {
            Event::HostCut => self.lab.plug("lb1", true)?,
            Event::Hung => {
                let (keepalived, haproxy) = self.nodes[0].as_ref().context("it does not run")?;
                haproxy.signal(nix::sys::signal::Signal::SIGCONT)?;
                keepalived.thaw()?;
            }
            Event::Killed | Event::Stopped => self.run(0)?,
        }
        self.wait_first(since)
    }
}
