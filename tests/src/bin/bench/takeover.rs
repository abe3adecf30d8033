//! Takeovers: until the other node answers for the VIP, and the connections that break.

mod theirs;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use etcd_lb_tests::{CLIENT_PORT, Host, VIP, echo::BusyClients, eventually, owner::OwnerWatch, pair::Pair};
use nix::sys::signal::Signal;

use crate::{Effort, peers::OURS, report::Row};

use theirs::Theirs;

/// Connections that are never idle.
const CLIENTS: usize = 10;
/// Longest takeover, and longest way back.
pub const LIMIT: Duration = Duration::from_secs(20);
/// ms between advertisements.
const INTERVALS: [u32; 2] = [100, 1000];

/// What happens to the node that has the VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Killed,
    Hung,
    HostCut,
    Stopped,
}

const EVENTS: [(Event, &str); 4] = [
    (Event::Killed, "killed"),
    (Event::Hung, "hung (SIGSTOP)"),
    (Event::HostCut, "host cut off"),
    (Event::Stopped, "stopped cleanly"),
];

/// Two nodes with a VIP, of which the first is the stronger one.
pub trait Nodes {
    fn client(&self) -> &Host;
    fn watch(&self) -> &OwnerWatch;
    /// MAC addresses of the nodes.
    fn macs(&self) -> [[u8; 6]; 2];
    /// Both nodes are ready for the loss of the first, with so many connections.
    fn ready(&self, connections: usize) -> Result<()>;
    fn cause(&mut self, event: Event) -> Result<()>;
    /// Undoes it, and waits until the first node has the VIP again.
    fn restore(&mut self, event: Event) -> Result<()>;
}

/// Of one event: ms until the takeover, and connections broken, for each round.
type Found = [(Vec<f64>, Vec<f64>); 4];

pub fn takeover(effort: Effort, keepalived: bool) -> Result<Vec<Row>> {
    // They wait most of the time, and so all do at the same time.
    let mut runs = Vec::new();
    for interval in INTERVALS {
        let ours = move || measure(&mut Ours::start(interval), interval, effort);
        runs.push((interval, OURS, thread::spawn(ours)));
        if keepalived {
            let theirs = move || measure(&mut Theirs::start(interval)?, interval, effort);
            runs.push((interval, "keepalived + HAProxy", thread::spawn(theirs)));
        }
    }
    let found: Vec<(u32, &str, Result<Found>)> =
        runs.into_iter().map(|(interval, who, run)| (interval, who, crate::join(run))).collect();
    let mut rows = Vec::new();
    for interval in INTERVALS {
        for (number, (_, title)) in EVENTS.iter().enumerate() {
            let title = format!("{title}, advertised each {interval} ms");
            let mut took = Row::new("takeover", format!("{title}: the other node answers"), "ms");
            took = took.goal("≤ keepalived's");
            let mut broken = Row::new("takeover", format!("{title}: broken of {CLIENTS}"), "connections");
            broken = broken.goal("0");
            for (_, who, found) in found.iter().filter(|(of, ..)| *of == interval) {
                let found = found.as_ref().map_err(|error| anyhow!("{who}, {interval} ms: {error:#}"))?;
                took = took.cell(*who, found[number].0.clone());
                broken = broken.cell(*who, found[number].1.clone());
            }
            rows.extend([took, broken]);
        }
    }
    Ok(rows)
}

/// `interval` in ms.
fn measure(nodes: &mut impl Nodes, interval: u32, effort: Effort) -> Result<Found> {
    let mut found = Found::default();
    let rounds = effort.pick(1, 5);
    for round in 0..rounds {
        // When a pair is ready follows from its advertisements. Whoever is asked at the same time after one each round would be
        // measured by that: the rounds' events are spread over the interval between two.
        let later = Duration::from_millis(interval.into()) * round / rounds;
        for ((event, title), (took, broken)) in EVENTS.into_iter().zip(&mut found) {
            let vip = SocketAddr::from((VIP, CLIENT_PORT));
            let busy = eventually(LIMIT, "clients connect", || {
                BusyClients::start(nodes.client(), vip, CLIENTS, Duration::from_millis(10))
            })?;
            busy.wait_progress(5, LIMIT)?;
            nodes.ready(CLIENTS)?;
            thread::sleep(later);
            let since = Instant::now();
            nodes.cause(event).context(title)?;
            let other = nodes.macs()[1];
            let owned = eventually(LIMIT, "the other node answers", || {
                nodes.watch().first(other, since).ok_or_else(|| anyhow!("it does not"))
            })?;
            took.push((owned - since).as_secs_f64() * 1e3);
            // Those that are not broken go on.
            busy.wait_progress(3, LIMIT)?;
            broken.push(busy.broken() as f64);
            nodes.restore(event).with_context(|| format!("after it was {title}"))?;
            drop(busy);
        }
    }
    Ok(found)
}

/// A pair of ours that shares its flows.
struct Ours(Pair);

impl Ours {
    fn start(interval: u32) -> Self {
        let name = format!("ours{interval}");
        let mut pair = Pair::start(&name, &format!("{interval}ms"), 1);
        // It has clients of its own, which would be asked for after each event.
        pair.busy = None;
        pair.idle.clear();
        Self(pair)
    }
}

impl Nodes for Ours {
    fn client(&self) -> &Host {
        self.0.lab.host("client-1")
    }

    fn watch(&self) -> &OwnerWatch {
        &self.0.watch
    }

    fn macs(&self) -> [[u8; 6]; 2] {
        self.0.macs
    }

    fn ready(&self, connections: usize) -> Result<()> {
        self.0.wait_synced();
        eventually(LIMIT, "the backup has every flow", || {
            let used = self.0.nodes[1].status()?["flow_table"]["used"].as_u64();
            ensure!(used >= Some(connections as u64), "it has {used:?}");
            Ok(())
        })
    }

    fn cause(&mut self, event: Event) -> Result<()> {
        let node = &mut self.0.nodes[0];
        match event {
            Event::Killed => node.kill(),
            Event::Stopped => node.stop(),
            Event::HostCut => self.0.lab.plug("lb1", false),
            Event::Hung => node.process().map_or(Ok(()), |process| process.signal(Signal::SIGSTOP)),
        }
    }

    fn restore(&mut self, event: Event) -> Result<()> {
        let since = Instant::now();
        let node = &mut self.0.nodes[0];
        match event {
            Event::Killed | Event::Stopped => node.run()?,
            Event::HostCut => self.0.lab.plug("lb1", true)?,
            Event::Hung => node.process().map_or(Ok(()), |process| process.signal(Signal::SIGCONT))?,
        }
        self.0.wait_synced();
        self.0.wait_role(0, "active");
        self.0.wait_role(1, "backup");
        self.0.wait_owner(0, since);
        Ok(())
    }
}
